"""The evidence of many runs at once: what `evidence.ledger.Ledger` keeps for one, as arrays with one column per run.

The same marks at the same moments: a step entry, a shared incident, an epoch that is due, a new week of watching. A unit
test drives both through the same histories.
"""

from __future__ import annotations

from enum import IntEnum, auto

import numpy as np
from numpy.typing import NDArray

from cutover_operator.evidence.ledger import MARKS_KEPT
from cutover_operator.rollout.gate_tests import Counts, Segments
from cutover_operator.rollout.label_tests import Labels, LabelStretches
from cutover_operator.rollout.stretches import NO_STEP, pooled, stretches

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]


class Col(IntEnum):
    """What is counted."""

    ANSWERED = 0
    ERRORS = auto()
    SLOW = auto()
    COST = auto()
    BAD = auto()
    UP = auto()
    DOWN = auto()
    RIGHT = auto()
    WRONG = auto()
    MISSING = auto()
    CONTROL_ANSWERED = auto()
    CONTROL_ERRORS = auto()
    CONTROL_SLOW = auto()
    CONTROL_UP = auto()
    CONTROL_DOWN = auto()
    CONTROL_RIGHT = auto()
    CONTROL_WRONG = auto()
    CONTROL_MISSING = auto()
    MIRRORED = auto()
    MIRRORED_ERRORS = auto()
    MIRRORED_SLOW = auto()


