"""What happens in one tick of a simulated world: requests, errors, labels, votes and cost, drawn from a seed.

Draws whole events only, for all runs at once. Labels come back when they are as old as the label deadline.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cutover_operator.simulation.books import Col, Floats
from cutover_operator.simulation.scenario import Behaviour, Incident, Moment, Scenario, level

Ints = NDArray[np.int64]


class Source(Protocol):
    """Where a walk's events come from."""

    def tick(self, moment: Moment, shadow: Floats) -> Floats:
        """Events of a tick, shape `(columns, runs)`: labels are those that matured. `shadow` is the share of the
        control's requests that is mirrored."""
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
    """The source that draws a scenario."""

    def __init__(
        self, scenario: Scenario, runs: int, rng: np.random.Generator, deadline_seconds: float
    ) -> None:
        self.scenario, self.runs, self.rng = scenario, runs, rng
        self.deadline_hours = deadline_seconds / 3600.0
        wait = max(1, math.ceil(deadline_seconds / scenario.tick_seconds))
        self._waiting: deque[Floats] = deque([np.zeros((6, runs)) for _ in range(wait)])
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
        self.bad_answers = errors + wrong
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
        """(errors, right, wrong) of an arm's live answers."""
        rng, mine = self.rng, arm == "candidate"
        errors = rng.binomial(n, self._errors(how, moment, active, arm))
        right = rng.binomial(n - errors, level(how.accuracy, moment))
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
        return errors, right, n - errors - right

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
        rate = scenario.label_rate
        drawn_right, drawn_wrong = rng.binomial(right, rate), rng.binomial(wrong, rate)
        # A copy of a control's request tells about the candidate as much as a request of its own.
        copies = control if scenario.mirrored_labels else mirrored
        copied = rng.binomial(copies, rate)
        copied_right = rng.binomial(copied, level(scenario.candidate.accuracy, moment))
        mine = self._judged(drawn_right + copied_right, drawn_wrong + copied - copied_right)
        theirs = rng.binomial(control, rate)
        theirs_right = rng.binomial(theirs, level(scenario.control.accuracy, moment))
        self.drawn = drawn_right + drawn_wrong + copied
        self._waiting.append(np.concatenate([mine, self._judged(theirs_right, theirs - theirs_right)]))
        due = self._waiting.popleft()
        out[[Col.RIGHT, Col.WRONG, Col.MISSING]] = due[:3]
        out[[Col.CONTROL_RIGHT, Col.CONTROL_WRONG, Col.CONTROL_MISSING]] = due[3:]

    def _judged(self, right: Ints, wrong: Ints) -> Floats:
        """What people make of drawn answers by the deadline: right, wrong, missing."""
        rng, scenario = self.rng, self.scenario
        gone = np.zeros_like(right)
        if scenario.label_delay is not None:
            late_right, late_wrong = scenario.label_delay.missing(self.deadline_hours)
            gone_right, gone_wrong = rng.binomial(right, late_right), rng.binomial(wrong, late_wrong)
            right, wrong, gone = right - gone_right, wrong - gone_wrong, gone_right + gone_wrong
        if scenario.reviewers_wrong:
            to_wrong = rng.binomial(right, scenario.reviewers_wrong)
            to_right = rng.binomial(wrong, scenario.reviewers_wrong)
            right, wrong = right - to_wrong + to_right, wrong - to_right + to_wrong
        return np.asarray([right, wrong, gone], dtype=np.float64)
