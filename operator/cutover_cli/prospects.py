"""What each gate still needs and when the next decision is to be expected, in words. Pure.

Stands on the operator's own forecast; the evidence ledger is as old as its last checkpoint, and every time said here
counts from that checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cutover.api.base import to_seconds
from cutover.api.modelrollout import ModelRolloutSpec, ModelRolloutStatus
from cutover_operator.evidence.ledger import Ledger
from cutover_operator.rollout.forecast import Forecast, forecast, requests_missing
from cutover_operator.rollout.gates import advance_names, named_gates, passed_steps
from cutover_operator.rollout.wording import span


@dataclass(frozen=True, slots=True)
class Prospects:
    """Lines on what is missing, and one on the next decision."""

    missing: tuple[str, ...]
    next_decision: str


def prospects(
    spec: ModelRolloutSpec,
    status: ModelRolloutStatus,
    ledger: Ledger,
    now: datetime,
    in_the_way: Sequence[str],
) -> Prospects:
    """`in_the_way` names what a person or another part has to mend first: no time can be told for it."""
    index = min(status.step, len(spec.steps) - 1)
    step = spec.steps[index]
    counted = datetime.fromtimestamp(ledger.written_at, UTC)
    needed = advance_names(spec, index, passed_steps(spec, status))
    told = [forecast(spec, index, ledger, gate, status.weight) for gate in named_gates(spec)]
    lines, times, unknown = [], [], list(in_the_way)
    heading_down = False

    more, per_second = requests_missing(spec, index, ledger)
    if more > 0:
        kind = "mirrored requests" if step.shadow is not None else "requests"
        if per_second > 0:
            at = counted + timedelta(seconds=more / per_second)
            times.append((at, f"{more:.0f} more {kind}"))
            lines.append(
                f"{more:.0f} more {kind} in this step, at {3600 * per_second:.3g} an hour {_when(at, now)}"
            )
        else:
            unknown.append(f"no {kind} come in")
            lines.append(f"{more:.0f} more {kind} in this step; none come in at present")
    if status.step_confirmed_at:
        ready = datetime.fromisoformat(status.step_confirmed_at) + timedelta(
            seconds=to_seconds(step.min_duration)
        )
        if ready > now:
            times.append((ready, f"the step's least duration {step.min_duration}"))
            lines.append(f"{span((ready - now).total_seconds())} of its least duration {step.min_duration}")
    for one in told:
        if one.gate.name not in needed or one.now.verdict == "pass":
            continue
        lines.append(gate_line(one, counted, now))
        if one.verdict == "pass" and one.seconds is not None:
            at = counted + timedelta(seconds=one.seconds)
            times.append((at, f"gate {one.gate.name}{' ' + one.assumed if one.assumed else ''}"))
        elif one.verdict == "fail":
            heading_down = True
        elif one.verdict is None:
            unknown.append(f"gate {one.gate.name}: {_stuck(one)}")
    return Prospects(tuple(lines), _decision(told, times, unknown, counted, now, heading_down))


def gate_line(one: Forecast, counted: datetime, now: datetime) -> str:
    """A gate's numbers, what it still needs and when that should be there."""
    what = one.now.message.partition(";")[0]
    head = f"gate {one.gate.name} " + {"unavailable": "cannot be judged", "fail": "fails"}.get(
        one.now.verdict, "has too little evidence"
    )
    if one.now.verdict != "insufficient":
        return f"{head}: {one.now.message}"
    tail = []
    if one.first_seconds > 0:
        due = counted + timedelta(seconds=one.first_seconds)
        tail.append(f"the first {one.unit} come due {_when(due, now)}")
    if one.more is not None and one.seconds is not None:
        at = counted + timedelta(seconds=one.seconds)
        kind = "to pass" if one.verdict == "pass" else "to fail"
        like = "" if one.assumed else " like these"
        condition = f" {one.assumed}" if one.assumed else ""
        tail.append(f"about {max(1.0, one.more):.0f} more {one.unit}{like} {kind}{condition}")
        tail.append(f"at {one.per_hour:.3g} an hour {_when(at, now)}")
    else:
        tail.append(_stuck(one))
    return f"{head}: {what}; {', '.join(tail)}"


def _stuck(one: Forecast) -> str:
    if one.why:
        return one.why
    if one.per_hour <= 0:
        return f"no {one.unit} come in, so no time can be told"
    return f"at {one.per_hour:.3g} {one.unit} an hour like these neither proof comes within 90 days"


def _decision(
    told: Sequence[Forecast],
    times: Sequence[tuple[datetime, str]],
    unknown: Sequence[str],
    counted: datetime,
    now: datetime,
    heading_down: bool,
) -> str:
    """`heading_down`: a gate the step needs is on its way to fail, so the step will not be left by passing."""
    failing = [one for one in told if one.verdict == "fail" and one.seconds is not None and not one.assumed]
    first = min(failing, key=lambda one: one.seconds or 0.0, default=None)
    ready, last = max(times, default=(now, "the next look"))
    if first is not None:
        at = counted + timedelta(seconds=first.seconds or 0.0)
        if heading_down or unknown or at <= ready:
            return f"Next decision expected {_when(at, now)}: a rollback, if gate {first.gate.name} goes on like this."
    if unknown:
        earliest = f" Not before {_clock(ready, now)}." if ready > now else ""
        return f"When the next decision comes cannot be told: {'; '.join(unknown)}.{earliest}"
    return f"Next decision expected {_when(ready, now)}; what comes last is {last}."


def _when(at: datetime, now: datetime) -> str:
    left = (at - now).total_seconds()
    return f"around {_clock(at, now)} (in {span(left)})" if left >= 1 else "at the next look"


def _clock(at: datetime, now: datetime) -> str:
    utc = at.astimezone(UTC)
    same_day = utc.date() == now.astimezone(UTC).date()
    return f"{utc:%H:%M} UTC" if same_day else f"{utc:%Y-%m-%d %H:%M} UTC"