class Books:
    """Totals `(columns, runs)` and marks `(slots, columns, runs)`; a slot with k = 0 holds no mark."""

    def __init__(self, runs: int) -> None:
        self.totals = np.zeros((len(Col), runs))
        self.marks = np.zeros((MARKS_KEPT, len(Col), runs))
        self.k = np.zeros((MARKS_KEPT, runs), dtype=np.int64)
        self.at = np.full((MARKS_KEPT, runs), -np.inf)
        self.step = np.full((MARKS_KEPT, runs), NO_STEP, dtype=np.int64)
        self.used = np.zeros(runs, dtype=np.int64)
        self.fresh_from = np.ones(runs, dtype=np.int64)
        self.incidents = np.zeros(runs, dtype=np.int64)

    # ------------------------------------------------------------ marks
    def mark(self, who: Mask, at: float, step: Ints | None = None) -> None:
        """A new epoch; with `step` (one per run), the entry of that step."""
        self._append(who, at, step)
        self._give_up(who)

    def incident(self, who: Mask, at: float) -> None:
        """Judge errors and latency anew from here, as part of the present step."""
        self._append(who, at, self.step.max(axis=0))
        self.fresh_from = np.where(who, self.newest, self.fresh_from)
        self.incidents = self.incidents + who

    def _append(self, who: Mask, at: float, step: Ints | None) -> None:
        if self.used.max() >= len(self.k):
            self._grow()
        runs = np.flatnonzero(who)
        slot = self.used[runs]
        self.marks[slot, :, runs] = self.totals[:, runs].T
        self.k[slot, runs] = self.newest[runs] + 1
        self.at[slot, runs] = at
        self.step[slot, runs] = NO_STEP if step is None else step[runs]
        self.used[runs] += 1

    def roll_incident(self, who: Mask, at: float, totals: Floats) -> None:
        """The incident lasts: its mark, and those made meanwhile, move to `totals`."""
        slots, runs = np.nonzero((self.k >= self.fresh_from) & who)
        self.marks[slots, :, runs] = totals[:, runs].T
        self.at[slots, runs] = at

    def restart_watch(self, who: Mask, at: float, step: Ints) -> None:
        """A new week of watching a promoted candidate: one epoch, the whole risk."""
        self.k[:, who], self.at[:, who], self.step[:, who] = 0, -np.inf, NO_STEP
        self.used = np.where(who, 0, self.used)
        self.fresh_from = np.where(who, 1, self.fresh_from)
        self.incidents = np.where(who, 0, self.incidents)
        self.mark(who, at, step)

    @property
    def newest(self) -> Ints:
        return np.asarray(self.k.max(axis=0))

    @property
    def newest_at(self) -> Floats:
        return np.asarray(self.at.max(axis=0))

    @property
    def oldest_at(self) -> Floats:
        return np.asarray(np.where(self.k > 0, self.at, np.inf).min(axis=0))

    def _grow(self) -> None:
        more = len(self.k)
        self.marks = np.concatenate([self.marks, np.zeros_like(self.marks)])
        self.k = np.concatenate([self.k, np.zeros_like(self.k)])
        self.at = np.concatenate([self.at, np.full_like(self.at[:more], -np.inf)])
        self.step = np.concatenate([self.step, np.full_like(self.step[:more], NO_STEP)])

    def _give_up(self, who: Mask) -> None:
        """Forget the oldest mark that neither the present step nor the tests' beginning needs, where too many are kept."""
        for run in np.flatnonzero(who & (self.used > MARKS_KEPT)):
            k, step = self.k[:, run], self.step[:, run]
            needed = (k == 0) | (k == 1) | (k == self.fresh_from[run]) | (k == k.max())
            needed |= (step == step.max()) & (step != NO_STEP)
            if needed.all():
                continue
            # Like the ledger: where a step began only when nothing else is left.
            drop = int(np.argmin(2 * needed + (step != NO_STEP)))
            order = [*(i for i in range(len(k)) if i != drop), drop]
            for array in (self.k, self.at, self.step):
                array[:, run] = array[order, run]
            self.marks[:, :, run] = self.marks[order, :, run]
            self.k[-1, run], self.at[-1, run], self.step[-1, run] = 0, -np.inf, NO_STEP
            self.used[run] -= 1

    # ------------------------------------------------------------ reading, for the runs in `who` (indices)
    def slots(self, who: Ints) -> int:
        return int(self.used[who].max(initial=0))

    def since(self, who: Ints, *columns: Col) -> list[Floats]:
        """What was counted since each mark, shape `(slots, runs)` per column."""
        n = self.slots(who)
        return [np.maximum(self.totals[c, who] - self.marks[:n, c][:, who], 0.0) for c in columns]

    def k_of(self, who: Ints, fresh: bool) -> Ints:
        """Indices of the epochs from 1, counted from `fresh_from` on if `fresh`; 0 where there is none."""
        k = self.k[: self.slots(who)][:, who]
        if not fresh:
            return k
        start = self.fresh_from[who]
        return np.where(k >= start, k - start + 1, 0)

    def counts(self, who: Ints, bad: Col, whole: Col) -> Counts:
        """Bad and good outcomes since each mark."""
        some, everything = self.since(who, bad, whole)
        return Counts(some, np.maximum(everything - some, 0.0))

    def fresh_counts(self, who: Ints, bad: Col, whole: Col) -> Counts:
        """Bad and good outcomes since judging began."""
        n = self.slots(who)
        slot = np.argmax(self.k[:n][:, who] == self.fresh_from[who], axis=0)
        some, everything = (self.totals[c, who] - self.marks[slot, c, who] for c in (bad, whole))
        return Counts(some, np.maximum(everything - some, 0.0))

    def since_step(self, who: Ints, step: Ints, *columns: Col) -> list[Floats]:
        """What was counted since the newest mark of each run's step."""
        n = self.slots(who)
        k = np.where(self.step[:n][:, who] == step, self.k[:n][:, who], 0)
        slot = np.argmax(k, axis=0)
        return [self.totals[c, who] - self.marks[slot, c, who] for c in columns]

    def segments(
        self, who: Ints, mine: tuple[Col, Col], theirs: tuple[Col, Col], fresh: bool = True
    ) -> Segments:
        """What both arms counted from mark to mark, (bad, whole) per arm, since judging began; since the first mark if
        not `fresh`."""
        n = self.slots(who)
        live = self.k_of(who, fresh) > 0
        last = self.used[who] - 1

        def parts(columns: tuple[Col, Col]) -> Counts:
            bad, whole = (self._between(who, c, n, last, live) for c in columns)
            return Counts(bad, np.maximum(whole - bad, 0.0))

        return Segments(parts(mine), parts(theirs))

    def _between(self, who: Ints, column: Col, n: int, last: Ints, live: Mask) -> Floats:
        here = self.marks[:n, column][:, who]
        ends = np.concatenate([here[1:], np.zeros((1, len(who)))])
        ends = np.where(np.arange(n)[:, None] >= last, self.totals[column, who], ends)
        return np.where(live, np.maximum(ends - here, 0.0), 0.0)

    def labels(self, who: Ints, control: bool = False) -> Labels:
        columns = _CONTROL_LABELS if control else _LABELS
        return Labels(*(self.totals[c, who] for c in columns))

    def label_epochs(self, who: Ints) -> Labels:
        return Labels(*self.since(who, *_LABELS))

    def label_stretches(self, who: Ints, deadline: float) -> LabelStretches:
        """Labels of both arms in stretches of one weight."""
        n = self.slots(who)
        live, last = self.k_of(who, fresh=False) > 0, self.used[who] - 1
        mine, theirs = (
            np.stack([self._between(who, c, n, last, live) for c in columns])
            for columns in (_LABELS, _CONTROL_LABELS)
        )
        begun = self.marks[0][np.asarray(_LABELS)][:, who].sum(axis=0) > 0
        number, usable = stretches(self.at[:n][:, who], self.step[:n][:, who], begun, deadline)
        mine, theirs = pooled(number, usable, mine, theirs)
        k = np.arange(1, mine.shape[1] + 1)[:, None]
        k = np.where(k <= np.where(live, number + 1, 0).max(axis=0), k, 0)
        return LabelStretches(Labels(*mine), Labels(*theirs), k)


_LABELS = (Col.RIGHT, Col.WRONG, Col.MISSING)
_CONTROL_LABELS = (Col.CONTROL_RIGHT, Col.CONTROL_WRONG, Col.CONTROL_MISSING)
