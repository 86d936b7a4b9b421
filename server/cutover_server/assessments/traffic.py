"""What a record adds to the traffic totals: requests, time and money by hour, arm, version and outcome. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cutover.contract import LATENCY_EDGES_SECONDS
from cutover.records import AssessmentRecord

HOUR_SECONDS = 3600
NO_LATENCY = "none"
BEYOND = "+Inf"

TrafficKey = tuple[int, str, str, str, str, str]
"""hour, rollout, arm, version, outcome, latency edge"""


def chosen_version(
    chosen: str, control: Mapping[str, Any] | None, candidate: Mapping[str, Any] | None, served: str
) -> str:
    """Version of the arm that was chosen; what served when that arm was never asked."""
    answer = control if chosen == "control" else candidate
    return str(answer.get("version") or served) if answer else served


def traffic_of(record: AssessmentRecord, received_at: float) -> tuple[TrafficKey, tuple[float, float, float]]:
    """Key and increments (requests, seconds, USD). A fallback's price belongs to the arm that made it necessary."""
    arm = record.control if record.chosen == "control" else record.candidate
    seconds = arm.latency_seconds if arm is not None else None
    cost = sum(answer.cost_usd or 0.0 for answer in (arm, record.fallback) if answer is not None)
    version = (arm.version if arm is not None else "") or record.served_version
    key = (
        int(received_at // HOUR_SECONDS),
        record.rollout,
        record.chosen,
        version,
        record.outcome,
        latency_edge(seconds),
    )
    return key, (1, seconds or 0.0, cost)


def latency_edge(seconds: float | None) -> str:
    """The first edge of the contract's histogram that holds this latency."""
    if seconds is None:
        return NO_LATENCY
    return next((f"{edge:g}" for edge in LATENCY_EDGES_SECONDS if seconds <= edge), BEYOND)


def latency_quantile(counts: Mapping[str, int], quantile: float) -> str:
    """The edge below which this share of the answers lies, as text; empty without answers."""
    total = sum(n for edge, n in counts.items() if edge != NO_LATENCY)
    seen = 0
    for edge in (*(f"{edge:g}" for edge in LATENCY_EDGES_SECONDS), BEYOND):
        seen += counts.get(edge, 0)
        if total and seen >= quantile * total:
            return edge
    return ""
