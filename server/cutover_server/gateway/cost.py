"""What one call costs, from the arm's dated price. Pure."""

from __future__ import annotations

from typing import Any

from cutover.route import Price


def cost_usd(
    price: Price, usage: object, busy_seconds: float | None, call_seconds: float, answered: bool
) -> float:
    """Price of a call.

    Hosted answers cost what the provider counted (`usage`), never what we count in the body. Own answers cost the
    seconds they kept the engine busy; an engine that does not say so, or never answered, is charged the whole call.
    """
    per_request = price.usd_per_request if answered else 0.0
    if price.kind == "busySeconds":
        seconds = call_seconds if busy_seconds is None else busy_seconds
        return per_request + max(seconds, 0.0) * price.usd_per_busy_second
    counted: dict[str, Any] = usage if isinstance(usage, dict) else {}
    tokens_in = _count(counted.get("prompt_tokens"))
    tokens_out = _count(counted.get("completion_tokens"))
    return (
        per_request
        + tokens_in * price.usd_per_million_input_tokens / 1e6
        + tokens_out * price.usd_per_million_output_tokens / 1e6
    )


def _count(value: object) -> float:
    return (
        float(value) if isinstance(value, int | float) and not isinstance(value, bool) and value > 0 else 0.0
    )
