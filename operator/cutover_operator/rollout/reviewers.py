"""Reviewers err too: how often, measured by labelling some answers twice, and what that does to a floor. Pure.

Two reviewers who each err with chance eps, independently, differ with chance 2 eps (1 - eps). A model right with chance
p is then labelled right with chance p (1 - eps) + (1 - p) eps, so an accuracy floor has to be lowered by the same rule,
or a good model can hardly be certified at all. The bounds of eps hold at all times at once. Both sides use the lower one:
what second labels do not prove of the reviewers counts against the model (docs/decisions/0006).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from cutover_operator.rollout.evalue import Floats, intervals

RISK_PART = 0.1
"""Part of a test's risk that pays for not knowing eps."""


@dataclass(frozen=True, slots=True)
class Noise:
    """The chance that one reviewer labels one answer wrongly, between two bounds, shape `(...)`."""

    least: Floats
    most: Floats


def measured(same: ArrayLike, different: ArrayLike, alpha: ArrayLike) -> Noise:
    """Bounds of the error rate from answers labelled twice, valid at all times at level alpha for each side.

    Without such answers they are 0 and 1/2: nothing is known.
    """
    low, high = intervals(different, same, np.asarray(alpha, dtype=np.float64))
    return Noise(_error_rate(low), _error_rate(high))


def _error_rate(differing: Floats) -> Floats:
    return np.asarray((1 - np.sqrt(np.maximum(1 - 2 * np.minimum(differing, 0.5), 0.0))) / 2)


def seen_accuracy(p: ArrayLike, error_rate: ArrayLike) -> Floats:
    """Share of labels that say right, when the model is right with chance p."""
    chance, eps = np.asarray(p, dtype=np.float64), np.asarray(error_rate, dtype=np.float64)
    return np.asarray(chance * (1 - eps) + (1 - chance) * eps)


def floor_on_labels(p0: ArrayLike, noise: Noise) -> Floats:
    """What noisy labels must show of a model exactly at p0 > 1/2: by the fewest errors the reviewers may make."""
    return seen_accuracy(p0, noise.least)
