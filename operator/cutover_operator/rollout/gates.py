"""Which gates a rollout has, what each may risk, and which of them must pass to leave a step. Pure.

The chance of rolling back a candidate within all limits is divided among the rollback gates (union bound); each
certificate may risk the whole of it, because promotion needs every one of them (intersection-union test).
"""

from __future__ import annotations

import hashlib
import json
import weakref
from collections.abc import Callable, Container
from dataclasses import dataclass
from functools import wraps
from typing import Literal, TypeVar

from cutover.api.modelrollout import Gate, ModelRolloutSpec, ModelRolloutStatus, Step
from cutover.contract import FIELD_OVERALL, LATENCY_EDGES_SECONDS
from cutover.task import Task

T = TypeVar("T")
Metric = Literal["accuracy", "latency", "errorRate", "cost", "satisfaction", "custom"]

RISK_SHARES: dict[Metric, float] = {
    "accuracy": 0.4,
    "errorRate": 0.2,
    "latency": 0.2,
    "custom": 0.1,
    "cost": 0.05,
    "satisfaction": 0.05,
}
"""How the risk of a false rollback is divided; the shares of metrics without a gate go to the others."""
EXCUSABLE: frozenset[Metric] = frozenset({"errorRate", "latency"})
"""What a control that does not answer may be the reason of: its load falls on whatever both arms share. Wrong or dear
answers are nobody else's."""
SHADOW_GATES: frozenset[Metric] = frozenset({"accuracy"})
LIVE_GATES: frozenset[Metric] = frozenset({"latency", "errorRate", "cost"})
ACCURACY_LADDER = (1.0, 1.5, 2.0)
SHARE_LADDER = (1.0, 1.4, 2.0)
"""How many times the allowed share of failures an early step may certify, by the number of live steps still to come
before all traffic. The step before 100 % and the last one certify the limit itself."""
SLOW_SHARE = 0.05
"""latency: the share of answers that may be slower than the limit."""
DEFAULT_RATIO_MARGIN = 0.5
"""Relative regressions against the control: how much larger a share may be (1 + margin times)."""
PASSED = "passed"
"""Outcome in the record of a step whose gates have all passed."""


@dataclass(frozen=True, slots=True)
class NamedGate:
    """A gate with its resolved name and its part of the risk."""

    name: str
    gate: Gate
    rollback_alpha: float
    """0 when the gate only advances."""

    @property
    def metric(self) -> Metric:
        return self.gate.metric

    @property
    def advances(self) -> bool:
        return self.gate.role in ("advance", "both")

    @property
    def rolls_back(self) -> bool:
        return self.gate.role in ("rollback", "both")

    @property
    def field(self) -> str:
        return self.gate.field or FIELD_OVERALL


def gate_name(gate: Gate) -> str:
    """The name given, else the metric in lower case with the field."""
    if gate.name:
        return gate.name
    name = gate.metric.lower()
    if gate.field and gate.field != FIELD_OVERALL:
        name += "-" + "".join(c if c.isalnum() else "-" for c in gate.field.lower()).strip("-")
    return name[:63].rstrip("-")


def _once_per_spec(function: Callable[[ModelRolloutSpec], T]) -> Callable[[ModelRolloutSpec], T]:
    """What follows from a spec alone is worked out once for it: specs never change, and a remembered one is looked at
    again and again."""
    known: dict[int, tuple[weakref.ref[ModelRolloutSpec], T]] = {}

    @wraps(function)
    def of(spec: ModelRolloutSpec) -> T:
        number = id(spec)
        found = known.get(number)
        if found is None or found[0]() is not spec:
            forget = weakref.ref(spec, lambda gone: known.pop(number, None))
            found = known[number] = forget, function(spec)
        return found[1]

    return of


@_once_per_spec
def named_gates(spec: ModelRolloutSpec) -> tuple[NamedGate, ...]:
    """The gates in the spec's order; equal names get a number."""
    counts: dict[Metric, int] = {}
    for gate in spec.gates:
        if gate.role != "advance":
            counts[gate.metric] = counts.get(gate.metric, 0) + 1
    whole = sum(RISK_SHARES[metric] for metric in counts) or 1.0
    seen: dict[str, int] = {}
    found = []
    for gate in spec.gates:
        name = gate_name(gate)
        seen[name] = seen.get(name, 0) + 1
        if seen[name] > 1:
            name = f"{name[:60]}-{seen[name]}"
        alpha = 0.0
        if gate.role != "advance":
            alpha = spec.analysis.risk * RISK_SHARES[gate.metric] / whole / counts[gate.metric]
        found.append(NamedGate(name, gate, alpha))
    return tuple(found)


def passed_steps(
    spec: ModelRolloutSpec, status: ModelRolloutStatus, before: int | None = None
) -> frozenset[int]:
    """Indices of the steps that were left by passing since the rollout last began with its first step. `before`: as of
    the record at this position of `status.steps`.

    What was left in any other way is not proven, and what was left under other steps or gates says nothing about these.
    """
    if status.steps_hash not in ("", steps_hash(spec)):
        return frozenset()
    passed, seen = set[int](), set[int]()
    for record in reversed(status.steps[:before]):
        if record.index not in seen and record.outcome == PASSED:
            passed.add(record.index)
        seen.add(record.index)
        if record.index == 0:
            break
    return frozenset(passed)


def advance_names(spec: ModelRolloutSpec, index: int, passed: Container[int]) -> frozenset[str]:
    """Names of the gates that must pass to leave a step, when the steps `passed` were left by passing."""
    needs = _needs(spec)
    proven = any(proof < index and proof in passed for proof in needs.proofs)
    return (needs.proven if proven else needs.unproven)[index]


