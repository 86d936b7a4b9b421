"""From a finished draft to a plan: checkpoint, status, route and children. Pure.

Route and children follow from the status that is about to be committed, so a crash after the commit only means that
the next pass does them.
"""

from __future__ import annotations

from datetime import UTC, datetime

from cutover.api.modelrollout import GatewayReport
from cutover.contract import ROLLOUT_NONE
from cutover.route import Arm, Route
from cutover_operator.evidence.ledger import LEDGER_KEY, Ledger
from cutover_operator.evidence.ledger_map import SIZE_LIMIT_BYTES, to_config_map
from cutover_operator.plan import Action, Apply, Delete, Plan, SetFinalizer, Swap
from cutover_operator.port import DEPLOYMENTS, SERVICES
from cutover_operator.rollout import registry, report_map, resources, routing
from cutover_operator.rollout.accuracy import by_stratum
from cutover_operator.rollout.candidate import candidate_arm
from cutover_operator.rollout.counts import stratum_pairs
from cutover_operator.rollout.deferring import confidence_in_force
from cutover_operator.rollout.draft import (
    CONDITIONS,
    RUNNING,
    TOO_LARGE,
    Draft,
    parsed,
    step_title,
    too_large,
)
from cutover_operator.rollout.gates import steps_hash
from cutover_operator.rollout.news import is_news
from cutover_operator.rollout.report import write_report
from cutover_operator.rollout.risk import epoch_due
from cutover_operator.rollout.serving import health

CHECKPOINT_SECONDS = 300.0
EARLY_SECONDS = 10.0
"""A step that is young doubles its evidence quickly: the checkpoint, and with it the figures in status, come earlier."""
COUNTED = ("requests/", "shadow/", "labels/", "drawn/")
OUT_OF_SYNC_SECONDS = 1.0


def settle(draft: Draft) -> Plan:
    before: list[Action] = []
    after: list[Action] = []
    _checkpoint(draft, before)
    _route(draft, before, after)
    _children(draft, after)
    if draft.finalizer is not None:
        after.append(SetFinalizer(draft.finalizer))
    told = registry.follow(draft)
    _columns(draft)
    _report(draft, after)
    # Last: whatever comes of it, the rest is done.
    after.extend(told)
    status = draft.status.model_copy(
        update={
            "observed_generation": draft.world.generation,
            "conditions": [draft.conditions[t] for t in CONDITIONS if t in draft.conditions],
        }
    )
    old = draft.world.status
    routine = not is_news(old, status.model_copy(update={"ledger": old.ledger}))
    written = not routine or status.ledger != old.ledger
    return Plan(
        status=status.to_wire() if written else None,
        before=tuple(before),
        after=tuple(after),
        notices=tuple(draft.notices),
        again_in_seconds=draft.again_in_seconds,
        routine=routine and not after,
    )


def _checkpoint(draft: Draft, before: list[Action]) -> None:
    """Keep the ledger before anything that stands on it; otherwise every five minutes, with a drift epoch when it is due."""
    ledger, stored = draft.ledger, draft.world.evidence.stored
    if ledger is None or draft.world.deleted_at is not None:
        return
    now = draft.now.timestamp()
    active = draft.running or draft.promoted
    times = [mark.at for mark in ledger.marks] or [now]
    if active and draft.status.step_confirmed_at and epoch_due(min(times), max(times), now):
        ledger = ledger.with_mark(now)
        draft.ledger_due = True
    # A checkpoint never says more than was counted: what could not be read yet is asked for when it can be.
    unread_since = draft.world.evidence.unread_since
    counted_until = now if unread_since is None else unread_since
    age = counted_until - ledger.written_at
    old = age >= CHECKPOINT_SECONDS or (age >= EARLY_SECONDS and _doubled(ledger, stored, draft.status.step))
    due = draft.ledger_due or (active and old)
    if not due:
        return
    if stored is not None and stored.revision > ledger.revision:
        ledger = ledger.at_revision(stored.revision)
    ledger = ledger.stamped(max(counted_until, ledger.written_at))
    obj = to_config_map(ledger, draft.owner, draft.world.evidence.config_map)
    if len(obj["data"][LEDGER_KEY]) > SIZE_LIMIT_BYTES:
        message = "the evidence ledger outgrew its ConfigMap; the last checkpoint stays"
        if not too_large(draft):
            draft.notice(TOO_LARGE, message, "Warning", str(ledger.revision))
        draft.condition("EvidenceLost", "False", TOO_LARGE, message)
        return
    if too_large(draft):
        draft.condition("EvidenceLost", "False", "Complete")
    before.append(Swap(obj))
    draft.ledger = ledger
    draft.set(ledger=draft.ledger_ref(ledger))


