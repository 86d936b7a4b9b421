"""Events under deterministic names: said again, an event's count grows, and a crash cannot double it in the list."""

from __future__ import annotations

import hashlib
import logging
from datetime import datetime

from cutover_operator.conditions import timestamp
from cutover_operator.plan import Notice
from cutover_operator.port import EVENTS, Kube, KubeError, Object

log = logging.getLogger(__name__)

COMPONENT = "cutover-operator"
MESSAGE_LIMIT = 1024


def event_name(parent: Object, notice: Notice) -> str:
    meta = parent["metadata"]
    seed = "\0".join((meta["uid"], notice.reason, notice.about))
    return f"{meta['name'][:200]}.{hashlib.sha256(seed.encode()).hexdigest()[:16]}"


async def record(kube: Kube, parent: Object, notice: Notice, now: datetime) -> None:
    """Best effort: an event that cannot be written is logged, never a reason to fail a pass."""
    meta = parent["metadata"]
    name = event_name(parent, notice)
    moment = timestamp(now)
    try:
        known = await kube.get(EVENTS, meta["namespace"], name)
        await kube.apply(
            {
                "apiVersion": "v1",
                "kind": "Event",
                "metadata": {"name": name, "namespace": meta["namespace"]},
                "involvedObject": {
                    "apiVersion": parent["apiVersion"],
                    "kind": parent["kind"],
                    "name": meta["name"],
                    "namespace": meta["namespace"],
                    "uid": meta["uid"],
                },
                "reason": notice.reason,
                "message": notice.message[:MESSAGE_LIMIT],
                "type": notice.type,
                "source": {"component": COMPONENT},
                "reportingComponent": COMPONENT,
                "reportingInstance": COMPONENT,
                "firstTimestamp": (known or {}).get("firstTimestamp") or moment,
                "lastTimestamp": moment,
                "count": int((known or {}).get("count") or 0) + 1,
            }
        )
    except KubeError as error:
        log.warning("event not written", extra={"reason": notice.reason, "why": str(error)})
