"""The world of a simulated rollout: traffic, how both arms answer, how people label, what goes wrong. Frozen values.

Whatever may change is a number or a function of a `Moment`, so a world can depend on the time, on the step each run has
reached, and on how long ago it reached a weight.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cutover_operator.evidence.folding import COHORT_SECONDS

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Moment:
    """A tick as all runs see it. Arrays have one element per run."""

    hours: float
    """Since the rollouts began, at the end of the tick."""
    step: NDArray[np.int64]
    weight: Floats
    """Share of the requests the candidate answers."""
    since_half: Floats
    """Hours since the candidate first had half of the traffic; NaN before."""
    kept_from: NDArray[np.int64] | None = None
    """Lowest bin of confidence whose answers are kept; None: every answer is."""


Level = float | Callable[[Moment], Floats | float]


def level(value: Level, moment: Moment) -> Floats | float:
    """The value of a level at a moment."""
    return value(moment) if callable(value) else value


@dataclass(frozen=True, slots=True)
class Behaviour:
    """How an arm answers. Shares of requests unless said otherwise."""

    accuracy: Level = 0.93
    """Of the answers that are no errors."""
    errors: Level = 0.02
    slow: Level = 0.01
    """Slower than the latency gate's limit."""
    cost_usd: Level = 0.004
    """Mean per answer; single answers scatter around it with a standard deviation of `cost_spread` times the mean."""
    cost_spread: float = 0.5
    thumbs_down: Level = 0.1
    """Of the votes."""
    custom_bad: Level = 0.0
    """What every custom gate counts as bad."""


@dataclass(frozen=True, slots=True)
class Incident:
    """A stretch of errors. With `per_day` it comes by chance in each run, else once, `at_hours`."""

    errors: float
    hours: float
    arms: tuple[Literal["candidate", "control"], ...] = ("candidate", "control")
    at_hours: float = 0.0
    per_day: float | None = None
    breaker: bool = False
    """The gateway's breaker for the control is open meanwhile."""


@dataclass(frozen=True, slots=True)
class Together:
    """How the two models' answers to one request go together, beside their accuracies."""

    discordance: float | None = None
    """Share of requests on which exactly one of them is right; None: as if they erred independently, or as near to it as
    the agreement allows."""
    agreement: float | None = None
    """Share of requests on which they say the same in every scored field; None: of the requests that both get wrong they
    say the same on half."""

    def shares(self, mine: Floats | float, theirs: Floats | float) -> Floats:
        """Shares of (both right, only the candidate, only the control, both wrong alike, both wrong in different ways) at
        these accuracies, shape `(5, ...)`. What no joint distribution allows is moved to the nearest one that exists;
        `refusal` says so beforehand."""
        p, q = np.asarray(mine, dtype=np.float64), np.asarray(theirs, dtype=np.float64)
        least, most = np.abs(p - q), np.minimum(p + q, 2 - p - q)
        asked: Floats | float = p * (1 - q) + q * (1 - p) if self.discordance is None else self.discordance
        if self.discordance is None and self.agreement is not None:
            asked = np.clip(asked, p + q - 2 * self.agreement, 1 - self.agreement)
        apart = np.clip(asked, least, most)
        both = (p + q - apart) / 2
        neither = np.maximum(1 - both - apart, 0.0)
        alike = neither / 2 if self.agreement is None else np.clip(self.agreement - both, 0.0, neither)
        return np.stack(np.broadcast_arrays(both, p - both, q - both, alike, neither - alike))

    def refusal(self, mine: float, theirs: float) -> str | None:
        """Why two models of these accuracies cannot go together like this; None when they can."""
        least, most = abs(mine - theirs), min(mine + theirs, 2 - mine - theirs)
        if self.discordance is not None and not least - 1e-9 <= self.discordance <= most + 1e-9:
            return (
                f"accuracies of {mine:g} and {theirs:g} leave between {least:.4g} and {most:.4g} of the requests on which "
                f"exactly one model is right, not {self.discordance:.4g}"
            )
        both, one, other, alike, different = (float(v) for v in self.shares(mine, theirs))
        low, high = both, both + alike + different
        if self.agreement is not None and not low - 1e-9 <= self.agreement <= high + 1e-9:
            return (
                f"the two models are right together in {low:.4g} and differ in right or wrong in {one + other:.4g} of the "
                f"requests, so they agree on between {low:.4g} and {high:.4g}, not {self.agreement:.4g}"
            )
        return None


