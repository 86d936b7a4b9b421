"""What answering only when sure would be worth: kept share and accuracy at every threshold the gateway knows. Pure.

The confidence is the one the gateway routes by, the thresholds are its bins' edges. The threshold is chosen on the
validation part; the test part only tells afterwards what the choice is worth. Choosing is Learn then Test with a risk
of 5 % (`cutover.selective`), on one look.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cutover.api.trainingrun import ConfidenceSummary, EvaluationGate
from cutover.contract import CONFIDENCE_EDGES, FIELD_OVERALL
from cutover.selective import Floats, Routing, auroc, choose_threshold, proven_once
from cutover.task import Task
from cutover_trainer.measures import Judged, Share, effective_rows, groups_of, right_of, share_of

EDGES = (0.0, *CONFIDENCE_EDGES)
RISK = 0.05


@dataclass(frozen=True, slots=True)
class Point:
    """Keeping every valid answer of at least this confidence."""

    threshold: float
    kept_share: float
    accuracy: Share
    certified: bool

    def to_wire(self) -> dict[str, object]:
        return {
            "threshold": self.threshold,
            "keptShare": self.kept_share,
            "accuracy": self.accuracy.to_wire(),
            "certified": self.certified,
        }


@dataclass(frozen=True, slots=True)
class ConfidenceCurve:
    field: str
    """Whose accuracy; the confidence is always the decisive field's."""
    floor: float | None
    """None when no accuracy gate says what the kept answers must reach."""
    rows: int
    auroc: float | None
    threshold: float | None
    points: tuple[Point, ...]
    """From the highest threshold to keeping everything."""

    @property
    def chosen(self) -> Point | None:
        return next((point for point in self.points if point.threshold == self.threshold), None)

    def summary(self) -> ConfidenceSummary:
        return ConfidenceSummary(
            rows=self.rows,
            auroc=_rounded(self.auroc),
            floor=self.floor,
            threshold=self.threshold,
            kept_share=_rounded(None if self.chosen is None else self.chosen.kept_share),
        )


def floor_of(task: Task, gates: Sequence[EvaluationGate]) -> tuple[str, float | None]:
    """Field and accuracy that kept answers must reach: the first accuracy gate's, one on the decisive field first."""
    wanted = [(gate.field or FIELD_OVERALL, gate.min) for gate in gates if gate.metric == "accuracy"]
    wanted.sort(key=lambda one: one[0] != task.decisive_field)
    return wanted[0] if wanted else (task.decisive_field, None)


@dataclass(frozen=True, slots=True)
class _Valid:
    """The valid answers, side by side."""

    right: NDArray[np.bool_]
    sure: Floats
    """-1 where an answer has no confidence: below every threshold."""
    groups: list[str]

    @classmethod
    def of(cls, task: Task, judged: Sequence[Judged], field: str) -> _Valid:
        rows = [one for one in judged if one.answer is not None]
        return cls(
            np.asarray(right_of(task, rows, field), dtype=bool),
            np.asarray([-1.0 if one.confidence is None else one.confidence for one in rows]),
            groups_of(rows),
        )

    def at(self, threshold: float, certified: bool = False) -> Point:
        kept = self.sure >= threshold
        groups = [group for group, keep in zip(self.groups, kept, strict=True) if keep]
        share = float(kept.mean()) if len(kept) else 0.0
        return Point(threshold, share, share_of(self.right[kept].tolist(), groups), certified)

    def routing(self, floor: float | None) -> Routing:
        known = self.sure >= 0
        bins = np.searchsorted(EDGES, self.sure[known], side="right") - 1
        right = np.bincount(bins[self.right[known]], minlength=len(EDGES)) * self.worth
        wrong = np.bincount(bins[~self.right[known]], minlength=len(EDGES)) * self.worth
        proof = _nothing_proven if floor is None else proven_once(floor)
        return choose_threshold(EDGES, right, wrong, np.zeros_like(wrong), proof=proof, risk=RISK)

    @property
    def worth(self) -> float:
        """Rows of one building say less than as many buildings: each counts for this much."""
        return effective_rows(self.right.tolist(), self.groups) / max(1, len(self.groups))

    def auroc(self) -> float | None:
        values = np.unique(self.sure)
        at = np.searchsorted(values, self.sure)
        right, wrong = (np.bincount(at[kind], minlength=len(values)) for kind in (self.right, ~self.right))
        area = auroc(right, wrong)
        return None if math.isnan(area) else area


def confidence_curve(
    task: Task, judged: Sequence[Judged], field: str, floor: float | None
) -> ConfidenceCurve:
    """Of the valid answers, at every threshold the gateway knows."""
    valid = _Valid.of(task, judged, field)
    found = valid.routing(floor)
    points = tuple(valid.at(point.threshold, point.certified) for point in found.curve)
    return ConfidenceCurve(field, floor, len(valid.groups), valid.auroc(), found.threshold, points)


def point_at(task: Task, judged: Sequence[Judged], field: str, threshold: float) -> Point:
    """What a threshold that was chosen elsewhere is worth on these rows."""
    return _Valid.of(task, judged, field).at(threshold)


def _nothing_proven(right: Floats, bad: Floats, risk: float) -> NDArray[np.bool_]:
    return np.zeros(len(right), dtype=bool)


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")
