"""What the evidence says about one gate: pass, fail, insufficient or unavailable, with the numbers and a sentence.

Pure: a ledger and the rollout's spec in, verdicts out. A pass and a fail are both proven at the rollout's risk,
whatever the number of looks; everything else is insufficient and says what is missing and when it should be there.
Missing labels count against what is being proven: as wrong for a pass, as right for a fail.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from cutover.api.modelrollout import GateStatus, ModelRolloutSpec, VerdictName
from cutover_operator.evidence.ledger import Ledger, Totals, limit_key
from cutover_operator.evidence.samples import Unavailable
from cutover_operator.rollout import accuracy, gate_tests, risk
from cutover_operator.rollout.counts import (
    Pair,
    answered,
    custom_counts,
    error_counts,
    shadow_counts,
    slow_counts,
)
from cutover_operator.rollout.evalue import KAPPA_ACCURACY, KAPPA_SHARE, Floats, still_needed
from cutover_operator.rollout.gate_tests import (
    COST_MIN_ANSWERS,
    VOTES_MIN,
    Code,
    Counts,
    Judged,
    Priced,
    Segments,
)
from cutover_operator.rollout.gates import (
    DEFAULT_RATIO_MARGIN,
    EXCUSABLE,
    SLOW_SHARE,
    NamedGate,
    ladder,
    named_gates,
)

NAMES: dict[Code, VerdictName] = {
    Code.INSUFFICIENT: "insufficient",
    Code.PASS: "pass",
    Code.FAIL: "fail",
    Code.UNAVAILABLE: "unavailable",
}
REASONS = {
    "accuracy": "AccuracyBelowLimit",
    "latency": "LatencyAboveLimit",
    "errorRate": "ErrorRateAboveLimit",
    "cost": "CostAboveLimit",
    "satisfaction": "SatisfactionBelowControl",
    "custom": "CustomShareAboveLimit",
}
CONTROL_REASONS = {
    "accuracy": "AccuracyBelowControl",
    "latency": "LatencyAboveControl",
    "errorRate": "ErrorRateAboveControl",
}


@dataclass(frozen=True, slots=True)
class Verdict:
    gate: NamedGate
    verdict: VerdictName
    message: str
    reason: str = ""
    value: float | None = None
    limit: float | None = None
    samples: int = 0
    log_e_pass: float | None = None
    log_e_fail: float | None = None
    shared: bool = False
    """A fail that nobody is to blame for yet: the control may break the same limit, and the candidate is not worse by a
    ratio."""
    suspected: bool = False
    """A fail while the control looks as if it broke the same limit now."""
    code: Code = Code.INSUFFICIENT

    def to_status(self) -> GateStatus:
        return GateStatus(
            name=self.gate.name,
            verdict=self.verdict,
            message=self.message[:4096],
            value=_rounded(self.value),
            limit=self.limit,
            samples=self.samples,
            log_e_pass=_rounded(self.log_e_pass),
            log_e_fail=_rounded(self.log_e_fail),
        )


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")


@dataclass(frozen=True, slots=True)
class Bench:
    """Everything a verdict is made from."""

    spec: ModelRolloutSpec
    step: int
    ledger: Ledger
    now: float
    """Unix seconds, for rates only."""
    labels: Unavailable | None = None
    """Why labels are not to be had, when they are not."""
    incident: bool = False
    """A shared incident began and is not over."""
    custom: Mapping[str, Unavailable] = field(default_factory=dict)
    """By gate: why counters of a user's own are not to be had."""

    @property
    def risk(self) -> float:
        return self.spec.analysis.risk

    def spent(self, alpha: float) -> float:
        """What is left of a risk after shared incidents made the tests start anew."""
        return float(risk.spent(alpha, self.ledger.incidents))


def judge(bench: Bench, gate: NamedGate) -> Verdict:
    """The verdict on one gate."""
    if gate.metric == "accuracy":
        return _accuracy(bench, gate)
    if gate.metric == "cost":
        return _cost(bench, gate)
    if gate.metric == "satisfaction":
        return _satisfaction(bench, gate)
    return _share(bench, gate)


