"""The check that finds the threshold of confidence in force, at most once an hour. Pure; looks at the draft only."""

from __future__ import annotations

from cutover.api.modelrollout import RoutingStatus
from cutover_operator.rollout import threshold
from cutover_operator.rollout.draft import Draft, parsed, stamp

CHANGE_SECONDS = 3600.0


def threshold_due(d: Draft) -> bool:
    """Choose anew when an hour is over, or when the evidence began afresh; never decides the pass."""
    if not d.spec.fallback.auto_confidence:
        d.set(routing=None)
        return False
    if d.ledger is None or d.world.evidence.metrics is not None or d.world.evidence.labels is not None:
        return False
    known = _standing(d)
    if known is not None and d.since(known.decided_at) < CHANGE_SECONDS:
        return False
    found = threshold.choose(d.spec, d.ledger, stamp(d.now))
    d.set(routing=found)
    if found is not None and known is not None and found.threshold != known.threshold:
        d.notice("ThresholdChanged", found.message, about=stamp(d.now))
    return False


def confidence_in_force(d: Draft) -> float | None:
    """What the route says: the number in the spec, else the threshold found, else the strictest there is."""
    if not d.spec.fallback.auto_confidence:
        return d.spec.fallback.confidence
    known = _standing(d)
    return threshold.STRICTEST if known is None or known.threshold is None else known.threshold


def _standing(d: Draft) -> RoutingStatus | None:
    """What was found, if it was found in the evidence there is now."""
    known = d.status.routing
    if known is None or d.ledger is None:
        return known
    at = parsed(known.decided_at)
    begun_since = at is None or at.timestamp() < d.ledger.started_at
    return None if begun_since or known.epoch != d.ledger.epoch else known
