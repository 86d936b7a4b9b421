"""What a rollout teaches for the next one: fixed rules over its record. Pure.

Each rule looks at the facts and says one sentence or nothing; none of them guesses at causes it has no numbers for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime

from cutover.api.base import to_seconds
from cutover.api.modelrollout import ModelRolloutSpec, ModelRolloutStatus, Step, StepRecord
from cutover_operator.evidence.ledger import Ledger
from cutover_operator.rollout.accounts import DEPENDENCY_GOAL, SAVING_GOAL, bill, dependency, is_hosted
from cutover_operator.rollout.counts import answered, label_counts
from cutover_operator.rollout.gates import advance_names, named_gates, passed_steps
from cutover_operator.rollout.wording import percent, span

MISSING_SHARE = 0.10
"""Share of sampled requests without a label from which it is worth a sentence."""
KEPT_FOR_COST = 0.85
"""Share the candidate must answer itself before the cost of the deferred answers stops mattering."""
SLOW_EVIDENCE = 1.5
"""A step that took longer than this times its least duration is worth a sentence."""


@dataclass(frozen=True, slots=True)
class Facts:
    """The record of one rollout. `as_of` stands in for the end of what has not ended."""

    spec: ModelRolloutSpec
    status: ModelRolloutStatus
    ledger: Ledger | None
    as_of: datetime


@dataclass(frozen=True, slots=True)
class Stay:
    """One stay at one step."""

    record: StepRecord
    step: Step | None
    """None when the spec has no such step any more."""
    seconds: float

    @property
    def least_seconds(self) -> float:
        return to_seconds(self.step.min_duration) if self.step is not None else 0.0


def stays(facts: Facts) -> list[Stay]:
    found = []
    for record in facts.status.steps:
        left = datetime.fromisoformat(record.left_at) if record.left_at else facts.as_of
        spent = max(0.0, (left - datetime.fromisoformat(record.entered_at)).total_seconds())
        steps = facts.spec.steps
        found.append(Stay(record, steps[record.index] if record.index < len(steps) else None, spent))
    return found


def lessons(facts: Facts) -> list[str]:
    """Sentences, the most useful first; empty when nothing is worth saying."""
    return [text for rule in RULES for text in rule(facts)]


# ---------------------------------------------------------------- rules
def _what_took_longest(facts: Facts) -> Iterable[str]:
    """Time beyond a step's least duration was spent on evidence: on labels where the step needed them."""
    all_stays = stays(facts)
    total = sum(stay.seconds for stay in all_stays)
    if total <= 0:
        return
    waited: dict[str, float] = {"labels": 0.0, "answers": 0.0}
    clock = 0.0
    for stay in all_stays:
        clock += min(stay.seconds, stay.least_seconds)
        waited[_awaited(facts, stay)] += max(0.0, stay.seconds - stay.least_seconds)
    what, seconds = max(waited.items(), key=lambda item: item[1])
    if seconds >= clock and seconds > 0:
        remedy = (
            "more labels an hour (analysis.labels.perHour), or a larger shadow share, is what would shorten it"
            if what == "labels"
            else "more traffic at the early steps is what would shorten it"
        )
        yield f"{what.capitalize()} were what took longest: {percent(seconds / total)} of {span(total)}; {remedy}."
    elif facts.status.finish == "Promoted":
        least = f"least durations took {percent(clock / total)} of {span(total)}"
        yield f"Time, not evidence, set the pace: the {least}; shorter ones would have been safe with these numbers."


def _awaited(facts: Facts, stay: Stay) -> str:
    if stay.step is None:
        return "answers"
    position = facts.status.steps.index(stay.record)
    needed = advance_names(
        facts.spec, stay.record.index, passed_steps(facts.spec, facts.status, before=position)
    )
    labels = any(gate.name in needed and gate.metric == "accuracy" for gate in named_gates(facts.spec))
    return "labels" if labels else "answers"


def _slowest_step(facts: Facts) -> Iterable[str]:
    slow = [s for s in stays(facts) if s.least_seconds and s.seconds > SLOW_EVIDENCE * s.least_seconds + 60]
    if len(stays(facts)) > 1 and slow:
        worst = max(slow, key=lambda stay: stay.seconds)
        yield (
            f"The step {worst.record.name} took {span(worst.seconds)} where {span(worst.least_seconds)} "
            f"was the least."
        )


