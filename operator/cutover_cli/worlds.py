"""From the options of `simulate` to worlds and their outcomes, by the operator's own simulation. No I/O, no clock."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cutover.api.base import to_seconds
from cutover.api.modelrollout import ModelRolloutSpec
from cutover_cli.errors import Refused
from cutover_cli.sureness import ROUNDING, by_auroc
from cutover_operator.rollout.evalue import divergence
from cutover_operator.rollout.gates import named_gates
from cutover_operator.rollout.threshold import EDGES
from cutover_operator.rollout.wording import span
from cutover_operator.simulation import Behaviour, Outcome, Scenario, Sureness, Together, simulate
from cutover_operator.simulation.arrivals import Drawn
from cutover_operator.simulation.books import Col
from cutover_operator.simulation.hours import STRATUM_LABELS
from cutover_operator.simulation.outcome import quantile
from cutover_operator.simulation.walk import Look

CONTROL_USD = 0.04
LATENCY_SPREAD = 0.5
"""Standard deviation of the logarithm of an answer's time."""
P95 = 1.6448536269514722
LONGEST_TICK_SECONDS = 600.0
MOST_TICKS = 3000
LEAST_HORIZON_SECONDS = 14 * 86_400.0


@dataclass(frozen=True, slots=True)
class Assumptions:
    """What is assumed of the world."""

    rps: float
    label_rate: float
    """Chance that an answer is drawn for a label."""
    error_rate: float
    latency_p95_seconds: float | None
    control_accuracy: float
    control_error_rate: float
    cost_usd: float
    tick_seconds: float
    horizon_seconds: float
    discordance: float | None = None
    """Share of the requests on which exactly one model is right; None: independent errors, or by `agreed_accuracy`."""
    agreement: float | None = None
    """Share of the requests on which both say the same."""
    agreed_accuracy: float | None = None
    """Share of those on which both are right."""
    auroc: float | None = None
    curve: Sureness | None = None

    def together(self, accuracy: float) -> Together:
        """How the answers of a candidate of this accuracy go together with the control's."""
        if self.agreement is None or self.agreed_accuracy is None:
            return Together(self.discordance, self.agreement)
        both = self.agreement * self.agreed_accuracy
        return Together(accuracy + self.control_accuracy - 2 * both, self.agreement)

    def sureness(self, accuracy: float) -> Sureness | None:
        return self.curve if self.auroc is None else by_auroc(accuracy, self.auroc)


class Unlikely(Refused):
    """What was assumed cannot be, decides nothing, or is not enough to simulate this manifest."""


@dataclass(frozen=True, slots=True)
class Stay:
    """One step over the runs that entered it or were still under way at the horizon. Hours and labels are None where they
    lie beyond the horizon, and when no run entered it."""

    entered: float
    """Share of the runs that did."""
    median_hours: float | None
    slowest_hours: float | None
    """Nine of ten of those runs had entered it by then."""
    median_labels: float | None
    """Labels about the candidate that had come due by then."""


@dataclass(frozen=True, slots=True)
class Limit:
    """What no test could beat on average (Wald): evidence needed, and the time it takes at the first step's pace."""

    kind: Literal["certify", "catch"]
    labels: float
    hours: float


@dataclass(frozen=True, slots=True)
class Story:
    """What became of the runs with one accuracy."""

    accuracy: float
    outcome: Outcome
    stays: tuple[Stay, ...]
    limit: Limit | None


def keeps_by_confidence(spec: ModelRolloutSpec) -> bool:
    return spec.fallback.auto_confidence or spec.fallback.confidence is not None


def not_simulated(spec: ModelRolloutSpec) -> list[str]:
    """What of this spec the simulated rollouts do without."""
    custom = [g.name for g in named_gates(spec) if g.metric == "custom"]
    return [f"your own counters (nothing bad is ever counted for {', '.join(custom)})"] if custom else []


