"""Walks many rollouts through a simulated world, tick by tick, by the operator's own tests and moves.

Each tick: events happen under the weights in force, every gate is judged, every run moves, epochs are marked as the
operator's ledger marks them. A unit test drives the operator's `decide` through the same events and finds the same
moves at the same ticks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cutover.api.base import to_seconds
from cutover.api.modelrollout import ModelRolloutSpec
from cutover_operator.evidence.folding import COHORT_REQUESTS, COHORT_SECONDS, bet_on_cost
from cutover_operator.rollout.betting import Purse
from cutover_operator.rollout.gate_tests import Code, odd_share
from cutover_operator.rollout.gates import cost_limits
from cutover_operator.rollout.moves import Move, choose, incident_lasts
from cutover_operator.rollout.risk import WATCH_SECONDS, epoch_due
from cutover_operator.simulation.arrivals import Arrivals, Drawn, Source
from cutover_operator.simulation.books import Books, Col, Floats, Ints, Mask
from cutover_operator.simulation.hours import HourBooks, Hourly
from cutover_operator.simulation.judging import Rules, judge_all, recovered
from cutover_operator.simulation.keeping import Keeping
from cutover_operator.simulation.outcome import PROMOTED, ROLLED_BACK, UNDECIDED, Outcome
from cutover_operator.simulation.scenario import Moment, Scenario


@dataclass(frozen=True, slots=True)
class Look:
    """What one tick saw and did, for those who watch a walk. One element per run."""

    seconds: float
    events: Floats
    weight: Floats
    """In force during the tick."""
    shadow: Floats
    after: Floats
    """Weight after the tick's move."""
    step: Ints
    """After the tick's move."""
    finish: NDArray[np.int8]
    hourly: Floats
    """What matured for bets by the hour, `(len(Hourly), runs)`."""
    sure: Floats
    """Labels that matured by result and bin of confidence, `(3, len(EDGES), runs)`."""
    deferred: Ints
    kept_from: Ints
    """Lowest bin of confidence that was kept during the tick; 0: every answer was."""


def simulate(
    spec: ModelRolloutSpec,
    scenario: Scenario,
    runs: int = 300,
    seed: int = 0,
    *,
    watch: bool = False,
    observe: Callable[[Look], None] | None = None,
) -> Outcome:
    """What becomes of `runs` rollouts of this spec in this world. The same seed gives the same outcome.

    `watch`: go on after the promotion until the horizon, as the operator does. `observe` is called after every tick.
    """
    deadline = to_seconds(spec.analysis.labels.deadline)
    source = Arrivals(scenario, runs, np.random.default_rng(seed), deadline, Drawn.of(spec))
    return Walk(Rules.of(spec), scenario, source, runs, np.random.default_rng((seed, 1))).run(watch, observe)


