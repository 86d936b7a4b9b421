"""`evaluation.json`: everything an evaluation measured, and the summary the operator keeps of it.

Pure: judged answers in, documents out. The adapter's answers are compared in pairs with those of the bare base, of
today's model where a row has its answer, and of an earlier adapter on the rows it has not learnt.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cutover.api.trainingrun import EvaluationSummary
from cutover.contract import FIELD_OVERALL
from cutover.task import Task
from cutover_trainer.confidence_curve import ConfidenceCurve, Point
from cutover_trainer.examples import Example
from cutover_trainer.measures import (
    Judged,
    Share,
    accuracy_shares,
    confusion,
    json_validity,
    macro_f1,
    mcnemar,
    quantile,
    recalls,
    right_of,
    said_of,
)
from cutover_trainer.people import Doubled, agreement, agreement_with

SCHEMA_VERSION = 2
LISTED_ERRORS = 200


@dataclass(frozen=True, slots=True)
class Other:
    """Another model's answers to some rows of the test part."""

    rows: Sequence[int]
    """Indices into the test part, rising."""
    judged: Sequence[Judged]
    about: Mapping[str, Any] = field(default_factory=dict)

    def at(self, row: int) -> Judged | None:
        place = bisect_left(self.rows, row)
        return self.judged[place] if place < len(self.rows) and self.rows[place] == row else None


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Of one adapter on the test part; `others` by name: base, control, previous."""

    task: Task
    examples: Sequence[Example]
    judged: Sequence[Judged]
    others: Mapping[str, Other]
    doubled: Sequence[Doubled]
    """Rows of all parts that two or more people labelled."""
    curve: ConfidenceCurve | None
    """On the validation part; None when there is none."""
    checked: Point | None
    """What the chosen threshold is worth on the test part."""
    seconds: Sequence[float]
    missed: Sequence[str]

    def summary(self) -> EvaluationSummary:
        def of(name: str) -> dict[str, float]:
            other = self.others.get(name)
            return {} if other is None else _values(accuracy_shares(self.task, other.judged))

        return EvaluationSummary(
            examples=len(self.examples),
            accuracy=_values(accuracy_shares(self.task, self.judged)),
            accuracy_before=of("base"),
            accuracy_control=of("control"),
            accuracy_previous=of("previous"),
            macro_f1={
                name: round(macro_f1(self.task, self.judged, name).value, 6)
                for name in self.task.scored_fields
            },
            human_agreement=_values(agreement(self.task, self.doubled)),
            human_rows=len(self.doubled),
            confidence=None if self.curve is None else self.curve.summary(),
            json_validity=json_validity(self.judged).value,
            latency_p95_seconds=quantile(self.seconds, 0.95),
        )

    def document(self) -> dict[str, Any]:
        """`evaluation.json`."""
        task, judged = self.task, self.judged
        return {
            "schemaVersion": SCHEMA_VERSION,
            "summary": self.summary().to_wire(),
            "missedGates": list(self.missed),
            "groups": len({example.group for example in self.examples}),
            "accuracy": _wire(accuracy_shares(task, judged)),
            "macroF1": {name: macro_f1(task, judged, name).to_wire() for name in task.scored_fields},
            "recall": {name: _wire(recalls(task, judged, name)) for name in task.scored_fields},
            "confusion": {name: confusion(task, judged, name) for name in task.scored_fields},
            "jsonValidity": json_validity(judged).to_wire(),
            "latencySeconds": {
                "n": len(self.seconds),
                "p50": quantile(self.seconds, 0.5),
                "p95": quantile(self.seconds, 0.95),
            },
            "comparisons": {name: self._comparison(other) for name, other in self.others.items()},
            "people": self._people(),
            "confidence": self._confidence(),
            "errors": self._errors(),
        }

    def _comparison(self, other: Other) -> dict[str, Any]:
        mine = [self.judged[row] for row in other.rows]
        return {
            "n": len(other.rows),
            **other.about,
            "accuracy": _wire(accuracy_shares(self.task, mine)),
            "accuracyOther": _wire(accuracy_shares(self.task, other.judged)),
            "jsonValidityOther": json_validity(other.judged).to_wire(),
            "mcnemar": {
                name: mcnemar(right_of(self.task, mine, name), right_of(self.task, other.judged, name))
                for name in (*self.task.scored_fields, FIELD_OVERALL)
            },
        }

    def _people(self) -> dict[str, Any] | None:
        """None when no row was labelled twice. Agreement over all prepared rows; the model's on the test rows."""
        if not self.doubled:
            return None
        rows = [number for number, example in enumerate(self.examples) if len(example.people) > 1]
        tested = [
            Doubled(self.examples[row].people, self.examples[row].group, self.judged[row].answer)
            for row in rows
        ]
        return {
            "rows": len(self.doubled),
            "agreement": _wire(agreement(self.task, self.doubled)),
            "testRows": len(tested),
            "modelWithOnePerson": _wire(agreement_with(self.task, tested)),
            "accuracy": _wire(accuracy_shares(self.task, [self.judged[row] for row in rows])),
        }

    def _confidence(self) -> dict[str, Any] | None:
        if self.curve is None:
            return None
        return {
            **self.curve.summary().to_wire(),
            "field": self.curve.field,
            "part": "validation",
            "points": [point.to_wire() for point in self.curve.points],
            "onTest": None if self.checked is None else self.checked.to_wire(),
        }

    def wrong_rows(self) -> list[int]:
        """Indices of the rows whose decisive field is wrong: the surest first, answers without a confidence last."""
        right = right_of(self.task, self.judged, self.task.decisive_field)
        wrong = [number for number, ok in enumerate(right) if not ok]
        return sorted(wrong, key=lambda row: (-(self.judged[row].confidence or -1.0), self.examples[row].id))

    def error(self, row: int) -> dict[str, Any]:
        """What one row says about a mistake."""
        name, example, one = self.task.decisive_field, self.examples[row], self.judged[row]
        control = self.others.get("control")
        other = None if control is None else control.at(row)
        return {
            "id": example.id,
            "truth": example.truth[name],
            "said": said_of(self.task, one, name),
            "confidence": one.confidence,
            "control": None if other is None else said_of(self.task, other, name),
            "people": [said.get(name) for said in example.people] if len(example.people) > 1 else [],
        }

    def _errors(self) -> dict[str, Any]:
        rows = self.wrong_rows()
        return {
            "field": self.task.decisive_field,
            "rows": len(rows),
            "listed": [self.error(row) for row in rows[:LISTED_ERRORS]],
        }


def doubled_of(examples: Sequence[Example]) -> list[Doubled]:
    return [Doubled(example.people, example.group) for example in examples if len(example.people) > 1]


def _values(shares: Mapping[str, Share]) -> dict[str, float]:
    """For a status: six digits are more than any test part can tell."""
    return {name: round(share.value, 6) for name, share in shares.items()}


def _wire(shares: Mapping[str, Share]) -> dict[str, dict[str, float]]:
    return {name: share.to_wire() for name, share in shares.items()}
