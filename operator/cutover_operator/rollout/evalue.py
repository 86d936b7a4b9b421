"""Evidence about a share or a mean that stays valid however often somebody looks at it.

Decides nothing. Turns cumulative counts into the logarithm of an e-value: a number whose chance of ever reaching
`log(1 / alpha)` is at most alpha while the null hypothesis holds (Ville's inequality). The rate version is the
likelihood ratio mixed over a Beta prior cut to the alternative (Robbins 1970; Howard, Ramdas, McAuliffe and Sekhon
2021): closed form in the two sums, so scrapes, windows and restarts change nothing. The mean version bets once per
closed cohort (Waudby-Smith and Ramdas 2020).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betainc, betaln

LOG_E_BOUND = 1e6
"""Logarithms are cut here: minus infinity is a legitimate underflow but not JSON."""
KAPPA_ACCURACY = 30.0
KAPPA_SHARE = 20.0
KAPPA_RATIO = 10.0

Side = Literal[-1, 1]


def log_e(
    successes: ArrayLike, failures: ArrayLike, p0: float, side: Side, kappa: float
) -> NDArray[np.float64]:
    """Evidence against "the chance of success is at least p0" (side -1) or "at most p0" (side +1).

    Element by element; counts below zero count as zero. Raises ValueError for a p0 outside (0, 1).
    """
    if not 0.0 < p0 < 1.0:
        raise ValueError(f"p0 must lie strictly between 0 and 1, not {p0}")
    s = np.maximum(np.asarray(successes, dtype=np.float64), 0.0)
    f = np.maximum(np.asarray(failures, dtype=np.float64), 0.0)
    a, b = kappa * p0, kappa * (1.0 - p0)
    if side < 0:
        post, prior = betainc(a + s, b + f, p0), betainc(a, b, p0)
    else:
        post, prior = betainc(b + f, a + s, 1.0 - p0), betainc(b, a, 1.0 - p0)
    with np.errstate(divide="ignore"):
        cut = np.log(post) - math.log(prior)
    value: Any = betaln(a + s, b + f) - betaln(a, b) + cut - s * math.log(p0) - f * math.log1p(-p0)
    return np.asarray(np.clip(value, -LOG_E_BOUND, LOG_E_BOUND), dtype=np.float64)


def log_e_of(successes: float, failures: float, p0: float, side: Side, kappa: float) -> float:
    """`log_e` of one pair of counts."""
    return float(log_e(successes, failures, p0, side, kappa))


def mixture(log_es: Sequence[float], indices: Sequence[int] | None = None) -> float:
    """One e-value from those of several epochs that all end now and began at different times.

    Epoch 1 weighs 1/2, epoch k weighs 1/(2k(k-1)), the rest is idle: the weights add up to 1, so the mixture is an
    e-value too, and it sees a drift that began late. `indices` names the epochs when old ones were given up; what
    is missing counts as zero, which only makes the mixture more careful.
    """
    if not log_es:
        return 0.0
    ks = list(indices) if indices is not None else list(range(1, len(log_es) + 1))
    terms = [-math.log(2.0 * max(ks))]
    for k, value in zip(ks, log_es, strict=True):
        weight = 0.5 if k == 1 else 0.5 / (k * (k - 1))
        terms.append(math.log(weight) + value)
    return float(np.clip(np.logaddexp.reduce(np.asarray(terms)), -LOG_E_BOUND, LOG_E_BOUND))


def divergence(p: float, q: float) -> float:
    """Kullback-Leibler divergence of two coins, in nats."""
    total = 0.0
    if p > 0:
        total += p * math.log(p / q)
    if p < 1:
        total += (1 - p) * math.log((1 - p) / (1 - q))
    return total


def still_needed(
    successes: float, failures: float, p0: float, side: Side, kappa: float, alpha: float
) -> float | None:
    """How many more outcomes like those seen so far would reach `1 / alpha`.

    None when they point the wrong way (or nowhere), so that no number of them would.
    """
    n = successes + failures
    if n <= 0:
        return None
    seen = successes / n
    if side * (seen - p0) <= 0:
        return None
    gain = divergence(seen, p0)
    missing = math.log(1.0 / alpha) - log_e_of(successes, failures, p0, side, kappa)
    return max(0.0, missing / gain) if gain > 0 else None


def interval(
    successes: float, failures: float, alpha: float, a: float = 1.0, b: float = 1.0
) -> tuple[float, float]:
    """Shares not refuted at any time so far, at level alpha: around the observed share, for display and comparison."""
    s, f = max(successes, 0.0), max(failures, 0.0)
    if s + f <= 0:
        return 0.0, 1.0
    level = math.log(1.0 / alpha)
    base = float(betaln(a + s, b + f) - betaln(a, b))

    def refuted(p: float) -> bool:
        against = (s * math.log(p) if s else 0.0) + (f * math.log1p(-p) if f else 0.0)
        return base - against >= level

    middle = s / (s + f)
    tiny = 1e-12
    low, high = 0.0, 1.0
    if middle > tiny and refuted(tiny):
        low = _edge(tiny, middle, refuted)
    if middle < 1 - tiny and refuted(1 - tiny):
        high = _edge(1 - tiny, middle, refuted)
    return low, high


def _edge(outside: float, inside: float, refuted: Any) -> float:
    for _ in range(60):
        halfway = (outside + inside) / 2
        if refuted(halfway):
            outside = halfway
        else:
            inside = halfway
    return outside


@dataclass(frozen=True, slots=True)
class Bettor:
    """Wealth of a bettor against "the mean is at most p0", for values in 0..1, one bet per closed cohort.

    Each bet uses earlier cohorts only. Five numbers, so it survives in a ledger.
    """

    cohorts: int = 0
    mean: float = 0.0
    squares: float = 0.0
    log_wealth: float = 0.0

    def bet(self, value: float, p0: float) -> Bettor:
        """The bettor after a cohort whose mean is `value`; values above 1 count as 1, against the alarm."""
        x = min(max(value, 0.0), 1.0)
        prior_weight, prior_variance = 4.0, 0.05
        n = self.cohorts + prior_weight
        mean = (self.mean * self.cohorts + p0 * prior_weight) / n
        variance = (self.squares + prior_variance * prior_weight) / n
        gain = mean - p0
        stake = min(max(gain / (variance + gain * gain), 0.02), 0.5 / p0)
        wealth = self.log_wealth + math.log1p(stake * (x - p0))
        count = self.cohorts + 1
        delta = x - self.mean
        new_mean = self.mean + delta / count
        return replace(
            self,
            cohorts=count,
            mean=new_mean,
            squares=self.squares + delta * (x - new_mean),
            log_wealth=min(max(wealth, -LOG_E_BOUND), LOG_E_BOUND),
        )
