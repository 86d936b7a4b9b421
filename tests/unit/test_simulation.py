"""Simulated worlds: seeds, books, incidents, delays; and outcomes as a person reads them."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest

from cutover.api.modelrollout import ModelRolloutSpec
from cutover_operator.evidence.ledger import MARKS_KEPT, Ledger
from cutover_operator.simulation import (
    Behaviour,
    Incident,
    LabelDelay,
    Moment,
    Scenario,
    after,
    diurnal,
    simulate,
)
from cutover_operator.simulation.arrivals import Arrivals
from cutover_operator.simulation.books import NO_STEP, Books, Col
from cutover_operator.simulation.outcome import PROMOTED, ROLLED_BACK, quantile
from cutover_operator.simulation.scenario import after_half, level
from cutover_operator.simulation.walk import Look
from fakes.rollout_town import rollout_spec

TWO = [{"metric": "accuracy", "limit": 0.90}, {"metric": "errorRate", "limit": 0.05}]
LIVE = [{"weight": w, "minDuration": "1h"} for w in (10, 25, 50, 100)]


def spec(**changes: Any) -> ModelRolloutSpec:
    base = {"gates": TWO, "steps": LIVE, "analysis": {"labels": {"deadline": "2h"}}}
    return ModelRolloutSpec.model_validate(rollout_spec(**(base | changes)))


def test_the_same_seed_gives_the_same_outcome() -> None:
    one, two, other = (simulate(spec(), Scenario(), 20, seed=s) for s in (5, 5, 6))
    assert np.array_equal(one.decided_hours, two.decided_hours)
    assert not np.array_equal(one.decided_hours, other.decided_hours)


def test_a_good_candidate_is_promoted_and_a_bad_one_is_not() -> None:
    good = simulate(spec(), Scenario(candidate=Behaviour(accuracy=0.95)), 60, seed=1)
    summary = good.summary()
    assert summary.promoted == 1.0
    assert summary.median_hours is not None
    assert 3.0 < summary.median_hours < 12.0
    assert list(summary.step_hours) == sorted(summary.step_hours)  # type: ignore[type-var]
    bad = simulate(spec(), Scenario(candidate=Behaviour(accuracy=0.80)), 60, seed=1)
    assert bad.share(ROLLED_BACK) == 1.0
    assert bad.stopped_by_gate("accuracy") == 1.0
    assert bad.summary().median_bad_answers > 0
    assert bad.summary().served_all == 0.0


def test_a_shadow_step_serves_nobody_while_it_proves() -> None:
    shadowed = spec(steps=[{"shadow": 100, "minDuration": "1h"}, *LIVE])
    bad = simulate(shadowed, Scenario(candidate=Behaviour(accuracy=0.80)), 40, seed=2)
    assert bad.share(ROLLED_BACK) == 1.0
    assert bad.bad_answers.sum() == 0
    assert bad.requests.sum() == 0
    slower = simulate(spec(), Scenario(candidate=Behaviour(accuracy=0.80)), 40, seed=2)
    assert np.median(bad.decided_hours) < np.median(slower.decided_hours)


def test_labels_of_copies_are_worth_as_much_as_those_of_answers() -> None:
    own, copies = (
        simulate(spec(), Scenario(candidate=Behaviour(0.8), mirrored_labels=m), 40, seed=3)
        for m in (False, True)
    )
    assert np.median(copies.decided_hours) < 0.6 * np.median(own.decided_hours)


def test_nothing_is_decided_without_labels() -> None:
    o = simulate(spec(), Scenario(label_rate=0.0, horizon_hours=48.0), 10, seed=4)
    assert o.summary().undecided == 1.0
    assert o.summary().median_hours is None
    assert np.isinf(o.step_hours[1]).all()


def test_quantiles_count_what_never_came() -> None:
    values = np.array([1.0, 2.0, 3.0, np.inf, np.inf])
    assert quantile(values, 0.5) == 3.0
    assert quantile(values, 0.25) == 2.0
    assert quantile(values, 0.6) is None
    assert quantile(values[:3], 0.9) == pytest.approx(2.8)
    assert quantile(values[:0], 0.5) is None


def test_late_samples_only_delay() -> None:
    world = Scenario(candidate=Behaviour(accuracy=0.95), horizon_hours=48.0)
    prompt = simulate(spec(), world, 40, seed=5)
    late = simulate(spec(), Scenario(**(_fields(world) | {"scrapes_missing": 0.5})), 40, seed=5)
    assert late.share(PROMOTED) == prompt.share(PROMOTED) == 1.0
    assert np.median(late.decided_hours) >= np.median(prompt.decided_hours)


def _fields(world: Scenario) -> dict[str, Any]:
    return {name: getattr(world, name) for name in Scenario.__slots__}


def test_a_shared_outage_freezes_and_lets_go() -> None:
    outage = Incident(0.5, 1.0, at_hours=2.0)
    quiet, shaken = (
        simulate(spec(), Scenario(candidate=Behaviour(0.95), incidents=i, horizon_hours=72.0), 40, seed=6)
        for i in ((), (outage,))
    )
    assert quiet.frozen_hours.sum() == 0
    assert (shaken.frozen_hours >= 0.9).all()
    assert shaken.share(ROLLED_BACK) == 0.0
    alone = simulate(
        spec(),
        Scenario(candidate=Behaviour(0.95), incidents=(Incident(0.5, 1.0, ("candidate",), 2.0),)),
        40,
        seed=6,
    )
    assert alone.share(ROLLED_BACK) == 1.0


def test_how_long_a_tick_is_hardly_matters_to_the_bets_on_cost() -> None:
    gates = [{"metric": "accuracy", "limit": 0.9}, {"metric": "cost", "limit": 0.01}]
    hours = []
    for tick in (60.0, 600.0):
        world = Scenario(
            5.0, Behaviour(0.95, cost_usd=0.015), label_rate=0.002, tick_seconds=tick, horizon_hours=24.0
        )
        o = simulate(spec(gates=gates), world, 40, seed=9)
        assert o.stopped_by_gate("cost") == 1.0
        hours.append(float(np.median(o.decided_hours)))
    assert hours[0] <= hours[1] <= hours[0] + 2 * 600.0 / 3600.0


def test_a_cost_at_its_limit_is_hardly_ever_called_too_high_between_ticks() -> None:
    gates = [{"metric": "accuracy", "limit": 0.9, "role": "advance"}, {"metric": "cost", "limit": 0.01}]
    world = Scenario(
        5.0, Behaviour(0.9, cost_usd=0.01, cost_spread=1.5), label_rate=0.001, horizon_hours=72.0
    )
    o = simulate(spec(gates=gates), world, 200, seed=10)
    assert o.stopped_by_gate("cost") <= 0.05 + 3 * (0.05 * 0.95 / 200) ** 0.5


def test_an_open_breaker_of_the_control_keeps_the_weight() -> None:
    incident = Incident(0.6, 2.0, ("candidate",), at_hours=1.0, breaker=True)
    looks: list[Look] = []
    world = Scenario(candidate=Behaviour(0.95), incidents=(incident,), horizon_hours=2.5)
    simulate(spec(), world, 5, seed=7, observe=looks.append)
    assert all((look.after == 0.1).all() for look in looks)


def test_a_run_is_stopped_by_the_gate_that_is_not_excused() -> None:
    gates = [{"metric": "errorRate", "limit": 0.05}, {"metric": "accuracy", "limit": 0.9}]
    outage = Incident(0.6, 12.0, ("candidate",), at_hours=0.5, breaker=True)
    world = Scenario(candidate=Behaviour(0.7), incidents=(outage,), mirrored_labels=True, horizon_hours=12.0)
    o = simulate(spec(gates=gates), world, 20, seed=11)
    assert o.share(ROLLED_BACK) == 1.0
    assert o.stopped_by_gate("accuracy") == 1.0


def test_a_deadline_rolls_back_when_told_to() -> None:
    steps = [{**LIVE[0], "deadline": "5h", "onDeadline": "rollback"}, *LIVE[1:]]
    o = simulate(spec(steps=steps), Scenario(candidate=Behaviour(0.9), label_rate=0.001), 10, seed=8)
    assert o.share(ROLLED_BACK) == 1.0
    assert o.decided_hours == pytest.approx(5.0)
    assert (o.stopped_at == -1).all()


def test_a_freeze_never_advances() -> None:
    o = simulate(spec(freeze=True), Scenario(candidate=Behaviour(0.97), horizon_hours=24.0), 10, seed=9)
    assert np.isinf(o.step_hours[1]).all()


def test_events_add_up() -> None:
    world = Scenario(
        rps=1.0,
        candidate=Behaviour(accuracy=0.9, errors=0.1, cost_usd=0.01),
        label_rate=0.5,
        label_delay=LabelDelay(1.0, 4.0),
        reviewers_wrong=0.1,
    )
    source = Arrivals(world, 3, np.random.default_rng(1), 7200.0)
    total = np.zeros((len(Col), 3))
    for tick in range(1, 401):
        moment = Moment(tick / 6, np.zeros(3, int), np.full(3, 0.5), np.full(3, np.nan))
        total += source.tick(moment, np.full(3, 0.2))
    n, errors = total[Col.ANSWERED].mean(), total[Col.ERRORS].mean()
    assert n == pytest.approx(400 * 600 * 0.5, rel=0.01)
    assert errors / n == pytest.approx(0.1, abs=0.01)
    assert total[Col.COST].mean() / n == pytest.approx(0.01, rel=0.01)
    assert total[Col.MIRRORED].mean() == pytest.approx(0.2 * total[Col.CONTROL_ANSWERED].mean(), rel=0.02)
    right, wrong, missing = (total[c].sum() for c in (Col.RIGHT, Col.WRONG, Col.MISSING))
    late = 0.9 * math.exp(-2.0) + 0.1 * math.exp(-0.5)
    assert missing / (right + wrong + missing) == pytest.approx(late, abs=0.01)
    in_time = 0.9 * (1 - math.exp(-2.0)), 0.1 * (1 - math.exp(-0.5))
    seen = (in_time[0] * 0.9 + in_time[1] * 0.1) / sum(in_time)
    assert right / (right + wrong) == pytest.approx(seen, abs=0.01)


def test_traffic_and_levels_follow_their_functions() -> None:
    day = [diurnal(2.0)(h / 10) for h in range(240)]
    assert np.mean(day) == pytest.approx(2.0)
    assert max(day) == pytest.approx(3.8, abs=0.01)
    assert min(day) >= 0.19
    moment = Moment(10.0, np.zeros(2, int), np.zeros(2), np.asarray([np.nan, 6.0]))
    assert level(after(8.0, 0.9, 0.8, 4.0), moment) == pytest.approx(0.85)
    assert level(after(11.0, 0.9, 0.8), moment) == 0.9
    assert level(after_half(0.93, 0.85, 12.0), moment).tolist() == pytest.approx([0.93, 0.89])  # type: ignore[union-attr]
    assert LabelDelay(2.0, 8.0).missing(24.0) == pytest.approx((math.exp(-12), math.exp(-3)))


@pytest.mark.parametrize("seed", range(4))
def test_books_of_many_are_the_ledgers_of_each(seed: int) -> None:
    """The same marks, epochs and sums, through more marks than are kept."""
    rng, fullest = random.Random(seed), 0
    runs, books = 3, Books(3)
    ledgers = [Ledger(uid="u", version="v", started_at=0.0) for _ in range(runs)]
    step = np.zeros(runs, dtype=np.int64)
    books.mark(np.ones(runs, bool), 0.0, step)
    ledgers = [one.with_mark(0.0, 0) for one in ledgers]
    for now in range(1, 260):
        growth = np.asarray([[rng.randrange(50) for _ in range(runs)] for _ in range(2)], dtype=float)
        books.totals[[Col.ERRORS, Col.ANSWERED]] += growth
        ledgers = [
            Ledger(
                uid="u",
                version="v",
                started_at=0.0,
                marks=one.marks,
                fresh_from=one.fresh_from,
                incidents=one.incidents,
                totals={
                    "errors": books.totals[Col.ERRORS, run],
                    "answered": books.totals[Col.ANSWERED, run],
                },
            )
            for run, one in enumerate(ledgers)
        ]
        run, what = rng.randrange(runs), rng.random()
        who = np.arange(runs) == run
        if what < 0.6:
            books.mark(who, float(now))
            ledgers[run] = ledgers[run].with_mark(float(now))
        elif what < 0.75:
            step = step + who
            books.mark(who, float(now), step)
            ledgers[run] = ledgers[run].with_mark(float(now), int(step[run]))
        elif what < 0.85:
            books.incident(who, float(now))
            ledgers[run] = ledgers[run].after_incident(float(now))
        elif what < 0.995:
            before = books.totals - np.asarray(
                [[rng.randrange(9)], [rng.randrange(9)]] + [[0]] * (len(Col) - 2)
            )
            books.roll_incident(who, float(now), before)
            kept = {"errors": before[Col.ERRORS, run], "answered": before[Col.ANSWERED, run]}
            ledgers[run] = ledgers[run].rolled_incident(float(now), kept)
        else:
            books.restart_watch(who, float(now), step)
            ledgers[run] = ledgers[run].restarted_watch(float(now), int(step[run]))
        _same(books, ledgers, step)
        fullest = max(fullest, int(books.used.max()))
    assert fullest > MARKS_KEPT


def _same(books: Books, ledgers: list[Ledger], step: np.ndarray) -> None:
    for run, one in enumerate(ledgers):
        who = np.asarray([run])
        assert books.used[run] == len(one.marks)
        for fresh in (False, True):
            expected = one.epochs(one.fresh_from if fresh else 1)
            k = books.k_of(who, fresh)[:, 0]
            counts = books.counts(who, Col.ERRORS, Col.ANSWERED)
            found = [
                (int(k[slot]), float(counts.bad[slot, 0]), float(counts.all[slot, 0]))
                for slot in np.flatnonzero(k)
            ]
            assert found == [(i, t["errors"], max(t["errors"], t["answered"])) for i, t in expected]
        here = books.since_step(who, step[[run]], Col.ANSWERED)[0]
        assert here[0] == one.since_step(int(step[run]))["answered"]
        assert books.incidents[run] == one.incidents
        assert set(books.step[: books.used[run], run]) == {
            NO_STEP if m.step is None else m.step for m in one.marks
        }