@dataclass(frozen=True, slots=True)
class Sureness:
    """The candidate's valid answers by the bins of confidence of `rollout.threshold.EDGES`, from the least sure up."""

    shares: tuple[float, ...]
    accuracy: tuple[float, ...]

    @property
    def overall(self) -> float:
        """Share of right answers among all."""
        return sum(share * right for share, right in zip(self.shares, self.accuracy, strict=True))


@dataclass(frozen=True, slots=True)
class LabelDelay:
    """How long a label takes, exponentially distributed; one that takes longer than the deadline is missing."""

    right_mean_hours: float
    wrong_mean_hours: float

    def missing(self, deadline_hours: float) -> tuple[float, float]:
        """Chance that the label of a (right, wrong) answer is missing at the deadline."""
        return (
            float(np.exp(-deadline_hours / self.right_mean_hours)),
            float(np.exp(-deadline_hours / self.wrong_mean_hours)),
        )


@dataclass(frozen=True, slots=True)
class Scenario:
    """A world. The defaults are a good candidate at two requests a second."""

    rps: float | Callable[[float], float] = 2.0
    """Requests per second, or a function of the hours since the start."""
    candidate: Behaviour = field(default_factory=Behaviour)
    control: Behaviour = field(default_factory=lambda: Behaviour(accuracy=0.92, cost_usd=0.04))
    label_rate: float = 0.05
    """Chance that an answer is drawn for a label."""
    mirrored_labels: bool = False
    """Sampled requests of the control are copied to the candidate too, so every label judges it at every step."""
    label_delay: LabelDelay | None = None
    """None: every label is there by the deadline."""
    reviewers_wrong: float = 0.0
    """Chance that a label says the opposite."""
    together: Together = Together()
    """Matters to pairs and strata only."""
    sureness: Sureness | None = None
    """Of the candidate's answers; with it, its accuracy follows from here and `candidate.accuracy` is not read."""
    vote_rate: float = 0.02
    incidents: tuple[Incident, ...] = ()
    scrapes_missing: float = 0.0
    """Chance that a tick's samples only come with the next tick's."""
    past_the_hour_seconds: float = 0.0
    """How far into an hour of the clock the rollouts begin: bets are made hour by hour."""
    tick_seconds: float = 600.0
    cost_seconds: float = COHORT_SECONDS
    """Costs are seen this far apart within a tick; bets on them are made once a minute at most."""
    horizon_hours: float = 14 * 24.0

    def requests_per_second(self, hours: float) -> float:
        return self.rps(hours) if callable(self.rps) else self.rps


def diurnal(mean_rps: float, amplitude: float = 0.9, peak_hour: float = 14.0) -> Callable[[float], float]:
    """Traffic that swings once a day around its mean; amplitude 1 means none at all in the quietest minute."""
    return lambda hours: mean_rps * (1 + amplitude * float(np.cos((hours - peak_hour) * np.pi / 12)))


def after(start: float, before: float, then: float, over_hours: float = 0.0) -> Level:
    """A level that goes from `before` to `then`, evenly over `over_hours`, from hour `start` on."""
    return lambda moment: before + (then - before) * _progress(moment.hours - start, over_hours)


def after_half(before: float, then: float, over_hours: float) -> Level:
    """A drift that begins when a run's candidate first has half of the traffic."""

    def at(moment: Moment) -> Floats:
        since = np.nan_to_num(moment.since_half, nan=-1.0)
        return np.asarray(before + (then - before) * np.clip(since / over_hours, 0.0, 1.0))

    return at


def _progress(hours: float, over_hours: float) -> float:
    if hours < 0:
        return 0.0
    return min(1.0, hours / over_hours) if over_hours > 0 else 1.0
