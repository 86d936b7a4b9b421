"""From the options of `simulate` to worlds and their outcomes, by the operator's own simulation. No I/O, no clock."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cutover.api.base import to_seconds
from cutover.api.modelrollout import ModelRolloutSpec
from cutover_operator.rollout.evalue import divergence
from cutover_operator.rollout.gates import named_gates
from cutover_operator.simulation import Behaviour, Outcome, Scenario, simulate
from cutover_operator.simulation.books import Col
from cutover_operator.simulation.walk import Look

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


@dataclass(frozen=True, slots=True)
class Stay:
    """One step over all runs. Hours and labels are None when no run entered it."""

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


def not_simulated(spec: ModelRolloutSpec) -> list[str]:
    """What of this spec the simulated rollouts do without."""
    found = []
    if spec.analysis.labels.strata != "none":
        found.append("labels drawn by stratum (they are drawn alike)")
    if any(g.metric == "accuracy" and g.margin is not None for g in spec.gates):
        found.append("pairs of answers (an accuracy margin is judged by one interval per arm)")
    if spec.fallback.auto_confidence or spec.fallback.confidence is not None:
        found.append("answers handed on for low confidence")
    return found


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
            accuracy=assumed.control_accuracy, errors=assumed.control_error_rate, cost_usd=0.04
        ),
        label_rate=assumed.label_rate,
        mirrored_labels=spec.analysis.labels.pool == "mirrored",
        tick_seconds=assumed.tick_seconds,
        horizon_hours=assumed.horizon_seconds / 3600.0,
    )


def tell(spec: ModelRolloutSpec, assumed: Assumptions, accuracy: float, runs: int, seed: int) -> Story:
    """Simulate `runs` rollouts of a candidate of this accuracy. The same seed gives the same story."""
    count = _Labels(len(spec.steps), runs)
    outcome = simulate(spec, scenario(spec, assumed, accuracy), runs, seed, observe=count.saw)
    stays = tuple(_stay(outcome.step_hours[index], count.at_entry[index]) for index in range(len(spec.steps)))
    return Story(accuracy, outcome, stays, limit_of(spec, assumed, accuracy))


def limit_of(spec: ModelRolloutSpec, assumed: Assumptions, accuracy: float) -> Limit | None:
    """Wald's bound for the accuracy gate; None without one, or exactly on its limit."""
    gate = next((g for g in named_gates(spec) if g.metric == "accuracy" and g.gate.limit), None)
    if gate is None or gate.gate.limit in (None, accuracy) or not 0 < accuracy < 1:
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
        moved = np.flatnonzero(look.step > self._step)
        self.at_entry[look.step[moved], moved] = self._total[moved]
        self._step = look.step.copy()


def _stay(hours: NDArray[np.float64], labels: NDArray[np.float64]) -> Stay:
    there = np.isfinite(hours)
    if not there.any():
        return Stay(0.0, None, None, None)
    return Stay(
        float(there.mean()),
        float(np.median(hours[there])),
        float(np.quantile(hours[there], 0.9)),
        float(np.median(labels[there])),
    )
