"""How a risk is spent over time: epochs of the drift tests, fresh starts after incidents, weeks of watching. Pure."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from cutover_operator.evidence.ledger import EPOCH_SECONDS
from cutover_operator.rollout.evalue import Floats
from cutover_operator.rollout.gate_tests import Bools

FIRST_EPOCH_SECONDS = 3 * 3600.0
SUM_OF_CUBES = 1.2020569031595942
"""1 + 1/8 + 1/27 + 1/64 + ..."""
WATCH_SECONDS = 7 * 86400.0
"""After the promotion the tests begin anew every week, so the risk is one per week."""


def spent(alpha: float, incidents: ArrayLike) -> Floats:
    """The part of a risk that belongs to the tests after so many shared incidents, each of which makes them start anew.

    1 / i^3 of it for the i-th beginning, over the sum of them all: however many incidents come, no more than the whole is
    spent, and most of it (83 %) belongs to the rollout without any.
    """
    beginning = np.asarray(incidents, dtype=np.float64) + 1.0
    return np.asarray(alpha / (SUM_OF_CUBES * beginning**3))


def epoch_due(oldest_at: ArrayLike, newest_at: ArrayLike, now: ArrayLike) -> Bools:
    """Whether the drift tests should begin a further epoch, from the times of the oldest and the newest mark.

    Three hours after a beginning, then after twice that, and so on up to every twelve hours: a model that turns bad soon
    after a step or the promotion is not hidden by the good hours before, and late epochs stay few.
    """
    newest = np.asarray(newest_at, dtype=np.float64)
    gap = np.clip(newest - np.asarray(oldest_at), FIRST_EPOCH_SECONDS, EPOCH_SECONDS)
    return np.asarray(np.asarray(now) - newest >= gap)
