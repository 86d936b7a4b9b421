"""Who is asked next, and how a request that ended is counted. Pure.

The outcome belongs to the arm that was *chosen*, whoever answered in the end:

- `ok`: the chosen arm's own answer was given.
- `error`: the chosen arm failed, was too slow, answered invalidly or was not asked because its breaker is open. The
  last one counts too: requests an arm cannot take are its failures, and the gate has to see them. So does an arm that
  failed and answered when it was asked once more: only an arm without an alternative gets that second chance, and it
  must not look better for it.
- `deferred`: a valid answer of low confidence was given up for the fallback's. If the fallback fails, the answer is
  kept and the request is `ok`.
- `rejected`: the caller's own fault. A 4xx that blames the request is believed when no other arm can be asked, or when
  none of the others answered; an arm that refuses what the fallback answers has failed. The content filter of the
  control is believed at once: nobody asks around until a model without a filter is found.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from cutover.records import ArmName
from cutover.route import Arm, Route
from cutover_server.gateway.reading import Kind, Reading

Outcome = Literal["ok", "error", "deferred", "rejected"]
CONFIDENCE = "confidence"
BREAKER = "breaker"
FALLBACK_REASONS = ("error", "timeout", "invalid", "overload", BREAKER, CONFIDENCE)
"""Values of the label `reason` of `cutover_fallbacks_total`."""


@dataclass(frozen=True, slots=True)
class Settlement:
    outcome: Outcome
    served: int | None
    """Which attempt's reply the caller gets; none when there is nothing to hand on."""
    reason: str = ""
    """Why the fallback answered; empty when the chosen arm did."""


def alternatives(route: Route, chosen: ArmName) -> list[Arm]:
    """Arms to ask after the chosen one, in order."""
    first = route.candidate if chosen == "candidate" else route.control
    others = []
    if route.fallback is not None:
        others.append(route.fallback)
    if (
        chosen == "control"
        and route.promoted
        and route.fallback_rules.reverse
        and route.candidate is not None
    ):
        others.append(route.candidate)
    return [arm for arm in others if first is None or not same_endpoint(arm, first)]


def same_endpoint(one: Arm, other: Arm) -> bool:
    return (one.base_url.rstrip("/"), one.model) == (other.base_url.rstrip("/"), other.model)


def moves_on(route: Route, chosen: ArmName, reading: Reading) -> bool:
    """Whether the next arm is asked after the chosen one's attempt ended like this."""
    if reading.kind == "answered":
        return False
    if reading.kind == BREAKER:
        return True
    if reading.filtered and chosen == "control":
        return False
    wanted = "error" if reading.kind == "refused" else reading.kind
    return wanted in route.fallback_rules.on


def deferring(route: Route, chosen: ArmName, confidence: float | None) -> bool:
    """Whether a valid answer is given up for its low confidence."""
    return chosen == "candidate" and too_unsure(route.fallback_rules.confidence, confidence)


def too_unsure(limit: float | None, confidence: float | None) -> bool:
    """An unknown confidence is a low one."""
    return limit is not None and (confidence is None or confidence < limit)


def settle(kinds: Sequence[Kind], stumbled: bool = False) -> Settlement:
    """How a request ended, from the attempts in order.

    `stumbled` says that the chosen arm failed before it was asked once more. Without any valid answer the caller gets
    an error, never an answer that breaks the task's schema.
    """
    first = kinds[0]
    better = next((at for at, kind in enumerate(kinds) if at > 0 and kind == "answered"), None)
    if first == "answered":
        if better is None:
            return Settlement("error" if stumbled else "ok", 0)
        return Settlement("deferred", better, CONFIDENCE)
    reason = "error" if first == "refused" else str(first)
    if better is not None:
        return Settlement("error", better, reason)
    if first == "refused":
        return Settlement("rejected", 0)
    refused = next((at for at, kind in enumerate(kinds) if kind == "refused"), None)
    return Settlement("error", refused, reason if refused else "")
