"""What to do about a rollout: a chain of named checks whose order is the policy.

`decide(world, now)` is pure: no I/O, no clock, no chance. The first check that decides ends the chain; what it wrote
becomes one status, written by compare-and-swap, and everything else follows from that status.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from cutover.api.base import Condition
from cutover.contract import FINALIZER
from cutover_operator.conditions import timestamp
from cutover_operator.plan import Notice, Plan, SetFinalizer
from cutover_operator.rollout import conduct, deferring, entering, leaving
from cutover_operator.rollout.draft import Draft
from cutover_operator.rollout.settle import settle
from cutover_operator.rollout.world import Unreadable, World

Check = Callable[[Draft], bool]

ALWAYS: tuple[Check, ...] = (
    leaving.being_deleted,
    leaving.abort_ordered,
    leaving.superseded,
    leaving.over,
    entering.references,
    entering.edited,
    entering.gateway_wanted,
    entering.other_orders,
    entering.candidate_starting,
    conduct.pods_gone,
    conduct.evidence_lost,
    conduct.confirm,
    conduct.metrics_unavailable,
    deferring.threshold_due,
    conduct.judged,
    conduct.must_stop,
    conduct.watching,
    conduct.held_by_people,
    conduct.advance,
)


def decide(world: World | Unreadable, now: datetime) -> Plan:
    """The plan for one pass."""
    if isinstance(world, Unreadable):
        return _unreadable(world, now)
    draft = Draft(world, now)
    for check in ALWAYS:
        if check(draft):
            break
    return settle(draft)


def _unreadable(world: Unreadable, now: datetime) -> Plan:
    """A spec the schema should have refused: say so, touch nothing, and do not stand in the way of a deletion."""
    metadata = world.parent["metadata"]
    if metadata.get("deletionTimestamp"):
        leave = (SetFinalizer(False),) if FINALIZER in (metadata.get("finalizers") or []) else ()
        return Plan(after=leave)
    status = dict(world.parent.get("status") or {})
    message = f"the spec cannot be read: {world.message}"
    old = [
        c for c in status.get("conditions") or [] if c.get("type") == "Stalled" and c.get("status") == "True"
    ]
    condition = Condition(
        type="Stalled",
        status="True",
        reason="InvalidSpec",
        message=message,
        observed_generation=int(metadata.get("generation", 0)),
        last_transition_time=old[0]["lastTransitionTime"] if old else timestamp(now),
    )
    others = [c for c in status.get("conditions") or [] if c.get("type") != "Stalled"]
    status.update(conditions=[*others, condition.to_wire()], reason="InvalidSpec", message=message[:4096])
    return Plan(
        status=status, notices=(Notice("InvalidSpec", message[:1024], "Warning"),), again_in_seconds=300.0
    )
