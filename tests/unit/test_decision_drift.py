"""Drifts, incidents and changing weights: what each test risks then, and how soon it finds what came late."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cutover.api.modelrollout import ModelRolloutSpec
from cutover_operator.evidence.ledger import Ledger, limit_key
from cutover_operator.rollout.betting import Purse
from cutover_operator.rollout.evalue import log_e_difference
from cutover_operator.rollout.gate_tests import Code
from cutover_operator.rollout.gates import named_gates
from cutover_operator.rollout.stretches import NO_STEP, pooled, stretches
from cutover_operator.rollout.verdict import Bench, judge
from cutover_operator.simulation import Behaviour, Scenario, simulate
from cutover_operator.simulation.books import Books, Col
from cutover_operator.simulation.judging import Rules, judge_all
from cutover_operator.simulation.outcome import PROMOTED, ROLLED_BACK
from cutover_operator.simulation.scenario import after
from fakes.rollout_town import rollout_spec

HOUR = 3600.0


def spec_of(**changes: object) -> ModelRolloutSpec:
    return ModelRolloutSpec.model_validate(rollout_spec(**changes))


def tolerated(alpha: float, runs: int) -> float:
    return alpha + 3 * math.sqrt(alpha * (1 - alpha) / runs)


# ---------------------------------------------------------------- votes and ratios
@pytest.mark.parametrize("incidents", [0, 5, 30])
def test_votes_risk_their_part_once_however_many_incidents_come(incidents: int) -> None:
    """Exactly at the margin: 30 % thumbs down against 20 %."""
    spec, runs = spec_of(gates=[{"metric": "satisfaction", "margin": 0.5}], analysis={"risk": 0.2}), 200
    rules, books, who = Rules.of(spec), Books(runs), np.arange(runs)
    every, step = np.ones(runs, dtype=bool), np.zeros(runs, dtype=np.int64)
    books.mark(every, 0.0, step)
    rng, hit = np.random.default_rng(3), np.zeros(runs, dtype=bool)
    for incident in range(incidents + 1):
        for _ in range(30):
            down = rng.binomial(50, [[0.3], [0.2]], (2, runs))
            books.totals[[Col.DOWN, Col.CONTROL_DOWN]] += down
            books.totals[[Col.UP, Col.CONTROL_UP]] += 50 - down
            codes, _ = judge_all(rules, books, None, who, step, {}, ~every)
            hit |= codes[0] == Code.FAIL
        books.incident(every, float(incident))
    assert hit.mean() <= tolerated(rules.gates[0].rollback_alpha, runs)


def hours_to_fail(gate: dict[str, object], bad: str, good: str, n: int, shares: tuple[float, ...]) -> int:
    """After a week of two equal arms; `shares`: of bad outcomes before and after, of the control."""
    spec = spec_of(gates=[gate])
    rng, totals = np.random.default_rng(0), dict[str, float]()
    ledger = Ledger(uid="u", version="v1", started_at=0.0).with_mark(0.0, 0)
    for hour in range(7 * 24 + 100):
        if hour and hour % 12 == 0:
            ledger = ledger.with_mark(hour * HOUR)
        for arm, share in (("candidate", shares[hour >= 7 * 24]), ("control", shares[2])):
            found = float(rng.binomial(n, share))
            for name, count in ((bad, found), (good, n - found)):
                totals[name.format(arm)] = totals.get(name.format(arm), 0.0) + count
        ledger = replace(ledger, totals=dict(totals))
        if judge(Bench(spec, 0, ledger, 1.0), named_gates(spec)[0]).verdict == "fail":
            return hour + 1 - 7 * 24
    raise AssertionError("never found")


def test_a_late_rise_against_the_control_is_found_soon_after_a_good_week() -> None:
    votes = {"metric": "satisfaction", "margin": 0.5}
    assert 0 < hours_to_fail(votes, "satisfaction/{}/down", "satisfaction/{}/up", 20, (0.2, 0.6, 0.2)) <= 30
    errors = {"metric": "errorRate", "limit": 0.05, "margin": 0.5}
    assert 0 < hours_to_fail(errors, "requests/{}/error", "requests/{}/ok", 200, (0.01, 0.04, 0.01)) <= 20


# ---------------------------------------------------------------- cost
TARGET_AND_CAP = [
    {"metric": "cost", "limit": 0.005, "role": "advance", "name": "target"},
    {"metric": "cost", "limit": 0.01, "role": "rollback", "name": "cap"},
]


def test_no_cost_gate_fails_by_what_was_won_against_another_limit() -> None:
    spec = spec_of(gates=TARGET_AND_CAP)
    bets = {limit_key(0.005): Purse((9.0, 9.0, 9.0, 9.0), 1), limit_key(0.01): Purse.begun(drift=True)}
    spent = {"requests/candidate/ok": 500.0, "cost/candidate": 5.05}
    ledger = Ledger("u", "v1", 0.0, totals=spent, cost_bets=bets).with_mark(0.0, 0)
    ledger = replace(ledger, marks=(replace(ledger.marks[0], totals={}),))
    _, cap = (judge(Bench(spec, 0, ledger, 1.0), gate) for gate in named_gates(spec))
    assert cap.verdict == "insufficient"


def test_a_cost_just_within_the_higher_of_two_limits_stays() -> None:
    spec = spec_of(gates=TARGET_AND_CAP, steps=[{"weight": 50, "minDuration": "12h"}])
    world = Scenario(rps=0.5, candidate=Behaviour(cost_usd=0.0099), horizon_hours=12.0)
    assert simulate(spec, world, 200, 4).share(ROLLED_BACK) <= tolerated(0.05, 200)


def test_a_cost_that_doubles_late_in_a_good_week_is_found_within_a_day() -> None:
    gates = [{"metric": "cost", "limit": 0.01}, {"metric": "errorRate", "limit": 0.05}]
    spec = spec_of(gates=gates, steps=[{"weight": 100, "minDuration": "1h"}])
    world = Scenario(rps=0.5, candidate=Behaviour(cost_usd=after(130.0, 0.004, 0.02)), horizon_hours=154.0)
    found = simulate(spec, world, 40, 5, watch=True)
    assert found.share(ROLLED_BACK) == 1.0
    assert np.max(found.decided_hours) > 130.0
    early = simulate(spec, replace(world, horizon_hours=130.0), 40, 5, watch=True)
    assert early.share(PROMOTED) == 1.0


def test_who_fails_by_a_late_cost_is_told_of_it() -> None:
    spec = spec_of(gates=[{"metric": "cost", "limit": 0.01}])
    before = {"requests/candidate/ok": 10_000.0, "cost/candidate": 40.0}
    ledger = Ledger("u", "v1", 0.0).with_mark(0.0, 0)
    ledger = replace(ledger, totals=before).with_mark(10.0)
    ledger = replace(
        ledger,
        totals={"requests/candidate/ok": 10_500.0, "cost/candidate": 50.0},
        cost_bets={limit_key(0.01): Purse((9.0,) * 4, 2)},
    )
    found = judge(Bench(spec, 0, ledger, 1.0), named_gates(spec)[0])
    assert (found.verdict, found.value) == ("fail", pytest.approx(50 / 10_500))
    assert "0.02 USD" in found.message


# ---------------------------------------------------------------- accuracy of both arms
@settings(max_examples=80, deadline=None)
@given(
    *(st.integers(0, 400) for _ in range(4)),
    st.sampled_from([-1, 1]),
    st.floats(0.0, 0.3),
    st.floats(0.001, 0.999),
    st.floats(0.0, 1.0),
)
def test_a_difference_is_refuted_by_no_more_than_any_shares_it_allows(
    s: int, f: int, t: int, g: int, side: int, margin: float, other: float, part: float
) -> None:
    def wealth(won: int, lost: int, p: float) -> float:
        whole = math.lgamma(won + 1) + math.lgamma(lost + 1) - math.lgamma(won + lost + 2)
        return whole - won * math.log(p) - lost * math.log1p(-p)

    edge = other - margin
    own = edge * part if side > 0 else edge + (1 - edge) * part
    if 0.001 < own < 0.999:
        found = float(log_e_difference((s, f), (t, g), margin, side))  # type: ignore[arg-type]
        assert found <= wealth(s, f, own) + wealth(t, g, other) + 1e-6


def test_labels_of_two_weights_or_of_one_arm_are_not_compared() -> None:
    at, step = np.asarray([0.0, 3.0, 20.0, 22.0, 34.0]) * HOUR, [0, NO_STEP, 1, NO_STEP, NO_STEP]
    number, usable = stretches(at, step, False, 8 * HOUR)
    # The second step begins at hour 20 and shows in labels from hour 28 on, within the time that began at hour 22.
    assert (number.tolist(), usable.tolist()) == ([0, 0, 0, 0, 1], [True, True, False, False, True])
    mine, theirs = np.ones((3, 5)), np.ones((3, 5))
    theirs[:, 1] = 0.0
    found = pooled(number, usable, mine, theirs)
    assert [arm.tolist() for arm in found] == [[[1.0, 1.0]] * 3] * 2
    number, usable = stretches([0.0, 3 * HOUR], [1, NO_STEP], True, 2 * HOUR)
    assert (number.tolist(), usable.tolist()) == ([0, 1], [False, True]), "a new week holds labels of before"


MARGIN = spec_of(
    gates=[{"metric": "accuracy", "margin": 0.02}],
    steps=rollout_spec()["steps"][1:],
    analysis={"labels": {"perHour": 60, "pool": "served", "deadline": "6h"}},
)
Plan = tuple[tuple[float, float, float, int], ...]
"""(weight, accuracy of the control, how much worse the candidate is, hours) of each step."""


def ends(plan: Plan, runs: int, an_hour: int = 100) -> list[set[str]]:
    """All verdicts of each run, up to a fail; labels are counted six hours after the answer."""
    served = [(w, p, gap, i) for i, (w, p, gap, hours) in enumerate(plan) for _ in range(hours)]
    rng, found = np.random.default_rng(1), list[set[str]]()
    for _ in range(runs):
        totals, ledger, last = dict[str, float](), Ledger(uid="u", version="v1", started_at=0.0), -1
        seen = set[str]()
        for hour, (_, _, _, step) in enumerate(served):
            due = not ledger.marks or hour * HOUR - ledger.marks[-1].at >= 12 * HOUR
            if step != last or due:
                ledger = replace(ledger, totals=dict(totals)).with_mark(
                    hour * HOUR, step if step != last else None
                )
                last = step
            if hour < 6:
                continue
            weight, accuracy, gap, _ = served[hour - 6]
            mine = int(rng.binomial(an_hour, weight))
            for arm, n, p in (
                ("candidate", mine, accuracy - gap),
                ("control", an_hour - mine, accuracy),
            ):
                right = int(rng.binomial(n, p))
                for name, count in (("right", right), ("wrong", n - right)):
                    key = f"labels/{arm}/overall/{name}"
                    totals[key] = totals.get(key, 0.0) + count
            if hour % 3 == 0:
                now = replace(ledger, totals=dict(totals))
                seen.add(judge(Bench(MARGIN, min(step, 1), now, 1.0), named_gates(MARGIN)[0]).verdict)
                if "fail" in seen:
                    break
        found.append(seen)
    return found


@pytest.mark.parametrize(
    "plan",
    [
        ((0.1, 0.95, 0.0, 30), (0.5, 0.85, 0.0, 30), (1.0, 0.85, 0.0, 30)),
        ((0.1, 0.95, 0.0, 20), (0.5, 0.95, 0.0, 20), (1.0, 0.88, 0.0, 60)),
    ],
    ids=["harder since half the traffic", "harder since the promotion"],
)
def test_arms_that_are_equal_at_every_moment_are_not_told_apart(plan: Plan) -> None:
    runs = 40
    assert sum("fail" in seen for seen in ends(plan, runs)) / runs <= tolerated(0.05, runs)


def test_a_candidate_worse_than_the_margin_is_found_while_weights_change() -> None:
    found = ends(((0.1, 0.95, 0.05, 48), (0.5, 0.95, 0.05, 200)), 20)
    assert sum("fail" in seen for seen in found) >= 18
    assert not any("pass" in seen for seen in found)
