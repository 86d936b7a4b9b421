"""What other tools would do, read from their sources, and in their favour: a window without events passes.

Each policy sees cumulative counts and says whom to advance and whom to roll back. Argo Rollouts: an analysis run of
`count` measurements that fails when more than `limit` of them fail. Flagger: one passing check moves on, five failed
ones in a row of a rollout roll back. Kayenta: a Mann-Whitney comparison with the control, fifty points a step. And two
statistics habits: one test after a fixed number of labels, and a test looked at again and again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from cutover_operator.simulation.arrivals import Arrivals
from cutover_operator.simulation.books import Col
from cutover_operator.simulation.scenario import Moment, Scenario

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]

WEIGHTS = np.asarray([0.10, 0.25, 0.50, 1.0])
ACCURACY, ERRORS = 0.90, 0.05
KEPT = (
    Col.ANSWERED,
    Col.ERRORS,
    Col.RIGHT,
    Col.WRONG,
    Col.CONTROL_ANSWERED,
    Col.CONTROL_ERRORS,
    Col.CONTROL_RIGHT,
    Col.CONTROL_WRONG,
)
Z = 1.645


@dataclass
class History:
    """Cumulative counts per tick, `(ticks, series, runs)`, and where each run stands."""

    counts: Floats
    tick: int
    step: Ints
    entered: Ints

    def since(self, start: Ints | int, mine: bool = True) -> tuple[Floats, Floats, Floats, Floats]:
        """(answers, errors, labels, right) of an arm since a tick."""
        runs = np.arange(self.counts.shape[2])
        first = np.maximum(np.broadcast_to(start, runs.shape), 0)
        four = range(4) if mine else range(4, 8)
        n, e, right, wrong = (self.counts[self.tick, c] - self.counts[first, c, runs] for c in four)
        return n, e, right + wrong, right

    def series(self, run: int, points: int) -> list[Floats]:
        """Increments of the eight series in the last ticks of one run."""
        return list(np.diff(self.counts[self.tick - points : self.tick + 1, :, run], axis=0).T)


Look = Callable[[History], tuple[Mask, Mask]]


def _within(h: History, start: Ints | int, guard: float = 1.0) -> Mask:
    n, errors, labels, right = h.since(start)
    return ((n < guard) | (errors <= ERRORS * n)) & ((labels < guard) | (right >= ACCURACY * labels))


@dataclass
class Argo:
    """`every` ticks a measurement over the window since, `count` of them, at most `limit` failed."""

    every: int
    count: int
    limit: int
    cumulative: bool = False
    guard: float = 1.0
    step: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    failed: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    measured: Ints = field(default_factory=lambda: np.zeros(0, np.int64))

    def __call__(self, h: History) -> tuple[Mask, Mask]:
        if not len(self.step):
            self.step, self.failed, self.measured = (np.zeros_like(h.step) for _ in range(3))
        new = self.step != h.step
        self.failed, self.measured = np.where(new, 0, self.failed), np.where(new, 0, self.measured)
        self.step = h.step.copy()
        due = (h.tick - h.entered) % self.every == 0
        start = h.entered if self.cumulative else np.full_like(h.entered, h.tick - self.every)
        self.measured = self.measured + due
        self.failed = self.failed + (due & ~_within(h, start, self.guard))
        return (self.measured >= self.count) & (self.failed <= self.limit), self.failed > self.limit


@dataclass
class Flagger:
    """One passing check per weight; a rollback at the fifth failed one."""

    threshold: int = 5
    failed: Ints = field(default_factory=lambda: np.zeros(0, np.int64))

    def __call__(self, h: History) -> tuple[Mask, Mask]:
        if not len(self.failed):
            self.failed = np.zeros_like(h.step)
        good = _within(h, h.tick - 1)
        self.failed = self.failed + ~good
        return good, self.failed >= self.threshold


@dataclass
class Kayenta:
    """Mann-Whitney confidence limits of the shift against the control, beyond a quarter of its size."""

    points: int = 50

    def __call__(self, h: History) -> tuple[Mask, Mask]:
        due = h.tick - h.entered >= self.points
        worse = np.zeros(len(h.step), bool)
        for run in np.flatnonzero(due):
            n, e, right, wrong, n0, e0, right0, wrong0 = h.series(int(run), self.points)
            worse[run] = shifted(_ratios(e, n), _ratios(e0, n0), 1) or shifted(
                _ratios(right, right + wrong), _ratios(right0, right0 + wrong0), -1
            )
        return due & ~worse, worse


def _ratios(part: Floats, whole: Floats) -> Floats:
    return part[whole > 0] / whole[whole > 0]


def shifted(
    mine: Floats, theirs: Floats, side: int, confidence: float = 0.98, tolerance: float = 0.25
) -> bool:
    """Whether the confidence interval of the Hodges-Lehmann shift lies beyond the tolerance on one side."""
    if len(mine) < 2 or len(theirs) < 2:
        return False
    shifts = np.sort((mine[:, None] - theirs[None]).ravel())
    spread = np.sqrt(len(shifts) * (len(mine) + len(theirs) + 1) / 12)
    index = int(len(shifts) / 2 - ndtri(0.5 + confidence / 2) * spread)
    if index < 1:
        return False
    allowed = tolerance * abs(float(np.median(shifts)))
    return bool(shifts[index - 1] > allowed if side > 0 else shifts[-index] < -allowed)


def _z(h: History) -> tuple[Floats, Floats, Floats, Floats]:
    """(answers, labels, z of accuracy, z of errors) since the beginning."""
    n, errors, labels, right = h.since(0)

    def score(part: Floats, whole: Floats, limit: float) -> Floats:
        whole = np.maximum(whole, 1.0)
        return np.asarray((part / whole - limit) / np.sqrt(np.maximum(part * (whole - part), 1.0) / whole**3))

    return n, labels, score(right, labels, ACCURACY), score(errors, n, ERRORS)


def fixed(h: History, labels_wanted: int = 557) -> tuple[Mask, Mask]:
    """One look after the planned number of labels; everything that does not pass goes back."""
    _, labels, accuracy, errors = _z(h)
    done, good = labels >= labels_wanted, (accuracy > Z) & (errors < 0)
    return done & good, done & ~good


def peeking(h: History, least: int = 30) -> tuple[Mask, Mask]:
    """The same test after every tick."""
    n, labels, accuracy, errors = _z(h)
    enough = (labels >= least) & (h.tick - h.entered >= 6)
    return (
        enough & (accuracy > Z) & (errors < -Z),
        ((labels >= least) & (accuracy < -Z)) | ((n >= least) & (errors > Z)),
    )


def others() -> dict[str, tuple[Callable[[], Look], bool]]:
    """Name -> (a fresh policy, whether it goes from the first step to everything)."""
    return {
        "argo 6x10m": (lambda: Argo(1, 6, 2), False),
        "argo 24x1h": (lambda: Argo(6, 24, 3), False),
        "argo cumulative": (lambda: Argo(6, 24, 3, True, 30.0), False),
        "flagger": (Flagger, False),
        "kayenta": (Kayenta, False),
        "fixed n z-test": (lambda: fixed, True),
        "peeking z-test": (lambda: peeking, False),
    }


@dataclass(frozen=True)
class Ending:
    """One element per run; hours are infinite when never."""

    finish: Ints
    decided_hours: Floats
    half_hours: Floats
    requests: Floats
    labels: Floats
    bad_answers: Floats

    def share(self, finish: int) -> float:
        return float((self.finish == finish).mean())


def walk(
    look: Look, jumps: bool, scenario: Scenario, runs: int, seed: int, deadline_seconds: float
) -> Ending:
    """A policy's rollouts in a world; none of them looks again after the promotion."""
    source = Arrivals(scenario, runs, np.random.default_rng(seed), deadline_seconds)
    ticks = int(scenario.horizon_hours * 3600 / scenario.tick_seconds)
    h = History(np.zeros((ticks + 1, len(KEPT), runs)), 0, np.zeros(runs, np.int64), np.zeros(runs, np.int64))
    finish, decided, half = np.zeros(runs, np.int64), np.full(runs, np.inf), np.full(runs, np.inf)
    requests, labels, bad = (np.zeros(runs) for _ in range(3))
    for tick in range(1, ticks + 1):
        live = finish == 0
        if not live.any():
            break
        hours = tick * scenario.tick_seconds / 3600
        since_half = np.where(np.isfinite(half), hours - half, np.nan)
        weight = np.where(live, WEIGHTS[h.step], 0.0)
        events = source.tick(Moment(hours, h.step, weight, since_half), np.zeros(runs))
        requests += np.where(live, events[Col.ANSWERED], 0.0)
        labels += np.where(live, source.drawn, 0.0)
        bad += np.where(live, source.bad_answers, 0.0)
        h.tick = tick
        h.counts[tick] = h.counts[tick - 1] + events[list(KEPT)]
        advance, back = look(h)
        back, advance = back & live, advance & live & ~back
        done = advance & ((h.step == 2) | jumps)
        finish = np.where(back, -1, np.where(done, 1, finish))
        decided = np.where(back | done, hours, decided)
        h.step = np.where(advance & ~done, np.minimum(h.step + 1, 3), h.step)
        h.entered = np.where(advance, tick, h.entered)
        half = np.where((h.step >= 2) & np.isinf(half), hours, half)
    return Ending(finish, decided, half, requests, labels, bad)