@dataclass(frozen=True, slots=True)
class _Needs:
    """Of all steps, with accuracy proven in a shadow step before and without."""

    proofs: tuple[int, ...]
    """Shadow steps that are left with every accuracy gate proven at its full limit."""
    proven: tuple[frozenset[str], ...]
    unproven: tuple[frozenset[str], ...]


@_once_per_spec
def _needs(spec: ModelRolloutSpec) -> _Needs:
    unproven = tuple(_names_for(spec, step, False) for step in spec.steps)
    accuracy = {g.name for g in named_gates(spec) if g.metric == "accuracy" and g.advances}
    return _Needs(
        proofs=tuple(
            i
            for i, step in enumerate(spec.steps)
            if step.shadow is not None and accuracy and accuracy <= unproven[i]
        ),
        proven=tuple(_names_for(spec, step, True) for step in spec.steps),
        unproven=unproven,
    )


def _names_for(spec: ModelRolloutSpec, step: Step, proven: bool) -> frozenset[str]:
    gates = [g for g in named_gates(spec) if g.advances]
    if step.gates is not None:
        return frozenset(step.gates)
    if step.shadow is not None:
        return frozenset(g.name for g in gates if g.metric in SHADOW_GATES)
    wanted: set[Metric] = set(LIVE_GATES)
    if not proven:
        wanted.add("accuracy")
    # A gate that can only advance would decide nothing at all if no step asked for it.
    return frozenset(
        g.name for g in gates if g.metric in wanted or (not g.rolls_back and g.metric not in SHADOW_GATES)
    )


def ladder(spec: ModelRolloutSpec, index: int, metric: Metric) -> float:
    """How many times the allowed share of failures this step's certificate may tolerate."""
    step = spec.steps[index]
    if step.shadow is not None or step.weight == 100 or metric not in ("accuracy", "errorRate", "latency"):
        return 1.0
    to_come = sum(1 for later in spec.steps[index + 1 :] if later.weight is not None and later.weight < 100)
    rungs = ACCURACY_LADDER if metric == "accuracy" else SHARE_LADDER
    return rungs[min(to_come, len(rungs) - 1)]


def edges(spec: ModelRolloutSpec) -> tuple[float, ...]:
    """Latency edges the gates ask for."""
    limits = {g.limit for g in spec.gates if g.metric == "latency" and g.limit is not None}
    return tuple(sorted(limits))


@_once_per_spec
def cost_limits(spec: ModelRolloutSpec) -> tuple[float, ...]:
    """The limits that bets on costs are made against."""
    return tuple(sorted({g.limit for g in spec.gates if g.metric == "cost" and g.limit}))


@_once_per_spec
def steps_hash(spec: ModelRolloutSpec) -> str:
    """Digest of what a step means: the steps and the gates."""
    part = spec.model_dump(mode="json", include={"steps", "gates"})
    return hashlib.sha256(json.dumps(part, sort_keys=True).encode()).hexdigest()[:16]


def mistakes(spec: ModelRolloutSpec, task: Task) -> tuple[str, str] | None:
    """The first thing in the gates and steps that can never work, as (reason, sentence with the remedy)."""
    gates = named_gates(spec)
    for named in gates:
        gate = named.gate
        if gate.metric in ("latency", "errorRate", "cost") and gate.limit is None:
            return "LimitMissing", f"gate {named.name}: limit is not set; {gate.metric} needs one"
        if gate.metric == "accuracy":
            if gate.limit is None and gate.margin is None:
                return (
                    "LimitMissing",
                    f"gate {named.name}: set limit (for example 0.90) or margin (for example 0.02)",
                )
            if gate.limit is not None and not 0 < gate.limit < 1:
                return (
                    "LimitOutOfRange",
                    f"gate {named.name}: limit {gate.limit:g} is not a share between 0 and 1",
                )
            if named.field != FIELD_OVERALL and named.field not in task.scored_fields:
                known = ", ".join(task.scored_fields)
                return (
                    "FieldNotInTask",
                    f"gate {named.name}: field {gate.field!r} is not scored by task {task.name}; it scores {known}",
                )
        if gate.metric in ("errorRate", "custom") and gate.limit is not None and not 0 < gate.limit < 1:
            return (
                "LimitOutOfRange",
                f"gate {named.name}: limit {gate.limit:g} is not a share between 0 and 1",
            )
        if gate.metric == "cost" and gate.limit == 0:
            return "LimitOutOfRange", f"gate {named.name}: limit 0 can never be met; name USD per assessment"
        if gate.metric == "latency" and gate.limit not in LATENCY_EDGES_SECONDS:
            near = sorted(LATENCY_EDGES_SECONDS, key=lambda edge: abs(edge - (gate.limit or 0.0)))[:2]
            return (
                "LimitNotAnEdge",
                f"gate {named.name}: limit {gate.limit:g} s is no edge of the histogram; "
                f"the nearest are {min(near):g} and {max(near):g}",
            )
        if gate.metric == "custom" and (gate.limit is None or not gate.bad or not gate.total):
            return "LimitMissing", f"gate {named.name}: a custom gate needs bad, total and limit"
    names = {g.name for g in gates if g.advances}
    for index, step in enumerate(spec.steps, start=1):
        if (step.shadow is None) == (step.weight is None):
            return "StepUnclear", f"step {index}: set exactly one of shadow and weight"
        unknown = sorted(set(step.gates or ()) - names)
        if unknown:
            listed = ", ".join(sorted(names)) or "none"
            return (
                "GateNotFound",
                f"step {index}: gate {unknown[0]!r} cannot pass it; gates that can: {listed}",
            )
    return None