def unavailable(gate: NamedGate, why: Unavailable) -> Verdict:
    return Verdict(
        gate, "unavailable", why.message, reason=why.kind, limit=gate.gate.limit, code=Code.UNAVAILABLE
    )


# ---------------------------------------------------------------- shares that must stay small
def _share(bench: Bench, gate: NamedGate) -> Verdict:
    ledger, limit = bench.ledger, gate.gate.limit or SLOW_SHARE
    share_limit = SLOW_SHARE if gate.metric == "latency" else limit
    count = _counter(gate)
    since = ledger.epochs(ledger.fresh_from)
    totals = since[0][1] if since else dict(ledger.totals)
    bad, good = count(totals, "candidate")
    floor, margin = certified_share(bench.spec, bench.step, gate), gate.gate.margin
    shadow = _shadow_counter(gate) if any(step.shadow for step in bench.spec.steps) else None
    found = gate_tests.judge_share(
        Counts(bad, good),
        _stacked([count(t, "candidate") for _, t in since]),
        [k for k, _ in since],
        _stacked([count(t, "control") for _, t in since]),
        lambda: _segments(ledger, count, ledger.fresh_from),
        limit=share_limit,
        floor=floor,
        fail_alpha=bench.spent(gate.rollback_alpha) if gate.rolls_back else 0.0,
        pass_alpha=bench.spent(bench.risk),
        margin=margin,
        default_margin=DEFAULT_RATIO_MARGIN,
        mirrored=_stacked([shadow(t) for _, t in since]) if shadow is not None else None,
        incident=bench.incident,
    )
    value, n = _float(found.value), float(found.samples)
    what = _what(gate, value, n, share_limit)
    if found.code == Code.FAIL and found.against_control:
        message = f"{what}; more than {1 + (margin or 0.0):g} times the control's share"
        return _made(gate, found, message, limit, CONTROL_REASONS.get(gate.metric, "Worse"))
    if found.code == Code.FAIL:
        if shadow is not None and n == 0:
            what = _what(gate, _portion(shadow(totals)), sum(shadow(totals)), share_limit, "mirrored ")
        tail = "; the control breaks the same limit" if found.suspected else ""
        return _made(gate, found, what + tail, limit, REASONS[gate.metric])
    if gate.name in bench.custom:
        return unavailable(gate, bench.custom[gate.name])
    if found.code == Code.PASS:
        return _made(gate, found, what, limit)
    more = None
    if value is not None:
        more = still_needed(bad, good, floor, -1, KAPPA_SHARE, bench.spent(bench.risk))
    tail = _missing(bench, more, n, "answers", value is not None and value > share_limit)
    return _made(gate, found, what + tail, limit)


def certified_share(spec: ModelRolloutSpec, step: int, gate: NamedGate) -> float:
    """The bad share that leaving this step must prove the candidate to stay below."""
    limit = SLOW_SHARE if gate.metric == "latency" else gate.gate.limit or SLOW_SHARE
    factor = ladder(spec, step, gate.metric)
    return min(limit * factor, 0.5) if factor > 1 else limit


def certified_accuracy(spec: ModelRolloutSpec, step: int, limit: float) -> float:
    """The share of right answers that leaving this step must prove the candidate to exceed."""
    factor = ladder(spec, step, "accuracy")
    return max(1 - (1 - limit) * factor, 0.5) if factor > 1 else limit


def control_is_ill(spec: ModelRolloutSpec, totals: Totals) -> bool:
    """Whether these answers of the control look as if it broke one of the limits it may excuse the candidate by."""
    for gate in named_gates(spec):
        if gate.metric in EXCUSABLE:
            limit = SLOW_SHARE if gate.metric == "latency" else gate.gate.limit or SLOW_SHARE
            if gate_tests.looks_ill(Counts(*_counter(gate)(totals, "control")), limit):
                return True
    return False