def check(spec: ModelRolloutSpec, assumed: Assumptions, accuracies: Sequence[float]) -> None:
    """Raises Unlikely where these candidates cannot be, or an option is missing or would change nothing."""
    if assumed.tick_seconds > assumed.horizon_seconds:
        raise Unlikely(
            f"--tick {span(assumed.tick_seconds)} is longer than --horizon {span(assumed.horizon_seconds)}, so there would "
            "be no look at all; name a shorter --tick"
        )
    _check_together(spec, assumed, accuracies)
    sure, keeps = assumed.auroc is not None or assumed.curve is not None, keeps_by_confidence(spec)
    if sure and not keeps:
        raise Unlikely(
            "the manifest keeps every answer (neither fallback.confidence nor autoConfidence), so how sure the candidate "
            "is changes nothing; leave --auroc and --confidence-curve out"
        )
    if keeps and not sure:
        raise Unlikely(
            "the manifest keeps answers by their confidence (fallback.confidence or autoConfidence); say how well that "
            "tells right from wrong, with --auroc or --confidence-curve"
        )
    fixed = spec.fallback.confidence
    if fixed is not None and fixed not in EDGES:
        below, above = (
            max(e for e in EDGES if e < fixed),
            min((e for e in EDGES if e > fixed), default=EDGES[-1]),
        )
        raise Unlikely(
            f"fallback.confidence: {fixed:g} lies inside a bin of the counters and is not simulated; try {below:g} "
            f"and {above:g}"
        )
    for accuracy in accuracies:
        if assumed.curve is not None and abs(assumed.curve.overall - accuracy) > ROUNDING:
            raise Unlikely(
                f"the curve of confidence is of a candidate right in {assumed.curve.overall:.4g}, not {accuracy:g}; give "
                "that --accuracy alone, or --auroc instead of the curve"
            )
        if assumed.auroc is not None and not 0 < accuracy < 1:
            raise Unlikely(f"--accuracy {accuracy:g}: --auroc needs both right and wrong answers")


def _check_together(spec: ModelRolloutSpec, assumed: Assumptions, accuracies: Sequence[float]) -> None:
    drawn = Drawn.of(spec)
    given = {
        "--discordance": assumed.discordance,
        "--agreement": assumed.agreement,
        "--agreed-accuracy": assumed.agreed_accuracy,
    }
    said = [name for name, value in given.items() if value is not None]
    if said and not (drawn.pairs or drawn.strata):
        raise Unlikely(
            f"{' and '.join(said)} would change nothing: the manifest judges no margin by pairs and draws no labels by "
            "stratum; leave it out"
        )
    if assumed.agreed_accuracy is not None and (assumed.agreement is None or assumed.discordance is not None):
        raise Unlikely("--agreed-accuracy goes with --agreement, and instead of --discordance")
    if said == ["--agreement"] and not drawn.strata:
        raise Unlikely(
            "--agreement alone changes nothing for pairs; give --discordance, or --agreed-accuracy beside it"
        )
    for accuracy in accuracies if said else ():
        why = assumed.together(accuracy).refusal(accuracy, assumed.control_accuracy)
        if why is not None:
            raise Unlikely(f"{' and '.join(said)}: {why}")


def label_rate_of(spec: ModelRolloutSpec, rps: float) -> float:
    """The share of requests the gateway draws, so that people get `analysis.labels.perHour`."""
    return min(1.0, spec.analysis.labels.per_hour / 3600.0 / rps)


def horizon_of(spec: ModelRolloutSpec) -> float:
    """Twice the least durations of all steps, two weeks at least; in seconds."""
    return max(LEAST_HORIZON_SECONDS, 2 * sum(to_seconds(step.min_duration) for step in spec.steps))


def tick_of(spec: ModelRolloutSpec, horizon_seconds: float) -> float:
    """Ten minutes, less for short steps, more for a far horizon; never less than `analysis.interval`. In seconds."""
    shortest = min(to_seconds(step.min_duration) for step in spec.steps)
    fine = min(LONGEST_TICK_SECONDS, shortest / 6)
    return max(to_seconds(spec.analysis.interval), fine, horizon_seconds / MOST_TICKS)


def slow_share(spec: ModelRolloutSpec, p95_seconds: float | None) -> float:
    """Share of answers slower than the tightest latency limit, of log-normal times with this 95th percentile."""
    limits = [g.limit for g in spec.gates if g.metric == "latency" and g.limit]
    if not limits or p95_seconds is None:
        return 0.01
    return float(1.0 - NormalDist().cdf(math.log(min(limits) / p95_seconds) / LATENCY_SPREAD + P95))


