"""What the verdicts of all gates together allow: hold, advance, roll back or freeze. Pure, on arrays.

The policy of a live rollout and of a simulated one, in one place. Advance needs every gate of the step to pass, enough
time and requests, and nothing in the way; one proven breach takes the traffic away, unless the control breaks the same
limit or, for errors and slow answers, does not answer at all: then nobody is to blame, and no weight moves.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cutover_operator.rollout.evalue import KAPPA_SHARE, log_e
from cutover_operator.rollout.gate_tests import Bools, Code

INCIDENT_ANSWERS = 20
"""Least answers of the control within its limit before an incident is over."""
INCIDENT_PROOF = 5.0
"""E-value wanted against "the control's share of errors is twice its limit"."""


class Move(IntEnum):
    HOLD = 0
    ADVANCE = 1
    ROLL_BACK = 2
    FREEZE = 3


# As plain numbers: numpy takes a member of an enum apart each time.
_HOLD, _ADVANCE, _ROLL_BACK, _FREEZE = (np.int8(move) for move in Move)
_PASS, _FAIL = np.int8(Code.PASS), np.int8(Code.FAIL)


def choose(
    codes: ArrayLike,
    shared: ArrayLike,
    wanted: ArrayLike,
    *,
    control_down: ArrayLike = False,
    excusable: ArrayLike = True,
    incident: ArrayLike = False,
    promoted: ArrayLike = False,
    held: ArrayLike = False,
    in_force: ArrayLike = True,
    enough_requests: ArrayLike = True,
    enough_time: ArrayLike = True,
    too_late: ArrayLike = False,
) -> NDArray[np.int8]:
    """The move of each element.

    `codes`, `shared` and `wanted` have the shape `(gates, ...)`: what each gate says, whether the control shares its
    fail, and whether this step needs it to pass. `control_down`: the control does not answer, which excuses the fails of
    `excusable` gates, shape `(gates, ...)`. `incident`: a shared incident began and is not over. `in_force`: the
    step's route, pods and scrapes are all in order. `too_late`: the step's deadline has passed and says roll back.
    """
    said = np.asarray(codes)
    failed = said == _FAIL
    excused = np.asarray(shared) | (np.asarray(excusable) & np.asarray(control_down))
    own = (failed & ~excused).any(axis=0)
    passed = (~np.asarray(wanted) | (said == _PASS)).all(axis=0)
    ready = passed & enough_requests & enough_time & in_force
    still = np.asarray(promoted) | np.asarray(held)
    chosen = np.where(ready, _ADVANCE, np.where(too_late, _ROLL_BACK, _HOLD))
    chosen = np.where(still, _HOLD, chosen)
    chosen = np.where(failed.any(axis=0) | np.asarray(incident), _FREEZE, chosen)
    return np.asarray(np.where(own, _ROLL_BACK, chosen), dtype=np.int8)


def incident_lasts(
    bad: ArrayLike, answers: ArrayLike, limit: ArrayLike, control_down: ArrayLike = False
) -> Bools:
    """Whether a shared incident goes on: since the last bad look the control has not answered enough within its limit,
    or not yet so well that twice the limit is out of the question. Few good answers come in the worst of hours too."""
    n, errors = np.asarray(answers, dtype=np.float64), np.asarray(bad, dtype=np.float64)
    allowed = np.asarray(limit, dtype=np.float64)
    trusted = log_e(errors, n - errors, np.minimum(2 * allowed, 0.5), -1, KAPPA_SHARE) >= np.log(
        INCIDENT_PROOF
    )
    return np.asarray(np.asarray(control_down) | (n < INCIDENT_ANSWERS) | (errors > allowed * n) | ~trusted)
