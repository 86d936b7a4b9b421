"""What is said of answers: shares and their intervals, macro-F1, paired tests, agreement, gates, thresholds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from cutover.api.trainingrun import EvaluationGate
from cutover_trainer.confidence_curve import confidence_curve, floor_of, point_at
from cutover_trainer.gates import gate_mistakes, missed_gates
from cutover_trainer.measures import (
    Judged,
    accuracy_shares,
    confusion,
    effective_rows,
    json_validity,
    macro_f1,
    mcnemar,
    quantile,
    recalls,
    share_of,
    wilson,
)
from cutover_trainer.people import Doubled, agreement, agreement_with, people_in
from fakes import training_example

TASK = training_example.task()
CLASSES = TASK.classes("damageType")


def judged(truth: str, said: str | None, group: str = "", sure: float | None = None) -> Judged:
    answer = None if said is None else {"damageType": said, "severity": "minor"}
    return Judged({"damageType": truth, "severity": "minor"}, answer, group, sure)


SMALL = [
    judged("crack", "crack"),
    judged("crack", "mould"),
    judged("mould", "mould"),
    judged("mould", None),
]


def test_measures_of_a_small_test_part() -> None:
    shares = accuracy_shares(TASK, SMALL)
    assert {name: share.value for name, share in shares.items()} == {
        "damageType": 0.5,
        "severity": 0.75,
        "overall": 0.5,
    }
    assert shares["damageType"].n == 4
    assert (shares["damageType"].low, shares["damageType"].high) == wilson(2, 4)
    assert json_validity(SMALL).value == 0.75
    matrix = confusion(TASK, SMALL, "damageType")
    assert matrix["crack"] == {"crack": 1, "mould": 1}
    assert matrix["mould"] == {"mould": 1, "(none)": 1}
    found = recalls(TASK, SMALL, "damageType")
    assert found["crack"].value == 0.5
    assert (found["asbestos"].n, found["asbestos"].low, found["asbestos"].high) == (0, 0.0, 1.0)
    assert accuracy_shares(TASK, []) == {}


def test_intervals_and_the_paired_test_against_published_values() -> None:
    low, high = wilson(81, 263)  # Newcombe 1998, table I
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)
    assert wilson(0, 0) == (0.0, 1.0)
    better = [True] * 8 + [False] * 2
    worse = [False] * 8 + [True] * 2
    result = mcnemar(better, worse)
    assert (result["onlyCandidate"], result["onlyOther"]) == (8, 2)
    assert round(result["pValue"], 4) == 0.1094
    assert mcnemar([True], [True])["pValue"] == 1.0
    assert quantile([3.0, 1.0, 2.0], 0.95) == 3.0
    assert quantile([], 0.5) is None


# ------------------------------------------------------------------ groups
@given(st.lists(st.tuples(st.booleans(), st.sampled_from(["", "a", "b", "c", "d"])), max_size=40))
def test_groups_never_make_rows_worth_more(rows: list[tuple[bool, str]]) -> None:
    values, groups = [right for right, _ in rows], [group for _, group in rows]
    worth = effective_rows(values, groups)
    assert 0 <= worth <= len(rows)
    share = share_of(values, groups)
    assert 0 <= share.low <= share.high <= 1
    if rows:
        assert share.low <= share.value + 1e-12
        assert share.high >= share.value - 1e-12
    assert effective_rows(values, [""] * len(rows)) == len(rows)


def test_a_row_written_four_times_says_little_more_than_once() -> None:
    right = [True] * 70 + [False] * 30
    copied = effective_rows(
        [one for one in right for _ in range(4)], [f"{n}" for n in range(100) for _ in range(4)]
    )
    assert copied == pytest.approx(100, rel=0.02)
    assert effective_rows([True] * 40, ["a"] * 20 + ["b"] * 20) == 2


def test_intervals_hold_where_the_rows_of_a_building_go_together() -> None:
    """500 test parts of 120 buildings with five photos each; a building is mostly right or mostly wrong."""
    random = np.random.default_rng(5)
    groups = [str(number) for number in range(120) for _ in range(5)]
    held = naive = 0
    for _ in range(500):
        chances = random.beta(2.0, 0.5, size=120)  # mean 0.8
        right = (random.random((120, 5)) < chances[:, None]).ravel().tolist()
        share = share_of(right, groups)
        held += share.low <= 0.8 <= share.high
        low, high = wilson(sum(right), len(right))
        naive += low <= 0.8 <= high
    assert held / 500 >= 0.92
    assert naive / 500 <= 0.88


# ------------------------------------------------------------------ macro-F1
def test_macro_f1_is_the_mean_over_the_classes_that_occur() -> None:
    # crack: 2*1/(2+1) = 2/3; mould: 2*1/(2+2) = 1/2; no other class occurs.
    assert macro_f1(TASK, SMALL, "damageType").value == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert macro_f1(TASK, [], "damageType").n == 0
    perfect = macro_f1(TASK, [judged(name, name) for name in CLASSES], "damageType")
    assert (perfect.value, perfect.low, perfect.high) == (1.0, 1.0, 1.0)


@given(st.lists(st.tuples(st.sampled_from(CLASSES), st.sampled_from(CLASSES)), min_size=1, max_size=30))
def test_macro_f1_is_scikit_learns(rows: list[tuple[str, str]]) -> None:
    truth = [one for one, _ in rows]
    expected = f1_score(
        truth, [said for _, said in rows], labels=sorted(set(truth)), average="macro", zero_division=0
    )
    assert macro_f1(TASK, [judged(*row) for row in rows], "damageType").value == pytest.approx(expected)


def test_the_interval_of_macro_f1_is_seeded_and_widens_with_groups() -> None:
    random = np.random.default_rng(3)
    rows = [
        (CLASSES[n % 8], CLASSES[n % 8] if random.random() < 0.8 else CLASSES[(n + 1) % 8])
        for n in range(160)
    ]
    alone = macro_f1(TASK, [judged(*row) for row in rows], "damageType")
    assert alone == macro_f1(TASK, [judged(*row) for row in rows], "damageType")
    assert alone.low < alone.value < alone.high
    copied = [judged(*row, group=str(n)) for n, row in enumerate(rows) for _ in range(4)]
    together = macro_f1(TASK, copied, "damageType")
    lone = macro_f1(TASK, [judged(*row) for row in rows for _ in range(4)], "damageType")
    assert together.value == pytest.approx(alone.value)
    assert (together.high - together.low) > 1.7 * (lone.high - lone.low)


# ------------------------------------------------------------------ people
def test_what_people_last_said_and_nobodys_name() -> None:
    labels = [
        {"labeller": "ann", "labels": {"damageType": "crack", "severity": "minor", "notes": "x"}},
        {"labeller": "bob", "labels": {"damageType": "mould"}},
        {"labeller": "ann", "labels": {"damageType": "mould", "severity": "minor"}},
        {"damageType": "crack", "severity": "severe"},
        "odd",
        {"labeller": "cid", "labels": {}},
    ]
    assert people_in(labels, TASK.scored_fields) == [
        {"damageType": "mould", "severity": "minor"},
        {"damageType": "mould"},
        {"damageType": "crack", "severity": "severe"},
    ]
    assert people_in(None, TASK.scored_fields) == []


def test_agreement_counts_pairs_of_people_once_a_row() -> None:
    crack, mould = {"damageType": "crack", "severity": "minor"}, {"damageType": "mould", "severity": "minor"}
    rows = [
        Doubled([crack, crack], "a", crack),
        Doubled([crack, mould, mould], "b", mould),  # one pair of three agrees
        Doubled([crack, {"damageType": "crack"}], "c", None),
    ]
    found = agreement(TASK, rows)
    assert found["damageType"].value == pytest.approx((1 + 1 / 3 + 1) / 3)
    assert (found["severity"].n, found["severity"].value) == (2, 1.0)
    assert (found["overall"].n, found["overall"].value) == (2, pytest.approx(2 / 3))
    model = agreement_with(TASK, rows)
    assert model["damageType"].value == pytest.approx((1 + 2 / 3 + 0) / 3)
    assert agreement(TASK, []) == {}


# ------------------------------------------------------------------ gates
def gate(**values: Any) -> EvaluationGate:
    return EvaluationGate.model_validate({"min": 0.6, **values})


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (gate(field="damage"), "'damage' of a accuracy gate is none of damageType, severity, overall"),
        (gate(metric="macroF1", field="overall"), "is none of damageType, severity"),
        (gate(metric="recall", **{"class": "flood"}), "'flood' of a recall gate is no damageType"),
        (gate(metric="recall", field="severity", **{"class": "crack"}), "minor, moderate, severe"),
    ],
)
def test_gates_about_nothing_are_named_before_training(wanted: EvaluationGate, said: str) -> None:
    (mistake,) = gate_mistakes(TASK, [wanted, gate(), gate(metric="macroF1"), gate(metric="jsonValidity")])
    assert said in mistake


def test_gates_that_are_missed_say_by_how_much() -> None:
    wanted = [
        gate(metric="accuracy", field="severity"),
        gate(),
        gate(metric="macroF1"),
        gate(metric="recall", **{"class": "crack"}),
        gate(metric="recall", **{"class": "asbestos"}),
        gate(metric="jsonValidity", min=0.76),
    ]
    missed = missed_gates(TASK, wanted, SMALL)
    assert [one.split(" is ")[0] for one in missed] == [
        "accuracy of overall",
        "macroF1 of damageType",
        "recall of crack",
        "recall of asbestos",
        "jsonValidity",
    ]
    assert missed[0] == "accuracy of overall is 0.500 (0.150 to 0.850, 4 rows), wanted 0.6"
    assert "no test row" in missed[3]


# ------------------------------------------------------------------ thresholds
def sure_answers(random: np.random.Generator, rows: int) -> list[Judged]:
    """Right with a chance that rises with the confidence: 0.75 at 0.5, 1 at 1."""
    found = []
    for sure in random.beta(4.0, 1.0, size=rows):
        right = random.random() < 0.5 + 0.5 * sure
        found.append(judged("crack", "crack" if right else "mould", sure=float(sure)))
    return found


def test_a_threshold_is_named_that_keeps_the_floor_and_never_a_lower_one() -> None:
    """A true 0.9 among all answers; a floor of 0.93 is met from 0.75 up. 400 validation parts of 400 rows."""
    random = np.random.default_rng(11)
    truth = sure_answers(random, 40_000)
    kept = {
        point.threshold: point.accuracy.value
        for point in confidence_curve(TASK, truth, "damageType", None).points
    }
    named = broken = 0
    for _ in range(400):
        found = confidence_curve(TASK, sure_answers(random, 400), "damageType", 0.93)
        if found.threshold is not None:
            named += 1
            broken += kept[found.threshold] < 0.93
    assert named / 400 > 0.3
    assert broken / 400 <= 0.05 + 2 * (0.05 * 0.95 / 400) ** 0.5


def test_the_curve_of_answers_that_know_when_they_are_wrong() -> None:
    rows = [judged("crack", "crack", sure=0.96)] * 90 + [judged("crack", "mould", sure=0.35)] * 10
    rows += [judged("crack", None)] * 5  # No valid answer: the gateway falls back whatever the threshold.
    found = confidence_curve(TASK, rows, "damageType", 0.95)
    assert (found.rows, found.auroc) == (100, 1.0)
    assert found.threshold == 0.4
    assert found.chosen is not None
    assert (found.chosen.kept_share, found.chosen.accuracy.value) == (0.9, 1.0)
    assert found.points[-1].threshold == 0.0
    assert found.points[-1].accuracy.value == 0.9
    summary = found.summary().to_wire()
    assert summary == {"rows": 100, "auroc": 1.0, "floor": 0.95, "threshold": 0.4, "keptShare": 0.9}
    assert point_at(TASK, rows, "damageType", 0.97).accuracy.n == 0


def test_answers_without_confidence_are_never_kept() -> None:
    rows = [judged("crack", "crack") for _ in range(50)]
    found = confidence_curve(TASK, rows, "damageType", 0.5)
    assert (found.threshold, found.auroc, found.points[-1].kept_share) == (None, None, 0.0)


def test_many_photos_of_a_building_prove_no_more_than_the_building() -> None:
    right = [judged("crack", "crack", f"{n}", 0.99) for n in range(20) for _ in range(10)]
    assert confidence_curve(TASK, right, "damageType", 0.9).threshold is None
    alone = [judged("crack", "crack", f"{n}", 0.99) for n in range(200)]
    assert confidence_curve(TASK, alone, "damageType", 0.9).threshold is not None


def test_the_floor_is_the_accuracy_gates() -> None:
    assert floor_of(TASK, []) == ("damageType", None)
    assert floor_of(TASK, [gate(metric="macroF1"), gate(min=0.8)]) == ("overall", 0.8)
    assert floor_of(TASK, [gate(min=0.8), gate(field="damageType", min=0.9)]) == ("damageType", 0.9)
