"""A forecast is what the judge says when the evidence has grown at its present pace: never a formula beside it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cutover.api.modelrollout import ModelRolloutSpec
from cutover_operator.evidence.ledger import Ledger, Mark
from cutover_operator.rollout.forecast import forecast, pace, requests_missing
from cutover_operator.rollout.gates import NamedGate, named_gates
from cutover_operator.rollout.verdict import Bench, judge
from fakes.rollout_town import rollout_spec

START = 1_900_000_000.0


def spec(**changes: Any) -> ModelRolloutSpec:
    return ModelRolloutSpec.model_validate(rollout_spec(**changes))


def gate(of: ModelRolloutSpec, name: str) -> NamedGate:
    return next(g for g in named_gates(of) if g.name == name)


def steady(hours: float, step: int = 0, **per_hour: float) -> Ledger:
    """A ledger in which everything has grown evenly since the step began, which was when the rollout began."""
    totals = {key.replace("__", "/"): rate * hours for key, rate in per_hour.items()}
    return Ledger(
        uid="u",
        version="v",
        started_at=START,
        written_at=START + 3600 * hours,
        totals=totals,
        marks=(Mark(1, START, step, {}),),
    )


def labels(right: float, wrong: float) -> dict[str, float]:
    return {"labels__candidate__overall__right": right, "labels__candidate__overall__wrong": wrong}


@settings(max_examples=25, deadline=None)
@given(st.floats(0.70, 0.99), st.floats(2, 200), st.floats(0.5, 8))
def test_the_judge_says_at_that_time_what_was_foretold(right: float, rate: float, hours: float) -> None:
    rollout, per_hour = spec(), labels(right * rate, (1 - right) * rate)
    accuracy = gate(rollout, "accuracy")
    told = forecast(rollout, 0, steady(hours, **per_hour), accuracy, 0)
    if told.seconds is None or told.verdict is None:
        assert told.now.verdict == "insufficient"
        return

    def verdict_at(seconds: float) -> str:
        # A drift test's epochs are marks: here there is one, so an evenly grown ledger is what the future brings.
        later = steady(hours + seconds / 3600, **per_hour)
        return judge(Bench(rollout, 0, later, later.written_at), accuracy).verdict

    assert verdict_at(told.seconds) == told.verdict
    if told.seconds > 60:
        assert verdict_at(0.97 * told.seconds) == "insufficient"
        assert told.more == pytest.approx(rate * told.seconds / 3600)


def test_a_good_and_a_bad_model_are_told_apart() -> None:
    rollout = spec()
    good = forecast(rollout, 0, steady(1, **labels(57, 3)), gate(rollout, "accuracy"), 0)
    bad = forecast(rollout, 0, steady(1, **labels(51, 9)), gate(rollout, "accuracy"), 0)
    assert (good.verdict, bad.verdict) == ("pass", "fail")
    # About 180 labels in all prove 0.95 against 0.90; 60 are there, 60 more come every hour.
    assert good.seconds is not None
    assert 1.5 * 3600 < good.seconds < 3.5 * 3600


def test_exactly_at_the_limit_nothing_is_foretold() -> None:
    rollout = spec()
    told = forecast(rollout, 0, steady(1, **labels(54, 6)), gate(rollout, "accuracy"), 0)
    assert (told.verdict, told.seconds) == (None, None)
    assert told.per_hour == pytest.approx(60)


def test_without_labels_the_plan_is_foretold_and_called_an_assumption() -> None:
    rollout = spec(analysis={"labels": {"perHour": 60, "deadline": "2h"}})
    told = forecast(rollout, 0, steady(0.5), gate(rollout, "accuracy"), 0)
    assert told.first_seconds == pytest.approx(1.5 * 3600)
    assert told.verdict == "pass"
    assert told.seconds is not None
    assert told.seconds > told.first_seconds
    assert told.more is not None
    assert 150 < told.more < 260
    assert "if 95 % are right and 60 an hour" in told.assumed


@pytest.mark.parametrize("name", ["latency", "errorrate", "cost"])
def test_a_live_gate_without_answers_is_forecast_from_the_share_of_the_traffic(name: str) -> None:
    rollout = spec()
    told = forecast(rollout, 1, steady(1, step=1, requests__control__ok=3600.0), gate(rollout, name), 10)
    assert told.verdict == "pass"
    assert told.per_hour == pytest.approx(360)
    assert "half of what the limit allows" in told.assumed


def test_nothing_coming_in_is_no_forecast() -> None:
    rollout = spec()
    told = forecast(rollout, 1, steady(1, step=1), gate(rollout, "errorrate"), 10)
    assert (told.verdict, told.seconds, told.per_hour) == (None, None, 0.0)


def test_the_pace_of_answers_is_this_steps_and_that_of_labels_is_steady() -> None:
    then = {"requests/candidate/ok": 1000.0, "labels/candidate/overall/right": 300.0}
    now = {"requests/candidate/ok": 1400.0, "labels/candidate/overall/right": 301.0}
    ledger = replace(
        steady(10),
        totals=now,
        marks=(Mark(1, START, 0, {}), Mark(2, START + 10 * 3600 - 100, 1, then)),
    )
    rates = pace(ledger, 1)
    assert rates["requests/candidate/ok"] == pytest.approx(4.0)
    assert rates["labels/candidate/overall/right"] == pytest.approx(301 / 36000)


def test_missing_requests_are_this_steps() -> None:
    rollout = spec()
    shadow = steady(0.01, shadow__agree=1000.0, shadow__error=100.0)
    assert requests_missing(rollout, 0, shadow)[0] == pytest.approx(50 - 11)
    live = steady(0.1, step=1, requests__candidate__ok=100.0)
    more, per_second = requests_missing(rollout, 1, live)
    assert (more, per_second) == (pytest.approx(40), pytest.approx(100 / 3600))


def hourly(hours: int, **per_hour: float) -> Ledger:
    """A ledger that grew evenly, with its closed hours."""
    first = int(START // 3600)
    row = {key.replace("__", "/"): n for key, n in per_hour.items()}
    begin = first * 3600.0
    return Ledger(
        uid="u",
        version="v",
        started_at=begin,
        written_at=begin + 3600.0 * hours + 600,
        totals={key: n * hours for key, n in row.items()},
        marks=(Mark(1, begin, 0, {}),),
        hours={first + n: row for n in range(hours)},
        labels_until=begin + 3600.0 * hours + 600,
    )


def test_a_gate_that_is_judged_by_the_hour_is_forecast_by_the_hour() -> None:
    rollout = spec(gates=[{"metric": "accuracy", "margin": 0.05}])
    accuracy = gate(rollout, "accuracy")
    pairs = {
        "pairs__overall__both": 50.0,
        "pairs__overall__candidate": 4.0,
        "pairs__overall__control": 3.0,
        "pairs__overall__neither": 3.0,
        **labels(54, 6),
    }
    few, later = hourly(2, **pairs), hourly(60, **pairs)
    told = forecast(rollout, 0, few, accuracy, 0)
    assert (told.now.verdict, told.verdict) == ("insufficient", "pass")
    assert told.seconds is not None
    assert 3600 <= told.seconds < 60 * 3600
    assert judge(Bench(rollout, 0, later, later.written_at), accuracy).verdict == "pass"
    none = forecast(rollout, 0, replace(few, hours={}), accuracy, 0)
    assert none.verdict is None
    assert "none is closed yet" in none.why
