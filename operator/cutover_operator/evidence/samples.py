"""From raw Prometheus samples to whole events: `rate` and `increase` extrapolate, this adds.

Pure. A counter's increments are summed per series, resets noticed, samples without a meaning refused and counted.
Folding two windows one after the other gives what folding their union gives, in whatever order samples arrive.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections import deque
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from cutover_operator.evidence.labels import OWN_LABELS, counter_labels

STALE_SECONDS = (15.0, 180.0)
"""A newest sample younger than the first speaks for now whatever the scrape interval, one older than the last never."""

SCRAPE_TAKES_SECONDS = 10.0
"""Prometheus's own limit, unless somebody sets another."""

Sample = tuple[float, float]
"""(Unix seconds by Prometheus's clock, value)."""


@dataclass(frozen=True, slots=True)
class Series:
    """One series of an answer; `labels` holds the metric's own labels and the target's, not the name."""

    labels: Mapping[str, str]
    samples: Sequence[Sample]

    def label(self, name: str) -> str:
        return self.labels.get(name, "")

    @property
    def newest(self) -> float:
        """Time of the newest sample; minus infinity when there is none."""
        return max(self.samples)[0] if self.samples else -math.inf


@dataclass(frozen=True, slots=True)
class Answer:
    """What Prometheus answered to one query."""

    series: tuple[Series, ...]
    served_at: float
    """Prometheus's clock when it answered."""
    _by_rollout: dict[str, list[Series]] = field(init=False, repr=False, compare=False, default_factory=dict)
    _by_gateway: dict[str, list[Series]] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        for one in self.series:
            self._by_rollout.setdefault(one.label("rollout"), []).append(one)
            self._by_gateway.setdefault(one.label("gateway"), []).append(one)

    def of(self, rollout: str) -> Sequence[Series]:
        """The series of one rollout; the index is made once for all rollouts that share the answer."""
        return self._by_rollout.get(rollout, ())

    def at(self, gateway: str) -> Sequence[Series]:
        """The series of one gateway."""
        return self._by_gateway.get(gateway, ())


@dataclass(frozen=True, slots=True)
class Asked:
    """What one rollout needs to know from Prometheus."""

    rollout: str
    """Value of the label `rollout`."""
    gateway: str
    metrics: frozenset[str]
    """Names of the contract; a histogram without its suffix."""
    edges: frozenset[float] = frozenset()
    """Edges of the histograms, in seconds, besides +Inf."""
    custom: tuple[str, ...] = ()
    """Selectors of the user's own counters."""


def custom_key(selector: str) -> str:
    """Key of a user's own counter among the answers: never that of one of ours, however the user calls it."""
    return f"custom:{selector}"


@dataclass(frozen=True, slots=True)
class Unavailable:
    """Why there is no answer. Never a number, hence never a verdict."""

    kind: Literal[
        "NotAllowed", "Unreachable", "TimedOut", "HttpError", "BadAnswer", "QueryRefused", "NoSeries", "Stale"
    ]
    message: str


class Growth(NamedTuple):
    """What one counter series added after the last sample that was already counted."""

    added: float
    last: Sample | None
    resets: int = 0
    refused: int = 0


def merged(series: Iterable[Series]) -> list[Series]:
    """One series per counter: a target scraped by two jobs, or by two replicas of Prometheus, is one counter still.

    Counters are told apart by their own labels and the target's `instance` and `pod`; without those by every label. A
    job that names no `pod` is left out where another one names it for the same instance.
    """
    series = list(series)
    if any("pod" not in one.labels for one in series):
        with_pod = {_without_pod(one) for one in series if "pod" in one.labels}
        series = [
            one
            for one in series
            if "pod" in one.labels or "instance" not in one.labels or _without_pod(one) not in with_pod
        ]
    found: dict[str, Series] = {}
    views: dict[str, list[Sequence[Sample]]] = {}
    for one in series:
        labels = counter_labels(one.labels)
        known = found.get(labels.key)
        if known is not None:
            views.setdefault(labels.key, [known.samples]).append(one.samples)
        else:
            found[labels.key] = one if labels is one.labels else Series(labels, one.samples)
    for key, seen in views.items():
        found[key] = Series(found[key].labels, as_one(seen))
    return list(found.values())