class Walk:
    """The state of all runs; lives as long as one simulation."""

    def __init__(
        self, rules: Rules, scenario: Scenario, source: Source, runs: int, chance: np.random.Generator
    ) -> None:
        self.rules, self.scenario, self.source, self.runs, self.chance = (
            rules,
            scenario,
            source,
            runs,
            chance,
        )
        self.minutes = chance.spawn(1)[0]
        self.books = Books(runs)
        self.hours = HourBooks(runs, rules.bets, scenario.past_the_hour_seconds) if rules.bets else None
        self.keeping = Keeping(rules.spec, runs) if scenario.sureness is not None else None
        self.kept = np.zeros(runs)
        self.step = np.zeros(runs, dtype=np.int64)
        self.weight = np.full(runs, rules.weight[0])
        self.shadow = np.full(runs, rules.shadow[0])
        self.entered = np.zeros(runs)
        self.finish = np.full(runs, UNDECIDED, dtype=np.int8)
        self.incident, self.down = np.zeros(runs, dtype=bool), np.zeros(runs, dtype=bool)
        self.unseen = np.zeros_like(self.books.totals)
        self.unseen_hourly = np.zeros((len(Hourly), runs))
        self.fresh = Purse(Purse.begun((runs,), drift=True).in_play, np.ones(runs, dtype=np.int64))
        self.cost_bets = dict.fromkeys(cost_limits(rules.spec), self.fresh)
        self.cohorts: list[tuple[int, Floats, Floats]] = []
        self.thin = np.zeros((2, runs))
        self.decided, self.full, self.half = (np.full(runs, np.inf) for _ in range(3))
        self.step_hours = np.full((len(rules.weight), runs), np.inf)
        self.step_hours[0] = 0.0
        self.half = np.where(self.weight >= 0.5, 0.0, self.half)
        self.full = np.where(self.weight >= 1.0, 0.0, self.full)
        self.requests, self.labels, self.bad, self.frozen = (np.zeros(runs) for _ in range(4))
        self.stopped_at = np.full(runs, -1, dtype=np.int64)
        self.books.mark(np.ones(runs, dtype=bool), 0.0, self.step)

    def run(self, watch: bool, observe: Callable[[Look], None] | None = None) -> Outcome:
        seconds, tick = 0.0, self.scenario.tick_seconds
        while seconds + tick <= self.scenario.horizon_hours * 3600.0 + 1e-6:
            live = (self.finish == UNDECIDED) | ((self.finish == PROMOTED) & watch)
            if not live.any():
                break
            seconds += tick
            in_force, shadow = self.weight.copy(), self.shadow.copy()
            kept_from = np.zeros(self.runs, dtype=np.int64)
            if self.keeping is not None:
                kept_from = self.keeping.kept_from.copy()
            events = self._serve(live, seconds)
            seen = self.chance.random(self.runs) >= self.scenario.scrapes_missing
            before = self.books.totals.copy()
            self.books.totals += np.where(seen, self.unseen, 0.0)
            self.unseen = np.where(seen, 0.0, self.unseen)
            self._bet(seconds)
            if self.hours is not None:
                self.hours.count(np.where(seen, self.unseen_hourly, 0.0), seconds)
                self.unseen_hourly = np.where(seen, 0.0, self.unseen_hourly)
            if self.keeping is not None:
                self.keeping.look(live & seen, seconds)
            anew = self._decide(live & seen, seconds, before)
            if anew.any():
                self._decide(anew, seconds, self.books.totals)
            if observe is not None:
                observe(
                    Look(
                        seconds,
                        events,
                        in_force,
                        shadow,
                        self.weight.copy(),
                        self.step.copy(),
                        self.finish.copy(),
                        self.source.hourly,
                        self.source.sure,
                        self.source.deferred,
                        kept_from,
                    )
                )
        return self._outcome()

    # ------------------------------------------------------------ the world
    def _serve(self, live: Mask, seconds: float) -> Floats:
        hours = seconds / 3600.0
        since_half = np.where(np.isfinite(self.half), hours - self.half, np.nan)
        kept_from = self.keeping.kept_from if self.keeping is not None else None
        moment = Moment(hours, self.step, np.where(live, self.weight, 0.0), since_half, kept_from)
        events = self.source.tick(moment, np.where(live, self.shadow, 0.0))
        self.unseen += np.where(live, events, 0.0)
        if self.hours is not None:
            self.unseen_hourly += np.where(live, self.source.hourly, 0.0)
        if self.keeping is not None:
            self.keeping.count(np.where(live, self.source.sure, 0.0))
        answers = events[Col.ANSWERED] - events[Col.ERRORS] - self.source.deferred
        self.kept += np.where(live, answers, 0.0)
        self.requests += np.where(live, events[Col.ANSWERED], 0.0)
        self.labels += np.where(live, self.source.drawn, 0.0)
        self.bad += np.where(live, self.source.bad_answers, 0.0)
        self.frozen += np.where(live & self.incident, self.scenario.tick_seconds / 3600.0, 0.0)
        if self.cost_bets:
            self._spend(events[Col.COST], np.where(live, events[Col.ANSWERED], 0.0), seconds)
        return events

    def _spend(self, usd: Floats, answers: Floats, seconds: float) -> None:
        """A tick's costs, minute by minute: the operator bets on minutes, however long a tick is."""
        tick, spread = self.scenario.tick_seconds, self.scenario.candidate.cost_spread
        parts = max(1, int(tick // max(self.scenario.cost_seconds, COHORT_SECONDS)))
        n, cost = answers[None], usd[None]
        if parts > 1:
            drawn = self.minutes.multinomial(answers.astype(np.int64), np.full(parts, 1.0 / parts))
            n = drawn.T.astype(np.float64)
            whole = np.maximum(answers, 1.0)
            scatter = np.sqrt(n) * self.minutes.standard_normal(n.shape)
            # Around the minute's share of the tick's cost, so that the minutes add up to it.
            scatter -= n / whole * scatter.sum(axis=0)
            cost = np.maximum(usd / whole * (n + spread * scatter), 0.0)
        for part in range(parts):
            minute = int((seconds - tick * (parts - 1 - part) / parts) // COHORT_SECONDS)
            self.cohorts.append((minute, cost[part], n[part]))

    def _bet(self, seconds: float) -> None:
        """One bet per closed minute on its mean cost; thin minutes join the next one, as in `evidence.folding`."""
        closed_before = int((seconds - COHORT_SECONDS) // COHORT_SECONDS)
        while self.cohorts and self.cohorts[0][0] < closed_before:
            _, cost, requests = self.cohorts.pop(0)
            self.thin += np.asarray([cost, requests])
            ready = self.thin[1] >= COHORT_REQUESTS
            mean = self.thin[0] / np.where(ready, self.thin[1], 1.0)
            self.cost_bets = {
                limit: bet_on_cost(purse, mean, limit, ready) for limit, purse in self.cost_bets.items()
            }
            self.thin = np.where(ready, 0.0, self.thin)

    # ------------------------------------------------------------ the operator
    def _decide(self, live: Mask, seconds: float, before: Floats) -> Mask:
        """One look, after the one that saw the totals `before`; which runs look again at once."""
        rules, books, who = self.rules, self.books, np.flatnonzero(live)
        if not len(who):
            return np.zeros(self.runs, dtype=bool)
        step, promoted = self.step[who], self.finish[who] == PROMOTED
        down = self.source.control_down[who]
        books.roll_incident(self._mask(who, self.down[who] & ~down), seconds, before)
        control = books.fresh_counts(who, Col.CONTROL_ERRORS, Col.CONTROL_ANSWERED)
        lasts = self.incident[who] & incident_lasts(control.bad, control.all, rules.incident_limit, down)
        won = {limit: purse.log_wealth[who] for limit, purse in self.cost_bets.items()}
        codes, shared = judge_all(rules, books, self.hours, who, step, won, lasts)
        failing = (codes == Code.FAIL).any(axis=0)
        mine, theirs, copies = books.since_step(who, step, Col.ANSWERED, Col.CONTROL_ANSWERED, Col.MIRRORED)
        live_step = rules.shadow[step] == 0
        waited = seconds - self.entered[who]
        move = choose(
            codes,
            shared,
            rules.wanted[step].T,
            control_down=down,
            excusable=rules.excusable,
            incident=lasts,
            promoted=promoted,
            held=rules.spec.freeze or rules.spec.hold,
            in_force=~(live_step & odd_share(mine, theirs, self.weight[who])),
            enough_requests=np.where(live_step, mine, copies) >= rules.min_requests[step],
            enough_time=waited >= rules.min_seconds[step],
            too_late=waited >= rules.deadline_seconds[step],
        )
        frozen = move == Move.FREEZE
        anew = frozen & self.incident[who] & ~down
        if anew.any():
            anew &= recovered(rules, books, who, before)
            books.roll_incident(self._mask(who, anew), seconds, before)
        self.down[who] = frozen & down
        self._freeze(self._mask(who, failing & frozen), seconds)
        self.incident[who] &= failing | lasts
        own = (codes == Code.FAIL) & ~(shared | (rules.excusable & down))
        stop = move == Move.ROLL_BACK
        self._roll_back(who[stop], own[:, stop], seconds)
        self._advance(self._mask(who, move == Move.ADVANCE), seconds)
        weeks = promoted & (move == Move.HOLD) & (seconds - books.oldest_at[who] >= WATCH_SECONDS)
        self._watch_anew(self._mask(who, weeks), seconds)
        active = live & (self.finish != ROLLED_BACK)
        due = active & epoch_due(books.oldest_at, books.newest_at, seconds)
        books.mark(due, seconds)
        self._next_epoch(due)
        return self._mask(who, anew)

    def _mask(self, who: Ints, which: Mask) -> Mask:
        mask = np.zeros(self.runs, dtype=bool)
        mask[who[which]] = True
        return mask

    def _freeze(self, hit: Mask, seconds: float) -> None:
        """Begin an incident where there is none."""
        fresh = hit & ~self.incident
        if fresh.any():
            self.books.incident(fresh, seconds)
            self._next_epoch(fresh)
        self.incident |= hit

    def _roll_back(self, runs: Ints, own: Mask, seconds: float) -> None:
        """`own`: the fails that nobody else is to blame for, `(gates, runs)`."""
        self.stopped_at[runs] = np.where(own.any(axis=0), np.argmax(own, axis=0), -1)
        self.finish[runs] = ROLLED_BACK
        self.decided[runs] = seconds / 3600.0
        self.weight[runs], self.shadow[runs] = 0.0, 0.0

    def _advance(self, go: Mask, seconds: float) -> None:
        rules, last = self.rules, len(self.rules.weight) - 1
        hours = seconds / 3600.0
        there = go & (self.step == last)
        on = go & ~there
        self.step = self.step + on
        self.weight = np.where(on, rules.weight[self.step], np.where(there, 1.0, self.weight))
        self.shadow = np.where(on, rules.shadow[self.step], np.where(there, 0.0, self.shadow))
        self.entered = np.where(on, seconds, self.entered)
        runs = np.flatnonzero(on)
        self.step_hours[self.step[runs], runs] = hours
        self.half = np.where(go & (self.weight >= 0.5) & np.isinf(self.half), hours, self.half)
        self.full = np.where(go & (self.weight >= 1.0) & np.isinf(self.full), hours, self.full)
        if on.any():
            self.books.mark(on, seconds, self.step)
            self._next_epoch(on)
        if there.any():
            self.finish = np.where(there, np.int8(PROMOTED), self.finish)
            self.decided = np.where(there, hours, self.decided)
            self._watch_anew(there, seconds)

    def _watch_anew(self, who: Mask, seconds: float) -> None:
        """A new week: the tests begin anew."""
        if who.any():
            self.books.restart_watch(who, seconds, self.step)
            if self.hours is not None:
                self.hours.restart(who, seconds)
            self.cost_bets = {
                limit: Purse(
                    np.where(who[:, None], self.fresh.in_play, purse.in_play),
                    np.where(who, 1, purse.epochs),
                )
                for limit, purse in self.cost_bets.items()
            }

    def _next_epoch(self, who: Mask) -> None:
        """Bets on costs begin an epoch with each mark, as in the ledger."""
        if self.cost_bets and who.any():
            self.cost_bets = {limit: purse.next_epoch(who) for limit, purse in self.cost_bets.items()}

    def _outcome(self) -> Outcome:
        return Outcome(
            finish=self.finish,
            decided_hours=self.decided,
            full_hours=self.full,
            half_hours=self.half,
            step_hours=self.step_hours,
            requests=self.requests,
            labels=self.labels,
            bad_answers=self.bad,
            frozen_hours=self.frozen,
            stopped_by=tuple(g.name for g in self.rules.gates),
            stopped_at=self.stopped_at,
            kept=self.kept,
            kept_from=None if self.keeping is None else self.keeping.kept_from,
        )
