"""What came of asking one arm once. Pure data."""

from __future__ import annotations

from dataclasses import dataclass

from cutover.route import Arm
from cutover_server.gateway.reading import Reading


@dataclass(frozen=True, slots=True)
class Attempt:
    arm: Arm
    reading: Reading
    seconds: float = 0.0
    cost_usd: float = 0.0
    confidence: float | None = None
    retry_after_seconds: float | None = None
