"""The tests behind every verdict, on arrays: counts in, proof of keeping or of breaking a limit out.

Pure numbers. Every function works element by element over trailing axes `(...)`, so the very same lines decide one live
rollout (0-d arrays) and hundreds of simulated ones. Counts since the beginning of each epoch of the drift tests have
the shape `(epochs, ...)`; `k` numbers the epochs from 1 and is 0 where there is none. A pass and a fail are both proven
at their alpha whatever the number of looks; everything else is INSUFFICIENT.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cutover_operator.rollout.evalue import (
    KAPPA_RATIO,
    KAPPA_SHARE,
    Floats,
    Side,
    log_e,
    log_e_bound,
    mixture,
    refuted,
)

COST_MIN_ANSWERS = 100
VOTES_MIN = 100
SHARE_ALPHA = 1e-3

Bools = NDArray[np.bool_]


class Code(IntEnum):
    """What a test says. UNAVAILABLE: there is nothing to judge by, which is neither good nor bad."""

    INSUFFICIENT = 0
    PASS = 1
    FAIL = 2
    UNAVAILABLE = 3


# numpy asks a member of an enum for a dozen attributes before it takes it for a number.
_INSUFFICIENT, _PASS, _FAIL, _UNAVAILABLE = (np.int8(code) for code in Code)


@dataclass(frozen=True, slots=True)
class Judged:
    """Arrays of one shape `(...)`."""

    code: NDArray[np.int8]
    value: Floats
    """Observed share or mean; NaN without data."""
    samples: Floats
    log_e_pass: Floats | None
    log_e_fail: Floats | None
    shared: Bools
    """A fail that nobody is to blame for yet: the control may break the same limit, or is in an incident that is not
    over, and the candidate is not proven worse by a ratio."""
    suspected: Bools
    """A fail while the control looks as if it broke the same limit now."""
    against_control: Bools
    """A fail by comparison with the control."""


@dataclass(frozen=True, slots=True)
class Counts:
    """Bad and good outcomes."""

    bad: Any
    good: Any

    @property
    def all(self) -> Floats:
        return np.asarray(np.add(self.bad, self.good, dtype=np.float64))


@dataclass(frozen=True, slots=True)
class Priced:
    """Answers and what they cost since each mark, shape `(epochs, ...)`."""

    answers: Any
    usd: Any


@dataclass(frozen=True, slots=True)
class Segments:
    """What both arms counted between one mark and the next, shape `(epochs, ...)`: inside a segment the share of
    requests per arm does not change, which the comparison needs."""

    candidate: Counts
    control: Counts


def log_level(alpha: ArrayLike) -> Floats:
    """The log e-value that proves something at alpha; infinite for alpha 0."""
    with np.errstate(divide="ignore"):
        return np.asarray(-np.log(np.asarray(alpha, dtype=np.float64)))


def portion(part: ArrayLike, whole: ArrayLike) -> Floats:
    """part / whole; NaN where there is nothing."""
    n = np.asarray(whole, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(n > 0, np.asarray(part, dtype=np.float64) / n, np.nan)


def violations(
    counts: list[Counts],
    k: ArrayLike | None,
    p0: ArrayLike,
    side: Side,
    kappa: float,
    level: ArrayLike | None = None,
) -> list[Floats]:
    """Evidence against "the good share is at least p0" (side -1: too much is bad) per kind of counts, each by a mixture
    over epochs; counts have the shape `(epochs, ...)`.

    With `level`, where no kind can reach it, upper bounds below it stand for the evidence: no decision is another one,
    and many simulated rollouts cost a fraction.
    """
    sums = [(np.asarray(c.good, dtype=np.float64), np.asarray(c.bad, dtype=np.float64)) for c in counts]
    if level is None or sums[0][0].ndim < 2:
        return [mixture(log_e(good, bad, p0, side, kappa), k) for good, bad in sums]
    found = [mixture(log_e_bound(good, bad, p0, side), k) for good, bad in sums]
    close = np.any([one >= np.asarray(level, dtype=np.float64) - 1e-9 for one in found], axis=0)
    if close.any():
        indices = None if k is None else np.asarray(k)
        if indices is not None and indices.ndim > 1:
            indices = indices[:, close]
        limit = np.asarray(p0)[close] if np.ndim(p0) else p0
        for one, (good, bad) in zip(found, sums, strict=True):
            one[close] = mixture(log_e(good[:, close], bad[:, close], limit, side, kappa), indices)
    return found


def ratio_violation(segments: Segments, ratio: float, k: ArrayLike | None = None) -> Floats:
    """Evidence that the candidate's bad share is more than `ratio` times the control's, who serves the same minutes.

    Of the bad events of both arms only a part should be the candidate's (Lindon and Malek, 2020); segments are
    separate data about one hypothesis, so the e-values of those since a mark multiply. `k` numbers the marks as for
    `violations`: one mixture over where the trouble may have begun, so that good weeks before hide nothing.
    """
    mine, theirs = segments.candidate.all, segments.control.all
    both = (mine > 0) & (theirs > 0)
    expected = np.where(both, mine * ratio / np.where(both, mine * ratio + theirs, 1.0), 0.5)
    found = log_e(
        np.where(both, segments.candidate.bad, 0.0),
        np.where(both, segments.control.bad, 0.0),
        expected,
        1,
        KAPPA_RATIO,
    )
    return mixture(since_each(found), k)


def since_each(log_es: Floats) -> Floats:
    """Of segments, oldest first: the sums from each of them to the newest, shape `(epochs, ...)` in and out."""
    return np.asarray(np.cumsum(log_es[::-1], axis=0)[::-1])


def _suspected(
    epochs: Counts, mirrored: Counts | None, control: Counts, k: ArrayLike | None, limit: float
) -> Bools:
    """Whether the control's answers since the epoch that shows the candidate's breach best speak for a breach too.

    Any evidence above none will do: who is blamed wrongly goes back to a control in trouble, while a wrong suspicion only
    waits until the control has answered a few requests well.
    """
    strength = log_e(epochs.bad, epochs.good, limit, 1, KAPPA_SHARE)
    if mirrored is not None:
        strength = np.maximum(strength, log_e(mirrored.bad, mirrored.good, limit, 1, KAPPA_SHARE))
    if k is not None:
        at = np.asarray(k)
        at = at.reshape(*at.shape, *(1,) * (strength.ndim - at.ndim))
        strength = np.where(at > 0, strength, -np.inf)
    best = np.argmax(strength, axis=0)[None]
    bad, good = (
        np.take_along_axis(np.broadcast_to(part, strength.shape), best, axis=0)[0]
        for part in (np.asarray(control.bad), np.asarray(control.good))
    )
    return looks_ill(Counts(bad, good), limit)


def looks_ill(counts: Counts, limit: float) -> Bools:
    """Whether these outcomes speak for a bad share above the limit at all; nothing proves nothing."""
    return np.asarray(log_e(counts.bad, counts.good, limit, 1, KAPPA_SHARE) > 0.0)


def _averaged(one: Floats, other: Floats) -> Floats:
    """The mean of two e-values about one hypothesis, whatever their dependence (Vovk and Wang, 2021)."""
    return np.asarray(np.logaddexp(one, other) - np.log(2.0))


def coded(fail: Bools, good: Bools) -> NDArray[np.int8]:
    return np.where(fail, _FAIL, np.where(good, _PASS, _INSUFFICIENT))


def judge_share(
    total: Counts,
    epochs: Counts,
    k: ArrayLike | None,
    control_epochs: Counts,
    segments: Callable[[], Segments],
    *,
    limit: float,
    floor: ArrayLike,
    fail_alpha: ArrayLike,
    pass_alpha: ArrayLike,
    margin: float | None,
    default_margin: float,
    mirrored: Counts | None = None,
    incident: ArrayLike = False,
    exact: bool = True,
) -> Judged:
    """A bad share that must stay at or below `limit` (errors, slow answers, custom counters).

    `total` is what has been counted since judging began, `segments` is only asked for when it matters, `floor` what this
    step's certificate may tolerate, `mirrored` the same outcomes of mirrored requests per epoch, `incident` whether a
    shared incident is not over. `fail_alpha` 0: the gate never rolls back. Not `exact`: evidence that decides nothing may
    be an upper bound.
    """
    n, value = total.all, portion(total.bad, total.all)
    level = log_level(np.asarray(fail_alpha) / (2.0 if margin is not None else 1.0))
    kinds = [epochs] if mirrored is None else [epochs, mirrored]
    log_fail, *others = violations(kinds, k, 1.0 - limit, -1, KAPPA_SHARE, None if exact else level)
    for other in others:
        log_fail = _averaged(log_fail, other)
    log_pass = log_e(total.bad, total.good, floor, -1, KAPPA_SHARE)
    breach = log_fail >= level
    ratio = np.zeros_like(log_fail)
    if margin is not None or breach.any():
        ratio = ratio_violation(segments(), 1.0 + (margin if margin is not None else default_margin), k)
    shared = suspected = np.zeros_like(breach)
    if breach.any():
        suspected = breach & _suspected(epochs, mirrored, control_epochs, k, limit)
        shared = breach & (suspected | np.asarray(incident)) & (ratio < level)
    worse = ~breach & (ratio >= level) if margin is not None else np.zeros_like(breach)
    good = (value <= limit) & (log_pass >= log_level(pass_alpha))
    return Judged(
        coded(breach | worse, good),
        value,
        n,
        log_pass,
        np.where(worse, ratio, log_fail),
        shared,
        suspected,
        worse,
    )


def judge_cost(
    answers: ArrayLike,
    usd: ArrayLike,
    log_wealth: ArrayLike,
    epochs: Priced | None = None,
    k: ArrayLike | None = None,
    *,
    limit: float,
    fail_alpha: ArrayLike,
) -> Judged:
    """A mean cost that must not be proven above `limit`; a pass also needs a hundred answers below it on average.

    `answers` and `usd` since judging began; NaN: no price was seen yet, which is not a cost of nothing. Who fails must
    have been above the limit since one of the marks: after weeks of health a mean over all of them would be blind.
    """
    n, mean = np.asarray(answers, dtype=np.float64), portion(usd, answers)
    wealth = np.asarray(log_wealth, dtype=np.float64)
    above = mean > limit
    if epochs is not None and np.shape(epochs.usd)[0]:
        late = portion(epochs.usd, epochs.answers) > limit
        above = above | (late if k is None else late & (np.asarray(k) > 0)).any(axis=0)
    fail = above & (wealth >= log_level(fail_alpha))
    good = (mean <= limit) & (n >= COST_MIN_ANSWERS)
    none = np.zeros(n.shape, bool)
    return Judged(coded(fail, good), mean, n, None, wealth, none, none, none)


def judge_satisfaction(
    candidate: Counts,
    control: Counts,
    segments: Segments,
    k: ArrayLike | None = None,
    *,
    margin: float,
    fail_alpha: ArrayLike,
) -> Judged:
    """Thumbs down, between the arms only: those who vote choose themselves. Bad is down.

    A shared incident excuses no thumbs, so `segments` are those of all marks and the risk is spent once, however many
    incidents make other tests begin anew.
    """
    n, value = candidate.all, portion(candidate.bad, candidate.all)
    evidence = ratio_violation(segments, 1.0 + margin, k)
    fail = evidence >= log_level(fail_alpha)
    fine = value <= (1 + margin) * portion(control.bad, control.all)
    none = np.zeros(n.shape, bool)
    return Judged(coded(fail, (n >= VOTES_MIN) & fine), value, n, None, evidence, none, none, fail)


def odd_share(mine: ArrayLike, theirs: ArrayLike, asked: ArrayLike) -> Bools:
    """Whether the observed share of requests contradicts the weight (a share between 0 and 1) that was asked for."""
    a, b = np.asarray(mine, dtype=np.float64), np.asarray(theirs, dtype=np.float64)
    wanted = np.asarray(asked, dtype=np.float64)
    off = np.abs(a / np.maximum(a + b, 1.0) - wanted) > 0.02 + 0.1 * wanted * (1 - wanted)
    if not off.any():
        return np.asarray(off)
    return np.asarray(off & refuted(a, b, np.clip(wanted, 1e-12, 1 - 1e-12), SHARE_ALPHA))
