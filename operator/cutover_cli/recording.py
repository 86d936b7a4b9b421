"""Recorded samples of a rollout's counters: read from Prometheus piece by piece, kept in a file, cut into windows.

A file holds answers of Prometheus as they came: `{"schemaVersion": 1, "from": .., "to": .., "answers": {KEY: [..]}}`,
where KEY is the name of a metric, or the operator's key of a gate's own counter.
"""

from __future__ import annotations

import asyncio
import bisect
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import aiohttp

from cutover.api.modelrollout import ModelRolloutSpec
from cutover.contract import (
    LATENCY_EDGES_SECONDS,
    REQUESTS,
    ROLLOUT_NONE,
    SHADOW_PAIRS,
)
from cutover_cli.errors import Refused
from cutover_operator.evidence.ledger import Ledger
from cutover_operator.evidence.prometheus import Prometheus, samples_of
from cutover_operator.evidence.reading import asked
from cutover_operator.evidence.samples import Answer, Asked, Series, Unavailable, custom_key, merged
from cutover_operator.rollout.gates import named_gates
from cutover_operator.rollout.gather import wish_of
from cutover_operator.rollout.resources import Owner
from cutover_operator.rollout.wording import without_credentials

SCHEMA_VERSION = 1
PIECE_SECONDS = 3600
LEAD_SECONDS = 600
"""Read before the beginning, so that what was counted earlier is told from what is counted in the range."""
LAST_SECONDS = 253_402_300_799.0
"""The last second of the year 9999: what a calendar can name."""
TIMEOUT_SECONDS = 60.0
AT_ONCE = 4


class RecordingError(Refused):
    """There is nothing to replay; the message says why."""


@dataclass(frozen=True, slots=True)
class Track:
    """One series with its samples in order of time."""

    labels: Mapping[str, str]
    times: tuple[float, ...]
    values: tuple[float, ...]

    def window(self, start: float, end: float) -> Series | None:
        """The samples after `start` and not after `end`; None without any."""
        first, last = bisect.bisect_right(self.times, start), bisect.bisect_right(self.times, end)
        if first >= last:
            return None
        pairs = zip(self.times[first:last], self.values[first:last], strict=True)
        return Series(self.labels, tuple(pairs))


@dataclass(frozen=True, slots=True)
class Recording:
    """What Prometheus kept of a time range, by the operator's key of each answer."""

    start: float
    end: float
    tracks: Mapping[str, tuple[Track, ...]]

    def answer(self, key: str, start: float, end: float) -> Answer:
        """What Prometheus would have answered at `end` about the time since `start`."""
        found = (track.window(start, end) for track in self.tracks.get(key, ()))
        return Answer(tuple(series for series in found if series is not None), end)

    @property
    def samples(self) -> int:
        return sum(len(track.times) for tracks in self.tracks.values() for track in tracks)

    @property
    def last(self) -> float:
        """The time of the last sample; the beginning when there is none."""
        ends = (track.times[-1] for tracks in self.tracks.values() for track in tracks if track.times)
        return max(ends, default=self.start)

    def rollouts(self) -> list[str]:
        """Keys of the rollouts that were under way."""
        found = {t.labels.get("rollout", "") for t in self.tracks.get(REQUESTS, ())}
        return sorted(found - {"", ROLLOUT_NONE})

    def first_seen(self, rollout: str) -> float:
        """When a rollout's counters were first scraped in the range: its first step was in force by then."""
        own = (t for t in self.tracks.get(REQUESTS, ()) if t.labels.get("rollout") == rollout)
        seen = (at for track in own for at in track.times if at >= self.start)
        return min(seen, default=self.start)

    def candidate_versions(self, rollout: str) -> list[str]:
        """Candidate versions of a rollout, the one seen last at the end."""
        seen: dict[str, float] = {}
        for key in (REQUESTS, SHADOW_PAIRS):
            for track in self.tracks.get(key, ()):
                labels = track.labels
                if labels.get("rollout") != rollout or labels.get("arm", "candidate") != "candidate":
                    continue
                if track.times:
                    version = labels.get("version", "")
                    seen[version] = max(seen.get(version, -math.inf), track.times[-1])
        return sorted(seen, key=lambda version: seen[version])


def everything(spec: ModelRolloutSpec, rollout: str) -> Asked:
    """All that a rollout with any gates of these kinds could be judged by, with every edge of the histograms."""
    own = wish_of(Owner("", "", rollout), spec, Ledger(rollout, "", 0.0), "")
    fields = tuple(sorted({g.field for g in named_gates(spec) if g.metric == "accuracy"}))
    wanted = replace(own.wanted, edges=LATENCY_EDGES_SECONDS, hourly_fields=fields, sure_fields=fields)
    return asked(replace(own, wanted=wanted, shadow=True, satisfaction=True, doubles=True))


async def record(
    url: str, spec: ModelRolloutSpec, rollout: str, start: float, end: float
) -> tuple[Recording, str]:
    """(the samples of a range, the rollout they are of). Without `rollout`, the only one that was under way.

    Raises RecordingError with Prometheus's own words.
    """
    async with aiohttp.ClientSession() as session:
        prometheus = Prometheus(session, TIMEOUT_SECONDS)
        if not rollout:
            selector = f'{REQUESTS}{{gateway="{spec.gateway_ref}",rollout!="{ROLLOUT_NONE}"}}'
            who = Asked("", spec.gateway_ref, frozenset(), custom=(selector,))
            found = Recording(start, end, await _read(prometheus, url, who, start, end))
            known = sorted(
                {track.labels.get("rollout", "") for track in found.tracks.get(custom_key(selector), ())}
            )
            rollout = only_one(known)
        tracks = await _read(prometheus, url, everything(spec, rollout), start, end)
        return Recording(start, end, tracks), rollout


