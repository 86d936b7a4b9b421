"""What labels and answers add up to: the pure rules."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutover.contract import LABEL_RESULTS
from cutover_server.assessments.accuracy import wilson
from cutover_server.assessments.maturity import (
    Label,
    Request,
    check_labels,
    judged_answers,
    prevailing,
    results,
)
from cutover_server.assessments.traffic import latency_edge, latency_quantile
from fakes.assessments_service import TASK, answer

LABELS = st.builds(
    Label,
    labeller=st.sampled_from("abc"),
    values=st.dictionaries(
        st.sampled_from(["damageType", "severity"]), st.sampled_from(["crack", "low", "leak"]), min_size=1
    ),
    labelled_at=st.integers(0, 20).map(float),
)
ANSWERS = st.one_of(
    st.none(),
    st.builds(answer, st.sampled_from(["crack", "leak"]), st.sampled_from(["low", "high"])),
    st.just({"version": "gpt-4", "text": "no idea"}),
)
REQUESTS = st.builds(
    Request,
    chosen=st.sampled_from(["control", "candidate"]),
    outcome=st.sampled_from(["ok", "error", "deferred", "rejected"]),
    control=ANSWERS,
    candidate=ANSWERS,
    shadow=ANSWERS,
)


def label(labeller: str, at: float, **values: str) -> Label:
    return Label(labeller, values, at)


def test_majority_prevails_and_the_latest_breaks_a_tie() -> None:
    one = label("a", 1, damageType="crack")
    two = label("b", 2, damageType="leak")
    three = label("c", 3, damageType="crack")
    assert prevailing([one, two]) == {"damageType": "leak"}
    assert prevailing([one, two, three]) == {"damageType": "crack"}
    assert prevailing([one, two, three], by=2) == {"damageType": "leak"}
    assert prevailing([one, two, label("a", 4, damageType="leak")], by=3) == {"damageType": "leak"}
    assert prevailing([one, label("a", 4, damageType="none")]) == {"damageType": "none"}
    assert prevailing([]) == {}


def arms(request: Request) -> list[tuple[str, str, bool]]:
    return [(j.arm, j.version, j.answer is not None) for j in judged_answers(request)]


NOT_REACHED = {"version": "mine", "error": "breaker: not asked, its breaker is open"}


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (Request("control", "ok", answer(), None), [("control", "gpt-4", True)]),
        (
            Request("control", "ok", answer(), None, answer(version="mine")),
            [("control", "gpt-4", True), ("candidate", "mine", True)],
        ),
        (Request("candidate", "ok", answer(), answer(version="mine")), [("candidate", "mine", True)]),
        (Request("candidate", "error", None, {"version": "mine"}), [("candidate", "mine", False)]),
        (Request("candidate", "error", None, NOT_REACHED), []),
        (
            Request("control", "error", NOT_REACHED, None, answer(version="mine")),
            [("candidate", "mine", True)],
        ),
        (Request("candidate", "error", None, None), []),
        (Request("candidate", "deferred", None, answer(version="mine")), []),
        (Request("control", "rejected", answer(), None), []),
    ],
)
def test_which_answers_count_for_their_arm(request_: Request, expected: list[Any]) -> None:
    assert arms(request_) == expected


def test_asked_arm_without_valid_answer_is_wrong_where_there_is_a_label() -> None:
    request = Request("control", "error", {"version": "gpt-4", "error": "timeout"}, None)
    found = {r.field: r.result for r in results(TASK, request, {"damageType": "crack"})}
    assert found == {"damageType": "wrong", "severity": "missing", "overall": "missing"}


@given(REQUESTS, st.lists(LABELS, max_size=6), st.integers(0, 20))
def test_every_judged_answer_gives_one_result_per_field(
    request: Request, labels: list[Label], by: int
) -> None:
    found = results(TASK, request, prevailing(labels, by=by))
    keys = [(r.arm, r.field) for r in found]
    assert len(keys) == len(set(keys)) == 3 * len(judged_answers(request))
    assert {r.result for r in found} <= set(LABEL_RESULTS)


@given(REQUESTS, REQUESTS, st.lists(LABELS, max_size=6))
def test_answer_never_decides_whether_it_is_counted(
    one: Request, other: Request, labels: list[Label]
) -> None:
    """Which fields are missing depends on the labels alone; anything else would favour an arm."""
    truth = prevailing(labels)

    def missing(request: Request) -> set[str] | None:
        found = results(TASK, request, truth)
        return {r.field for r in found if r.result == "missing"} if found else None

    if missing(one) is not None and missing(other) is not None:
        assert missing(one) == missing(other)


@given(st.lists(LABELS, max_size=6), st.integers(0, 20))
def test_label_after_the_moment_changes_nothing(labels: list[Label], by: int) -> None:
    in_time = [entry for entry in labels if entry.labelled_at <= by]
    assert prevailing(labels, by=by) == prevailing(in_time)


def test_label_problems_name_field_value_and_remedy() -> None:
    assert check_labels(TASK, {"damageType": "leak", "severity": "low"}) == []
    (problem,) = check_labels(TASK, {"severity": ["low"]})
    assert (problem["field"], problem["value"], problem["allowed"]) == ("severity", ["low"], ["low", "high"])


def test_wilson_interval() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(90, 100) == pytest.approx((0.8256, 0.9448), abs=1e-4)
    assert wilson(10, 10)[1] == pytest.approx(1.0)


def test_latency_edges() -> None:
    assert [latency_edge(x) for x in (None, 0.05, 0.06, 60.0, 61.0)] == ["none", "0.05", "0.1", "60", "+Inf"]
    assert latency_quantile({"0.1": 95, "2": 5, "none": 9}, 0.95) == "0.1"
    assert latency_quantile({"0.1": 94, "2": 6}, 0.95) == "2"
    assert latency_quantile({}, 0.5) == ""
