"""The evidence of one accuracy gate, by the test that fits how its labels were drawn. Pure: ledger and spec in.

Uniform labels are judged by cumulative counts; labels drawn by stratum by one bet per closed hour; a margin against the
control by the requests both models answered, where there are such, else by both arms' labels of equal times. Floors are lowered by
the error rate that second labels prove of the reviewers and no further: what is not proven counts against the model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from cutover.api.base import to_seconds
from cutover.api.modelrollout import ModelRolloutSpec
from cutover_operator.evidence.ledger import Ledger
from cutover_operator.rollout import reviewers, stretches
from cutover_operator.rollout.cohorts import (
    Cohorts,
    cohorts_of,
    pairs_seen,
    pairs_wealth,
    strata_seen,
    strata_wealth,
)
from cutover_operator.rollout.counts import label_counts
from cutover_operator.rollout.gate_tests import Judged
from cutover_operator.rollout.gates import NamedGate
from cutover_operator.rollout.label_tests import Labels, LabelStretches, judge_accuracy, judge_accuracy_bets


@dataclass(frozen=True, slots=True)
class Floors:
    """What labels as people give them must show, for a model exactly at the declared limit and floor."""

    limit: float | None
    floor: float | None
    pass_alpha: float
    error_rate: float
    """Proven of the reviewers."""


def by_stratum(spec: ModelRolloutSpec) -> bool:
    return spec.analysis.labels.strata == "disagreement"


def has_pairs(spec: ModelRolloutSpec) -> bool:
    """Whether some requests that people label are answered by both models."""
    return spec.analysis.labels.pool == "mirrored" or any(step.shadow for step in spec.steps)


def pass_alpha(spec: ModelRolloutSpec, gate: NamedGate) -> float:
    """The risk of a certificate: where somebody measures the reviewers, a part of it pays for that."""
    measured = spec.analysis.labels.double_share > 0 and gate.gate.limit is not None
    return spec.analysis.risk * (1 - reviewers.RISK_PART if measured else 1.0)


def floors(spec: ModelRolloutSpec, ledger: Ledger, gate: NamedGate, floor: float | None) -> Floors:
    risk, limit = spec.analysis.risk, gate.gate.limit
    if spec.analysis.labels.double_share <= 0 or limit is None:
        return Floors(limit, floor, pass_alpha(spec, gate), 0.0)
    same, different = (ledger.total(f"doubles/{gate.field}/{result}") for result in ("same", "different"))
    noise = reviewers.measured(same, different, risk * reviewers.RISK_PART)
    return Floors(
        float(reviewers.floor_on_labels(limit, noise)) if limit > 0.5 else limit,
        float(reviewers.floor_on_labels(floor, noise)) if floor is not None and floor > 0.5 else floor,
        pass_alpha(spec, gate),
        float(noise.least),
    )


def judged(
    spec: ModelRolloutSpec, ledger: Ledger, gate: NamedGate, seen: Floors, available: bool
) -> tuple[Judged, str]:
    """What is proven, and the numbers in words. `seen`: the floors of this step's certificate."""
    fail_alpha = gate.rollback_alpha if gate.rolls_back else 0.0
    margin = gate.gate.margin
    paired = margin is not None and has_pairs(spec)
    cohorts = cohorts_of(ledger) if by_stratum(spec) or paired else None
    if cohorts is not None and by_stratum(spec):
        return _by_stratum(cohorts, gate, seen, fail_alpha, available)
    epochs = ledger.epochs()
    rows = np.asarray([label_counts(t, "candidate", gate.field) for _, t in epochs]).reshape(-1, 3)
    total = Labels(*label_counts(ledger.totals, "candidate", gate.field))
    found = judge_accuracy(
        total,
        Labels(rows[:, 0], rows[:, 1], rows[:, 2]),
        [k for k, _ in epochs],
        Labels(*label_counts(ledger.totals, "control", gate.field)),
        limit=seen.limit,
        floor=seen.floor,
        fail_alpha=fail_alpha,
        pass_alpha=seen.pass_alpha,
        margin=None if paired else margin,
        available=available,
        stretches=lambda: _stretches(spec, ledger, gate.field),
    )
    text = _numbers(gate, float(found.value), float(found.samples), float(total.missing), seen)
    if cohorts is None or margin is None or not paired:
        return found, text
    found = judge_accuracy_bets(
        total,
        value=found.value,
        limit=seen.limit,
        log_pass=found.log_e_pass,
        log_fail=found.log_e_fail,
        log_within=pairs_wealth(cohorts, gate.field, margin, 1),
        log_below=pairs_wealth(cohorts, gate.field, margin, -1),
        fail_alpha=fail_alpha,
        pass_alpha=seen.pass_alpha,
        available=available,
    )
    counted = pairs_seen(ledger.totals, gate.field)
    n = counted.both + counted.candidate_only + counted.control_only + counted.neither
    lead = float(counted.difference)
    return found, text + ("; no pairs yet" if math.isnan(lead) else f"; {lead:+.3f} on {n:.0f} pairs")


def _stretches(spec: ModelRolloutSpec, ledger: Ledger, field: str) -> LabelStretches:
    """The labels of both arms that may be compared."""
    marks, parts = ledger.marks, ledger.segments()
    if not marks:
        nothing = Labels(*np.zeros((3, 1)))
        return LabelStretches(nothing, nothing)
    number, usable = stretches.stretches(
        [m.at for m in marks],
        [stretches.NO_STEP if m.step is None else m.step for m in marks],
        any(label_counts(marks[0].totals, "candidate", field)),
        to_seconds(spec.analysis.labels.deadline),
    )
    arms = (
        np.asarray([label_counts(part, arm, field) for part in parts]).T for arm in ("candidate", "control")
    )
    mine, theirs = stretches.pooled(number, usable, *arms)
    return LabelStretches(Labels(*mine), Labels(*theirs), list(range(1, mine.shape[1] + 1)))


def _by_stratum(
    cohorts: Cohorts, gate: NamedGate, seen: Floors, fail_alpha: float, available: bool
) -> tuple[Judged, str]:
    shown = strata_seen(cohorts, gate.field)
    value = math.nan if shown.value is None else shown.value
    log_pass = log_fail = None
    if seen.limit is not None and seen.floor is not None:
        log_pass = strata_wealth(cohorts, gate.field, seen.floor, 1)
        log_fail = strata_wealth(cohorts, gate.field, seen.limit, -1)
    found = judge_accuracy_bets(
        Labels(shown.labels - shown.missing, 0.0, shown.missing),
        value=value,
        limit=seen.limit,
        log_pass=log_pass,
        log_fail=log_fail,
        log_within=None,
        log_below=None,
        fail_alpha=fail_alpha,
        pass_alpha=seen.pass_alpha,
        available=available,
    )
    return found, _numbers(gate, value, shown.labels, shown.missing, seen, ", by stratum")


def _numbers(gate: NamedGate, value: float, n: float, missing: float, seen: Floors, how: str = "") -> str:
    name = "accuracy" if gate.gate.field is None else f"accuracy of {gate.gate.field}"
    text = f"{name} {'unknown' if math.isnan(value) else f'{value:.3g}'} (n={n:.0f}{how}"
    text += f", {missing:.0f} without a label)" if missing else ")"
    text += f", limit {gate.gate.limit:g}" if gate.gate.limit is not None else ""
    if seen.error_rate > 0 and seen.limit is not None:
        text += f" ({seen.limit:.3f} on labels of people who err in {100 * seen.error_rate:.1f} % at least)"
    return text
