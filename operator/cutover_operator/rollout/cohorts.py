"""From the ledger's closed hours to bets: accuracy by strata, and candidate against control by pairs. Pure.

Every bet is a function of its own hour and of the hours before, so the wealth is worked out anew from the ledger
whenever it is wanted: the floor of a step may change, an operator may restart, and no bet is ever made twice or
differently. A test for drift puts fresh capital into play at each mark, with the weights of `evalue.mixture`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cutover.contract import PAIR_RESULTS, STRATUM_AGREE, STRATUM_ALL, STRATUM_DISAGREE
from cutover_operator.evidence.ledger import HOUR_SECONDS, Ledger, Totals
from cutover_operator.rollout import pairs, strata
from cutover_operator.rollout.betting import STAKES, Purse
from cutover_operator.rollout.evalue import Floats, Side

STRATA = (STRATUM_ALL, STRATUM_AGREE, STRATUM_DISAGREE)
FIRST_GUESS = (strata.FIRST_GUESS["agree"], strata.FIRST_GUESS["agree"], strata.FIRST_GUESS["disagree"])
FIRST_CHANCE = (1.0, 1.0 / strata.MOST_UNEVEN, 1.0)
"""Chance of being drawn from the pool, as long as nothing of a stratum was drawn: the most careful one."""


@dataclass(frozen=True, slots=True)
class Cohorts:
    """Closed hours, oldest first, and where the epochs of the tests for drift begin."""

    hours: tuple[int, ...]
    rows: tuple[Totals, ...]
    marks: tuple[tuple[int, float], ...]
    """(k, Unix seconds), rising."""

    def column(self, key: str) -> Floats:
        """Shape (hours,)."""
        return np.asarray([row.get(key, 0.0) for row in self.rows], dtype=np.float64)

    def table(self, pattern: str) -> Floats:
        """Shape (strata, hours)."""
        return np.stack([self.column(pattern.format(stratum)) for stratum in STRATA])


def cohorts_of(ledger: Ledger) -> Cohorts:
    closed = ledger.closed_hours()
    marks = tuple(sorted((m.k, m.at) for m in ledger.marks))
    return Cohorts(tuple(h for h, _ in closed), tuple(row for _, row in closed), marks)


@dataclass(frozen=True, slots=True)
class StrataSeen:
    """What closed hours say about the strata, for people to read."""

    value: float | None
    """Estimated accuracy over all requests; a missing label counts as wrong. None without labels."""
    labels: float
    missing: float


def strata_seen(cohorts: Cohorts, field: str) -> StrataSeen:
    """Each stratum's accuracy, weighed by how many requests it holds."""
    pool = cohorts.table("pool/{}").sum(axis=1)
    right, wrong, missing = (
        cohorts.table(f"labels/{field}/{{}}/{result}").sum(axis=1) for result in ("right", "wrong", "missing")
    )
    value = float(estimated(pool, right, wrong, missing))
    drawn = right + wrong + missing
    return StrataSeen(None if np.isnan(value) else value, float(drawn.sum()), float(missing.sum()))


def estimated(pool: Floats, right: Floats, wrong: Floats, missing: Floats) -> Floats:
    """The accuracy over all requests of the pool, shapes `(strata, ...)` in and `(...)` out; NaN without labels."""
    drawn = right + wrong + missing
    known = (drawn > 0) & (pool > 0)
    whole = np.where(known, pool, 0.0).sum(axis=0)
    found = np.where(known, pool * right / np.maximum(drawn, 1.0), 0.0).sum(axis=0)
    return np.asarray(np.where(whole > 0, found / np.maximum(whole, 1.0), np.nan))


def strata_wealth(cohorts: Cohorts, field: str, p0: float, side: Side) -> float:
    """Log e-value against "the accuracy is at most p0" (side +1, from the beginning) or "at least p0" (side -1, which
    also sees a drift that began late)."""
    if not cohorts.rows:
        return 0.0
    right, wrong, missing = (
        cohorts.table(f"labels/{field}/{{}}/{result}") for result in ("right", "wrong", "missing")
    )
    cohort = strata.Cohort(cohorts.table("pool/{}"), right, wrong, missing)
    learned = strata.Learned(_before(right), _before(right + wrong), FIRST_GUESS)
    won = strata.bet(
        _level(len(cohorts.rows)), cohort, _chances(cohorts, field), learned.guess(), p0, side
    ).in_play
    return _wealth(cohorts, won, drift=side < 0)


def pairs_seen(totals: Totals, field: str) -> pairs.Pairs:
    """All pairs counted so far."""
    both, candidate, control, neither, missing = (
        totals.get(f"pairs/{field}/{result}", 0.0) for result in PAIR_RESULTS
    )
    return pairs.Pairs(both, candidate, control, neither, missing)


def pairs_wealth(cohorts: Cohorts, field: str, margin: float, side: Side) -> float:
    """Log e-value against "the candidate loses at least `margin`" (side +1) or "at most" (side -1, drift included)."""
    if not cohorts.rows:
        return 0.0
    both, candidate, control, neither, missing = (
        cohorts.column(f"pairs/{field}/{result}") for result in PAIR_RESULTS
    )
    counted = pairs.Pairs(both, candidate, control, neither, missing)
    won = pairs.bet(_level(len(cohorts.rows)), counted, margin, side).in_play
    return _wealth(cohorts, won, drift=side < 0)


def _level(hours: int) -> Purse:
    """One purse per hour with nothing won or lost yet."""
    return Purse(np.zeros((hours, len(STAKES))))


def _before(counts: Floats) -> Floats:
    """Sums over the hours before each hour."""
    return np.asarray(np.cumsum(counts, axis=1) - counts)


def _chances(cohorts: Cohorts, field: str) -> Floats:
    """Chance of being drawn from the pool, by stratum and hour: drawn requests over their inverse chances; in an hour
    without a draw the last one known."""
    results = ("right", "wrong", "missing")
    drawn = np.sum([cohorts.table(f"labels/{field}/{{}}/{result}") for result in results], axis=0)
    weight = cohorts.table("weight/{}")
    found = np.where(weight > 0, drawn / np.maximum(weight, 1e-9), np.nan)
    for stratum, first in enumerate(FIRST_CHANCE):
        last = first
        for hour in range(found.shape[1]):
            if np.isnan(found[stratum, hour]):
                found[stratum, hour] = last
            last = found[stratum, hour]
    return np.asarray(np.clip(found, 1.0 / (2 * strata.MOST_UNEVEN), 1.0))


def _wealth(cohorts: Cohorts, won: Any, drift: bool) -> float:
    """The wealth after all hours, from what each stake won in each, shape (hours, stakes)."""
    purse = Purse.begun(drift=drift)
    if not drift:
        return float(replace(purse, in_play=np.asarray(purse.in_play) + won.sum(axis=0)).log_wealth)
    at = 0
    for k, begun in (mark for mark in cohorts.marks if mark[0] > 1):
        upto = at + int(np.searchsorted(np.asarray(cohorts.hours[at:]) * HOUR_SECONDS, begun))
        purse = replace(purse, in_play=np.asarray(purse.in_play) + won[at:upto].sum(axis=0), epochs=k - 1)
        purse, at = purse.next_epoch(), upto
    return float(replace(purse, in_play=np.asarray(purse.in_play) + won[at:].sum(axis=0)).log_wealth)
