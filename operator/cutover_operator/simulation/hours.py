"""Bets on closed hours for many runs at once: what `rollout.cohorts` works out of one ledger, hour by hour as they close.

The same bets of `rollout.strata` and `rollout.pairs`, the same learning from earlier hours, the same fresh capital at each
mark. A ledger forgets hours older than its `HOURS_KEPT`; a walk of that many hours does not.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum, auto

import numpy as np

from cutover_operator.evidence.ledger import HOUR_SECONDS, LATE_SECONDS
from cutover_operator.rollout import pairs, strata
from cutover_operator.rollout.betting import STAKES, Purse
from cutover_operator.rollout.cohorts import FIRST_CHANCE, FIRST_GUESS, estimated
from cutover_operator.rollout.evalue import LOG_E_BOUND, Side
from cutover_operator.simulation.books import Books, Floats, Ints, Mask


class Hourly(IntEnum):
    """What is counted by the hour. Strata come in the order of `cohorts.STRATA`: all, agree, disagree."""

    POOL_ALL = 0
    POOL_AGREE = auto()
    POOL_DISAGREE = auto()
    WEIGHT_ALL = auto()
    WEIGHT_AGREE = auto()
    WEIGHT_DISAGREE = auto()
    RIGHT_ALL = auto()
    RIGHT_AGREE = auto()
    RIGHT_DISAGREE = auto()
    WRONG_ALL = auto()
    WRONG_AGREE = auto()
    WRONG_DISAGREE = auto()
    MISSING_ALL = auto()
    MISSING_AGREE = auto()
    MISSING_DISAGREE = auto()
    PAIR_BOTH = auto()
    PAIR_CANDIDATE = auto()
    PAIR_CONTROL = auto()
    PAIR_NEITHER = auto()
    PAIR_MISSING = auto()


POOL = slice(Hourly.POOL_ALL, Hourly.WEIGHT_ALL)
WEIGHT = slice(Hourly.WEIGHT_ALL, Hourly.RIGHT_ALL)
RIGHT = slice(Hourly.RIGHT_ALL, Hourly.WRONG_ALL)
WRONG = slice(Hourly.WRONG_ALL, Hourly.MISSING_ALL)
MISSING = slice(Hourly.MISSING_ALL, Hourly.PAIR_BOTH)
PAIRS = slice(Hourly.PAIR_BOTH, len(Hourly))
STRATUM_LABELS = [
    part
    for part in Hourly
    if part.name.startswith(("RIGHT_", "WRONG_", "MISSING_")) and part.name[-4:] != "_ALL"
]
"""Labels that stand in no plain sum."""


@dataclass(frozen=True, slots=True)
class Bet:
    """One bettor: by stratum against the accuracy `against`, or by pairs against the margin `against`."""

    paired: bool
    against: float
    side: Side


@dataclass(slots=True)
class _Account:
    """What a bettor won, stake by stake. For a test for drift (side -1) after each hour, else in all."""

    sum: Floats
    after: list[Floats] = field(default_factory=list)


class HourBooks:
    """Open hours, sums of the closed ones `(columns, runs)` and every bettor's winnings."""

    def __init__(self, runs: int, bets: frozenset[Bet], past_the_hour_seconds: float) -> None:
        self.runs, self._offset = runs, past_the_hour_seconds
        self.sums = np.zeros((len(Hourly), runs))
        self._open: dict[int, Floats] = {}
        self._closed = 0
        self._from = np.zeros(runs, dtype=np.int64)
        self._chance = self._first_chance()
        nothing = np.zeros((runs, len(STAKES)))
        self._accounts = {bet: _Account(nothing.copy(), [nothing.copy()]) for bet in bets}

    def _first_chance(self) -> Floats:
        return np.repeat(np.asarray(FIRST_CHANCE)[:, None], self.runs, axis=1)

    # ------------------------------------------------------------ time
    def count(self, events: Floats, seconds: float) -> None:
        """Samples of `seconds` after the start; hours that are over by then close."""
        now = self._offset + seconds
        here = self._open.setdefault(int(now // HOUR_SECONDS), np.zeros_like(self.sums))
        here += events
        while self._closed < int((now - LATE_SECONDS) // HOUR_SECONDS):
            self._close(self._open.pop(self._closed, np.zeros_like(self.sums)))

    def restart(self, who: Mask, seconds: float) -> None:
        """A new week of watching: these runs forget the hours before the present one."""
        hour = int((self._offset + seconds) // HOUR_SECONDS)
        self.sums[:, who] = 0.0
        self._chance[:, who] = self._first_chance()[:, who]
        for open_hour, row in self._open.items():
            if open_hour < hour:
                row[:, who] = 0.0
        self._from = np.where(who, self._closed, self._from)
        for account in self._accounts.values():
            account.sum[who] = 0.0

    def _close(self, row: Floats) -> None:
        drawn = row[RIGHT] + row[WRONG] + row[MISSING]
        self._chance = np.where(row[WEIGHT] > 0, drawn / np.maximum(row[WEIGHT], 1e-9), self._chance)
        chance = np.clip(self._chance, 1.0 / (2 * strata.MOST_UNEVEN), 1.0)
        guess = strata.Learned(self.sums[RIGHT], self.sums[RIGHT] + self.sums[WRONG], FIRST_GUESS).guess()
        level = Purse(np.zeros((self.runs, len(STAKES))))
        for bet, account in self._accounts.items():
            if bet.paired:
                purse = pairs.bet(level, pairs.Pairs(*row[PAIRS]), bet.against, bet.side)
            else:
                cohort = strata.Cohort(row[POOL], row[RIGHT], row[WRONG], row[MISSING])
                purse = strata.bet(level, cohort, chance, guess, bet.against, bet.side)
            account.sum += purse.in_play
            if bet.side < 0:
                account.after.append(account.after[-1] + purse.in_play)
        self.sums += row
        self._closed += 1

    # ------------------------------------------------------------ reading, for the runs in `who` (indices)
    def wealth(self, bet: Bet, books: Books, who: Ints) -> Floats:
        """Log e-value after all closed hours, shape `(runs,)`."""
        account = self._accounts[bet]
        if bet.side > 0:
            total = np.logaddexp.reduce(account.sum[who] - np.log(len(STAKES)), axis=-1)
            return np.asarray(np.clip(total, -LOG_E_BOUND, LOG_E_BOUND))
        won, n = np.asarray(account.after), books.slots(who)
        k, at = books.k[:n][:, who], books.at[:n][:, who]
        begun = np.where(k > 1, np.ceil((self._offset + at) / HOUR_SECONDS), 0.0)
        first = np.clip(begun.astype(np.int64), self._from[who], self._closed)
        first = np.maximum.accumulate(first, axis=0)
        later = won[-1][who] - won[first, who]
        with np.errstate(divide="ignore"):
            weight = np.where(k > 1, -np.log(2.0 * np.maximum(k * (k - 1), 1) * len(STAKES)), -np.inf)
        capital = later + weight[..., None]
        whole = won[-1][who] - won[self._from[who], who] - np.log(2.0 * len(STAKES))
        fresh = np.logaddexp.reduce(np.logaddexp.reduce(capital, axis=0), axis=-1)
        total = np.logaddexp(fresh, np.logaddexp.reduce(whole, axis=-1))
        total = np.logaddexp(total, -np.log(2.0 * np.maximum(k.max(axis=0), 1)))
        return np.asarray(np.clip(total, -LOG_E_BOUND, LOG_E_BOUND))

    def estimate(self, who: Ints) -> tuple[Floats, Floats, Floats]:
        """(accuracy over the pool, labels drawn, labels missing) of closed hours, as `cohorts.strata_seen`."""
        right, wrong, missing = (self.sums[part][:, who] for part in (RIGHT, WRONG, MISSING))
        value = estimated(self.sums[POOL][:, who], right, wrong, missing)
        return value, (right + wrong + missing).sum(axis=0), missing.sum(axis=0)
