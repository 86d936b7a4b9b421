"""Verdicts: what counts for and against, what no evidence means, and how the risk is divided."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cutover.api.modelrollout import ModelRolloutSpec, ModelRolloutStatus, StepRecord
from cutover.task import Task
from cutover_operator.evidence.ledger import MARKS_KEPT, Ledger
from cutover_operator.evidence.samples import Unavailable
from cutover_operator.rollout.gates import (
    advance_names,
    gate_name,
    ladder,
    mistakes,
    named_gates,
    passed_steps,
    steps_hash,
)
from cutover_operator.rollout.verdict import Bench, Verdict, judge
from fakes.rollout_town import TASK, rollout_spec

COUNT = st.integers(0, 3000)


def spec_of(**changes: Any) -> ModelRolloutSpec:
    return ModelRolloutSpec.model_validate(rollout_spec(**changes))


SPEC = spec_of()


def ledger_of(**totals: float) -> Ledger:
    """Totals by key with `__` for `/`; the first epoch began at zero."""
    ledger = Ledger(uid="u", version="v1", started_at=0.0).with_mark(0.0, 0)
    return Ledger(
        uid="u",
        version="v1",
        started_at=0.0,
        marks=ledger.marks,
        totals={key.replace("__", "/"): value for key, value in totals.items()},
    )


def verdict(
    metric: str, ledger: Ledger, spec: ModelRolloutSpec = SPEC, step: int = 3, **more: Any
) -> Verdict:
    gate = next(g for g in named_gates(spec) if g.metric == metric)
    return judge(Bench(spec, step, ledger, 3600.0, **more), gate)


def errors(bad: float, good: float, control_bad: float = 0, control_good: float = 0) -> Ledger:
    return ledger_of(
        requests__candidate__error=bad,
        requests__candidate__ok=good,
        requests__control__error=control_bad,
        requests__control__ok=control_good,
    )


def labels(right: float, wrong: float, missing: float = 0) -> Ledger:
    return ledger_of(
        labels__candidate__overall__right=right,
        labels__candidate__overall__wrong=wrong,
        labels__candidate__overall__missing=missing,
    )


def test_no_data_is_never_a_pass() -> None:
    for metric in ("accuracy", "latency", "errorRate", "cost"):
        found = verdict(metric, ledger_of())
        assert (found.verdict, found.samples) == ("insufficient", 0)
        assert "no " in found.message


def test_errors_of_ok_error_and_deferred_but_not_of_rejected() -> None:
    ledger = ledger_of(
        requests__candidate__ok=300, requests__candidate__deferred=100, requests__candidate__rejected=9000
    )
    found = verdict("errorRate", ledger)
    assert (found.verdict, found.samples) == ("pass", 400)
    bad = verdict("errorRate", errors(30, 100))
    assert (bad.verdict, bad.reason, bad.shared) == ("fail", "ErrorRateAboveLimit", False)


def test_missing_labels_count_against_whatever_is_being_proven() -> None:
    assert verdict("accuracy", labels(700, 30)).verdict == "pass"
    assert verdict("accuracy", labels(700, 30, 60)).verdict == "insufficient"
    assert verdict("accuracy", labels(100, 45)).verdict == "fail"
    assert verdict("accuracy", labels(100, 45, 400)).verdict == "insufficient"


def test_messages_say_what_is_missing_and_when() -> None:
    found = verdict("accuracy", labels(190, 10))
    assert "more labels like these needed" in found.message
    assert "at this pace" in found.message
    assert "0.95 (n=200)" in found.message


@pytest.mark.parametrize("doubles", [(0, 0), (960, 40)], ids=["reviewers unknown", "reviewers err in 2 %"])
@pytest.mark.parametrize(
    ("right", "wrong", "step"), [(35, 0, 0), (140, 8, 0), (93, 7, 0), (465, 45, 0), (20, 0, 1), (37, 3, 1)]
)
def test_a_gate_passes_with_as_many_more_labels_as_its_message_says(
    right: int, wrong: int, step: int, doubles: tuple[int, int]
) -> None:
    """At the shadow step, and without one at a live step that certifies less."""
    spec = SPEC if step == 0 else spec_of(steps=rollout_spec()["steps"][1:])
    n = right + wrong

    def after(more: float) -> Verdict:
        scale = 1 + more / n
        counts = labels(right * scale, wrong * scale).totals
        said = {
            f"doubles/overall/{what}": float(x)
            for what, x in zip(("same", "different"), doubles, strict=True)
        }
        return verdict("accuracy", replace(ledger_of(), totals={**counts, **said}), spec, step)

    message = after(0).message
    found = re.search(r"about (\d+) more labels like these needed", message)
    assert found is not None, message
    more = int(found[1])
    assert after(more).verdict == "pass"
    assert after(0.8 * more - 1).verdict == "insufficient"


def test_labels_that_cannot_be_read_are_unavailable_but_a_proven_breach_stays_one() -> None:
    gone = Unavailable("Stale", "the assessments service does not export labels")
    assert verdict("accuracy", labels(700, 30), labels=gone).verdict == "unavailable"
    assert verdict("accuracy", labels(100, 60), labels=gone).verdict == "fail"


def test_a_breach_the_control_shares_is_marked() -> None:
    assert verdict("errorRate", errors(40, 60, 400, 600)).shared
    assert not verdict("errorRate", errors(40, 60, 10, 990)).shared
    worse = verdict("errorRate", errors(90, 10, 120, 880))
    assert (worse.verdict, worse.shared) == ("fail", False), "far worse than a control that is bad too"


def test_a_long_rollout_does_not_forget_where_the_arms_shares_changed() -> None:
    """Both arms err alike, more in the hours in which the candidate has half of the traffic than before."""
    spec = spec_of(
        gates=[{"metric": "errorRate", "limit": 0.2, "margin": 0.5}],
        steps=[{"weight": weight} for weight in (10, 50, 100)],
    )
    evidence = errors(50, 9_950, 450, 89_550).with_mark(1.0, 1)
    evidence = replace(evidence, totals=errors(450, 19_550, 850, 99_150).totals).with_mark(2.0, 2)
    for hour in range(3, 3 + MARKS_KEPT + 20):
        assert verdict("errorRate", evidence, spec, 2).verdict != "fail"
        evidence = evidence.with_mark(float(hour))
    assert len(evidence.marks) == MARKS_KEPT


def test_cost_needs_a_hundred_answers_and_a_mean_below_the_limit() -> None:
    def ledger(n: float, mean: float) -> Ledger:
        return ledger_of(requests__candidate__ok=n, cost__candidate=n * mean)

    assert verdict("cost", ledger(99, 0.004)).verdict == "insufficient"
    assert verdict("cost", ledger(100, 0.004)).verdict == "pass"
    assert verdict("cost", ledger(1000, 0.02)).verdict == "insufficient"


def test_answers_whose_price_was_never_seen_are_not_free() -> None:
    unpriced = verdict("cost", ledger_of(requests__candidate__ok=500.0))
    assert (unpriced.verdict, unpriced.value) == ("insufficient", None)
    assert "no price seen yet" in unpriced.message
    assert "price table" in unpriced.message
    assert verdict("cost", ledger_of(requests__candidate__ok=500.0, cost__candidate=0.0)).verdict == "pass"


def test_accuracy_against_the_control_within_a_margin() -> None:
    """Without a request that both models answered: one interval per arm."""
    spec = spec_of(
        gates=[{"metric": "accuracy", "margin": 0.02}],
        steps=rollout_spec()["steps"][1:],
        analysis={"labels": {"pool": "served"}},
    )

    def both(right: float, wrong: float, c_right: float, c_wrong: float) -> Verdict:
        ledger = ledger_of(
            labels__candidate__overall__right=right,
            labels__candidate__overall__wrong=wrong,
            labels__control__overall__right=c_right,
            labels__control__overall__wrong=c_wrong,
        )
        return verdict("accuracy", ledger, spec)

    assert both(9600, 400, 9200, 800).verdict == "pass"
    assert both(92, 8, 92, 8).verdict == "insufficient"
    assert both(800, 200, 960, 40).reason == "AccuracyBelowControl"


def test_satisfaction_is_compared_between_the_arms() -> None:
    spec = spec_of(gates=[{"metric": "satisfaction", "margin": 0.5}])

    def votes(down: float, up: float, c_down: float, c_up: float) -> Verdict:
        ledger = ledger_of(
            satisfaction__candidate__down=down,
            satisfaction__candidate__up=up,
            satisfaction__control__down=c_down,
            satisfaction__control__up=c_up,
        )
        return verdict("satisfaction", ledger, spec)

    assert votes(10, 190, 10, 190).verdict == "pass"
    assert votes(80, 120, 100, 1900).verdict == "fail"
    assert votes(2, 20, 10, 190).verdict == "insufficient"


def test_a_custom_share_of_counters_of_ones_own() -> None:
    gate = {
        "metric": "custom",
        "name": "appeals",
        "bad": "appeals_total",
        "total": "claims_total",
        "limit": 0.1,
    }
    spec = spec_of(gates=[gate])
    ledger = ledger_of(custom__appeals__bad=5, custom__appeals__total=500)
    assert verdict("custom", ledger, spec).verdict == "pass"
    ledger = ledger_of(custom__appeals__bad=200, custom__appeals__total=500)
    assert verdict("custom", ledger, spec).reason == "CustomShareAboveLimit"


@settings(max_examples=150, deadline=None)
@given(COUNT, COUNT, COUNT, st.integers(0, 1000))
def test_good_labels_never_take_a_pass_away(right: int, wrong: int, missing: int, more: int) -> None:
    before = verdict("accuracy", labels(right, wrong, missing))
    after = verdict("accuracy", labels(right + more, wrong, missing))
    if before.verdict == "pass":
        assert after.verdict == "pass"
    if before.verdict != "fail":
        assert after.verdict != "fail"


@settings(max_examples=150, deadline=None)
@given(COUNT, COUNT, st.integers(0, 1000))
def test_good_answers_never_take_a_pass_away(bad: int, good: int, more: int) -> None:
    before, after = verdict("errorRate", errors(bad, good)), verdict("errorRate", errors(bad, good + more))
    if before.verdict == "pass":
        assert after.verdict == "pass"
    if before.verdict != "fail":
        assert after.verdict != "fail"


@settings(max_examples=100, deadline=None)
@given(COUNT, COUNT, st.integers(0, 4))
def test_numbers_in_status_are_always_json(bad: int, good: int, step: int) -> None:
    status = verdict("errorRate", errors(bad, good), step=step).to_status()
    assert all(v is None or math.isfinite(v) for v in (status.value, status.log_e_pass, status.log_e_fail))


# ---------------------------------------------------------------- the gates' plan
def test_rollback_risks_add_up_to_the_declared_risk() -> None:
    for gates in (
        [{"metric": "errorRate", "limit": 0.05}],
        [{"metric": "accuracy", "limit": 0.9, "field": f} for f in ("damageType", "severity")],
        rollout_spec()["gates"],
        [{"metric": "errorRate", "limit": 0.05, "role": "advance"}, {"metric": "latency", "limit": 2.0}],
    ):
        spec = spec_of(gates=gates)
        assert sum(g.rollback_alpha for g in named_gates(spec)) == pytest.approx(spec.analysis.risk)


def test_early_steps_may_certify_less_and_the_step_before_all_traffic_the_limit_itself() -> None:
    spec = spec_of(steps=rollout_spec()["steps"][1:])
    assert [ladder(spec, i, "accuracy") for i in range(4)] == [2.0, 1.5, 1.0, 1.0]
    assert [ladder(spec, i, "errorRate") for i in range(4)] == [2.0, 1.4, 1.0, 1.0]
    assert ladder(SPEC, 0, "accuracy") == 1.0
    found = verdict("accuracy", labels(93, 7), spec, step=0)
    assert found.verdict == "pass"
    assert verdict("accuracy", labels(93, 7), spec, step=2).verdict == "insufficient"


def test_who_decides_at_which_step() -> None:
    assert advance_names(SPEC, 0, ()) == {"accuracy"}
    assert advance_names(SPEC, 1, {0}) == {"latency", "errorrate", "cost"}
    assert advance_names(SPEC, 1, ()) == {"accuracy", "latency", "errorrate", "cost"}
    bare = spec_of(steps=rollout_spec()["steps"][1:])
    assert advance_names(bare, 0, ()) == {"accuracy", "latency", "errorrate", "cost"}
    assert advance_names(bare, 1, {0}) == {"accuracy", "latency", "errorrate", "cost"}
    own = spec_of(steps=[{"weight": 10, "gates": ["cost"]}, {"weight": 100}])
    assert advance_names(own, 0, ()) == {"cost"}
    unasked = spec_of(steps=[{"shadow": 100, "gates": []}, {"weight": 100}])
    assert "accuracy" in advance_names(unasked, 1, {0}), "that shadow step proves nothing about accuracy"


def status_of(*records: tuple[int, str], spec: ModelRolloutSpec = SPEC) -> ModelRolloutStatus:
    """Steps that were entered, and how they were left."""
    steps = [
        StepRecord(index=index, name="s", entered_at="2030-01-01T00:00:00Z", outcome=outcome)
        for index, outcome in records
    ]
    return ModelRolloutStatus(steps=steps, steps_hash=steps_hash(spec))


def test_only_a_step_that_was_left_by_passing_proves_anything() -> None:
    def passed(*records: tuple[int, str]) -> frozenset[int]:
        return passed_steps(SPEC, status_of(*records))

    assert passed((0, "passed"), (1, "")) == {0}
    for outcome in ("Skipped", "Promoted", "StepsChanged", "CandidateChanged", "Retried", "Aborted", ""):
        assert passed((0, outcome), (1, "")) == set()
    assert passed((0, "passed"), (1, "StepsChanged"), (0, "Skipped"), (1, "")) == set()
    assert passed((0, "Skipped"), (1, "StepsChanged"), (0, "passed"), (1, "")) == {0}
    assert passed((0, "passed"), (1, "passed"), (2, "Retried"), (0, "passed"), (4, "")) == {0}, (
        "a walk begins with the first step"
    )
    assert passed_steps(SPEC, status_of((0, "passed"), (1, "Skipped"), (2, "")), before=1) == {0}


def test_what_passed_under_other_steps_or_gates_proves_nothing_about_these() -> None:
    before = status_of((0, "passed"), (1, ""), spec=spec_of(gates=[{"metric": "errorRate", "limit": 0.05}]))
    assert passed_steps(SPEC, before) == set()


def test_gates_have_names_of_their_own() -> None:
    spec = spec_of(
        gates=[
            {"metric": "accuracy", "field": "damageType", "limit": 0.9},
            {"metric": "accuracy", "field": "damageType", "limit": 0.8},
            {"metric": "errorRate", "limit": 0.1, "name": "errs"},
        ]
    )
    assert [g.name for g in named_gates(spec)] == ["accuracy-damagetype", "accuracy-damagetype-2", "errs"]
    assert gate_name(spec.gates[2]) == "errs"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"gates": [{"metric": "latency", "limit": 2.5}]}, "LimitNotAnEdge"),
        ({"gates": [{"metric": "errorRate"}]}, "LimitMissing"),
        ({"gates": [{"metric": "errorRate", "limit": 1.0}]}, "LimitOutOfRange"),
        ({"gates": [{"metric": "accuracy", "limit": 90}]}, "LimitOutOfRange"),
        ({"gates": [{"metric": "accuracy", "limit": 0.9, "field": "colour"}]}, "FieldNotInTask"),
        ({"gates": [{"metric": "cost", "limit": 0}]}, "LimitOutOfRange"),
        ({"gates": [{"metric": "custom", "limit": 0.1}]}, "LimitMissing"),
        ({"steps": [{"minDuration": "1m"}]}, "StepUnclear"),
        ({"steps": [{"weight": 5, "gates": ["speed"]}]}, "GateNotFound"),
    ],
)
def test_gates_that_can_never_work_are_named(changes: dict[str, Any], reason: str) -> None:
    found = mistakes(spec_of(**changes), Task.model_validate(TASK))
    assert found is not None
    assert found[0] == reason
    assert mistakes(SPEC, Task.model_validate(TASK)) is None


def test_the_hash_sees_steps_and_gates_only() -> None:
    assert steps_hash(SPEC) == steps_hash(spec_of(freeze=True))
    assert steps_hash(SPEC) != steps_hash(spec_of(gates=[{"metric": "errorRate", "limit": 0.04}]))