def _stacked(pairs: Sequence[Pair]) -> Counts:
    """One row per epoch."""
    rows = np.asarray(pairs, dtype=np.float64).reshape(-1, 2)
    return Counts(rows[:, 0], rows[:, 1])


def _counter(gate: NamedGate) -> Callable[[Totals, str], Pair]:
    if gate.metric == "errorRate":
        return error_counts
    if gate.metric == "latency":
        edge = gate.gate.limit or 0.0
        return lambda totals, arm: slow_counts(totals, arm, edge)
    name = gate.name
    return lambda totals, arm: custom_counts(totals, name) if arm == "candidate" else (0.0, 0.0)


def _shadow_counter(gate: NamedGate) -> Callable[[Totals], Pair] | None:
    if gate.metric == "errorRate":
        return shadow_counts
    if gate.metric == "latency":
        edge = gate.gate.limit or 0.0
        return lambda totals: slow_counts(totals, "candidate", edge, "shadow")
    return None


def _segments(ledger: Ledger, count: Callable[[Totals, str], Pair], first: int = 1) -> Segments:
    """What both arms counted from mark to mark since the one with this k."""
    parts = ledger.segments(first)
    return Segments(
        _stacked([count(part, "candidate") for part in parts]),
        _stacked([count(part, "control") for part in parts]),
    )


# ---------------------------------------------------------------- accuracy
def _accuracy(bench: Bench, gate: NamedGate) -> Verdict:
    limit, margin = gate.gate.limit, gate.gate.margin
    certified = certified_accuracy(bench.spec, bench.step, limit) if limit is not None else None
    seen = accuracy.floors(bench.spec, bench.ledger, gate, certified)
    found, what = accuracy.judged(bench.spec, bench.ledger, gate, seen, bench.labels is None)
    if found.code == Code.FAIL and found.against_control:
        message = f"{what}; below the control's by more than {margin:g}"
        return _made(gate, found, message, limit, CONTROL_REASONS["accuracy"])
    if found.code == Code.FAIL:
        return _made(gate, found, what, limit, REASONS["accuracy"])
    if found.code == Code.UNAVAILABLE and bench.labels is not None:
        return _made(gate, found, bench.labels.message, limit, bench.labels.kind)
    if found.code == Code.PASS:
        return _made(gate, found, what, limit)
    n, value = float(found.samples), _float(found.value)
    tail = "; more labels on both arms are needed to compare them"
    if seen.limit is not None and seen.floor is not None and value is not None:
        right = value * n
        more = still_needed(right, n - right, seen.floor, 1, KAPPA_ACCURACY, seen.pass_alpha)
        wrong_side = value < seen.limit
        if wrong_side or more is None or more > 0 or margin is None:
            tail = _missing(bench, more, n, "labels", wrong_side)
    elif limit is not None:
        tail = _missing(bench, None, n, "labels", False)
    return _made(gate, found, what + tail, limit)


# ---------------------------------------------------------------- cost and satisfaction
def _cost(bench: Bench, gate: NamedGate) -> Verdict:
    limit = gate.gate.limit or 0.0
    since = bench.ledger.epochs()
    spans = [totals for _, totals in since] or [bench.ledger.totals]
    answers = [answered(totals, "candidate") for totals in spans]
    usd = [totals.get("cost/candidate", math.nan) for totals in spans]
    n, purse = answers[0], bench.ledger.cost_bets.get(limit_key(limit))
    found = gate_tests.judge_cost(
        n,
        usd[0],
        0.0 if purse is None else purse.log_wealth,
        Priced(np.asarray(answers), np.asarray(usd)),
        limit=limit,
        fail_alpha=gate.rollback_alpha if gate.rolls_back else 0.0,
    )
    mean = _float(found.value)
    what = f"cost {'-' if mean is None else f'{mean:.4g}'} USD per assessment (n={n:.0f}), limit {limit:g}"
    if found.code == Code.FAIL:
        dearest = max(cost / count for cost, count in zip(usd, answers, strict=True) if count > 0)
        late = f"; {dearest:.4g} USD since a later look" if mean is not None and mean <= limit else ""
        return _made(gate, found, what + late, limit, REASONS["cost"])
    if found.code == Code.PASS:
        return _made(gate, found, what, limit)
    if mean is None and n > 0:
        tail = "; no price seen yet: the gateway's price table may lack the model"
        return _made(gate, found, what + tail, limit)
    if mean is not None and mean > limit:
        return _made(gate, found, f"{what}; above it, not yet proven", limit)
    return _made(gate, found, what + _missing(bench, COST_MIN_ANSWERS - n, n, "answers", False), limit)


