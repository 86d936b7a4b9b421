"""When an object's turn comes within its interval: known from its name alone, so that whoever asks knows it. Pure.

Passes come in company, and one question to Prometheus answers for all whose turn it is. Each object has a slot of its
interval that follows from its name: crowds that began together are spread over the interval, a pass that comes late moves
no later one, and a query can ask for a whole company before its last member has come.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass

ROUNDED_FROM_SECONDS = 2.0
"""A wish for later than this is rounded down to a whole second of the clock; shorter ones stay exact."""
PHASED_FROM_SECONDS = 5.0
SLOT_SECONDS = 1.25
"""A wish for later than that comes at a slot of its own. Nothing waits longer for it, nor for less than half of what it
asked for. One company a slot: less than one question a second."""


@dataclass(frozen=True, slots=True)
class Turn:
    """Of one object that wants a pass every `seconds`."""

    name: str
    seconds: float

    def after(self, now: float) -> float:
        """The moment of its next pass by the same clock: shared with others, and at most `seconds` from `now`."""
        wanted = now + self.seconds
        if self.seconds < ROUNDED_FROM_SECONDS:
            return wanted
        if self.seconds < PHASED_FROM_SECONDS:
            return float(math.floor(wanted))
        slots = int(self.seconds / SLOT_SECONDS)
        latest, own = math.floor(wanted / SLOT_SECONDS), zlib.crc32(self.name.encode()) % slots
        earliest = math.ceil((now + self.seconds / 2) / SLOT_SECONDS)
        return SLOT_SECONDS * max(latest - (latest - own) % slots, earliest)
