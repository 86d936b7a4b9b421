"""Evidence about a share or a mean that stays valid however often somebody looks at it.

Decides nothing. Turns cumulative counts into the logarithm of an e-value: a number whose chance of ever reaching
`log(1 / alpha)` is at most alpha while the null hypothesis holds (Ville's inequality). The rate version is the
likelihood ratio mixed over a Beta prior cut to the alternative (Robbins 1970; Howard, Ramdas, McAuliffe and Sekhon
2021): closed form in the two sums, so scrapes, windows and restarts change nothing. Means of other
values than 0 and 1 are bet on in `betting`.

Everything takes arrays and works element by element, so the same lines judge one rollout and many simulated ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cutover.beta_tail import FEW, log_below, log_below_one, log_beta, log_beta_of_one

LOG_E_BOUND = 1e6
"""Logarithms are cut here: minus infinity is a legitimate underflow but not JSON."""
KAPPA_ACCURACY = 30.0
KAPPA_SHARE = 20.0
KAPPA_RATIO = 10.0
RAY_LOOKS = 12
"""Most evaluations to find how many more outcomes a proof needs."""
RAY_EXACT = 1.02
_LOG_HALF = math.log(0.5)

Side = Literal[-1, 1]
Floats = NDArray[np.float64]
Pair = tuple[ArrayLike, ArrayLike]


def log_e(successes: ArrayLike, failures: ArrayLike, p0: ArrayLike, side: Side, kappa: float) -> Floats:
    """Evidence against "the chance of success is at least p0" (side -1) or "at most p0" (side +1).

    Element by element; counts below zero count as zero. Raises ValueError for a p0 outside (0, 1).
    """
    limit = np.asarray(p0, dtype=np.float64)
    if not ((limit > 0.0) & (limit < 1.0)).all():
        raise ValueError(f"p0 must lie strictly between 0 and 1, not {limit}")
    s = np.maximum(np.asarray(successes, dtype=np.float64), 0.0)
    f = np.maximum(np.asarray(failures, dtype=np.float64), 0.0)
    if limit.ndim == 0 and s.shape == f.shape and s.size <= FEW:
        edge = float(limit)
        weight = _prior_of(edge, side, kappa)
        found = [
            _log_e_of_one(one, other, edge, side, kappa, weight)
            for one, other in zip(s.ravel().tolist(), f.ravel().tolist(), strict=True)
        ]
        return np.asarray(found, dtype=np.float64).reshape(s.shape)
    a, b = kappa * limit, kappa * (1.0 - limit)
    prior = _prior_of(float(limit), side, kappa) if limit.ndim == 0 else _prior(a, b, limit, side)
    right, wrong = a + s, b + f
    at = np.broadcast_to(limit, right.shape) if limit.ndim == 0 else limit
    post = log_below(right, wrong, at) if side < 0 else log_below(wrong, right, 1.0 - at)
    value = log_beta(right, wrong) + post - prior - s * np.log(limit) - f * np.log1p(-limit)
    return np.asarray(np.minimum(np.maximum(value, -LOG_E_BOUND), LOG_E_BOUND))


def _log_e_of_one(s: float, f: float, p0: float, side: Side, kappa: float, prior: float) -> float:
    """The same in Python's floats: a live rollout has a handful of counts, for which arrays take three times as long."""
    right, wrong = kappa * p0 + s, kappa * (1.0 - p0) + f
    post = log_below_one(right, wrong, p0) if side < 0 else log_below_one(wrong, right, 1.0 - p0)
    value = log_beta_of_one(right, wrong) + post - prior - s * math.log(p0) - f * math.log1p(-p0)
    return min(max(value, -LOG_E_BOUND), LOG_E_BOUND)


def _prior(a: Floats, b: Floats, limit: Floats, side: Side) -> Floats:
    """The logarithm of the prior's weight before it is made to add up to one."""
    below = log_below(a, b, limit) if side < 0 else log_below(b, a, 1.0 - limit)
    return log_beta(a, b) + below


@lru_cache(maxsize=1024)
def _prior_of(limit: float, side: Side, kappa: float) -> float:
    at = np.asarray(limit)
    return float(_prior(kappa * at, kappa * (1.0 - at), at, side))


