"""Bets on the ledger's closed hours: the same as made one by one, careful about what is missing, right about the error."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cutover.api.modelrollout import ModelRolloutSpec
from cutover_operator.evidence.ledger import HOUR_SECONDS, Ledger, Mark
from cutover_operator.evidence.samples import Unavailable
from cutover_operator.rollout import pairs, strata
from cutover_operator.rollout.accuracy import floors
from cutover_operator.rollout.betting import Purse
from cutover_operator.rollout.cohorts import (
    FIRST_GUESS,
    STRATA,
    cohorts_of,
    pairs_wealth,
    strata_seen,
    strata_wealth,
)
from cutover_operator.rollout.gates import named_gates
from cutover_operator.rollout.verdict import Bench, Verdict, judge
from fakes.rollout_town import STEPS, rollout_spec

Row = dict[str, float]


def ledger_of(rows: list[Row], marks: tuple[tuple[int, float], ...] = ((1, 0.0),), **totals: float) -> Ledger:
    return Ledger(
        uid="u",
        version="v1",
        started_at=0.0,
        hours=dict(enumerate(rows)),
        labels_until=1e12,
        marks=tuple(Mark(k, at, 0, {}) for k, at in marks),
        totals={key.replace("__", "/"): value for key, value in totals.items()},
    )


def hour(rng: np.random.Generator, accuracy: float, labels: float = 60.0) -> Row:
    """An hour of labels drawn four times as often where the models differ (15 % of the requests)."""
    easy = min(0.99, accuracy + 0.05)
    row: Row = {}
    for stratum, share, right, chance in (
        ("agree", 0.85, easy, 0.25),
        ("disagree", 0.15, (accuracy - 0.85 * easy) / 0.15, 1.0),
    ):
        pool = int(rng.poisson(labels / (0.85 * 0.25 + 0.15) * share))
        drawn = int(rng.binomial(pool, chance))
        good = int(rng.binomial(drawn, right))
        row |= {
            f"pool/{stratum}": pool,
            f"weight/{stratum}": drawn / chance,
            f"labels/overall/{stratum}/right": good,
            f"labels/overall/{stratum}/wrong": drawn - good,
        }
    return row


def paired_hour(rng: np.random.Generator, mine: float, theirs: float, n: int = 60) -> Row:
    shares = [mine * theirs, mine * (1 - theirs), (1 - mine) * theirs, (1 - mine) * (1 - theirs)]
    names = ("both", "candidate", "control", "neither")
    return {
        f"pairs/overall/{name}": float(count)
        for name, count in zip(names, rng.multinomial(n, shares), strict=True)
    }


# ---------------------------------------------------------------- the replay
@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 40), st.lists(st.integers(1, 45), max_size=4, unique=True))
def test_the_replay_is_the_bets_made_one_by_one(seed: int, hours: int, epochs: list[int]) -> None:
    rng = np.random.default_rng(seed)
    rows = [hour(rng, 0.9, 20.0) | paired_hour(rng, 0.9, 0.92, 20) for _ in range(hours)]
    marks = ((1, 0.0), *((k, h * HOUR_SECONDS) for k, h in enumerate(sorted(epochs), start=2)))
    cohorts = cohorts_of(ledger_of(rows, marks))
    for side in (1, -1):
        purse = other = Purse.begun(drift=side < 0)
        learned = strata.Learned(np.zeros(3), np.zeros(3), FIRST_GUESS)
        for at, row in enumerate(rows):
            for _, begun in marks[1:]:
                if begun == at * HOUR_SECONDS:
                    purse, other = purse.next_epoch(), other.next_epoch()
            cohort = strata.Cohort(
                *(
                    np.asarray([row.get(name.format(stratum), 0.0) for stratum in STRATA])
                    for name in (
                        "pool/{}",
                        "labels/overall/{}/right",
                        "labels/overall/{}/wrong",
                        "labels/overall/{}/missing",
                    )
                )
            )
            purse = strata.bet(purse, cohort, (1.0, 0.25, 1.0), learned.guess(), 0.9, side)
            learned = learned.after(cohort)
            counted = pairs.Pairs(
                *(row[f"pairs/overall/{r}"] for r in ("both", "candidate", "control", "neither"))
            )
            other = pairs.bet(other, counted, 0.02, side)
        unmet = [begun for _, begun in marks[1:] if begun >= hours * HOUR_SECONDS]
        for _ in unmet:
            purse, other = purse.next_epoch(), other.next_epoch()
        assert strata_wealth(cohorts, "overall", 0.9, side) == pytest.approx(float(purse.log_wealth))
        assert pairs_wealth(cohorts, "overall", 0.02, side) == pytest.approx(float(other.log_wealth))


def test_an_hour_more_never_changes_the_bets_before_it() -> None:
    """Wealth after n hours is worked out alike whether or not more hours follow."""
    rng = np.random.default_rng(4)
    rows = [hour(rng, 0.93) for _ in range(20)]
    rows[7] = {}
    rows[11] = {"pool/all": 9.0, "weight/all": 9.0, "labels/overall/all/right": 9.0}
    whole = ledger_of(rows)
    for n in (0, 1, 7, 8, 12, 20):
        first = replace(whole, hours=dict(enumerate(rows[:n])))
        seen = cohorts_of(replace(whole, labels_until=n * HOUR_SECONDS + 300))
        assert seen == cohorts_of(first)
        assert strata_wealth(seen, "overall", 0.9, 1) == strata_wealth(cohorts_of(first), "overall", 0.9, 1)


def test_nothing_closed_is_no_evidence() -> None:
    for side in (1, -1):
        empty = cohorts_of(ledger_of([]))
        assert strata_wealth(empty, "overall", 0.9, side) == pairs_wealth(empty, "overall", 0.02, side) == 0.0
    assert strata_seen(cohorts_of(ledger_of([])), "overall").value is None


def test_the_estimate_weighs_the_strata_by_their_requests() -> None:
    row = {
        "pool/agree": 800.0,
        "pool/disagree": 200.0,
        "labels/overall/agree/right": 99.0,
        "labels/overall/agree/missing": 1.0,
        "labels/overall/disagree/right": 30.0,
        "labels/overall/disagree/wrong": 70.0,
    }
    seen = strata_seen(cohorts_of(ledger_of([row])), "overall")
    assert seen.value == pytest.approx(0.8 * 0.99 + 0.2 * 0.3)
    assert (seen.labels, seen.missing) == (200, 1)


def test_error_rates_of_both_sides_on_the_limit() -> None:
    """300 rollouts of a model exactly at 0.90, two days of hours each, 5 %: at most 5 % plus three standard errors."""
    rng = np.random.default_rng(11)
    high = low = 0
    for _ in range(300):
        cohorts = cohorts_of(
            ledger_of([hour(rng, 0.90) for _ in range(48)], ((1, 0.0), (2, 24 * HOUR_SECONDS)))
        )
        high += strata_wealth(cohorts, "overall", 0.90, 1) >= math.log(20)
        low += strata_wealth(cohorts, "overall", 0.90, -1) >= math.log(20)
    limit = 300 * (0.05 + 3 * math.sqrt(0.05 * 0.95 / 300))
    assert max(high, low) <= limit, (high, low)


# ---------------------------------------------------------------- verdicts
BY_STRATUM = ModelRolloutSpec.model_validate(
    rollout_spec(analysis={"labels": {"strata": "disagreement", "doubleShare": 0}})
)


def accuracy(spec: ModelRolloutSpec, ledger: Ledger, **more: Any) -> Verdict:
    gate = next(g for g in named_gates(spec) if g.metric == "accuracy")
    return judge(Bench(spec, 0, ledger, 1e6, **more), gate)


def test_labels_drawn_by_stratum_pass_a_good_model_and_stop_a_bad_one() -> None:
    rng = np.random.default_rng(3)
    good = accuracy(BY_STRATUM, ledger_of([hour(rng, 0.95) for _ in range(24)]))
    assert (good.verdict, good.value) == ("pass", pytest.approx(0.95, abs=0.02))
    assert "by stratum" in good.message
    bad = accuracy(BY_STRATUM, ledger_of([hour(rng, 0.82) for _ in range(8)]))
    assert (bad.verdict, bad.reason) == ("fail", "AccuracyBelowLimit")
    few = accuracy(BY_STRATUM, ledger_of([hour(rng, 0.95)]))
    assert few.verdict == "insufficient"
    assert accuracy(BY_STRATUM, ledger_of([])).verdict == "insufficient"
    gone = Unavailable("Stale", "labels are not exported")
    assert accuracy(BY_STRATUM, ledger_of([hour(rng, 0.95)]), labels=gone).verdict == "unavailable"
    # The bare sums would have said that this good model is bad: most of its labels come from disagreements.
    totals = {"labels__candidate__overall__right": 600.0, "labels__candidate__overall__wrong": 200.0}
    assert accuracy(BY_STRATUM, ledger_of([hour(rng, 0.95)], **totals)).verdict == "insufficient"


PAIRED = ModelRolloutSpec.model_validate(rollout_spec(gates=[{"metric": "accuracy", "margin": 0.02}]))


def test_pairs_show_who_is_better_where_sums_cannot() -> None:
    rng = np.random.default_rng(8)
    counts = {f"pairs__overall__{name}": 100.0 for name in ("both", "candidate", "control", "neither")}
    labels = {"labels__candidate__overall__right": 90.0, "labels__candidate__overall__wrong": 10.0}

    def of(mine: float, theirs: float, hours: int) -> Verdict:
        rows = [paired_hour(rng, mine, theirs) for _ in range(hours)]
        return accuracy(PAIRED, ledger_of(rows, **counts, **labels))

    assert of(0.95, 0.93, 24).verdict == "pass"
    worse = of(0.80, 0.95, 12)
    assert (worse.verdict, worse.reason) == ("fail", "AccuracyBelowControl")
    assert of(0.95, 0.93, 1).verdict == "insufficient"
    assert "+0.000 on 400 pairs" in worse.message
    none = accuracy(PAIRED, ledger_of([], **labels))
    assert (none.verdict, "no pairs yet" in none.message) == ("insufficient", True)


def test_missing_pairs_count_against_what_is_proven() -> None:
    rng = np.random.default_rng(9)
    rows = [paired_hour(rng, 0.95, 0.93) for _ in range(24)]
    whole = cohorts_of(ledger_of(rows))
    gaps = cohorts_of(ledger_of([row | {"pairs/overall/missing": 10.0} for row in rows]))
    for side in (1, -1):
        assert pairs_wealth(gaps, "overall", 0.02, side) < pairs_wealth(whole, "overall", 0.02, side)


def test_limit_and_margin_must_both_be_kept() -> None:
    rng = np.random.default_rng(10)
    spec = ModelRolloutSpec.model_validate(
        rollout_spec(gates=[{"metric": "accuracy", "limit": 0.9, "margin": 0.02}])
    )
    rows = [paired_hour(rng, 0.95, 0.93) for _ in range(24)]
    good = {"labels__candidate__overall__right": 950.0, "labels__candidate__overall__wrong": 50.0}
    near = {"labels__candidate__overall__right": 91.0, "labels__candidate__overall__wrong": 9.0}
    assert accuracy(spec, ledger_of(rows, **good)).verdict == "pass"
    assert accuracy(spec, ledger_of(rows, **near)).verdict == "insufficient"
    assert accuracy(spec, ledger_of(rows[:1], **good)).verdict == "insufficient"


# ---------------------------------------------------------------- reviewers
SPEC = ModelRolloutSpec.model_validate(rollout_spec())


def seen_floors(same: float, different: float, spec: ModelRolloutSpec = SPEC) -> Any:
    gate = next(g for g in named_gates(spec) if g.metric == "accuracy")
    ledger = ledger_of([], doubles__overall__same=same, doubles__overall__different=different)
    return floors(spec, ledger, gate, 0.85)


def test_the_limit_goes_down_by_what_second_labels_prove_and_no_further() -> None:
    nothing = seen_floors(0, 0)
    assert (nothing.limit, nothing.floor, nothing.error_rate) == (0.9, 0.85, 0.0)
    assert nothing.pass_alpha == pytest.approx(0.045)
    few, many = seen_floors(9, 1), seen_floors(960, 40)
    assert 0 < many.error_rate < 0.0204, "below the true rate, for 4 % of the pairs differ"
    assert few.error_rate < many.error_rate
    assert many.limit == pytest.approx(0.9 * (1 - many.error_rate) + 0.1 * many.error_rate)
    assert many.floor < 0.85
    unmeasured = ModelRolloutSpec.model_validate(rollout_spec(analysis={"labels": {"doubleShare": 0}}))
    plain = seen_floors(960, 40, unmeasured)
    assert (plain.limit, plain.floor, plain.pass_alpha) == (0.9, 0.85, 0.05)


def test_people_who_err_do_not_hold_a_good_model_for_ever() -> None:
    """0.93 seen through reviewers wrong in 2 %: 0.913 of the labels say right."""
    labels = {"labels__candidate__overall__right": 1370.0, "labels__candidate__overall__wrong": 130.0}
    plain = accuracy(SPEC, ledger_of([], **labels))
    assert plain.verdict == "insufficient"
    measured = accuracy(
        SPEC, ledger_of([], doubles__overall__same=9600, doubles__overall__different=400, **labels)
    )
    assert measured.verdict == "pass"
    assert "people who err" in measured.message
    assert measured.limit == 0.9, "the declared limit is what status shows"


def test_a_users_counter_that_is_away_holds_its_gate_but_not_a_proven_breach() -> None:
    gate = {"metric": "custom", "name": "appeals", "bad": "a", "total": "b", "limit": 0.1}
    spec = ModelRolloutSpec.model_validate(rollout_spec(gates=[gate], steps=STEPS[1:]))
    named = named_gates(spec)[0]
    away = {"appeals": Unavailable("NoSeries", "total: Prometheus knows no series b")}

    def verdict(bad: float, total: float, custom: dict[str, Unavailable]) -> Verdict:
        ledger = ledger_of([], custom__appeals__bad=bad, custom__appeals__total=total)
        return judge(Bench(spec, 0, ledger, 1e4, custom=custom), named)

    assert verdict(5, 500, {}).verdict == "pass"
    assert (verdict(5, 500, away).verdict, verdict(5, 500, away).reason) == ("unavailable", "NoSeries")
    assert verdict(300, 500, away).verdict == "fail"
