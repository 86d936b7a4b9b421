"""Accuracy from labels drawn with a known probability per stratum: fewer labels when strata differ. Pure, on arrays.

Each request counts with `f + drawn / pi * (right - f)`, where pi is the chance its stratum is drawn with and f what
earlier labels say about the stratum's accuracy: its mean is the accuracy over all requests whatever f is and whatever
the strata's shares are (Horvitz and Thompson 1952; Zrnic and Candes 2024; prediction-powered inference with e-values,
Csillag et al. 2025). Drawing more labels where the two models disagree buys more per label, and f takes away what the
stratum explains. A request not drawn counts with f, so a cohort's sums are enough.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from cutover_operator.rollout.betting import Purse
from cutover_operator.rollout.evalue import Floats, Side

FIRST_GUESS = {"agree": 0.9, "disagree": 0.5}
GUESS_WEIGHT = 4.0
MOST_UNEVEN = 4.0
"""Largest useful ratio of two strata's probabilities: beyond it rare labels weigh too much."""


@dataclass(frozen=True, slots=True)
class Cohort:
    """One closed cohort, by stratum, shape `(strata, ...)`: every request, and the drawn ones by their label."""

    requests: Any
    right: Any
    wrong: Any
    missing: Any
    """Drawn, without a label at the deadline."""

    @property
    def undrawn(self) -> Floats:
        drawn = np.add(np.add(self.right, self.wrong), self.missing, dtype=np.float64)
        return np.asarray(np.maximum(np.asarray(self.requests, dtype=np.float64) - drawn, 0.0))


@dataclass(frozen=True, slots=True)
class Learned:
    """Labels of closed cohorts by stratum, shape `(strata, ...)`: what a guess is made of."""

    right: Any
    labelled: Any
    first: Any
    """The guess before any label."""

    def guess(self) -> Floats:
        """The accuracy expected of each stratum, always strictly inside (0, 1)."""
        right, labelled = np.asarray(self.right, dtype=np.float64), np.asarray(self.labelled)
        start = np.asarray(self.first, dtype=np.float64)
        start = start.reshape(*start.shape, *(1,) * (right.ndim - start.ndim))
        return np.asarray((right + GUESS_WEIGHT * start) / (labelled + GUESS_WEIGHT))

    def after(self, cohort: Cohort) -> Learned:
        right = np.add(self.right, cohort.right, dtype=np.float64)
        labelled = np.add(np.add(self.labelled, cohort.right), cohort.wrong, dtype=np.float64)
        return Learned(right, labelled, self.first)


def bet(
    purse: Purse, cohort: Cohort, probability: ArrayLike, guess: ArrayLike, p0: ArrayLike, side: Side
) -> Purse:
    """The purse after a cohort. `probability` and `guess` by stratum, both fixed before the cohort began.

    Missing labels count as wrong on side +1 (proof of an accuracy above p0), as right on side -1.
    """
    f = np.asarray(guess, dtype=np.float64)
    pi = np.asarray(probability, dtype=np.float64)
    pi = np.broadcast_to(pi.reshape(*pi.shape, *(1,) * (f.ndim - pi.ndim)), f.shape)
    right, wrong = np.asarray(cohort.right, dtype=np.float64), np.asarray(cohort.wrong, dtype=np.float64)
    if side > 0:
        wrong = wrong + cohort.missing
    else:
        right = right + cohort.missing
    counts = np.concatenate([cohort.undrawn, right, wrong])
    values = np.concatenate([f, f + (1 - f) / pi, f - f / pi])
    return purse.bet(counts, values, p0, side)


def probabilities(shares: ArrayLike, overall: float, wanted_share: float = 0.4) -> Floats:
    """Chances per stratum (agree, disagree) that draw the share `overall` of all requests, `wanted_share` of the labels
    from the second stratum, at most `MOST_UNEVEN` times as likely."""
    first, second = np.asarray(shares, dtype=np.float64) / np.sum(shares)
    if min(first, second) <= 0:
        return np.full(2, min(overall, 1.0))
    uneven = (wanted_share / second) / ((1 - wanted_share) / first)
    uneven = float(np.clip(uneven, 1.0, MOST_UNEVEN))
    base = overall / (first + uneven * second)
    return np.asarray(np.minimum([base, base * uneven], 1.0))
