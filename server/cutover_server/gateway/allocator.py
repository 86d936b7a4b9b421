"""What the C library's allocator keeps and gives back.

Pictures come and go all the time. By default glibc hands their pages back at once and has the kernel clear them again
for the next one; so freed memory is kept, and what a crowd has left is given back in a quiet moment afterwards. Another
C library is left as it is.
"""

from __future__ import annotations

import asyncio
import ctypes

from cutover_server.gateway.pressure import InFlight

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT_BYTES = 256_000_000
_MAPPED_BYTES = 32 * 1024 * 1024
"""The most glibc takes: what is larger than this is mapped by itself."""
_LOOK_SECONDS = 30.0
_CROWD_BYTES = 16_000_000
_QUIET_SHARE = 0.25


def keep_freed_memory() -> None:
    """Of this process, from now on."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
        mallopt(_M_MMAP_THRESHOLD, _MAPPED_BYTES)


def a_crowd_has_left(peak: int, used: int) -> bool:
    """Whether of the bytes in flight so few are left that it is worth giving memory back."""
    return peak >= _CROWD_BYTES and used <= peak * _QUIET_SHARE


async def give_back_after_a_crowd(in_flight: InFlight) -> None:
    """If one has left. In a thread: it takes some milliseconds for a hundred megabytes."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None and a_crowd_has_left(in_flight.peak, in_flight.used):
        in_flight.peak = in_flight.used
        await asyncio.to_thread(trim, 0)


async def give_back_now_and_then(in_flight: InFlight) -> None:
    """Until cancelled."""
    while True:
        await asyncio.sleep(_LOOK_SECONDS)
        await give_back_after_a_crowd(in_flight)
