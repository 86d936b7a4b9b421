"""What became of simulated rollouts: arrays with one element per run, and the sentence-sized summary of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cutover_operator.simulation.scenario import Floats

UNDECIDED, PROMOTED, ROLLED_BACK = 0, 1, -1


@dataclass(frozen=True, slots=True)
class Summary:
    """Chances and typical numbers. Hours are None where they lie beyond the horizon."""

    runs: int
    promoted: float
    rolled_back: float
    undecided: float
    """At the horizon."""
    served_all: float
    """Chance that the candidate ever had all of the traffic."""
    standard_error: float
    """Of the chances, at most."""
    median_hours: float | None
    """To a decision, of all runs: one that is undecided takes for ever."""
    slowest_hours: float | None
    """Nine runs of ten are decided within it."""
    median_labels: float
    median_requests: float
    """Answers the candidate gave."""
    median_bad_answers: float
    """Errors and wrong answers it gave to somebody."""
    step_hours: tuple[float | None, ...]
    """Median hour at which each step was entered, of the runs that `reach` it."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One element per run."""

    finish: NDArray[np.int8]
    """PROMOTED, ROLLED_BACK or UNDECIDED, at the end."""
    decided_hours: Floats
    """When it was promoted or rolled back (the last of the two); infinite if never."""
    full_hours: Floats
    """When the candidate first had all of the traffic; infinite if never."""
    half_hours: Floats
    """When it first had half of it; infinite if never."""
    step_hours: Floats
    """(steps, runs): when each step was entered; infinite if never."""
    requests: Floats
    labels: Floats
    bad_answers: Floats
    frozen_hours: Floats
    """Time in shared incidents."""
    stopped_by: tuple[str, ...]
    """Gate names by index, for `stopped_at`."""
    stopped_at: NDArray[np.int64]
    """Index of the gate that stopped the run; -1 none, or its deadline."""
    kept: Floats
    """Answers of the candidate that reached somebody."""
    kept_from: NDArray[np.int64] | None = None
    """Index in `rollout.threshold.EDGES` of the threshold in force at the end; None: every answer is kept."""

    @property
    def runs(self) -> int:
        return len(self.finish)

    def share(self, finish: int) -> float:
        return float((self.finish == finish).mean())

    @property
    def served_all(self) -> float:
        return float(np.isfinite(self.full_hours).mean())

    def stopped_by_gate(self, name: str) -> float:
        """Share of all runs that this gate stopped."""
        return float((self.stopped_at == self.stopped_by.index(name)).mean()) if self.runs else 0.0

    @property
    def stopped_by_deadline(self) -> float:
        """Share of all runs that the deadline of a step rolled back."""
        return float(((self.finish == ROLLED_BACK) & (self.stopped_at < 0)).mean()) if self.runs else 0.0

    def reach(self, step: int) -> NDArray[np.bool_]:
        """The runs that entered a step or may still do so: those that ended before never will."""
        return np.asarray(np.isfinite(self.step_hours[step]) | (self.finish == UNDECIDED))

    def summary(self) -> Summary:
        decided = np.where(self.finish == UNDECIDED, np.inf, self.decided_hours)
        p = np.asarray([self.share(f) for f in (PROMOTED, ROLLED_BACK, UNDECIDED)])
        return Summary(
            runs=self.runs,
            promoted=float(p[0]),
            rolled_back=float(p[1]),
            undecided=float(p[2]),
            served_all=self.served_all,
            standard_error=float(np.sqrt((p * (1 - p)).max() / self.runs)),
            median_hours=quantile(decided, 0.5),
            slowest_hours=quantile(decided, 0.9),
            median_labels=float(np.median(self.labels)),
            median_requests=float(np.median(self.requests)),
            median_bad_answers=float(np.median(self.bad_answers)),
            step_hours=tuple(quantile(row[self.reach(at)], 0.5) for at, row in enumerate(self.step_hours)),
        )


def quantile(values: Floats, share: float) -> float | None:
    """As numpy's, where infinity is what never came: None once such a value is needed for it, or without any."""
    if not len(values):
        return None
    low, high = (float(np.quantile(values, share, method=side)) for side in ("lower", "higher"))
    part = share * (len(values) - 1) % 1
    return low + (high - low) * part if np.isfinite(high) else None
