"""Demands on the data: each refusal names the field, the number reached and the remedy."""

from __future__ import annotations

from typing import Any

import pytest

from cutover.api.trainingrun import Quality
from cutover_trainer.quality import Census, census, refusal, thin_test_part
from cutover_trainer.rows import BadRow, Row
from fakes import training_example

TASK = training_example.task()
ENOUGH = {"minExamples": 4, "minControlAccuracy": 0.5, "minPerClass": 0}


def row(number: int, damage: str = "crack", control: str | None = "crack", validated: bool = True) -> Row:
    truth = {"damageType": damage, "severity": "minor"}
    said = None if control is None else {"damageType": control, "severity": "minor"}
    return Row(number, f"r{number}", f"r{number}", None, [], "", truth, truth, said, validated)


def bad(number: int) -> BadRow:
    return BadRow(number, "", "UnreadableLine", "", "not JSON")


def refused(rows: list[Row], bad_rows: list[BadRow] | None = None, **quality: Any) -> tuple[str, str]:
    bad_rows = bad_rows or []
    demands = Quality.model_validate({**ENOUGH, **quality})
    found = refusal(TASK, demands, census(TASK, rows, bad_rows), bad_rows)
    assert found is not None
    return found.reason, found.message


def test_good_data_passes() -> None:
    rows = [row(number) for number in range(10)]
    assert refusal(TASK, Quality.model_validate(ENOUGH), census(TASK, rows, []), []) is None


TEN = [row(number) for number in range(10)]


@pytest.mark.parametrize(
    ("rows", "bad_rows", "quality", "reason", "said"),
    [
        ([], [], {}, "EmptyDataset", ["dataset.source"]),
        (
            TEN,
            [bad(3), bad(9)],
            {},
            "UnreadableRows",
            ["2 of 12", "maxBadRowsShare", "line 3: not JSON", "1.0%"],
        ),
        (TEN, [], {"requiredClasses": ["flood"]}, "UnknownClass", ["requiredClasses", "'flood'", "asbestos"]),
        (
            [*TEN, *(row(n, validated=False) for n in range(20, 30))],
            [],
            {},
            "TooFewValidated",
            ["10 of 20", "50.0%", "minValidatedShare"],
        ),
        (
            TEN,
            [],
            {"minExamples": 10_000},
            "TooFewExamples",
            ["10 validated", "minExamples", "10000", "lower"],
        ),
        (TEN, [], {"minPerClass": 1}, "TooFewPerClass", ["asbestos 0", "minPerClass"]),
        (TEN, [], {"requiredClasses": ["asbestos"]}, "TooFewPerClass", ["asbestos 0", "requiredClasses"]),
        (
            [row(n, control=None) for n in range(10)],
            [],
            {},
            "ControlAccuracyUnknown",
            ["minControlAccuracy", "0.5"],
        ),
        (
            [row(n, control="mould") for n in range(10)],
            [],
            {},
            "ControlDisagreesWithLabels",
            ["0.0% of 10 rows", "minControlAccuracy", "50.0%"],
        ),
    ],
)
def test_refusals(
    rows: list[Row], bad_rows: list[BadRow], quality: dict[str, Any], reason: str, said: list[str]
) -> None:
    found, message = refused(rows, bad_rows, **quality)
    assert found == reason
    for words in said:
        assert words in message


def test_control_accuracy_is_measured_on_rows_people_have_labelled() -> None:
    rows = [row(1), row(2, control="mould"), row(3, control=None), row(4, control="mould", validated=False)]
    found = census(TASK, rows, [])
    assert isinstance(found, Census)
    assert (found.control_rows, found.control_accuracy["damageType"]) == (2, 0.5)
    assert found.control_accuracy == {"damageType": 0.5, "severity": 1.0, "overall": 0.5}


def test_few_test_rows_of_a_class_are_a_warning() -> None:
    said = thin_test_part({"crack": 29, "mould": 30})
    assert said == "fewer than 30 test rows, so recall is a rough guess: crack 29"
    assert thin_test_part({"mould": 30}) is None
