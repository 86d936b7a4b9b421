"""Which labels of both arms may be compared: those of stretches in which the arms' shares of the traffic did not change.

Accuracy moves over time for both arms alike: harder pictures come at night, or since Monday. Summed over a rollout whose
weights change, the arm that served more of the hard hours looks worse than one as good. So labels are summed over
stretches of one weight, and an hour without labels of one arm counts for neither. How labels fell to the arms says
nothing about who is right, so evidence may be chosen by it. Pure, on arrays: marks have the shape `(slots, ...)`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cutover_operator.evidence.ledger import EPOCH_SECONDS
from cutover_operator.rollout.evalue import Floats

NO_STEP = -1

Ints = NDArray[np.int64]


def stretches(
    at: ArrayLike, step: ArrayLike, begun: ArrayLike, deadline: float
) -> tuple[Ints, NDArray[np.bool_]]:
    """(number of the stretch from 0, whether it may be compared) of what was counted from each mark to the next.

    `step` is NO_STEP for marks of no step, `begun` says whether labels were counted before the first mark. A new weight
    shows in labels once the label `deadline` is over: what is counted across that moment mixes two weights. Whether a
    mark's time will hold it is settled when the mark is made, for none lasts much longer than an epoch.
    """
    times, steps = np.asarray(at, dtype=np.float64), np.asarray(step)
    known = np.concatenate([np.full_like(steps[:1], NO_STEP), np.maximum.accumulate(steps, axis=0)[:-1]])
    # Of marks that lost their step (the steps were rewritten) nobody knows which of them changed a weight.
    entered = (steps >= 0) & (steps > known)
    begins = entered | ((steps < 0) & (known < 0))
    changed = entered.copy()
    changed[0] &= np.asarray(begun)
    usable = np.ones(times.shape, dtype=bool)
    stretch = np.cumsum(begins, axis=0) - 1
    for i in range(len(times)):
        if changed[i].any():
            shows = times[i] + deadline
            usable &= ~(changed[i] & (times < shows) & (shows < times + EPOCH_SECONDS) & (times >= times[i]))
            # Until then labels are still those of the stretch before.
            stretch = np.where(changed[i] & (times >= times[i]) & (times < shows), stretch - 1, stretch)
    return stretch + changed[0], usable


def pooled(stretch: Ints, usable: NDArray[np.bool_], mine: Floats, theirs: Floats) -> tuple[Floats, Floats]:
    """The labels of both arms, shape `(results, slots, ...)`, summed by stretch."""
    both = usable & (mine.sum(axis=0) > 0) & (theirs.sum(axis=0) > 0)
    rows = [both & (stretch == number) for number in range(int(stretch.max(initial=0)) + 1)]
    found = [
        np.stack([np.where(row, arm, 0.0).sum(axis=1) for row in rows], axis=1) for arm in (mine, theirs)
    ]
    return found[0], found[1]
