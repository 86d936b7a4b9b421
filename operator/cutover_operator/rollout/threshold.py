"""Which confidence a candidate's answer needs to be kept, from the ledger's labels and answers by confidence. Pure.

`cutover.selective` has the method; here are the counts it is given and the sentence a person reads. Until a threshold
is certified nothing below the strictest one is kept, so the answers that reach people are never a guess.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from cutover.api.modelrollout import ModelRolloutSpec, RoutingStatus
from cutover.contract import BIN_UNKNOWN, CONFIDENCE_BINS, CONFIDENCE_EDGES, LABEL_RESULTS
from cutover.selective import START_SHARES, Routing
from cutover_operator.evidence.ledger import Ledger
from cutover_operator.rollout.accuracy import floors
from cutover_operator.rollout.counts import answered
from cutover_operator.rollout.evalue import KAPPA_ACCURACY, Floats, still_needed
from cutover_operator.rollout.gates import NamedGate, named_gates
from cutover_operator.rollout.selective import choose_threshold

STRICTEST = CONFIDENCE_EDGES[-1]
EDGES = (0.0, *CONFIDENCE_EDGES)
"""Lower edges of the bins that have a confidence; an answer without one is never kept."""
COST_MIN_ANSWERS = 20
SHOWN_SHARES = (0.3, 0.5, 0.7, 0.9)


@dataclass(frozen=True, slots=True)
class Bins:
    """Shape (edges,) each, from the least sure up."""

    right: Floats
    wrong: Floats
    missing: Floats
    unknown: float
    """Labels of answers without a confidence."""
    answers: Floats
    unknown_answers: float


def governing_gate(spec: ModelRolloutSpec) -> NamedGate | None:
    """The accuracy gate whose limit the kept answers must meet; the API server proves that there is exactly one."""
    return next((g for g in named_gates(spec) if g.metric == "accuracy" and g.gate.limit is not None), None)


def bins_of(ledger: Ledger, field: str) -> Bins:
    names = CONFIDENCE_BINS[1:]
    right, wrong, missing = (
        np.asarray([ledger.total(f"sure/{field}/{name}/{result}") for name in names])
        for result in LABEL_RESULTS
    )
    return Bins(
        right,
        wrong,
        missing,
        sum(ledger.total(f"sure/{field}/{BIN_UNKNOWN}/{result}") for result in LABEL_RESULTS),
        np.asarray([ledger.total(f"confidence/{name}") for name in names]),
        ledger.total(f"confidence/{BIN_UNKNOWN}"),
    )


def choose(spec: ModelRolloutSpec, ledger: Ledger, decided_at: str) -> RoutingStatus | None:
    """The threshold as it is to be from now on, with what follows from it. None without a gate to meet."""
    gate = governing_gate(spec)
    if gate is None or gate.gate.limit is None:
        return None
    counted = bins_of(ledger, gate.field)
    seen = floors(spec, ledger, gate, gate.gate.limit)
    floor = seen.limit if seen.limit is not None else gate.gate.limit
    found = choose_threshold(
        EDGES, counted.right, counted.wrong, counted.missing, floor=floor, risk=seen.pass_alpha
    )
    threshold = STRICTEST if found.threshold is None else found.threshold
    kept = _kept_share(counted, threshold)
    usd = _usd(ledger, kept)
    point = next(p for p in found.curve if p.threshold == threshold)
    text = _sentence(found, floor, seen.pass_alpha, kept, usd, threshold, point.accuracy)
    return RoutingStatus(
        threshold=threshold,
        certified=found.threshold is not None,
        decided_at=decided_at,
        epoch=ledger.epoch,
        labels=int(counted.right.sum() + counted.wrong.sum() + counted.missing.sum() + counted.unknown),
        kept_share=_rounded(kept),
        kept_accuracy=_rounded(point.accuracy),
        auroc=_rounded(found.auroc),
        usd_per_assessment=_rounded(usd),
        message=text,
    )


def _rounded(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else float(f"{value:.4g}")


def _kept_share(counted: Bins, threshold: float) -> float:
    """Of all valid answers; by the labelled ones while the gateway has counted none."""
    labelled = counted.right + counted.wrong + counted.missing
    for answers, unknown in ((counted.answers, counted.unknown_answers), (labelled, counted.unknown)):
        whole = float(answers.sum()) + unknown
        if whole > 0:
            return float(answers[np.asarray(EDGES) >= threshold].sum()) / whole
    return 0.0


def _usd(ledger: Ledger, kept: float) -> float | None:
    """Mean price of an assessment at this kept share: the candidate is always asked, the stronger model for the rest.

    Both prices are those seen so far; None before the candidate has served enough to know its own."""
    n, control_n = answered(ledger.totals, "candidate"), answered(ledger.totals, "control")
    if n < COST_MIN_ANSWERS or control_n < COST_MIN_ANSWERS:
        return None
    strong = ledger.total("cost/control") / control_n
    rescued = ledger.total("requests/candidate/deferred") + ledger.total("requests/candidate/error")
    own = max(0.0, ledger.total("cost/candidate") - rescued * strong) / n
    return own + (1.0 - kept) * strong


def _sentence(
    found: Routing,
    floor: float,
    alpha: float,
    kept: float,
    usd: float | None,
    threshold: float,
    accuracy: float,
) -> str:
    auroc = "unknown" if math.isnan(found.auroc) else f"{found.auroc:.2f}"
    if found.threshold is None:
        text = f"no threshold keeps {floor:.3g} for certain yet, so only answers surer than {threshold:g} are kept"
        text += f" ({100 * kept:.0f} %); {_missing(found, floor, alpha)}; AUROC {auroc}"
    else:
        text = f"answers surer than {threshold:g} are kept: {100 * kept:.0f} % of all, right in "
        text += f"{100 * accuracy:.1f} % of their labels; AUROC {auroc}"
    curve = [
        min((p for p in found.curve if p.labels), key=lambda p: abs(p.kept_share - share), default=None)
        for share in SHOWN_SHARES
    ]
    shown = list(dict.fromkeys((p.kept_share, p.accuracy) for p in curve if p is not None))
    if shown:
        text += "; keeping " + ", ".join(f"{100 * share:.0f} %: {right:.3f}" for share, right in shown)
    text += f"; the stronger model answers {100 * (1 - kept):.0f} %"
    return text + (f", {usd:.3g} USD per assessment" if usd is not None else "")


def _missing(found: Routing, floor: float, alpha: float) -> str:
    """How many more labels, of all answers alike, would certify the threshold nearest to it."""
    needed = []
    for point in found.curve:
        right = point.labels * point.accuracy if point.labels else 0.0
        more = still_needed(right, point.labels - right, floor, 1, KAPPA_ACCURACY, alpha / len(START_SHARES))
        if more is not None and 0.2 <= point.kept_share <= 0.8:
            needed.append(more / point.kept_share)
    if not needed:
        return "the labels so far show no share of sure answers that is right often enough"
    return f"about {math.ceil(min(needed))} more labels are missing"
