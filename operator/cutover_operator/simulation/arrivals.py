"""What happens in one tick of a simulated world: requests, errors, labels, votes and cost, drawn from a seed.

Draws whole events only, for all runs at once. Labels come back when they are as old as the label deadline.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cutover.api.modelrollout import ModelRolloutSpec
from cutover_operator.rollout import strata
from cutover_operator.rollout.accuracy import by_stratum, has_pairs
from cutover_operator.rollout.threshold import EDGES
from cutover_operator.simulation.books import Col, Floats
from cutover_operator.simulation.hours import PAIRS, Hourly
from cutover_operator.simulation.scenario import Behaviour, Incident, Moment, Scenario, level

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Drawn:
    """What labels are drawn for beside plain sums."""

    pairs: bool = False
    """A margin is judged by requests that both models answer."""
    strata: bool = False
    """Requests on which the models differ are drawn more often."""

    @classmethod
    def of(cls, spec: ModelRolloutSpec) -> Drawn:
        margin = any(g.metric == "accuracy" and g.margin is not None for g in spec.gates)
        return cls(margin and has_pairs(spec), by_stratum(spec))


ALIKE = Drawn()


@dataclass(frozen=True, slots=True)
class _Matured:
    """What a tick's requests add when their label deadline passes."""

    labels: Floats
    """(6, runs): right, wrong and missing of the candidate, then of the control."""
    hourly: Floats
    sure: Floats

    @classmethod
    def nothing(cls, runs: int) -> _Matured:
        return cls(np.zeros((6, runs)), np.zeros((len(Hourly), runs)), np.zeros((3, len(EDGES), runs)))


class Source(Protocol):
    """Where a walk's events come from."""

    def tick(self, moment: Moment, shadow: Floats) -> Floats:
        """Events of a tick, shape `(columns, runs)`: labels are those that matured. `shadow` is the share of the
        control's requests that is mirrored."""
        ...

    @property
    def hourly(self) -> Floats:
        """What matured in the last tick for bets by the hour, shape `(len(Hourly), runs)`."""
        ...

    @property
    def sure(self) -> Floats:
        """Labels that matured in the last tick by result and bin of confidence, shape `(3, len(EDGES), runs)`."""
        ...

    @property
    def deferred(self) -> Ints:
        """Answers of the candidate in the last tick that were not sure enough to be kept."""
        ...

    @property
    def control_down(self) -> NDArray[np.bool_]:
        """Runs in which the gateway's breaker for the control is open at the end of the last tick."""
        ...

    @property
    def drawn(self) -> Ints:
        """Labels asked for in the last tick, matured or not."""
        ...

    @property
    def bad_answers(self) -> Ints:
        """Errors and wrong answers the candidate gave to somebody in the last tick."""
        ...


