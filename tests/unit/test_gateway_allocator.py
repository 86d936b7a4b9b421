"""Memory goes back to the system after a crowd, and only then."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

from cutover_server.gateway.allocator import a_crowd_has_left
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


CROWD = """
import asyncio
from pathlib import Path
from cutover_server.gateway.allocator import give_back_after_a_crowd, keep_freed_memory
from cutover_server.gateway.pressure import InFlight

def resident_mb():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6

keep_freed_memory()
before = resident_mb()
pictures = [b"x" * 200_000 for _ in range(500)]
fence = b"y" * 200_000
del pictures
kept = resident_mb() - before
in_flight = InFlight(200_000_000, used=1_000, peak=100_000_000)
asyncio.run(give_back_after_a_crowd(in_flight))
print(kept, resident_mb() - before, in_flight.peak)
"""
"""In a process of its own: what another test has left free would be taken first."""


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="glibc's allocator"
)
def test_what_a_crowd_took_is_kept_while_it_is_there_and_goes_back_once_it_has_left() -> None:
    told = subprocess.run([sys.executable, "-c", CROWD], capture_output=True, text=True, check=True)
    kept_mb, left_mb, peak = map(float, told.stdout.split())
    assert kept_mb > 90
    assert left_mb < 20
    assert peak == 1_000