def log_e_bound(successes: ArrayLike, failures: ArrayLike, p0: ArrayLike, side: Side) -> Floats:
    """A number `log_e` never exceeds, whatever kappa, and much cheaper: the likelihood ratio at the observed share."""
    s = np.maximum(np.asarray(successes, dtype=np.float64), 0.0)
    f = np.maximum(np.asarray(failures, dtype=np.float64), 0.0)
    limit, n = np.asarray(p0, dtype=np.float64), np.maximum(s + f, 1.0)
    best = _times_log(s, s / n / limit) + _times_log(f, f / n / (1.0 - limit))
    return np.asarray(np.where(side * (s - n * limit) > 0, best, 0.0))


def _times_log(count: Floats, share: Floats) -> Floats:
    """count * log(share), and 0 where the count is 0."""
    with np.errstate(divide="ignore"):
        return np.where(count > 0.0, count * np.log(np.where(count > 0.0, share, 1.0)), 0.0)


def log_e_of(successes: float, failures: float, p0: float, side: Side, kappa: float) -> float:
    """`log_e` of one pair of counts."""
    return float(log_e(successes, failures, p0, side, kappa))


def mixture(log_es: ArrayLike, indices: ArrayLike | None = None) -> Floats:
    """One e-value from those of several epochs that all end now and began at different times.

    `log_es` has the shape (epochs, ...), `indices` the same or one that broadcasts to it; the result has the shape
    (...). Epoch 1 weighs 1/2, epoch k weighs 1/(2k(k-1)), the rest is idle: the weights add up to 1, so the mixture
    is an e-value too, and it sees a drift that began late. `indices` names the epochs when old ones were given up
    (index 0: no epoch); what is missing counts as zero, which only makes the mixture more careful.
    """
    values = np.asarray(log_es, dtype=np.float64)
    if values.shape[0] == 0:
        return np.zeros(values.shape[1:])
    if (
        values.ndim == 1
        and values.size <= FEW
        and np.size(indices if indices is not None else values) == values.size
    ):
        numbers = range(1, values.size + 1) if indices is None else np.asarray(indices).ravel().tolist()
        return np.asarray(_mixture_of_few(values.tolist(), numbers))
    if indices is None:
        k = np.arange(1, values.shape[0] + 1).reshape(-1, *(1,) * (values.ndim - 1))
    else:
        k = np.asarray(indices)
        k = k.reshape(*k.shape, *(1,) * (values.ndim - k.ndim))
    newest = np.broadcast_to(k, values.shape).max(axis=0)
    with np.errstate(divide="ignore"):
        log_weight = np.where(k <= 1, math.log(0.5), -np.log(2.0 * np.maximum(k * (k - 1), 1)))
        terms = np.where(k > 0, values + log_weight, -np.inf)
        total = np.logaddexp(np.logaddexp.reduce(terms, axis=0), -np.log(2.0 * np.maximum(newest, 1)))
    return np.asarray(np.where(newest > 0, np.clip(total, -LOG_E_BOUND, LOG_E_BOUND), 0.0))


def _mixture_of_few(log_es: Sequence[float], indices: Sequence[int]) -> float:
    newest = max(indices)
    if newest <= 0:
        return 0.0
    terms = [
        log_e + (_LOG_HALF if k <= 1 else -math.log(2.0 * k * (k - 1)))
        for log_e, k in zip(log_es, indices, strict=True)
        if k > 0
    ]
    terms.append(-math.log(2.0 * newest))
    top = max(terms)
    total = top + math.log(sum(math.exp(term - top) for term in terms))
    return min(max(total, -LOG_E_BOUND), LOG_E_BOUND)


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
    """How many more outcomes like those seen so far bring `log_e` to `log(1 / alpha)`, to 2 % and never too few.

    None when they point the wrong way (or nowhere), so that no number of them would.
    """
    n = successes + failures
    if n <= 0:
        return None
    seen = successes / n
    if side * (seen - p0) <= 0:
        return None
    gain = divergence(seen, p0)
    goal = math.log(1.0 / alpha)
    reached = log_e_of(successes, failures, p0, side, kappa)
    if reached >= goal:
        return 0.0
    if gain <= 0:
        return None
    # More outcomes of one share are a ray, on which the evidence is convex and gains at most `gain` by each: that gain
    # alone never leads beyond the crossing, and the line through two points before it never falls short.
    low, most = 0.0, math.inf
    for _ in range(RAY_LOOKS):
        further = low + (goal - reached) / gain
        scale = 1.0 + further / n
        then = log_e_of(successes * scale, failures * scale, p0, side, kappa)
        if then >= goal:
            return further
        if then > reached:
            most = further + (goal - then) * (further - low) / (then - reached)
        if most <= RAY_EXACT * further:
            break
        low, reached = further, then
    return most if math.isfinite(most) else None


