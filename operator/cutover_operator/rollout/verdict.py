"""What the evidence says about one gate: pass, fail, insufficient or unavailable, with the numbers and a sentence.

Pure: a ledger and the rollout's spec in, verdicts out. A pass and a fail are both proven at the rollout's risk,
whatever the number of looks; everything else is insufficient and says what is missing and when it should be there.
Missing labels count against what is being proven: as wrong for a pass, as right for a fail.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

from cutover.api.modelrollout import GateStatus, ModelRolloutSpec, VerdictName
from cutover_operator.evidence.ledger import Ledger, Totals
from cutover_operator.evidence.samples import Unavailable
from cutover_operator.rollout.counts import (
    Counts,
    answered,
    custom_counts,
    error_counts,
    label_counts,
    shadow_counts,
    slow_counts,
)
from cutover_operator.rollout.evalue import (
    KAPPA_ACCURACY,
    KAPPA_RATIO,
    KAPPA_SHARE,
    Side,
    interval,
    log_e_of,
    mixture,
    still_needed,
)
from cutover_operator.rollout.gates import DEFAULT_RATIO_MARGIN, SLOW_SHARE, NamedGate, ladder

COST_MIN_ANSWERS = 100
VOTES_MIN = 100
CONTROL_ALPHA = 0.05
"""Proof wanted before a control is said to break a limit too."""

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
    """A fail that the control shares: it breaks the same limit, and the candidate is not worse by a ratio."""

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

    @property
    def risk(self) -> float:
        return self.spec.analysis.risk

    def spent(self, alpha: float) -> float:
        """What is left of a risk after shared incidents made the tests start anew."""
        return alpha / float(2**self.ledger.incidents)


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
    return Verdict(gate, "unavailable", why.message, reason=why.kind, limit=gate.gate.limit)


# ---------------------------------------------------------------- shares that must stay small
def _share(bench: Bench, gate: NamedGate) -> Verdict:
    ledger, limit = bench.ledger, gate.gate.limit or SLOW_SHARE
    share_limit = SLOW_SHARE if gate.metric == "latency" else limit
    count = _counter(gate)
    since = ledger.epochs(ledger.fresh_from)
    totals = since[0][1] if since else dict(ledger.totals)
    bad, good = count(totals, "candidate")
    n = bad + good
    value = bad / n if n else None

    log_fail = _violation(ledger, count, "candidate", share_limit)
    shadow = _shadow_counter(gate) if any(step.shadow for step in bench.spec.steps) else None
    if shadow is not None:
        mirrored = mixture(
            [log_e_of(*shadow(t), share_limit, 1, KAPPA_SHARE) for _, t in since], [k for k, _ in since]
        )
        log_fail = math.log(0.5) + max(log_fail, mirrored) + math.log1p(math.exp(-abs(log_fail - mirrored)))
    factor = ladder(bench.spec, bench.step, gate.metric)
    floor = min(share_limit * factor, 0.5) if factor > 1 else share_limit
    log_pass = log_e_of(bad, good, floor, -1, KAPPA_SHARE)

    margin = gate.gate.margin
    parts = 2.0 if margin is not None else 1.0
    ratio = _ratio(ledger, count, 1.0 + (margin if margin is not None else DEFAULT_RATIO_MARGIN))
    alpha = bench.spent(gate.rollback_alpha) / parts
    what = _what(gate, value, n, share_limit)
    if gate.rolls_back and log_fail >= math.log(1 / alpha):
        control = _violation(ledger, count, "control", share_limit)
        shared = control >= math.log(1 / CONTROL_ALPHA) and ratio < math.log(1 / alpha)
        tail = "; the control breaks the same limit" if shared else ""
        if shadow is not None and n == 0:
            what = _what(gate, _portion(shadow(totals)), sum(shadow(totals)), share_limit, "mirrored ")
        return _made(
            gate, "fail", what + tail, value, limit, n, log_pass, log_fail, REASONS[gate.metric], shared
        )
    if gate.rolls_back and margin is not None and ratio >= math.log(1 / alpha):
        message = f"{what}; more than {1 + margin:g} times the control's share"
        return _made(
            gate, "fail", message, value, limit, n, log_pass, ratio, CONTROL_REASONS.get(gate.metric, "Worse")
        )
    needed_log = math.log(1 / bench.spent(bench.risk))
    if value is not None and value <= share_limit and log_pass >= needed_log:
        return _made(gate, "pass", what, value, limit, n, log_pass, log_fail)
    more = (
        still_needed(bad, good, floor, -1, KAPPA_SHARE, bench.spent(bench.risk))
        if value is not None
        else None
    )
    message = what + _missing(bench, more, n, "answers", value is not None and value > share_limit)
    return _made(gate, "insufficient", message, value, limit, n, log_pass, log_fail)


def _counter(gate: NamedGate) -> Callable[[Totals, str], Counts]:
    if gate.metric == "errorRate":
        return error_counts
    if gate.metric == "latency":
        edge = gate.gate.limit or 0.0
        return lambda totals, arm: slow_counts(totals, arm, edge)
    name = gate.name
    return lambda totals, arm: custom_counts(totals, name) if arm == "candidate" else (0.0, 0.0)


def _shadow_counter(gate: NamedGate) -> Callable[[Totals], Counts] | None:
    if gate.metric == "errorRate":
        return shadow_counts
    if gate.metric == "latency":
        edge = gate.gate.limit or 0.0
        return lambda totals: slow_counts(totals, "candidate", edge, "shadow")
    return None


def _violation(ledger: Ledger, count: Callable[[Totals, str], Counts], arm: str, limit: float) -> float:
    epochs = ledger.epochs(ledger.fresh_from)
    values = [log_e_of(*count(totals, arm), limit, 1, KAPPA_SHARE) for _, totals in epochs]
    return mixture(values, [k for k, _ in epochs])


def _ratio(ledger: Ledger, count: Callable[[Totals, str], Counts], ratio: float) -> float:
    """Evidence that the candidate's share is more than `ratio` times the control's, who serves the same minutes."""
    marks = [m for m in ledger.marks if m.k >= ledger.fresh_from]
    if not marks:
        return 0.0
    bounds = [m.totals for m in sorted(marks, key=lambda m: m.k)] + [ledger.totals]
    total = 0.0
    for earlier, later in itertools.pairwise(bounds):
        part = {key: max(0.0, value - earlier.get(key, 0.0)) for key, value in later.items()}
        (bad, good), (control_bad, control_good) = count(part, "candidate"), count(part, "control")
        mine, theirs = bad + good, control_bad + control_good
        if mine > 0 and theirs > 0:
            expected = mine * ratio / (mine * ratio + theirs)
            total += log_e_of(bad, control_bad, expected, 1, KAPPA_RATIO)
    return total


# ---------------------------------------------------------------- accuracy
def _accuracy(bench: Bench, gate: NamedGate) -> Verdict:
    ledger, limit = bench.ledger, gate.gate.limit
    right, wrong, missing = label_counts(ledger.totals, "candidate", gate.field)
    n = right + wrong + missing
    value = right / n if n else None
    log_pass = log_fail = None
    margin_parts = 2.0 if limit is not None and gate.gate.margin is not None else 1.0
    alpha = gate.rollback_alpha / margin_parts
    factor = 1.0
    floor = limit
    what = f"{_field(gate)} {_number(value)} (n={n:.0f}"
    what += f", {missing:.0f} without a label)" if missing else ")"
    if limit is not None:
        factor = ladder(bench.spec, bench.step, "accuracy")
        floor = max(1 - (1 - limit) * factor, 0.5) if factor > 1 else limit
        epochs = ledger.epochs()
        values = []
        for _, totals in epochs:
            r, w, m = label_counts(totals, "candidate", gate.field)
            values.append(log_e_of(r + m, w, limit, -1, KAPPA_ACCURACY))
        log_fail = mixture(values, [k for k, _ in epochs])
        log_pass = log_e_of(right, wrong + missing, floor or limit, 1, KAPPA_ACCURACY)
        what += f", limit {limit:g}"
        if gate.rolls_back and log_fail >= math.log(1 / alpha):
            return _made(gate, "fail", what, value, limit, n, log_pass, log_fail, REASONS["accuracy"])
    compared = _against_control(bench, gate, alpha) if gate.gate.margin is not None else "pass"
    if compared == "fail":
        message = f"{what}; below the control's by more than {gate.gate.margin:g}"
        return _made(gate, "fail", message, value, limit, n, log_pass, log_fail, CONTROL_REASONS["accuracy"])
    if bench.labels is not None:
        return _made(
            gate, "unavailable", bench.labels.message, value, limit, n, log_pass, log_fail, bench.labels.kind
        )
    proven = log_pass is None or (
        log_pass >= math.log(1 / bench.risk) and value is not None and limit is not None and value >= limit
    )
    if proven and compared == "pass" and value is not None:
        return _made(gate, "pass", what, value, limit, n, log_pass, log_fail)
    if not proven and floor is not None and limit is not None:
        side: Side = 1
        more = still_needed(right, wrong + missing, floor, side, KAPPA_ACCURACY, bench.risk)
        tail = _missing(bench, more, n, "labels", value is not None and value < limit)
    else:
        tail = "; more labels on both arms are needed to compare them"
    return _made(gate, "insufficient", what + tail, value, limit, n, log_pass, log_fail)


def _against_control(bench: Bench, gate: NamedGate, alpha: float) -> VerdictName:
    """Two intervals that hold at all times, one per arm: they need no assumption on how the arms' answers go together."""
    margin = gate.gate.margin or 0.0
    right, wrong, missing = label_counts(bench.ledger.totals, "candidate", gate.field)
    c_right, c_wrong, c_missing = label_counts(bench.ledger.totals, "control", gate.field)
    if right + wrong == 0 or c_right + c_wrong == 0:
        return "insufficient"
    if gate.rolls_back and alpha > 0:
        best = interval(right + missing, wrong, alpha / 2)[1]
        least = interval(c_right, c_wrong + c_missing, alpha / 2)[0]
        if best < least - margin:
            return "fail"
    worst = interval(right, wrong + missing, bench.risk / 2)[0]
    most = interval(c_right + c_missing, c_wrong, bench.risk / 2)[1]
    return "pass" if worst >= most - margin else "insufficient"


