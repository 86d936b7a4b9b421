"""The checks on ways out: deletion, abort, another rollout's turn, and what happens after the end. Pure.

Each check looks at the draft, and says True when it has decided the pass.
"""

from __future__ import annotations

from datetime import timedelta

from cutover.contract import FINALIZER
from cutover_operator.rollout import gates
from cutover_operator.rollout.draft import Draft, parsed
from cutover_operator.rollout.routing import holder_of
from cutover_operator.rollout.world import Neighbour

DELETION_WAIT = timedelta(seconds=60)
GIVE_UP_WAIT = timedelta(minutes=10)
"""A gateway pod that never reports does not keep the candidate's pods for ever."""
OVER = ("RolledBack", "Aborted", "Superseded")
STALLED_SECONDS = 30.0


def holder_in_sight(d: Draft) -> Neighbour | None:
    """The rollout that holds the route, as long as it exists."""
    uid = holder_of(d.world.route_map)[1]
    return next((n for n in d.world.rollouts if n.uid == uid), None)


def being_deleted(d: Draft) -> bool:
    """Give the traffic back as `deletionPolicy` says, see it in force, then let the object go."""
    deleted_at = parsed(d.world.deleted_at)
    if deleted_at is None:
        return False
    if FINALIZER not in d.world.finalizers:
        return True
    keeps = d.promoted and d.spec.deletion_policy == "KeepPromoted"
    if d.holds_route and keeps:
        # The pods outlive the object: they belong to nobody from now on.
        d.orphan_children = True
        d.finalizer = False
        d.say("Deleted", "the promoted model keeps the traffic; its pods stay")
        return True
    d.set(weight=0, shadow=0)
    holder = holder_in_sight(d)
    idle = holder is None or holder.finish in OVER
    if not d.holds_route and idle and d.world.route is not None and d.world.name in _arms(d):
        # The control of a rollout that is over leaves: nobody else would take it out of the route in time.
        d.taking_route = True
    waited = d.now - deleted_at >= DELETION_WAIT
    route = d.world.route
    if d.holds_route:
        bare = route is not None and (route.candidate is None or route.rollout != d.key)
        done = (bare and not d.out_of_sync()) or d.config is None
    else:
        done = route is None or d.world.name not in _arms(d)
    if done or waited:
        d.finalizer = False
        return True
    d.say(
        "Deleting",
        f"waiting until no traffic is left: {d.out_of_sync() or 'the route still names this model'}",
    )
    d.again(1.0)
    return True


def _arms(d: Draft) -> set[str]:
    route = d.world.route
    if route is None:
        return set()
    return {arm.name for arm in (route.control, route.candidate, route.fallback) if arm is not None}


def superseded(d: Draft) -> bool:
    """Somebody else holds the gateway now. A promoted model serves on as long as the route names it."""
    if d.holds_route or d.status.phase == "Pending" or d.status.finish not in (None, "Promoted"):
        return False
    by, holder = holder_of(d.world.route_map)
    if not holder:
        return False
    if d.promoted and _left_alone(d):
        d.taking_route = True
        if d.ledger is not None:
            d.ledger = d.ledger.restarted_watch(d.now.timestamp(), d.status.step)
            d.ledger_due = True
        d.set(weight=100)
        d.say("Promoted", f"{by} has ended; this model has all traffic again and is watched")
        d.notice("Promoted", d.status.message, about=holder)
        d.again(d.interval_seconds)
        return True
    if d.promoted and d.world.name in _arms(d):
        d.set(weight=0)
        d.say("IsControl", f"{by} is compared with this model, which serves on as its control")
        d.condition("Promoted", "True", "IsControl", d.status.message)
        d.again(STALLED_SECONDS)
        return True
    d.finish("Superseded", "Superseded", f"{by} took over gateway {d.spec.gateway_ref}")
    return True


def _left_alone(d: Draft) -> bool:
    """The rollout that was compared with this model is over, and nobody watches what serves now."""
    holder, route = holder_in_sight(d), d.world.route
    over_there = holder is None or holder.finish in OVER
    return over_there and route is not None and route.candidate is None and route.control.name == d.world.name


def abort_ordered(d: Draft) -> bool:
    """`abort` wins over everything but deletion, in any phase; with nothing in progress it does nothing."""
    order = d.spec.request
    if order is None or order.action != "abort" or order.id == d.status.handled_request:
        return False
    d.set(handled_request=order.id)
    if d.status.finish in OVER:
        d.notice("RequestIgnored", f"request {order.id}: nothing is in progress", about=order.id)
        return False
    d.finish("Aborted", "AbortRequested", f"aborted by request {order.id}")
    return True


def over(d: Draft) -> bool:
    """Nothing happens by itself after the end, except that the pods go once no gateway asks them."""
    if d.status.finish not in OVER:
        return False
    order = d.spec.request
    if order is not None and order.id != d.status.handled_request:
        d.set(handled_request=order.id)
        if order.action == "retry":
            _start_again(d, order.id)
            return True
        d.notice(
            "RequestIgnored",
            f"request {order.id}: {order.action} makes no sense after {d.status.finish}; retry starts again",
            "Warning",
            order.id,
        )
    route, ended = d.world.route, parsed(d.status.finished_at)
    named = route is not None and d.world.name in _arms(d)
    reported = d.holds_route and not d.out_of_sync()
    if not d.holds_route and route is not None:
        reported = bool(d.world.gateways) and all(
            p.report is not None and p.report.generation >= route.generation for p in d.world.gateways
        )
    age = d.now - ended if ended is not None else timedelta(0)
    waited = age >= GIVE_UP_WAIT or (age >= DELETION_WAIT and (not d.world.gateways or route is None))
    untouched = d.status.route_generation == 0
    if untouched or waited or (not named and reported):
        d.remove_children = True
        d.condition("CandidateServing", "False", "Removed", "the candidate's pods are removed")
        d.condition("RouteInSync", "True", "AtRest", "no gateway asks the candidate")
    else:
        d.condition(
            "RouteInSync", "False", "Waiting", d.out_of_sync() or "the route still names the candidate"
        )
        d.again(1.0)
    return True


def _start_again(d: Draft, order: str) -> None:
    if d.ledger is not None and d.model is not None:
        d.ledger = d.ledger.afresh(d.now.timestamp(), d.model.version, d.model.digest).pinned(None)
        d.ledger_due = True
    d.set(
        phase="Pending",
        finish=None,
        finished_at=None,
        step=0,
        weight=0,
        shadow=0,
        step_entered_at=None,
        step_confirmed_at=None,
        steps_hash=gates.steps_hash(d.spec),
        candidate_version=d.model.version if d.model is not None else "",
        accuracy_text="",
        actual_weight="",
        verdict="",
        gates=[],
        unavailable_since=None,
    )
    d.say("RetryRequested", f"starting again from the first step with fresh evidence (request {order})")
    for type_ in ("RolledBack", "Promoted", "EvidenceLost"):
        d.condition(type_, "False", "Retried")
    d.notice("RetryRequested", d.status.message, about=order)
    d.again(0.1)