def _users_who_were_served(facts: Facts) -> Iterable[str]:
    if facts.status.finish != "RolledBack" or facts.ledger is None:
        return
    served = answered(facts.ledger.totals, "candidate")
    if served == 0:
        yield "It was stopped before the candidate had answered a single user: the shadow step paid for itself."
        return
    before = any(step.shadow is not None for step in facts.spec.steps)
    remedy = "" if before else "; a shadow step first would have judged it on mirrored requests"
    yield f"The candidate had answered {served:,.0f} requests of users when it was stopped{remedy}."


def _missing_labels(facts: Facts) -> Iterable[str]:
    if facts.ledger is None:
        return
    fields = {gate.field for gate in named_gates(facts.spec) if gate.metric == "accuracy"}
    for field in sorted(fields):
        right, wrong, missing = label_counts(facts.ledger.totals, "candidate", field)
        n = right + wrong + missing
        if n and missing / n >= MISSING_SHARE:
            yield (
                f"{percent(missing / n)} of {n:,.0f} sampled requests had no label when they came due ({field}). "
                "They count against the candidate where it is to be proven good: give reviewers longer "
                "(analysis.labels.deadline) or sample less (analysis.labels.perHour)."
            )
            return


def _by_hand(facts: Facts) -> Iterable[str]:
    for record in facts.status.steps:
        if record.outcome == "Skipped" or (record.outcome == "Promoted" and "by request" in record.message):
            yield f"{record.name} was left by hand, not because it was proven ({record.message})."


def _incidents(facts: Facts) -> Iterable[str]:
    if facts.ledger is not None and facts.ledger.incidents:
        n = facts.ledger.incidents
        yield (
            f"{n} shared incident{'s' if n > 1 else ''} hit both arms; each made the tests of errors and latency "
            "begin anew with half of the risk that was left."
        )


def _evidence_quality(facts: Facts) -> Iterable[str]:
    ledger = facts.ledger
    if ledger is None:
        return
    if ledger.epoch > 1:
        yield f"Evidence was begun anew {ledger.epoch - 1} time{'s' if ledger.epoch > 2 else ''}: after a retry or a changed candidate nothing earlier counts."
    if ledger.lost_tails:
        yield (
            f"Gateways restarted or vanished ({ledger.resets} counter resets, {ledger.lost_tails - ledger.resets} series ended): what they "
            "counted after their last scrape is not in these numbers."
        )
    if ledger.refused:
        yield f"{ledger.refused} samples were no counts (NaN, infinite or negative) and were left out."


def _cost(facts: Facts) -> Iterable[str]:
    if facts.ledger is None or not is_hosted(facts.ledger.control):
        return
    account, who = bill(facts.ledger.totals), dependency(facts.ledger.totals)
    if account.saved_share is not None and account.saved_share < SAVING_GOAL:
        yield f"An answer of the candidate saves {percent(account.saved_share)} of the control's price; the goal is {percent(SAVING_GOAL)}."
    kept = who.kept_share
    if who.deferred and kept is not None and kept < KEPT_FOR_COST:
        yield (
            f"The candidate answered {percent(kept)} of its requests itself; below about {percent(KEPT_FOR_COST)} "
            "the answers it hands on decide the cost."
        )


def _dependency(facts: Facts) -> Iterable[str]:
    if facts.ledger is None or facts.status.finish != "Promoted" or not is_hosted(facts.ledger.control):
        return
    share = dependency(facts.ledger.since_step(facts.status.step)).hosted_share
    if share is not None and share > DEPENDENCY_GOAL:
        yield f"The hosted model still gives {percent(share)} of the answers since the promotion; the goal is at most {percent(DEPENDENCY_GOAL)}."


def _undecided(facts: Facts) -> Iterable[str]:
    if facts.status.finish is not None:
        return
    for gate in facts.status.gates:
        if "wrong side" in gate.message or "exactly at the limit" in gate.message:
            yield (
                f"Gate {gate.name} is too near its limit for either proof: decide whether to wait, to move the limit, "
                "or to abort; more of the same evidence may never settle it."
            )


Rule = Callable[[Facts], Iterable[str]]
RULES: tuple[Rule, ...] = (
    _what_took_longest,
    _slowest_step,
    _users_who_were_served,
    _missing_labels,
    _undecided,
    _by_hand,
    _incidents,
    _evidence_quality,
    _cost,
    _dependency,
)
