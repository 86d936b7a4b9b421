"""Which answers a model may keep: the lowest confidence whose kept answers still meet the accuracy floor. Pure.

Learn then Test (Angelopoulos et al. 2021): a threshold is certified by a test of "the answers kept by it are right less
often than the floor", walked in a fixed sequence from three starts towards larger kept shares, each start at a third of
the risk, so the chance of naming any threshold that breaks the floor is at most the risk. The test is the caller's: the
operator looks again and again, the trainer once. Labels must be a sample of known uniform probability, drawn before
routing; a missing label counts as wrong.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cutover.beta_tail import log_below

Floats = NDArray[np.float64]

Proof = Callable[[Floats, Floats, float], NDArray[np.bool_]]
"""Counts right, counts wrong and a risk in: which thresholds keep the floor for certain. Shape (edges,)."""
START_SHARES = (0.3, 0.5, 0.7)


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """What keeping every answer of at least this confidence would mean, as observed."""

    threshold: float
    kept_share: float
    accuracy: float
    """Of the kept answers; a missing label counts as wrong."""
    labels: float
    certified: bool


@dataclass(frozen=True, slots=True)
class Routing:
    """A threshold with its guarantee, and what follows from it."""

    threshold: float | None
    """None: no threshold is certified, every answer goes to the stronger model."""
    kept_share: float
    auroc: float
    """Chance that a right answer is more confident than a wrong one; 0.5 says confidence is worthless. NaN unknown."""
    curve: tuple[CurvePoint, ...]
    """The risk-coverage curve, from the highest threshold to keeping everything."""

    @property
    def dependency(self) -> float:
        """Share of the answers the stronger model gives."""
        return 1.0 - self.kept_share

    def usd_per_assessment(self, candidate_usd: float, control_usd: float) -> float:
        """Mean price of an answer: the candidate is always asked, the stronger model for what is not kept."""
        return candidate_usd + self.dependency * control_usd

    def system_accuracy(self, control_accuracy: float) -> float:
        """Expected share of right answers of both together."""
        kept = next((p.accuracy for p in self.curve if p.threshold == self.threshold), 0.0)
        return self.kept_share * kept + self.dependency * control_accuracy


def choose_threshold(
    edges: Sequence[float],
    right: ArrayLike,
    wrong: ArrayLike,
    missing: ArrayLike,
    *,
    proof: Proof,
    risk: float,
) -> Routing:
    """The routing that labels by confidence bin allow.

    Bin i holds answers of a confidence of at least `edges[i]` and below `edges[i + 1]`; edges rise. Raises ValueError
    when the lengths differ or the edges do not rise.
    """
    ok = np.asarray(right, dtype=np.float64)
    bad = np.asarray(wrong, dtype=np.float64) + np.asarray(missing, dtype=np.float64)
    if not len(edges) == len(ok) == len(bad):
        raise ValueError(f"{len(edges)} edges for {len(ok)} and {len(bad)} counts")
    if any(later <= earlier for earlier, later in itertools.pairwise(edges)):
        raise ValueError("the edges of the confidence bins must rise")
    kept_right, kept_bad = _from_above(ok), _from_above(bad)
    n = kept_right + kept_bad
    whole = float(n[-1]) if len(n) else 0.0
    shares = n / whole if whole else np.zeros_like(n)
    certified = proof(kept_right, kept_bad, risk / len(START_SHARES))
    chosen = _walk(shares, certified) if whole else None
    thresholds = list(reversed(edges))
    curve = tuple(
        CurvePoint(
            thresholds[i],
            float(shares[i]),
            float(kept_right[i] / n[i]) if n[i] else float("nan"),
            float(n[i]),
            bool(certified[i]),
        )
        for i in range(len(thresholds))
    )
    if chosen is None:
        return Routing(None, 0.0, auroc(ok, np.asarray(wrong, dtype=np.float64)), curve)
    return Routing(
        thresholds[chosen], float(shares[chosen]), auroc(ok, np.asarray(wrong, dtype=np.float64)), curve
    )


def _from_above(counts: Floats) -> Floats:
    """Sums over the bins from the most confident one down."""
    return np.cumsum(counts[::-1])


def proven_once(floor: float) -> Proof:
    """For one look: the chance of so few wrong answers among n when each is wrong with chance 1 - floor (binomial)."""

    def proof(right: Floats, bad: Floats, risk: float) -> NDArray[np.bool_]:
        log_chance = log_below(np.maximum(right, 1.0), bad + 1, floor)
        return np.asarray((right > 0) & (log_chance <= np.log(risk)))

    return proof


def _walk(shares: Floats, certified: np.ndarray) -> int | None:
    """Index of the largest share reached by walking from a start over certified thresholds only."""
    best: int | None = None
    for start in START_SHARES:
        i = int(np.argmin(np.abs(shares - start)))
        while i < len(shares) and certified[i]:
            best = i if best is None else max(best, i)
            i += 1
    return best


def auroc(right: ArrayLike, wrong: ArrayLike) -> float:
    """Area under the ROC curve from counts per confidence bin, ties counted half. NaN without both kinds."""
    ok, bad = np.asarray(right, dtype=np.float64), np.asarray(wrong, dtype=np.float64)
    if ok.sum() <= 0 or bad.sum() <= 0:
        return float("nan")
    below = np.cumsum(bad) - bad
    return float((ok * (below + bad / 2)).sum() / (ok.sum() * bad.sum()))