def _doubled(ledger: Ledger, stored: Ledger | None, step: int) -> bool:
    """Twice as much is known about this step as the last checkpoint says, and so the status shows."""
    known, kept = _events(ledger, step), _events(stored, step) if stored is not None else 0.0
    return known > 0 and known >= 2 * kept


def _events(ledger: Ledger, step: int) -> float:
    return sum(n for key, n in ledger.since_step(step).items() if key.startswith(COUNTED))


# ---------------------------------------------------------------- route
def _route(draft: Draft, before: list[Action], after: list[Action]) -> None:
    if not (draft.holds_route or draft.taking_route or _must_restore(draft)):
        return
    if _route_stays(draft):
        return
    wanted = _wanted_route(draft)
    if wanted is None:
        return
    world = draft.world
    seen = max((pod.report.generation for pod in world.gateways if pod.report is not None), default=0)
    generation = routing.next_generation(world.route, draft.status.route_generation, wanted, seen)
    _notice_strangers(draft)
    wanted = wanted.model_copy(update={"generation": generation})
    draft.set(
        route_generation=generation,
        control_version=wanted.control.version,
        candidate_version=draft.status.candidate_version
        or (wanted.candidate.version if wanted.candidate else ""),
    )
    if wanted == world.route and draft.holds_route:
        return
    swap = Swap(
        routing.config_map(
            world.route_map, world.namespace, draft.spec.gateway_ref, wanted, (world.name, world.uid)
        )
    )
    (before if draft.taking_route else after).append(swap)
    draft.again(min(OUT_OF_SYNC_SECONDS, draft.interval_seconds))


def _route_stays(draft: Draft) -> bool:
    """Nothing is another than when this world was looked at as a whole, and then the route was as it must be. Rendering
    it costs more than judging a gate."""
    world, status, before = draft.world, draft.status, draft.world.status
    route = world.route
    return (
        world.remembered
        and draft.holds_route
        and route is not None
        and route.rollout == draft.key
        and (status.phase, status.finish, status.weight, status.shadow, status.step)
        == (before.phase, before.finish, before.weight, before.shadow, before.step)
        and confidence_in_force(draft) == route.fallback_rules.confidence
        and _label_probabilities(draft) == route.labels.probability
    )


def _must_restore(draft: Draft) -> bool:
    """The route's ConfigMap is gone, or nobody's any more, under a rollout that is under way."""
    nobody = routing.holder_of(draft.world.route_map)[1] == ""
    under_way = draft.status.phase in ("Starting", *RUNNING) or draft.promoted
    return nobody and under_way and draft.world.deleted_at is None


def _notice_strangers(draft: Draft) -> None:
    """Say when somebody else moved the weight; it is put back by the same pass."""
    route, before = draft.world.route, draft.world.status
    if route is None or route.rollout != draft.key or route.generation < before.route_generation:
        return
    if route.weight_basis_points != before.weight * 100 and draft.status.weight == before.weight:
        draft.notice(
            "RouteEdited",
            f"the route said {route.weight_basis_points / 100:g}% instead of {before.weight}%; it is put back",
            "Warning",
            str(route.generation),
        )


def _wanted_route(draft: Draft) -> Route | None:
    control = draft.control()
    if control is None:
        return None
    candidate = _candidate_in_route(draft)
    current = draft.world.route
    position = routing.Position(
        rollout_key=draft.key,
        rollout_name=draft.world.name,
        uid=draft.world.uid,
        control=control,
        candidate=candidate,
        weight_percent=draft.status.weight,
        shadow_percent=draft.status.shadow,
        promoted=draft.promoted,
        confidence=confidence_in_force(draft),
        label_probabilities=_label_probabilities(draft),
    )
    if draft.config is not None:
        try:
            return routing.render(draft.spec, draft.config, position, 0)
        except KeyError:
            pass
    if current is None:
        return None
    # The gateway's configuration cannot be used now; what is in force stays, but traffic can still be taken away.
    return current.model_copy(
        update={
            "control": control,
            "candidate": candidate,
            "rollout": draft.key if candidate else ROLLOUT_NONE,
            "rollout_name": draft.world.name if candidate else "",
            "promoted": draft.promoted and candidate is not None,
            "weight_basis_points": draft.status.weight * 100 if candidate else 0,
            "shadow_basis_points": draft.status.shadow * 100 if candidate else 0,
        }
    )


def _candidate_in_route(draft: Draft) -> Arm | None:
    if not (draft.running or draft.promoted) or (draft.world.deleted_at and not draft.orphan_children):
        return None
    route = draft.world.route
    in_force = route.candidate if route is not None and route.rollout == draft.key else None
    if draft.model is None:
        return in_force
    arm = candidate_arm(draft.spec, draft.model, draft.world.name, draft.world.namespace)
    # A model edited after the start is not what was tested.
    return in_force if in_force is not None and arm.version != draft.status.candidate_version else arm