def _votes(totals: Totals, arm: str) -> Pair:
    return totals.get(f"satisfaction/{arm}/down", 0.0), totals.get(f"satisfaction/{arm}/up", 0.0)


def _satisfaction(bench: Bench, gate: NamedGate) -> Verdict:
    margin = gate.gate.margin if gate.gate.margin is not None else DEFAULT_RATIO_MARGIN
    mine, theirs = _votes(bench.ledger.totals, "candidate"), _votes(bench.ledger.totals, "control")
    found = gate_tests.judge_satisfaction(
        Counts(*mine),
        Counts(*theirs),
        _segments(bench.ledger, _votes),
        [k for k, _ in bench.ledger.epochs()],
        margin=margin,
        fail_alpha=gate.rollback_alpha if gate.rolls_back else 0.0,
    )
    n = float(found.samples)
    what = f"thumbs down {_percent(_float(found.value))} of {n:.0f}, "
    what += f"control {_percent(_portion(theirs))} of {sum(theirs):.0f}"
    if found.code == Code.FAIL:
        message = f"{what}; more than {1 + margin:g} times the control's share"
        return _made(gate, found, message, None, REASONS["satisfaction"])
    if found.code == Code.PASS:
        return _made(gate, found, what, None)
    return _made(gate, found, what + _missing(bench, VOTES_MIN - n, n, "votes", False), None)


# ---------------------------------------------------------------- words
def _made(gate: NamedGate, found: Judged, message: str, limit: float | None, reason: str = "") -> Verdict:
    return Verdict(
        gate,
        NAMES[Code(int(found.code))],
        message,
        reason,
        _float(found.value),
        limit,
        int(found.samples),
        _float(found.log_e_pass),
        _float(found.log_e_fail),
        bool(found.shared),
        bool(found.suspected),
        Code(int(found.code)),
    )


def _float(value: Floats | None) -> float | None:
    return None if value is None or math.isnan(float(value)) else float(value)


def _portion(counts: Pair) -> float | None:
    n = counts[0] + counts[1]
    return counts[0] / n if n > 0 else None


def _what(gate: NamedGate, value: float | None, n: float, limit: float, kind: str = "") -> str:
    if gate.metric == "latency":
        return (
            f"{_percent(value)} of {n:.0f} {kind}answers slower than {gate.gate.limit:g} s, limit {limit:.0%}"
        )
    if gate.metric == "errorRate":
        return f"errors {_percent(value)} of {n:.0f} {kind}requests, limit {_percent(limit)}"
    return f"{gate.name} {_percent(value)} of {n:.0f}, limit {_percent(limit)}"


def _percent(value: float | None) -> str:
    return "unknown" if value is None else f"{100 * value:.3g} %"


def _missing(bench: Bench, more: float | None, n: float, unit: str, wrong_side: bool) -> str:
    """What is missing, and when it should be there at the pace so far."""
    if wrong_side:
        return "; on the wrong side of the limit, neither side is proven"
    if n <= 0:
        return f"; no {unit} yet"
    if more is None:
        return "; exactly at the limit, no number of them would prove it"
    more = max(1.0, math.ceil(more))
    pace = n / max(bench.now - bench.ledger.started_at, 1.0)
    return f"; about {more:.0f} more {unit} like these needed, some {_time(more / pace)} at this pace"


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.0f} h" if seconds < 2 * 86400 else f"{seconds / 86400:.0f} days"
