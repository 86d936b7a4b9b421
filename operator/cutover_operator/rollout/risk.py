"""How a risk is spent over the fresh starts that shared incidents and weeks of watching make. Pure."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from cutover_operator.rollout.evalue import Floats

WATCH_SECONDS = 7 * 86400.0
"""After the promotion the tests begin anew every week, so the risk is one per week."""


def spent(alpha: float, incidents: ArrayLike) -> Floats:
    """What is left of a risk after so many shared incidents made the tests start anew: half of it each time."""
    return np.asarray(alpha / np.exp2(np.asarray(incidents, dtype=np.float64)))