def log_e_difference(mine: Pair, theirs: Pair, margin: float, side: Side) -> Floats:
    """Evidence against "my share is at least theirs less `margin`" (side -1) or "at most that" (side +1), from
    (successes, failures) of two samples whose shares nobody knows.

    Each sample's likelihood ratio, mixed over all shares, is an e-value against any one share; so their product is one
    against any two, and the smallest product over what the hypothesis allows is one against all of it. The logarithm is
    convex in the shares, so that it lies where my share is theirs less `margin`, or at the observed ones.
    """
    (s, f), (t, g) = (
        (np.maximum(np.asarray(part, dtype=np.float64), 0.0) for part in pair) for pair in (mine, theirs)
    )
    s, f, t, g = np.broadcast_arrays(s, f, t, g)
    n, m = s + f, t + g
    own, other = s / np.maximum(n, 1.0), t / np.maximum(m, 1.0)
    broken = side * (own - other + margin) > 0
    low = np.clip(np.minimum(own + margin, other), margin, 1.0)
    high = np.clip(np.maximum(own + margin, other), margin, 1.0)
    for _ in range(40):
        middle = (low + high) / 2
        slope = _slope(middle - margin, s, f) + _slope(middle, t, g)
        low, high = np.where(slope < 0, middle, low), np.where(slope < 0, high, middle)
    shared = np.where(broken, (low + high) / 2, other)
    mixed = log_beta(1.0 + s, 1.0 + f) + log_beta(1.0 + t, 1.0 + g)
    least = _log_likelihood(s, f, np.where(broken, shared - margin, own)) + _log_likelihood(t, g, shared)
    return np.asarray(np.clip(mixed - least, -LOG_E_BOUND, LOG_E_BOUND))


def _slope(share: Floats, s: Floats, f: Floats) -> Floats:
    """Of the negative log-likelihood."""
    p = np.clip(share, 1e-12, 1 - 1e-12)
    return np.asarray(((s + f) * p - s) / (p * (1 - p)))


def _log_likelihood(s: Floats, f: Floats, share: Floats) -> Floats:
    return _times_log(s, share) + _times_log(f, 1.0 - share)


def refuted(
    successes: ArrayLike, failures: ArrayLike, p: ArrayLike, alpha: ArrayLike, a: float = 1.0, b: float = 1.0
) -> NDArray[np.bool_]:
    """Whether the counts rule out the share p, at level alpha and at all times at once."""
    s = np.maximum(np.asarray(successes, dtype=np.float64), 0.0)
    f = np.maximum(np.asarray(failures, dtype=np.float64), 0.0)
    share = np.asarray(p, dtype=np.float64)
    wealth = log_beta(a + s, b + f) - log_beta(a, b) - _times_log(s, share) - _times_log(f, 1.0 - share)
    return np.asarray(wealth >= -np.log(np.asarray(alpha, dtype=np.float64)))


def intervals(
    successes: ArrayLike, failures: ArrayLike, alpha: ArrayLike, a: float = 1.0, b: float = 1.0
) -> tuple[Floats, Floats]:
    """Lowest and highest share not refuted at any time so far, at level alpha: around the observed share."""
    s = np.maximum(np.asarray(successes, dtype=np.float64), 0.0)
    f = np.maximum(np.asarray(failures, dtype=np.float64), 0.0)
    s, f = np.broadcast_arrays(s, f)
    middle = s / np.maximum(s + f, 1.0)
    tiny = 1e-12

    def edge(outside: float) -> Floats:
        out, inside = np.full(s.shape, outside), np.clip(middle, tiny, 1 - tiny)
        worth = refuted(s, f, out, alpha, a, b)
        for _ in range(60):
            halfway = (out + inside) / 2
            beyond = refuted(s, f, halfway, alpha, a, b)
            out, inside = np.where(beyond, halfway, out), np.where(beyond, inside, halfway)
        return np.asarray(np.where(worth, out, round(outside)), dtype=np.float64)

    return edge(tiny), edge(1 - tiny)


def interval(
    successes: float, failures: float, alpha: float, a: float = 1.0, b: float = 1.0
) -> tuple[float, float]:
    """`intervals` of one pair of counts."""
    low, high = intervals(successes, failures, alpha, a, b)
    return float(low), float(high)
