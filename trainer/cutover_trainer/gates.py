"""The gates of an evaluation: whether they name what the task has, and which of them a model misses. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from cutover.api.trainingrun import EvaluationGate
from cutover.contract import FIELD_OVERALL
from cutover.task import Task
from cutover_trainer.measures import (
    Judged,
    Share,
    accuracy_shares,
    json_validity,
    macro_f1,
    recalls,
)


def gate_mistakes(task: Task, gates: Sequence[EvaluationGate]) -> list[str]:
    """One sentence for every gate that is about nothing the task has; known before anything is trained."""
    return [mistake for gate in gates if (mistake := _mistake(task, gate)) is not None]


def _mistake(task: Task, gate: EvaluationGate) -> str | None:
    known = [*task.scored_fields, *([FIELD_OVERALL] if gate.metric == "accuracy" else [])]
    field = gate.field or task.decisive_field
    if gate.metric == "jsonValidity":
        return None
    if field not in known:
        return f"field {field!r} of a {gate.metric} gate is none of {', '.join(known)}"
    if gate.metric == "recall" and gate.class_ not in task.classes(field):
        return (
            f"class {gate.class_!r} of a recall gate is no {field}; it knows {', '.join(task.classes(field))}"
        )
    return None


def missed_gates(task: Task, gates: Sequence[EvaluationGate], judged: Sequence[Judged]) -> list[str]:
    """One sentence for every gate that is not reached. Every gate must be about something the task has."""
    missed: list[str] = []
    for gate in gates:
        name, reached = _reached(task, gate, judged)
        if reached.n == 0:
            missed.append(f"{name} is unknown: no test row to tell, wanted {gate.min:g}")
        elif reached.value < gate.min:
            missed.append(
                f"{name} is {reached.value:.3f} ({reached.low:.3f} to {reached.high:.3f}, {reached.n} rows), "
                f"wanted {gate.min:g}"
            )
    return missed


def _reached(task: Task, gate: EvaluationGate, judged: Sequence[Judged]) -> tuple[str, Share]:
    field = gate.field or task.decisive_field
    if gate.metric == "jsonValidity":
        return "jsonValidity", json_validity(judged)
    if gate.metric == "accuracy":
        field = gate.field or FIELD_OVERALL
        nothing = Share(0, 0.0, 0.0, 1.0)
        return f"accuracy of {field}", accuracy_shares(task, judged).get(field, nothing)
    if gate.metric == "macroF1":
        return f"macroF1 of {field}", macro_f1(task, judged, field)
    return f"recall of {gate.class_}", recalls(task, judged, field)[str(gate.class_)]
