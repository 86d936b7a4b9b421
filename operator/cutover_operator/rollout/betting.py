"""Bets on cohorts of outcomes with known values: wealth that stays an e-value however often somebody looks.

A purse spreads its capital over a grid of stakes once and for all and multiplies each part by the bet it won or lost
(a mixture over stakes, as in Waudby-Smith and Ramdas 2020, section 5). Inside a cohort the outcomes' order does not
matter, so a cohort's counts are all a bet needs, and whatever a bet stands on comes from earlier cohorts. Capital held
back for later epochs makes it a restart mixture with the weights of `evalue.mixture`. Pure, on arrays: counts have the
shape `(outcomes, ...)`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from cutover_operator.rollout.evalue import LOG_E_BOUND, Floats, Side

STAKES = (0.1, 0.2, 0.4, 0.8)
"""Parts of the largest stake that cannot lose everything."""


@dataclass(frozen=True, slots=True)
class Purse:
    """Capital in play per stake, as logarithms of shape `(..., stakes)`; a plain list of numbers for one bettor."""

    in_play: Any
    epochs: Any = 0
    """0: all capital plays from the first cohort on; k: the mixture is in its k-th epoch. One number, or one for each
    of many bettors that all hold capital back."""

    @classmethod
    def begun(cls, shape: tuple[int, ...] = (), drift: bool = False) -> Purse:
        """A fresh purse. `drift`: hold half of the capital back for epochs to come."""
        start = -np.log(len(STAKES)) - (np.log(2.0) if drift else 0.0)
        return cls(_plain(np.full((*shape, len(STAKES)), start)), 1 if drift else 0)

    @property
    def log_wealth(self) -> Floats:
        """The log e-value, shape `(...)`."""
        total = np.logaddexp.reduce(np.asarray(self.in_play, dtype=np.float64), axis=-1)
        if np.any(self.epochs):
            total = np.logaddexp(total, -np.log(2.0 * np.asarray(self.epochs)))
        return np.asarray(np.clip(total, -LOG_E_BOUND, LOG_E_BOUND))

    def next_epoch(self, which: ArrayLike = True) -> Purse:
        """Put the share of the next epoch into play. A purse without epochs stays as it is, and so do those of many
        bettors that `which` does not name."""
        if not np.any(self.epochs):
            return self
        k = np.asarray(self.epochs) + 1
        fresh = -np.log(2.0 * k * (k - 1) * len(STAKES))
        before, named = np.asarray(self.in_play, dtype=np.float64), np.asarray(which)
        in_play = np.where(named[..., None], np.logaddexp(before, fresh[..., None]), before)
        return Purse(_plain(in_play), int(k) if k.ndim == 0 else np.where(named, k, k - 1))

    def bet(self, counts: ArrayLike, values: ArrayLike, p0: ArrayLike, side: Side) -> Purse:
        """The purse after a cohort, against "the mean value is at most p0" (side +1) or "at least p0" (side -1).

        `values` has the shape of `counts` or broadcasts to it, one value per outcome; every outcome that could have
        happened must be named, with count 0 when it did not, because the stakes are limited by the worst of them.
        """
        n = np.asarray(counts, dtype=np.float64)
        gain = side * (np.asarray(values, dtype=np.float64) - np.asarray(p0, dtype=np.float64))
        gain = gain.reshape(*gain.shape, *(1,) * (n.ndim - gain.ndim))
        worst = np.maximum(-gain.min(axis=0), 1e-9)
        stakes = np.asarray(STAKES) / worst[..., None]
        won = (n[..., None] * np.log1p(stakes * gain[..., None])).sum(axis=0)
        grown = np.clip(np.asarray(self.in_play, dtype=np.float64) + won, -LOG_E_BOUND, LOG_E_BOUND)
        return replace(self, in_play=_plain(grown))

    def bet_on_mean(self, value: ArrayLike, p0: float, closed: ArrayLike = True) -> Purse:
        """The purse after a cohort whose mean is `value`, against "the mean is at most p0", for values of 0..1.

        Values above 1 count as 1, against the alarm. With arrays, `closed` says whose cohort closed.
        """
        if isinstance(self.in_play, tuple):
            # One live bettor: Python's floats are several times as fast as arrays of four.
            gain = (min(max(float(np.asarray(value)), 0.0), 1.0) - p0) / p0
            return replace(
                self,
                in_play=tuple(
                    min(max(v + math.log1p(part * gain), -LOG_E_BOUND), LOG_E_BOUND)
                    for v, part in zip(self.in_play, STAKES, strict=True)
                ),
            )
        gains = (np.clip(np.asarray(value, dtype=np.float64), 0.0, 1.0) - p0) / p0
        won = np.log1p(np.asarray(STAKES) * gains[..., None])
        grown = np.clip(self.in_play + won, -LOG_E_BOUND, LOG_E_BOUND)
        return replace(self, in_play=np.where(np.asarray(closed)[..., None], grown, self.in_play))


def _plain(in_play: Floats) -> Any:
    return tuple(float(v) for v in in_play) if in_play.ndim == 1 else in_play
