"""How many bytes of requests the gateway holds at once, and when it says no. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from cutover_server.gateway.openai_shape import ApiError

SHADOW_SHARE = 0.5
"""Mirrored copies are given up once this share of the limit is taken: callers go first."""


@dataclass(slots=True)
class Reservation:
    budget: InFlight
    held: int = 0

    def expect(self, size: int) -> None:
        """Refuses what would not fit, and takes nothing: bytes that are only announced must not keep others out."""
        self._check(size)

    def add(self, size: int) -> None:
        """Raises ApiError, a 503 with Retry-After, when the limit would be passed."""
        self._check(size)
        self.budget.take(size)
        self.held += size

    def release(self) -> None:
        self.budget.used -= self.held
        self.held = 0

    def _check(self, size: int) -> None:
        if self.budget.used + size > self.budget.limit:
            raise ApiError(
                503,
                "The gateway holds as many bytes of requests as it may; try again shortly.",
                "server_error",
                code="overloaded",
                retry_after_seconds=1,
            )


@dataclass(slots=True)
class InFlight:
    limit: int
    used: int = 0
    peak: int = 0
    """The most that was used since somebody has set it back."""

    def take_if_calm(self, size: int) -> bool:
        """For mirrored copies; give back with `give_back`."""
        if self.used + size > self.limit * SHADOW_SHARE:
            return False
        self.take(size)
        return True

    def take(self, size: int) -> None:
        self.used += size
        self.peak = max(self.peak, self.used)

    def give_back(self, size: int) -> None:
        self.used -= size
