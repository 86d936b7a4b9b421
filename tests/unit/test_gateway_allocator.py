"""Memory goes back to the system after a crowd, and only then."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

import pytest

from cutover_server.gateway.allocator import a_crowd_has_left, give_back_after_a_crowd, keep_freed_memory
from cutover_server.gateway.pressure import InFlight, Reservation


@pytest.mark.parametrize(
    ("peak", "used", "left"),
    [
        (0, 0, False),
        (15_000_000, 0, False),
        (16_000_000, 0, True),
        (80_000_000, 20_000_000, True),
        (80_000_000, 21_000_000, False),
    ],
)
def test_a_crowd_is_many_bytes_of_which_few_are_left(peak: int, used: int, left: bool) -> None:
    assert a_crowd_has_left(peak, used) is left


def test_the_peak_stays_when_bytes_are_released() -> None:
    budget = InFlight(100)
    held = Reservation(budget)
    held.add(60)
    held.release()
    assert budget.take_if_calm(10)
    assert (budget.used, budget.peak) == (10, 60)


def _resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="glibc's allocator"
)
async def test_what_a_crowd_took_goes_back_once_it_has_left() -> None:
    keep_freed_memory()
    before = _resident_mb()
    pictures = [b"x" * 200_000 for _ in range(500)]
    fence = b"y" * 200_000
    del pictures
    assert _resident_mb() > before + 50, "freed memory is kept for the next pictures"
    in_flight = InFlight(200_000_000, used=1_000, peak=100_000_000)
    await give_back_after_a_crowd(in_flight)
    assert _resident_mb() < before + 20
    assert in_flight.peak == 1_000
    assert fence
