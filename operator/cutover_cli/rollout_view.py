"""A ModelRollout as text for a terminal. Pure: the object, its events and the time in, text out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from pydantic import ValidationError

from cutover.api.modelrollout import GateStatus, ModelRolloutStatus, StepRecord
from cutover_cli.errors import Refused
from cutover_cli.layout import age, columns, condition_rows, event_rows, fields, table, tree
from cutover_operator.rollout.wording import number

Object = Mapping[str, Any]
NEWER = "written by a newer operator; update kubectl-cutover"
VERDICT_MARK = {"pass": "✔", "fail": "✖", "insufficient": "…", "unavailable": "?"}


class UnknownStatus(Refused):
    """A status or a spec that this version cannot read."""


def status_of(obj: Object) -> ModelRolloutStatus:
    """The status, also of a newer operator: what is not known is left out. Raises UnknownStatus where a field that is known
    has a value that is not."""
    wire = obj.get("status") or {}
    try:
        return ModelRolloutStatus.model_validate(wire)
    except ValidationError as error:
        wrong = error.errors(include_url=False)[0]
        where = ".".join(["status", *(str(part) for part in wrong["loc"])])
        name = (obj.get("metadata") or {}).get("name", "")
        raise UnknownStatus(
            f"{where} of {name} is {wrong['input']!r}: it was {NEWER} ({wrong['msg']})"
        ) from None


def steps_of(obj: Object) -> list[Object]:
    """Raises UnknownStatus when spec.steps is no list of steps."""
    steps = (obj.get("spec") or {}).get("steps") or []
    if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
        name = (obj.get("metadata") or {}).get("name", "")
        raise UnknownStatus(
            f"spec.steps of {name} is {str(steps)[:60]!r}, not a list of steps with shadow or weight; mend it, or update "
            "kubectl-cutover"
        )
    return steps


def step_title(step: Object) -> str:
    """`shadow 20 %` or `weight 25 %`."""
    kind = "shadow" if step.get("shadow") is not None else "weight"
    return f"{kind} {step.get(kind)} %"


def view(obj: Object, events: Sequence[Object], now: datetime) -> str:
    """Head, gates, steps, conditions and events of one rollout."""
    status, spec, meta = status_of(obj), obj.get("spec") or {}, obj["metadata"]
    parts = [
        fields(_head(meta, spec, steps_of(obj), status, now)),
        tree("Gates", table([_gate_row(gate) for gate in status.gates])),
        tree("Steps", table(_step_rows(steps_of(obj), status, now))),
        tree("Gateways", table(_gateway_rows(status))),
        tree("Conditions", table(condition_rows(status.conditions, now))),
        tree("Events", table(event_rows(events, now))),
    ]
    return "\n\n".join(part for part in parts if part)


def _head(
    meta: Object, spec: Object, steps: Sequence[Object], status: ModelRolloutStatus, now: datetime
) -> list[tuple[str, str]]:
    entered, confirmed = status.step_entered_at, status.step_confirmed_at
    times = [f"entered {age(entered, now)} ago"] if entered else []
    if confirmed:
        times.append(f"in force for {age(confirmed, now)}")
    elif entered and not status.finish:
        times.append("not in force and counted everywhere yet")
    step = (
        f"{status.step + 1}/{len(steps)} {step_title(steps[status.step])}" if status.step < len(steps) else ""
    )
    weight = f"set {status.weight} %, actual {_percent(status.actual_weight)}"
    if status.shadow:
        weight += f"; shadow {status.shadow} %"
    request = spec.get("request") or {}
    order = f"{request.get('action')} ({request.get('id')})" if request else ""
    if request:
        order += ", carried out" if request.get("id") == status.handled_request else ", not seen yet"
    flags = ", ".join(name for name in ("freeze", "hold") if spec.get(name))
    return [
        (
            "Name",
            f"{meta['name']}  (namespace {meta.get('namespace', '')}, gateway {spec.get('gatewayRef', '')})",
        ),
        ("Phase", status.phase + (f"  {age(status.finished_at, now)} ago" if status.finished_at else "")),
        ("Step", f"{step}  ({', '.join(times)})" if times else step),
        ("Weight", weight),
        ("Candidate", status.candidate_version),
        ("Control", status.control_version),
        ("Accuracy", status.accuracy_text),
        ("Kept answers", status.routing.message if status.routing is not None else ""),
        ("Verdict", f"{status.verdict}  {status.reason}".strip()),
        ("", status.message),
        ("Set by hand", flags),
        ("Request", order),
    ]


def _percent(actual: str) -> str:
    if not actual:
        return "not observed yet"
    return actual if actual.endswith("%") else f"{actual} %"


def _gate_row(gate: GateStatus) -> list[str]:
    numbers = f"{number(gate.value)}" + (f" (limit {number(gate.limit)})" if gate.limit is not None else "")
    mark = f"{VERDICT_MARK.get(gate.verdict, ' ')} {gate.name}"
    return [mark, gate.verdict, numbers, f"n={gate.samples}", gate.message]


def _step_rows(steps: Sequence[Object], status: ModelRolloutStatus, now: datetime) -> list[list[str]]:
    records: dict[int, StepRecord] = {record.index: record for record in status.steps}
    rows = []
    for index, step in enumerate(steps):
        record = records.get(index)
        if index == status.step and status.step_entered_at and not status.finish:
            mark, note = (
                "●",
                f"since {age(status.step_entered_at, now)}, at least {step.get('minDuration', '1h')}",
            )
        elif record is None:
            mark, note = "○", f"at least {step.get('minDuration', '1h')}"
        else:
            mark = "✔" if record.outcome in ("passed", "Promoted") else "■"
            spent = age(record.entered_at, _moment(record.left_at, now))
            note = f"{record.outcome or 'left'} after {spent}" + (
                f": {record.message}" if record.message else ""
            )
        rows.append([f"{mark} {step_title(step)}", note])
    return rows


def _moment(text: str | None, otherwise: datetime) -> datetime:
    return datetime.fromisoformat(text) if text else otherwise


def _gateway_rows(status: ModelRolloutStatus) -> list[list[str]]:
    wanted = status.route_generation
    return [
        [
            report.pod,
            f"generation {report.generation}" + ("" if report.generation >= wanted else f", wanted {wanted}"),
        ]
        for report in status.gateways
    ]


def list_view(objects: Sequence[Object], now: datetime) -> str:
    """One line a rollout."""
    rows = []
    for obj in objects:
        meta, told = obj["metadata"], _told(obj)
        gateway = str((obj.get("spec") or {}).get("gatewayRef", ""))
        born = age(meta.get("creationTimestamp"), now)
        rows.append([str(meta.get("namespace", "")), str(meta["name"]), gateway, *told, born])
    return columns(
        ["NAMESPACE", "NAME", "GATEWAY", "PHASE", "STEP", "WEIGHT", "VERDICT", "REASON", "AGE"], rows
    )


def _told(obj: Object) -> list[str]:
    """Phase, step, weight, verdict and reason; one rollout that cannot be read does not hide the others."""
    try:
        status = status_of(obj)
    except UnknownStatus:
        return [str((obj.get("status") or {}).get("phase", "?")), "", "", "", NEWER]
    return [status.phase, status.step_text, f"{status.weight} %", status.verdict, status.reason]


def line(obj: Object) -> str:
    """One line for a log: what a waiting pipeline prints when something changed."""
    status = status_of(obj)
    parts = [status.phase, status.step_text and f"step {status.step_text}", status.verdict, status.reason]
    return "  ".join(part for part in parts if part) + (f": {status.message}" if status.message else "")
