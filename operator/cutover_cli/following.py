"""Whether the recorded traffic went where a replay decided: by what the counters rose, look by look. Pure."""

from __future__ import annotations

import bisect
import math

from cutover.contract import REQUESTS, SHADOW_PAIRS
from cutover_cli.recording import Recording, Track
from cutover_operator.evidence.ledger import ANSWERED
from cutover_operator.rollout.gate_tests import odd_share

LAG_SECONDS = 60.0
"""A replay may enter a step a little before or after the recorded rollout; that is no other share of the traffic."""
WINDOW_SECONDS = 600.0
LEAST_REQUESTS = 50.0


class Following:
    """Told of every look what is decided, it says whether the recording followed until shortly before."""

    def __init__(self, recording: Recording, rollout: str, tick_seconds: float) -> None:
        requests = [t for t in recording.tracks.get(REQUESTS, ()) if _is(t, rollout)]
        answered = [t for t in requests if t.labels.get("outcome") in ANSWERED]
        self._mine = [t for t in answered if t.labels.get("arm") == "candidate"]
        self._theirs = [t for t in answered if t.labels.get("arm") == "control"]
        self._copies = [t for t in recording.tracks.get(SHADOW_PAIRS, ()) if _is(t, rollout)]
        self._lag = max(LAG_SECONDS, 2 * tick_seconds)
        self._decided: tuple[int, int] | None = None
        self._since = 0.0

    def follows(self, at: float, weight: int, shadow: int) -> bool:
        """`weight` and `shadow` are in percent, as decided up to this look."""
        if self._decided != (weight, shadow):
            self._decided, self._since = (weight, shadow), at
        end = at - self._lag
        start = max(self._since + self._lag, end - WINDOW_SECONDS)
        if start >= end:
            return True
        mine, theirs, copies = (_rise(t, start, end) for t in (self._mine, self._theirs, self._copies))
        if bool(odd_share(mine, theirs, weight / 100)):
            return False
        return not (shadow and theirs >= LEAST_REQUESTS and _is_odd(copies / theirs, shadow / 100))


def _is_odd(copied: float, asked: float) -> bool:
    """Copies for labels come on top and a full queue drops some, so only a share that is another altogether counts."""
    return copied < asked / 2 or copied > 2 * asked + 0.1


def _is(track: Track, rollout: str) -> bool:
    return track.labels.get("rollout") == rollout


def _rise(tracks: list[Track], start: float, end: float) -> float:
    return sum(_rise_of(track, start, end) for track in tracks)


def _rise_of(track: Track, start: float, end: float) -> float:
    """What was counted in a window, through resets; a counter's first sample counts from zero."""
    first, last = bisect.bisect_right(track.times, start), bisect.bisect_right(track.times, end)
    before = track.values[first - 1] if first else 0.0
    total = 0.0
    for value in track.values[first:last]:
        if math.isfinite(value) and math.isfinite(before):
            total += value - before if value >= before else value
        before = value
    return total
