"""What a request adds to the label totals once its deadline has passed. Decides from values; no clock, no database.

The rules:
- a label counts when it was given by the deadline; of one labeller the last one, of several the majority per field,
  and between equal counts the value whose newest label is newest;
- the chosen arm is judged when it was asked, and the candidate's mirrored answer when it arrived in time;
- an arm that was asked and gave no valid answer is wrong wherever there is a label; one that was not asked, its breaker
  open, is neither right nor wrong: that is a matter of its error rate;
- a field without a label is missing, for every arm alike: the arm's answer never decides whether it is counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cutover.contract import FIELD_OVERALL, confidence_bin
from cutover.records import NOT_ASKED
from cutover.task import Task, score


@dataclass(frozen=True, slots=True)
class Label:
    labeller: str
    values: Mapping[str, str]
    labelled_at: float


@dataclass(frozen=True, slots=True)
class Request:
    """The part of a stored request that its maturity depends on."""

    chosen: str
    outcome: str
    control: Mapping[str, Any] | None
    candidate: Mapping[str, Any] | None
    shadow: Mapping[str, Any] | None = None
    shadow_kept: bool = True
    """Whether the mirrored answer was sure enough to be given to somebody."""


@dataclass(frozen=True, slots=True)
class Judged:
    """An answer that labels are compared with."""

    arm: str
    version: str
    answer: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class Result:
    arm: str
    version: str
    field: str
    result: str
    """One of `contract.LABEL_RESULTS`."""


def judged_answers(request: Request) -> list[Judged]:
    """The answers of a request that count for their arms.

    A request the client got wrong counts for nobody. A deferred answer was not kept, so it is not judged, and neither
    is a mirrored one that would have been deferred.
    """
    if request.outcome == "rejected":
        return []
    judged: list[Judged] = []
    if request.chosen == "control":
        if request.control is not None and _was_asked(request.control):
            judged.append(_judged("control", request.control))
        mirrored = mirrored_answer(request)
        if mirrored is not None and request.shadow_kept:
            judged.append(_judged("candidate", mirrored))
    elif request.candidate is not None and request.outcome != "deferred" and _was_asked(request.candidate):
        judged.append(_judged("candidate", request.candidate))
    return judged


def mirrored_answer(request: Request) -> Mapping[str, Any] | None:
    """The candidate's answer to a request the control answers. A gateway that has it in time may put it into the
    record itself."""
    return request.shadow or request.candidate if request.chosen == "control" else None


def counts_as_shadow(arrived_at: float, due_at: float, stored_at: float) -> bool:
    """Whether a mirrored answer came in time: by the deadline, or with a record that was itself delivered late."""
    return arrived_at <= max(due_at, stored_at)


def prevailing(labels: Iterable[Label], by: float | None = None) -> dict[str, str]:
    """The truth according to the labels given by a moment; labels in the order they were given."""
    last: dict[str, tuple[int, Label]] = {}
    for order, label in enumerate(labels):
        if by is None or label.labelled_at <= by:
            last[label.labeller] = (order, label)
    votes: dict[str, dict[str, tuple[int, int]]] = {}
    for order, label in last.values():
        for field, value in label.values.items():
            count, newest = votes.setdefault(field, {}).get(value, (0, -1))
            votes[field][value] = (count + 1, max(newest, order))
    return {field: max(values, key=lambda value: values[value]) for field, values in sorted(votes.items())}


def results(task: Task, request: Request, truth: Mapping[str, str]) -> list[Result]:
    """What the request adds to the totals: one result per judged answer and field."""
    found: list[Result] = []
    for judged in judged_answers(request):
        right = score(task, judged.answer, truth)
        for field in (*task.scored_fields, FIELD_OVERALL):
            verdict = "missing" if field not in right else "right" if right[field] else "wrong"
            found.append(Result(judged.arm, judged.version, field, verdict))
    return found


def pair_results(task: Task, request: Request, truth: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """(version of the candidate, field, one of `contract.PAIR_RESULTS`) where both models answered one request.

    A mirrored answer that would have been deferred makes no pair: its place would have been taken by the fallback's.
    """
    mirrored = mirrored_answer(request)
    if (
        request.outcome == "rejected"
        or mirrored is None
        or request.control is None
        or not request.shadow_kept
    ):
        return []
    mine, theirs = _judged("candidate", mirrored), _judged("control", request.control)
    right, control_right = score(task, mine.answer, truth), score(task, theirs.answer, truth)
    names = {(True, True): "both", (True, False): "candidate", (False, True): "control"}
    return [
        (
            mine.version,
            field,
            names.get((right[field], control_right[field]), "neither") if field in right else "missing",
        )
        for field in (*task.scored_fields, FIELD_OVERALL)
    ]


def confidence_results(
    task: Task, request: Request, truth: Mapping[str, str]
) -> list[tuple[str, str, str, str]]:
    """(version, field, bin, result) of the candidate's valid answer, whatever became of it: kept, deferred, mirrored.

    This is the sample a threshold is chosen by, so routing must not have had a hand in it.
    """
    answer = mirrored_answer(request) if request.chosen == "control" else request.candidate
    judged = _judged("candidate", answer) if answer is not None else None
    if request.outcome == "rejected" or answer is None or judged is None or judged.answer is None:
        return []
    confidence = answer.get("confidence")
    sure = confidence_bin(float(confidence) if isinstance(confidence, int | float) else None)
    right = score(task, judged.answer, truth)
    return [
        (
            judged.version,
            field,
            sure,
            "missing" if field not in right else "right" if right[field] else "wrong",
        )
        for field in (*task.scored_fields, FIELD_OVERALL)
    ]


def double_results(task: Task, labels: Iterable[Label], by: float) -> list[tuple[str, str]]:
    """(field, same or different): what the first two people said, each in their last word before the deadline.

    Nothing before two people have labelled. A field only one of them named is left out.
    """
    last: dict[str, Mapping[str, str]] = {}
    for label in labels:
        if label.labelled_at <= by:
            last[label.labeller] = label.values
    if len(last) < 2:
        return []
    one, other = list(last.values())[:2]
    said = {
        field: one[field] == other[field] for field in task.scored_fields if field in one and field in other
    }
    if len(said) == len(task.scored_fields):
        said[FIELD_OVERALL] = all(said.values())
    return [(field, "same" if same else "different") for field, same in said.items()]


def check_labels(task: Task, values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What is wrong with a person's label: field, value and what is allowed. Empty when nothing is."""
    problems: list[dict[str, Any]] = [
        _problem(field, value, list(task.scored_fields), f"{field!r} is not a scored field")
        for field, value in values.items()
        if field not in task.scored_fields
    ]
    for field in task.scored_fields:
        allowed = task.classes(field)
        if field in values and values[field] not in allowed:
            problems.append(
                _problem(field, values[field], allowed, f"{values[field]!r} is not a class of {field}")
            )
    if not values:
        fields: Sequence[str] = task.scored_fields
        problems.append(_problem("labels", values, list(fields), "a label needs at least one field"))
    return problems


def _problem(field: str, value: Any, allowed: list[str], what: str) -> dict[str, Any]:
    return {"field": field, "value": value, "allowed": allowed, "message": f"{what}; use one of {allowed}"}


def _was_asked(answer: Mapping[str, Any]) -> bool:
    return not str(answer.get("error", "")).partition(": ")[2].startswith(NOT_ASKED)


def _judged(arm: str, answer: Mapping[str, Any]) -> Judged:
    valid = answer.get("answer")
    return Judged(arm, str(answer.get("version", "")), valid if isinstance(valid, Mapping) else None)