class Arrivals:
    """The source that draws a scenario, with labels of the kind that the rollout draws.

    Raises ValueError where people who err would have to judge both models of a request, or one by its confidence: what an
    error does to both is not modelled.
    """

    def __init__(
        self,
        scenario: Scenario,
        runs: int,
        rng: np.random.Generator,
        deadline_seconds: float,
        drawn: Drawn = ALIKE,
    ) -> None:
        self.scenario, self.runs, self.rng, self._by = scenario, runs, rng, drawn
        if scenario.reviewers_wrong and (drawn != ALIKE or scenario.sureness is not None):
            raise ValueError(
                "reviewers_wrong: simulated only where labels are drawn alike and every answer is kept"
            )
        self.deadline_hours = deadline_seconds / 3600.0
        wait = max(1, math.ceil(deadline_seconds / scenario.tick_seconds))
        self._own = _Matured.nothing(runs)
        self._waiting: deque[_Matured] = deque([_Matured.nothing(runs) for _ in range(wait)])
        self.hourly, self.sure = self._own.hourly, self._own.sure
        self.deferred = np.zeros(runs, dtype=np.int64)
        self._until = [np.full(runs, -np.inf) for _ in scenario.incidents]
        self.control_down = np.zeros(runs, dtype=bool)
        self.drawn = np.zeros(runs, dtype=np.int64)
        self.bad_answers = np.zeros(runs, dtype=np.int64)

    def tick(self, moment: Moment, shadow: Floats) -> Floats:
        scenario, rng = self.scenario, self.rng
        out = np.zeros((len(Col), self.runs))
        active = self._incidents(moment)
        seconds = scenario.tick_seconds
        n = rng.poisson(scenario.requests_per_second(moment.hours) * seconds, self.runs)
        mine = rng.binomial(n, moment.weight)
        errors, right, wrong = self._arm(out, scenario.candidate, moment, mine, active, "candidate")
        c_errors, _, _ = self._arm(out, scenario.control, moment, n - mine, active, "control")
        self.bad_answers = errors + self._kept(wrong, moment)
        self.deferred = (right + wrong).sum(axis=0) - self._kept(right + wrong, moment)
        out[Col.COST] += self.deferred * level(scenario.control.cost_usd, moment)
        mirrored = rng.binomial(n - mine, shadow)
        m_errors = rng.binomial(mirrored, self._errors(scenario.candidate, moment, active, "candidate"))
        out[Col.MIRRORED], out[Col.MIRRORED_ERRORS] = mirrored, m_errors
        out[Col.MIRRORED_SLOW] = rng.binomial(mirrored, level(scenario.candidate.slow, moment))
        self._label(out, moment, right, wrong, mirrored - m_errors, n - mine - c_errors)
        return out

    def _arm(
        self,
        out: Floats,
        how: Behaviour,
        moment: Moment,
        n: Ints,
        active: list[NDArray[np.bool_]],
        arm: str,
    ) -> tuple[Ints, Ints, Ints]:
        """(errors, right, wrong) of an arm's live answers, right and wrong by bin of confidence, `(bins, runs)`."""
        rng, mine = self.rng, arm == "candidate"
        errors = rng.binomial(n, self._errors(how, moment, active, arm))
        right, wrong = self._answers(n - errors, how, moment, mine)
        slow = rng.binomial(n, level(how.slow, moment))
        votes = rng.binomial(n, self.scenario.vote_rate)
        down = rng.binomial(votes, level(how.thumbs_down, moment))
        if mine:
            out[[Col.ANSWERED, Col.ERRORS, Col.SLOW]] = n, errors, slow
            out[[Col.UP, Col.DOWN]] = votes - down, down
            out[Col.BAD] = rng.binomial(n, level(how.custom_bad, moment))
            mean = level(how.cost_usd, moment)
            scatter = how.cost_spread * np.sqrt(n) * rng.standard_normal(self.runs)
            out[Col.COST] = mean * np.maximum(n + scatter, 0.0)
        else:
            out[[Col.CONTROL_ANSWERED, Col.CONTROL_ERRORS, Col.CONTROL_SLOW]] = n, errors, slow
            out[[Col.CONTROL_UP, Col.CONTROL_DOWN]] = votes - down, down
        return errors, right, wrong

    def _answers(self, n: Ints, how: Behaviour, moment: Moment, mine: bool) -> tuple[Ints, Ints]:
        """(right, wrong) of n valid answers, shape `(bins, runs)`: one bin where confidence plays no part."""
        sureness = self.scenario.sureness
        if sureness is None or not mine:
            right = self.rng.binomial(n, level(how.accuracy, moment))[None]
            return right, n - right
        bins = self.rng.multinomial(n, sureness.shares).T
        right = self.rng.binomial(bins, np.asarray(sureness.accuracy)[:, None])
        return right, bins - right

    def _kept(self, bins: Ints, moment: Moment) -> Ints:
        """How many of the answers `(bins, runs)` are sure enough to be kept."""
        if len(bins) == 1 or moment.kept_from is None:
            return np.asarray(bins.sum(axis=0))
        return np.asarray(np.where(np.arange(len(bins))[:, None] >= moment.kept_from, bins, 0).sum(axis=0))

    def _errors(
        self, how: Behaviour, moment: Moment, active: list[NDArray[np.bool_]], arm: str
    ) -> Floats | float:
        share = level(how.errors, moment)
        for incident, on in zip(self.scenario.incidents, active, strict=True):
            if arm in incident.arms:
                share = np.where(on, np.maximum(incident.errors, share), share)
        return share

    def _incidents(self, moment: Moment) -> list[NDArray[np.bool_]]:
        """Which runs are in which incident during this tick."""
        hours = self.scenario.tick_seconds / 3600.0
        active = []
        self.control_down = np.zeros(self.runs, dtype=bool)
        for i, incident in enumerate(self.scenario.incidents):
            self._until[i] = np.where(
                self._starts(incident, moment.hours, hours), moment.hours + incident.hours, self._until[i]
            )
            on = moment.hours < self._until[i] - 1e-9
            active.append(on)
            if incident.breaker:
                self.control_down = self.control_down | on
        return active

    def _starts(self, incident: Incident, now: float, tick_hours: float) -> NDArray[np.bool_]:
        if incident.per_day is not None:
            return np.asarray(self.rng.random(self.runs) < incident.per_day / 24.0 * tick_hours)
        return np.full(self.runs, now - tick_hours < incident.at_hours <= now)

    def _label(
        self, out: Floats, moment: Moment, right: Ints, wrong: Ints, mirrored: Ints, control: Ints
    ) -> None:
        """Draw labels of answers that are no errors; give back those that are due."""
        rng, scenario = self.rng, self.scenario
        self._own = _Matured.nothing(self.runs)
        own_right, own_wrong = (rng.binomial(part, scenario.label_rate) for part in (right, wrong))
        # A copy of a control's request tells about the candidate as much as a request of its own.
        copies = control if scenario.mirrored_labels else mirrored
        if self._by.strata:
            self.drawn = self._by_stratum(moment, copies) + (own_right + own_wrong).sum(axis=0)
            self._judge_alike(moment, own_right, own_wrong)
        else:
            copied = rng.binomial(copies, scenario.label_rate)
            copied_right, copied_wrong = self._answers(copied, scenario.candidate, moment, True)
            self.drawn = (own_right + own_wrong).sum(axis=0) + copied
            self._judge_alike(moment, own_right + copied_right, own_wrong + copied_wrong)
            theirs = rng.binomial(control, scenario.label_rate)
            theirs_right = rng.binomial(theirs, level(scenario.control.accuracy, moment))
            self._own.labels[3:] = self._judged(theirs_right, theirs - theirs_right)
            if self._by.pairs:
                self._pair(moment, self._kept(copied_right, moment), self._kept(copied_wrong, moment))
        self._waiting.append(self._own)
        due = self._waiting.popleft()
        out[[Col.RIGHT, Col.WRONG, Col.MISSING]] = due.labels[:3]
        out[[Col.CONTROL_RIGHT, Col.CONTROL_WRONG, Col.CONTROL_MISSING]] = due.labels[3:]
        self.hourly, self.sure = due.hourly, due.sure

    def _judge_alike(self, moment: Moment, right: Ints, wrong: Ints) -> None:
        """Labels of the candidate's answers that were drawn alike, by bin of confidence."""
        judged = self._judged(right, wrong)
        kept = np.stack([self._kept(part, moment) for part in judged])
        self._own.labels[:3] = kept
        if len(right) > 1:
            self._own.sure[:] = judged
        if self._by.strata:
            whole = kept.sum(axis=0)
            self._own.hourly[[Hourly.POOL_ALL, Hourly.WEIGHT_ALL]] = whole
            self._own.hourly[[Hourly.RIGHT_ALL, Hourly.WRONG_ALL, Hourly.MISSING_ALL]] = kept

    def _together(self, moment: Moment) -> Floats:
        scenario = self.scenario
        mine = (
            level(scenario.candidate.accuracy, moment)
            if scenario.sureness is None
            else scenario.sureness.overall
        )
        return scenario.together.shares(mine, level(scenario.control.accuracy, moment))

    def _pair(self, moment: Moment, right: Ints, wrong: Ints) -> None:
        """What the control said where the candidate was right and where it was wrong. Confidence tells about the candidate
        alone: among its right answers the control is right as often whatever the confidence."""
        both, mine, theirs, alike, different = self._together(moment)
        with np.errstate(divide="ignore", invalid="ignore"):
            if_right = np.nan_to_num(both / (both + mine))
            if_wrong = np.nan_to_num(theirs / (theirs + alike + different))
        late_right, late_wrong = self._late()
        missing = self.rng.binomial(right, late_right), self.rng.binomial(wrong, late_wrong)
        right, wrong = right - missing[0], wrong - missing[1]
        won, lost = self.rng.binomial(right, if_right), self.rng.binomial(wrong, if_wrong)
        self._own.hourly[PAIRS] = np.stack([won, right - won, lost, wrong - lost, missing[0] + missing[1]])

    def _by_stratum(self, moment: Moment, copies: Ints) -> Ints:
        """Copies into the pool, and out of it to the people who label; how many of these there are."""
        together = self._together(moment)
        shares = together.reshape(5, -1).mean(axis=1)
        agreed = shares[0] + shares[3]
        chances = strata.probabilities((agreed, 1 - agreed), self.scenario.label_rate)
        pooled = self.rng.binomial(copies, chances.max())
        share = np.broadcast_to(together.reshape(5, -1).T, (self.runs, 5))
        both, mine, theirs, alike, different = self.rng.multinomial(
            pooled, share / share.sum(axis=1)[:, None]
        ).T
        drawn = np.zeros(self.runs, dtype=np.int64)
        parts = ((1, both, alike), (2, mine, theirs + different))
        for (row, right, wrong), pi in zip(parts, chances / chances.max(), strict=True):
            judged = self._judged(self.rng.binomial(right, pi), self.rng.binomial(wrong, pi))
            whole = judged.sum(axis=0)
            self._own.hourly[Hourly.POOL_ALL + row] = right + wrong
            self._own.hourly[Hourly.WEIGHT_ALL + row] = whole / pi
            for first, counts in zip(
                (Hourly.RIGHT_ALL, Hourly.WRONG_ALL, Hourly.MISSING_ALL), judged, strict=True
            ):
                self._own.hourly[first + row] = counts
            drawn = drawn + whole.astype(np.int64)
        return drawn

    def _late(self) -> tuple[float, float]:
        delay = self.scenario.label_delay
        return (0.0, 0.0) if delay is None else delay.missing(self.deadline_hours)

    def _judged(self, right: Ints, wrong: Ints) -> Floats:
        """What people make of drawn answers by the deadline: right, wrong, missing."""
        rng, scenario = self.rng, self.scenario
        gone = np.zeros_like(right)
        if scenario.label_delay is not None:
            late_right, late_wrong = self._late()
            gone_right, gone_wrong = rng.binomial(right, late_right), rng.binomial(wrong, late_wrong)
            right, wrong, gone = right - gone_right, wrong - gone_wrong, gone_right + gone_wrong
        if scenario.reviewers_wrong:
            to_wrong = rng.binomial(right, scenario.reviewers_wrong)
            to_right = rng.binomial(wrong, scenario.reviewers_wrong)
            right, wrong = right - to_wrong + to_right, wrong - to_right + to_wrong
        return np.asarray([right, wrong, gone], dtype=np.float64)