def as_one(views: Sequence[Sequence[Sample]]) -> list[Sample]:
    """What several scrapers saw of one counter, in order.

    A sample has the time at which its scrape began, and a slow scrape reads late: beside each other the values of two
    scrapers go up and down without a reset. So a reset is what one scraper saw by itself, or a value below what another
    one saw longer ago than a scrape may take. Between resets the counter stands where the highest value was, and who
    has not seen the last reset yet says nothing.
    """
    rows: list[tuple[float, int, int, float]] = []
    for view, samples in enumerate(views):
        life, before = 0, 0.0
        for at, value in sorted(dict(samples).items()):
            if usable(value):
                life += value < before
                before = value
            rows.append((at, life, view, value))
    rows.sort(key=lambda row: row[:3])
    found: dict[float, float] = {}
    ahead = [0] * len(views)
    newest_life, high, settled = 0, 0.0, 0.0
    recent: deque[Sample] = deque()
    for at, own_life, view, value in rows:
        if usable(value):
            while recent and recent[0][0] <= at - SCRAPE_TAKES_SECONDS:
                settled = recent.popleft()[1]
            life = own_life + ahead[view]
            if life == newest_life and value < settled:
                ahead[view] += 1
                life += 1
            if life < newest_life or (life > newest_life and at in found):
                # Of one moment the end of the old process counts; the new one is seen again.
                continue
            if life > newest_life:
                newest_life, high, settled = life, 0.0, 0.0
                recent.clear()
            high = value = max(high, value)
            recent.append((at, value))
        found[at] = value
    return list(found.items())


def _without_pod(one: Series) -> frozenset[tuple[str, str]]:
    return frozenset((k, v) for k, v in one.labels.items() if k in OWN_LABELS and k != "pod")


def usable(value: float) -> bool:
    """Whether a counter can have this value."""
    return math.isfinite(value) and value >= 0.0


def increments(
    samples: Iterable[Sample], last: Sample | None, restarts: Container[float] = ()
) -> Iterator[tuple[float, float, bool]]:
    """The steps of a counter after `last` as (time, events added, was a reset). Without `last` the series is new and
    counts from 0: every series carries the rollout's own label, so nothing in it is older than the rollout.
    `restarts`: times of samples that are known to be the first of a new process, whatever their value."""
    counted_until = -math.inf if last is None else last[0]
    # A window holds many samples that were counted before; they are the first to go.
    newer = [sample for sample in samples if sample[0] > counted_until]
    if len(newer) > 1:
        newer = sorted(dict(newer).items())
    for at, value in newer:
        if not usable(value):
            continue
        before = last[1] if last is not None else 0.0
        reset = value < before or (last is not None and at in restarts)
        yield at, value if reset else value - before, reset
        last = (at, value)


def growth(samples: Sequence[Sample], last: Sample | None, restarts: Container[float] = ()) -> Growth:
    """The sum of a counter's increments, the sample to go on from, and what was odd about it."""
    counted_until = -math.inf if last is None else last[0]
    newer = [s for s in samples if s[0] > counted_until]
    if not newer:
        return Growth(0.0, last)
    if len(newer) == 1 and last is not None:
        # By far the most: one scrape since the last look.
        at, value = newer[0]
        if last[1] <= value < math.inf and at not in restarts:
            return Growth(value - last[1], newer[0])
    added, resets = 0.0, 0
    for _, step, reset in increments(newer, last, restarts):
        added += step
        resets += reset
    good = [s for s in newer if usable(s[1])]
    return Growth(added, max(good, default=last), resets, len(newer) - len(good))


def newest_before(samples: Iterable[Sample], at: float) -> Sample | None:
    """The newest usable sample not after `at`."""
    return max((s for s in samples if s[0] <= at and usable(s[1])), default=None)


def scrape_interval(series: Iterable[Series]) -> float | None:
    """Median distance of neighbouring samples, in seconds; None when no series has two."""
    gaps: list[float] = []
    for one in series:
        times = sorted({at for at, _ in one.samples})
        gaps.extend(b - a for a, b in itertools.pairwise(times))
    if not gaps:
        return None
    gaps.sort()
    return gaps[len(gaps) // 2]


def stale_after_seconds(interval_seconds: float | None) -> float:
    """Age at which a newest sample is too old to speak for now: three missed scrapes, 15 s to 3 min."""
    if interval_seconds is None:
        return 120.0
    return min(max(3.0 * interval_seconds, STALE_SECONDS[0]), STALE_SECONDS[1])


def per_second(series: Iterable[Series]) -> float | None:
    """Events per second over the window that was read; None when it is too short to tell."""
    added, first, final = 0.0, math.inf, -math.inf
    for one in series:
        points = sorted(one.samples)
        values = [value for _, value in points]
        rises = all(map(operator.le, values, values[1:])) and values and usable(values[-1]) and values[0] >= 0
        if not rises:
            points = sorted((at, value) for at, value in dict(one.samples).items() if usable(value))
        if len(points) < 2:
            continue
        added += values[-1] - values[0] if rises else growth(points[1:], points[0]).added
        first, final = min(first, points[0][0]), max(final, points[-1][0])
    return added / (final - first) if final - first >= 1.0 else None
