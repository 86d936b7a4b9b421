"""Why a rollout is where it is, and what is missing for its next step. Pure.

Reads what the operator wrote down; decides nothing by itself. With the evidence ledger it also says how much each
gate still needs and when the next decision is to be expected; without it, what stands in the status.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from pydantic import ValidationError

from cutover.api.modelrollout import GateStatus, ModelRolloutSpec, ModelRolloutStatus
from cutover_cli import trouble
from cutover_cli.layout import age
from cutover_cli.prospects import Prospects, prospects
from cutover_cli.rollout_view import status_of, step_title, steps_of
from cutover_cli.trouble import seconds
from cutover_operator.evidence.ledger import Ledger
from cutover_operator.rollout.gates import advance_names, named_gates, passed_steps
from cutover_operator.rollout.wording import number, span

Object = Mapping[str, Any]
ENDINGS = {
    "Promoted": ("promoted", "it answers all requests"),
    "RolledBack": ("rolled back", "every request goes to the control again"),
    "Aborted": ("aborted by request", "every request goes to the control again"),
    "Superseded": ("superseded", "another rollout has taken the gateway"),
}


def explain(obj: Object, now: datetime, ledger: Ledger | None = None) -> str:
    """A few sentences and a list. `ledger` is the evidence as of its last checkpoint."""
    status, spec, name = status_of(obj), obj.get("spec") or {}, obj["metadata"]["name"]
    stale = trouble.stale(obj, status, ledger, now)
    if status.finish:
        return "\n".join(_ended(name, obj, status, stale, now))
    steps = steps_of(obj)
    step: Object = steps[status.step] if status.step < len(steps) else {}
    said = [_where(name, status, step, len(steps), now)]
    if status.message:
        said.append(f"The operator says: {status.message}")
    in_the_way = [
        *stale,
        *trouble.orders(spec),
        *trouble.conditions(spec, status),
        *trouble.unseen(obj, status),
        *_route(status),
    ]
    outdated = [*stale, *trouble.outdated(obj["metadata"], status)]
    ahead = None if outdated else _ahead(spec, status, ledger, now, in_the_way)
    if ahead is None:
        missing = in_the_way + _time(status, step, now) + _gates(spec, status)
    else:
        missing = [*in_the_way, *_unconfirmed(status, step), *ahead.missing]
    if missing:
        said += ["", "Missing for the next step:", *(f"  - {text}" for text in missing)]
    elif status.step_entered_at:
        said += ["", "Nothing is missing: the next look should take the next step."]
    closing = _next(status, step, steps, now)
    away = trouble.away(spec, status)
    if outdated and status.step_entered_at:
        closing.append(f"When the next decision comes cannot be told: {'; '.join(outdated)}.")
    elif away is not None:
        # What the gates would need has to wait: no look gets as far as them.
        closing += away.lines(now)
    elif ahead is not None:
        closing.append(ahead.next_decision)
    return "\n".join([*said, "", *closing]).rstrip()


def _ahead(
    spec: Object,
    status: ModelRolloutStatus,
    ledger: Ledger | None,
    now: datetime,
    in_the_way: Sequence[str],
) -> Prospects | None:
    """None while there is nothing to foretell from."""
    if ledger is None or not status.step_entered_at or not ledger.written_at:
        return None
    try:
        known = ModelRolloutSpec.model_validate(spec)
    except ValidationError:
        return None
    unconfirmed = [] if status.step_confirmed_at else ["the step is not in force and counted everywhere yet"]
    return prospects(known, status, ledger, now, [*in_the_way, *unconfirmed])


def _ended(
    name: str, obj: Object, status: ModelRolloutStatus, stale: Sequence[str], now: datetime
) -> list[str]:
    """What ended it, and what is so now: after an end the reason in the status is that of the last look."""
    word, meaning = ENDINGS.get(str(status.finish), (str(status.finish), ""))
    when = f" {age(status.finished_at, now)} ago" if status.finished_at else ""
    promoted, blind = status.finish == "Promoted", trouble.blind(status, now)
    if promoted and not blind:
        meaning += ", and its rollback gates stay on watch"
    said = [f"{name} was {word}{when}{': ' if meaning else ''}{meaning}."]
    last = status.steps[-1] if status.steps else None
    live = f"{status.reason}{': ' if status.reason and status.message else ''}{status.message}"
    end = (last.message if last is not None else "") if promoted else _reason_of_end(status) or live
    if end:
        said.append(f"Why: {end}")
    said += [f"  - gate {gate.name} failed: {_numbers(gate)}" for gate in _failed(status) if not promoted]
    if last is not None:
        tail = f": {last.message}" if last.message and not promoted else ""
        said.append(f"Last step: {last.name}, {last.outcome}{tail}")
    present = [blind] if promoted and blind else []
    present += [live] if live and live != end else []
    if promoted:
        # Metrics that are away are said once, not again by their condition and by every gate.
        troubles = trouble.conditions(obj.get("spec") or {}, status)
        present += [text for text in troubles if not (blind and text.startswith("MetricsAvailable"))]
        known = [gate for gate in status.gates if not (blind and gate.verdict == "unavailable")]
        present += [f"gate {gate.name}: {gate.verdict}: {_numbers(gate)}" for gate in known]
    present += [*stale, *trouble.unseen(obj, status)]
    if present:
        said += ["", "Now:", *(f"  - {text}" for text in present)]
    if status.finish in ("RolledBack", "Aborted"):
        said += ["", "To start again with the same spec: kubectl cutover retry " + name]
    return said


def _reason_of_end(status: ModelRolloutStatus) -> str:
    """The operator keeps it in a condition, whatever it says of later looks."""
    found = next((one for one in status.conditions if one.type == "RolledBack"), None)
    if found is None or not found.message:
        return ""
    return f"{found.reason}: {found.message}"


def _failed(status: ModelRolloutStatus) -> list[GateStatus]:
    return [gate for gate in status.gates if gate.verdict == "fail"]


def _where(name: str, status: ModelRolloutStatus, step: Object, count: int, now: datetime) -> str:
    if not status.step_entered_at:
        return f"{name} is {status.phase}: no step has begun."
    since = age(status.step_entered_at, now)
    return f"{name} is {status.phase} at step {status.step + 1} of {count} ({step_title(step)}) for {since}."


def _route(status: ModelRolloutStatus) -> list[str]:
    behind = [one.pod for one in status.gateways if one.generation < status.route_generation]
    if not behind:
        return []
    return [f"route generation {status.route_generation} is not in force on {', '.join(behind)}"]


def _unconfirmed(status: ModelRolloutStatus, step: Object) -> list[str]:
    if status.step_confirmed_at:
        return []
    least = span(seconds(step.get("minDuration", "1h")))
    return [f"the step's {least} count from when every gateway serves it and is read; that is not yet so"]


def _time(status: ModelRolloutStatus, step: Object, now: datetime) -> list[str]:
    least = seconds(step.get("minDuration", "1h"))
    if not status.step_entered_at:
        return []
    if not status.step_confirmed_at:
        return _unconfirmed(status, step)
    left = least - (now - datetime.fromisoformat(status.step_confirmed_at)).total_seconds()
    return [f"{span(left)} of its least duration {span(least)}"] if left > 0 else []


def _gates(spec: Object, status: ModelRolloutStatus) -> list[str]:
    wanted = _wanted_gates(spec, status)
    texts = []
    for gate in status.gates:
        if gate.verdict == "pass" or gate.name not in wanted:
            continue
        why = {"insufficient": "has too little evidence", "unavailable": "cannot be judged"}.get(
            gate.verdict, "fails"
        )
        texts.append(f"gate {gate.name} {why}: {_numbers(gate)}")
    known = {gate.name for gate in status.gates}
    texts += [f"gate {name} has not been judged yet" for name in wanted if name not in known]
    return texts


def _wanted_gates(spec: Object, status: ModelRolloutStatus) -> list[str]:
    """Names of the gates this step needs, by the operator's own rule; of an unknown spec, all that are judged."""
    try:
        known = ModelRolloutSpec.model_validate(spec)
    except ValidationError:
        return [gate.name for gate in status.gates]
    here = min(status.step, len(known.steps) - 1)
    needed = advance_names(known, here, passed_steps(known, status))
    return [gate.name for gate in named_gates(known) if gate.name in needed]


def _numbers(gate: GateStatus) -> str:
    if gate.message:
        return gate.message
    limit = f", limit {number(gate.limit)}" if gate.limit is not None else ""
    return f"{number(gate.value)}{limit}, n={gate.samples}"


def _next(status: ModelRolloutStatus, step: Object, steps: Sequence[Object], now: datetime) -> list[str]:
    if not status.step_entered_at:
        return []
    after = status.step + 1
    target = step_title(steps[after]) if after < len(steps) else "promotion"
    said = [f"Next: {target}."]
    deadline = step.get("deadline")
    if deadline:
        passed = (now - datetime.fromisoformat(status.step_entered_at)).total_seconds()
        left = seconds(deadline) - passed
        action = step.get("onDeadline", "hold")
        when = f"in {span(left)}" if left > 0 else f"since {span(-left)}"
        said.append(f"Deadline of this step: {when}, then {action}.")
    return said
