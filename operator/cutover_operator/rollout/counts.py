"""What the totals of a ledger say per arm, as (bad, good). Pure."""

from __future__ import annotations

from cutover_operator.evidence.ledger import ANSWERED, Totals, edge_key

Pair = tuple[float, float]
"""(bad, good)."""


def answered(totals: Totals, arm: str) -> float:
    return sum(totals.get(f"requests/{arm}/{outcome}", 0.0) for outcome in ANSWERED)


def error_counts(totals: Totals, arm: str) -> Pair:
    bad = totals.get(f"requests/{arm}/error", 0.0)
    return bad, answered(totals, arm) - bad


def slow_counts(totals: Totals, arm: str, edge: float, prefix: str = "duration") -> Pair:
    fast = totals.get(f"{prefix}/{arm}/{edge_key(edge)}/fast", 0.0)
    return max(0.0, totals.get(f"{prefix}/{arm}/{edge_key(edge)}/all", 0.0) - fast), fast


def label_counts(totals: Totals, arm: str, field: str) -> tuple[float, float, float]:
    """(right, wrong, missing)."""
    right, wrong, missing = (
        totals.get(f"labels/{arm}/{field}/{result}", 0.0) for result in ("right", "wrong", "missing")
    )
    return right, wrong, missing


def shadow_counts(totals: Totals) -> Pair:
    """Mirrored requests the candidate could not answer, and those it did."""
    good = sum(totals.get(f"shadow/{agreement}", 0.0) for agreement in ("agree", "disagree", "deferred"))
    return totals.get("shadow/error", 0.0) + totals.get("shadow/invalid", 0.0), good


def stratum_pairs(totals: Totals) -> Pair:
    """Mirrored requests of the strata agree and disagree; no valid answer is a disagreement."""
    return totals.get("shadow/agree", 0.0), sum(
        totals.get(f"shadow/{agreement}", 0.0) for agreement in ("disagree", "invalid", "error")
    )


def custom_counts(totals: Totals, gate: str) -> Pair:
    bad = totals.get(f"custom/{gate}/bad", 0.0)
    return bad, max(0.0, totals.get(f"custom/{gate}/total", 0.0) - bad)