def only_one(known: Sequence[str]) -> str:
    """The only rollout. Raises RecordingError when there is none or a choice."""
    if not known:
        raise RecordingError(f"there are no samples of {REQUESTS} of any rollout in this range")
    if len(known) > 1:
        raise RecordingError(f"several rollouts were under way; name one with --rollout: {', '.join(known)}")
    return known[0]


async def _read(
    prometheus: Prometheus, url: str, what: Asked, start: float, end: float
) -> dict[str, tuple[Track, ...]]:
    begin = start - LEAD_SECONDS
    pieces = max(1, math.ceil((end - begin) / PIECE_SECONDS))
    places = asyncio.Semaphore(AT_ONCE)

    async def piece(number: int) -> Mapping[str, Answer | Unavailable]:
        until = min(begin + (number + 1) * PIECE_SECONDS, end)
        window = max(1, math.ceil(until - (begin + number * PIECE_SECONDS)))
        async with places:
            return await prometheus.read_past(url, what, window, until)

    found: dict[str, list[Series]] = {}
    for answers in await asyncio.gather(*(piece(number) for number in range(pieces))):
        for key, answer in answers.items():
            if isinstance(answer, Unavailable):
                raise RecordingError(without_credentials(answer.message))
            found.setdefault(key, []).extend(answer.series)
    return {key: _tracks(series) for key, series in found.items()}


def save(recording: Recording, path: str) -> None:
    """Raises RecordingError when the file cannot be written."""
    document = {
        "schemaVersion": SCHEMA_VERSION,
        "from": recording.start,
        "to": recording.end,
        "answers": {
            key: [
                {"status": "success", "data": {"resultType": "matrix", "result": [_row(t) for t in tracks]}}
            ]
            for key, tracks in recording.tracks.items()
        },
    }
    try:
        Path(path).write_text(json.dumps(document, separators=(",", ":")), encoding="utf-8")
    except OSError as error:
        raise RecordingError(f"{path}: {error.strerror}") from None


def load(path: str) -> Recording:
    """Raises RecordingError when the file is not one that `save` wrote."""
    try:
        document: Any = json.loads(Path(path).read_text(encoding="utf-8"))
        if document["schemaVersion"] > SCHEMA_VERSION:
            raise RecordingError(
                f"{path}: schemaVersion is {document['schemaVersion']}, this version reads {SCHEMA_VERSION}; update "
                "kubectl-cutover"
            )
        start, end = _time(path, "from", document["from"]), _time(path, "to", document["to"])
        tracks = {
            str(key): _read_kept(path, str(key), answers) for key, answers in document["answers"].items()
        }
    except OSError as error:
        raise RecordingError(f"{path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RecordingError(
            f"{path} holds no recorded samples: {type(error).__name__}: {error}"[:300]
        ) from None
    return Recording(start, end, tracks)


def _time(path: str, name: str, value: Any) -> float:
    at = float(value)
    if not 0 <= at <= LAST_SECONDS:
        raise RecordingError(f"{path}: {name} is {value}, not Unix seconds before the year 10000")
    return at


def _read_kept(path: str, key: str, answers: Any) -> tuple[Track, ...]:
    """Raises RecordingError, which names the metric and the series that cannot be read."""
    if not isinstance(answers, list):
        raise RecordingError(f"{path}: answers.{key} is no list of answers of Prometheus")
    found: list[Series] = []
    for answer in answers:
        where = ""
        try:
            # What is read is given up row by row; one row at a time tells which one is wrong.
            for row in list(answer["data"]["result"]):
                where = f", series {json.dumps(row['metric'])}"
                one = {**answer, "data": {**answer["data"], "result": [row]}}
                found += [_timed(series) for series in samples_of(one, 0.0).series]
            where = ""
            samples_of({**answer, "data": {**answer["data"], "result": []}}, 0.0)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            why = f"{key}{where}: {type(error).__name__}: {error}"
            raise RecordingError(f"{path} holds samples that cannot be read: {why}"[:500]) from None
    return _tracks(found)


def _timed(series: Series) -> Series:
    for at, _ in series.samples:
        if not 0 <= at <= LAST_SECONDS:
            raise ValueError(f"the time {at} is not Unix seconds before the year 10000")
    return series


def _tracks(series: list[Series]) -> tuple[Track, ...]:
    """One track a counter, samples of neighbouring pieces joined."""
    found = []
    for one in merged(series):
        points = sorted(dict(one.samples).items())
        found.append(Track(one.labels, tuple(at for at, _ in points), tuple(value for _, value in points)))
    return tuple(found)


def _row(track: Track) -> dict[str, Any]:
    values = [[at, _text(value)] for at, value in zip(track.times, track.values, strict=True)]
    return {"metric": dict(track.labels), "values": values}


def _text(value: float) -> str:
    if math.isfinite(value):
        return f"{value:.17g}"
    return "NaN" if math.isnan(value) else ("+Inf" if value > 0 else "-Inf")
