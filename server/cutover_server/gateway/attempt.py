"""What came of asking one arm. Pure data."""

from __future__ import annotations

from dataclasses import dataclass

from cutover.route import Arm
from cutover_server.gateway.reading import Kind, Reading


@dataclass(frozen=True, slots=True)
class Attempt:
    arm: Arm
    reading: Reading
    seconds: float = 0.0
    cost_usd: float = 0.0
    confidence: float | None = None
    retry_after_seconds: float | None = None
    stumbled: Kind | None = None
    """How the arm failed before it was asked once more; none when it was asked once. Time and cost are of both."""
    unfinished: bool = False
    """Its stream has begun and not ended: neither a success nor a failure yet."""