def scenario(spec: ModelRolloutSpec, assumed: Assumptions, accuracy: float) -> Scenario:
    return Scenario(
        rps=assumed.rps,
        candidate=Behaviour(
            accuracy=accuracy,
            errors=assumed.error_rate,
            slow=slow_share(spec, assumed.latency_p95_seconds),
            cost_usd=assumed.cost_usd,
        ),
        control=Behaviour(
            accuracy=assumed.control_accuracy, errors=assumed.control_error_rate, cost_usd=CONTROL_USD
        ),
        label_rate=assumed.label_rate,
        together=assumed.together(accuracy),
        sureness=assumed.sureness(accuracy),
        mirrored_labels=spec.analysis.labels.pool == "mirrored",
        tick_seconds=assumed.tick_seconds,
        horizon_hours=assumed.horizon_seconds / 3600.0,
    )


def tell(spec: ModelRolloutSpec, assumed: Assumptions, accuracy: float, runs: int, seed: int) -> Story:
    """Simulate `runs` rollouts of a candidate of this accuracy. The same seed gives the same story."""
    count = _Labels(len(spec.steps), runs)
    outcome = simulate(spec, scenario(spec, assumed, accuracy), runs, seed, observe=count.saw)
    stays = tuple(_stay(outcome, index, count.at_entry[index]) for index in range(len(spec.steps)))
    return Story(accuracy, outcome, stays, limit_of(spec, assumed, accuracy))


def limit_of(spec: ModelRolloutSpec, assumed: Assumptions, accuracy: float) -> Limit | None:
    """Wald's bound for the accuracy gate, with labels drawn alike of all answers; None without one, exactly on its limit,
    or where only the answers that are sure enough count."""
    gate = next((g for g in named_gates(spec) if g.metric == "accuracy" and g.gate.limit), None)
    if (
        gate is None
        or gate.gate.limit in (None, accuracy)
        or not 0 < accuracy < 1
        or keeps_by_confidence(spec)
    ):
        return None
    limit = float(gate.gate.limit or 0.0)
    kind: Literal["certify", "catch"] = "certify" if accuracy > limit else "catch"
    alpha = spec.analysis.risk if kind == "certify" else gate.rollback_alpha
    if alpha <= 0:
        return None
    labels = math.log(1 / alpha) / divergence(accuracy, limit)
    first = spec.steps[0]
    share = (first.shadow if first.shadow is not None else first.weight or 0) / 100.0
    if spec.analysis.labels.pool == "mirrored":
        share = 1.0
    per_hour = 3600.0 * assumed.rps * share * assumed.label_rate * (1 - assumed.error_rate)
    deadline_hours = to_seconds(spec.analysis.labels.deadline) / 3600.0
    return Limit(kind, labels, labels / per_hour + deadline_hours) if per_hour > 0 else None


class _Labels:
    """Counts labels while a simulation runs, and notes how many there were when a run entered a step."""

    def __init__(self, steps: int, runs: int) -> None:
        self._total = np.zeros(runs)
        self._step = np.zeros(runs, dtype=np.int64)
        self.at_entry = np.full((steps, runs), np.nan)
        self.at_entry[0] = 0.0

    def saw(self, look: Look) -> None:
        self._total += look.events[[Col.RIGHT, Col.WRONG, Col.MISSING]].sum(axis=0)
        # Labels by stratum stand beside the plain ones.
        self._total += look.hourly[STRATUM_LABELS].sum(axis=0)
        moved = np.flatnonzero(look.step > self._step)
        self.at_entry[look.step[moved], moved] = self._total[moved]
        self._step = look.step.copy()


def _stay(outcome: Outcome, step: int, labels: NDArray[np.float64]) -> Stay:
    hours = outcome.step_hours[step]
    there, reach = np.isfinite(hours), outcome.reach(step)
    if not there.any():
        return Stay(0.0, None, None, None)
    return Stay(
        float(there.mean()),
        quantile(hours[reach], 0.5),
        quantile(hours[reach], 0.9),
        quantile(np.where(there, labels, np.inf)[reach], 0.5),
    )