# ---------------------------------------------------------------- cost and satisfaction
def _cost(bench: Bench, gate: NamedGate) -> Verdict:
    limit = gate.gate.limit or 0.0
    n = answered(bench.ledger.totals, "candidate")
    mean = bench.ledger.total("cost/candidate") / n if n else None
    wealth = bench.ledger.bettor.log_wealth
    what = f"cost {'-' if mean is None else f'{mean:.4g}'} USD per assessment (n={n:.0f}), limit {limit:g}"
    above = mean is not None and mean > limit
    if gate.rolls_back and above and wealth >= math.log(1 / gate.rollback_alpha):
        return _made(gate, "fail", what, mean, limit, n, None, wealth, REASONS["cost"])
    if n >= COST_MIN_ANSWERS and not above:
        return _made(gate, "pass", what, mean, limit, n, None, wealth)
    if above:
        return _made(gate, "insufficient", f"{what}; above it, not yet proven", mean, limit, n, None, wealth)
    message = what + _missing(bench, COST_MIN_ANSWERS - n, n, "answers", False)
    return _made(gate, "insufficient", message, mean, limit, n, None, wealth)


def _satisfaction(bench: Bench, gate: NamedGate) -> Verdict:
    margin = gate.gate.margin if gate.gate.margin is not None else DEFAULT_RATIO_MARGIN

    def votes(totals: Totals, arm: str) -> Counts:
        return totals.get(f"satisfaction/{arm}/down", 0.0), totals.get(f"satisfaction/{arm}/up", 0.0)

    down, up = votes(bench.ledger.totals, "candidate")
    c_down, c_up = votes(bench.ledger.totals, "control")
    n, value = down + up, _portion((down, up))
    evidence = _ratio(bench.ledger, votes, 1.0 + margin)
    what = f"thumbs down {_percent(value)} of {n:.0f}, control {_percent(_portion((c_down, c_up)))} of {c_down + c_up:.0f}"
    if gate.rolls_back and evidence >= math.log(1 / gate.rollback_alpha):
        message = f"{what}; more than {1 + margin:g} times the control's share"
        return _made(gate, "fail", message, value, None, n, None, evidence, REASONS["satisfaction"])
    control_share = _portion((c_down, c_up))
    fine = value is not None and control_share is not None and value <= (1 + margin) * control_share
    if n >= VOTES_MIN and fine:
        return _made(gate, "pass", what, value, None, n, None, evidence)
    return _made(
        gate,
        "insufficient",
        what + _missing(bench, VOTES_MIN - n, n, "votes", False),
        value,
        None,
        n,
        None,
        evidence,
    )


# ---------------------------------------------------------------- words
def _made(
    gate: NamedGate,
    verdict: VerdictName,
    message: str,
    value: float | None,
    limit: float | None,
    n: float,
    log_pass: float | None,
    log_fail: float | None,
    reason: str = "",
    shared: bool = False,
) -> Verdict:
    return Verdict(gate, verdict, message, reason, value, limit, int(n), log_pass, log_fail, shared)


def _portion(counts: Counts) -> float | None:
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


def _field(gate: NamedGate) -> str:
    return "accuracy" if gate.gate.field is None else f"accuracy of {gate.gate.field}"


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3g}"


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
