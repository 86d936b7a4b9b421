"""Candidate against control on the same requests: who was right where the other was wrong. Pure, on arrays.

A mirrored request is answered by both arms; label both and D = candidate - control lies in {-1, 0, 1}. X = (1 + D) / 2
has a mean of at least (1 - margin) / 2 exactly when the candidate loses at most `margin` of accuracy. Pairs that agree
carry no evidence of a difference, so what both models find hard costs nothing: fewer labels than two separate samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from cutover_operator.rollout.betting import Purse
from cutover_operator.rollout.evalue import Floats, Side

VALUES = (1.0, 0.5, 0.0)


@dataclass(frozen=True, slots=True)
class Pairs:
    """Labelled pairs of a closed cohort, shape `(...)`."""

    both: Any
    candidate_only: Any
    """Only the candidate was right."""
    control_only: Any
    neither: Any
    missing: Any = 0
    """Drawn, without both labels at the deadline."""

    @property
    def difference(self) -> Floats:
        """Observed accuracy of the candidate less the control's; NaN without pairs."""
        n = np.add(
            np.add(self.both, self.candidate_only), np.add(self.control_only, self.neither), dtype=float
        )
        lead = np.subtract(self.candidate_only, self.control_only, dtype=float)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(n > 0, lead / n, np.nan)


def bet(purse: Purse, pairs: Pairs, margin: float, side: Side) -> Purse:
    """The purse after a cohort: side +1 against "the candidate loses at least `margin`", side -1 against "at most".

    Missing pairs count against what is being proven: as lost by the candidate on side +1, as won on side -1.
    """
    won, lost = np.asarray(pairs.candidate_only, dtype=float), np.asarray(pairs.control_only, dtype=float)
    if side > 0:
        lost = lost + pairs.missing
    else:
        won = won + pairs.missing
    level = np.add(pairs.both, pairs.neither, dtype=float)
    counts = np.stack(np.broadcast_arrays(won, level, lost))
    return purse.bet(counts, np.asarray(VALUES), (1 - margin) / 2, side)