def _label_probabilities(draft: Draft) -> dict[str, float]:
    route, ledger = draft.world.route, draft.ledger
    current = route.labels.probability if route is not None and route.rollout == draft.key else {}
    pairs = None
    if by_stratum(draft.spec):
        pairs = stratum_pairs(ledger.totals) if ledger is not None else (0.0, 0.0)
    return routing.label_probabilities(
        draft.spec.analysis.labels.per_hour, draft.world.evidence.requests_per_second, current, pairs
    )


# ---------------------------------------------------------------- children
def _children(draft: Draft, after: list[Action]) -> None:
    world, spec = draft.world, draft.spec
    if draft.remove_children:
        for resource, live in ((DEPLOYMENTS, world.deployment), (SERVICES, world.service)):
            if live is not None and not live["metadata"].get("deletionTimestamp"):
                after.append(
                    Delete(resource, world.namespace, live["metadata"]["name"], live["metadata"].get("uid"))
                )
        return
    if draft.orphan_children:
        # What serves now stays as it is, whether or not the TrainingRun it came from still exists.
        after.extend(Apply(resources.released(live)) for live in (world.deployment, world.service) if live)
        return
    if spec.serving.engine == "external" or draft.model is None:
        return
    if world.remembered:
        return
    wanted = (
        resources.deployment(spec, draft.model, draft.owner, world.site.images),
        resources.service(draft.owner),
    )
    if draft.status.phase in ("Starting", *RUNNING, "Promoted") and world.deleted_at is None:
        same_model = draft.status.candidate_version in ("", draft.model.version) and (
            draft.ledger is None or draft.ledger.files in ("", draft.model.digest)
        )
        for obj, live in zip(wanted, (world.deployment, world.service), strict=True):
            if same_model and not resources.contains(live, obj):
                after.append(Apply(obj))


# ---------------------------------------------------------------- the written report
def _report(draft: Draft, after: list[Action]) -> None:
    """Write the report of the end that is about to be committed. A pass that died before it leaves it to the next."""
    world, status, ledger = draft.world, draft.status, draft.ledger
    if world.deleted_at is not None or not report_map.is_due(world.report_map, world.uid, status, ledger):
        return
    counted = datetime.fromtimestamp(ledger.written_at, UTC) if ledger is not None else None
    moments = [at for at in (parsed(status.finished_at), counted) if at is not None]
    text = write_report(
        world.name, world.namespace, draft.spec, status, ledger, max(moments, default=draft.now)
    )
    after.append(Swap(report_map.to_config_map(text, draft.owner, status, ledger, world.report_map)))
    if world.report_map is None or not report_map.is_about(world.report_map, status):
        message = f"the written report is there: kubectl cutover report {world.name}"
        draft.notice("ReportWritten", message, about=report_map.end_of(status))


# ---------------------------------------------------------------- columns and conditions
def _columns(draft: Draft) -> None:
    status, world = draft.status, draft.world
    for type_ in CONDITIONS:
        if type_ not in draft.conditions:
            draft.condition(type_, "Unknown", "NotYetObserved")
    active = status.phase in ("Starting", *RUNNING) or draft.promoted
    started = bool(status.steps)
    draft.set(
        steps_hash=status.steps_hash or steps_hash(draft.spec),
        step_text=f"{status.step + 1}/{len(draft.spec.steps)} {step_title(draft.step)}" if started else "",
        gateways=[
            GatewayReport(pod=pod.name, generation=pod.report.generation)
            for pod in world.gateways[:64]
            if pod.report is not None
        ],
    )
    if draft.verdicts:
        first = next((v for v in draft.verdicts if v.gate.metric == "accuracy"), None)
        if first is not None and first.value is not None:
            draft.set(accuracy_text=f"{first.value:.2f} (n={first.samples})")
        draft.set(gates=[v.to_status() for v in draft.verdicts])
    if active and status.phase != "Starting" and draft.world.deleted_at is None:
        late = draft.out_of_sync()
        draft.condition(
            "RouteInSync",
            "False" if late else "True",
            "Waiting" if late else "Confirmed",
            late or f"every gateway pod serves route {draft.status.route_generation}",
        )
        if late:
            draft.again(min(OUT_OF_SYNC_SECONDS, draft.interval_seconds))
    if active:
        pods = health(world)
        draft.condition("CandidateServing", "True" if pods.any_ready else "False", pods.reason, pods.message)
    serving = draft.conditions["CandidateServing"].status == "True"
    ready = draft.promoted and serving
    draft.condition(
        "Ready", "True" if ready else "False", draft.status.reason or draft.status.phase, draft.status.message
    )
    if draft.blocked is None and draft.status.phase != "Pending":
        draft.condition("Stalled", "False", "NotStalled")
