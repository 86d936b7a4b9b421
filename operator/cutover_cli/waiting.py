"""Looks again and again until something is so or the time is over. The clock and the pause are arguments."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Pace:
    clock: Callable[[], float]
    pause: Callable[[float], None]
    interval_seconds: float = 2.0


def until(
    look: Callable[[], Object],
    enough: Callable[[Object], bool],
    show: Callable[[Object], None],
    timeout_seconds: float,
    pace: Pace,
) -> Object | None:
    """The object once it is as wanted; none when the time is over. Every look is shown."""
    end = pace.clock() + timeout_seconds
    while True:
        obj = look()
        show(obj)
        if enough(obj):
            return obj
        left = end - pace.clock()
        if left <= 0:
            return None
        pace.pause(min(pace.interval_seconds, left))
