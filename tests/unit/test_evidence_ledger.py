"""The ledger: folding is associative, checkpoints are whole, replicas of one total are counted once."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cutover.contract import COST, DURATION, LABELS_MATURED, REQUESTS
from cutover_operator.evidence.folding import Wanted, bet_on_cost, fold
from cutover_operator.evidence.ledger import SERIES_KEPT, Ledger, LedgerError, Mark, limit_key
from cutover_operator.evidence.ledger_map import from_config_map, to_config_map
from cutover_operator.evidence.samples import Answer, Series, custom_key
from cutover_operator.rollout.betting import Purse
from cutover_operator.rollout.resources import Owner

WANTED = Wanted("r", "v1", edges=(2.0,), cost_limits=(0.01,))
NEW = Ledger(uid="u", version="v1", started_at=0.0)


def town(seed: int, ticks: int = 40) -> dict[str, list[Series]]:
    """Two replicas with restarts, for every metric."""
    rng = random.Random(seed)
    series: dict[str, list[Series]] = {REQUESTS: [], DURATION: [], COST: [], LABELS_MATURED: []}
    for pod in ("a", "b"):
        for arm in ("candidate", "control"):
            own = {"rollout": "r", "arm": arm, "version": "v1", "instance": pod}
            counts = [0, 0, 0]
            rows: list[list[tuple[float, float]]] = [[], [], [], [], []]
            for tick in range(ticks):
                if rng.random() < 0.05:
                    counts = [0, 0, 0]
                counts[0] += rng.randrange(20)
                counts[1] += rng.randrange(3)
                counts[2] += rng.randrange(2)
                at = 10.0 * tick
                rows[0].append((at, counts[0]))
                rows[1].append((at, counts[1]))
                rows[2].append((at, counts[0] - counts[2] + 0.0 if counts[0] > counts[2] else 0.0))
                rows[3].append((at, counts[0]))
                rows[4].append((at, 0.004 * counts[0]))
            series[REQUESTS] += [
                Series({**own, "outcome": o}, rows[i]) for i, o in enumerate(("ok", "error"))
            ]
            series[DURATION] += [
                Series({**own, "le": "2.0"}, rows[2]),
                Series({**own, "le": "+Inf"}, rows[3]),
            ]
            series[COST].append(Series(own, rows[4]))
        labels = {"rollout": "r", "arm": "candidate", "version": "v1", "field": "overall", "stratum": "all"}
        high = [(10.0 * t, float(max(0, t - rng.randrange(3)))) for t in range(ticks)]
        series[LABELS_MATURED].append(Series({**labels, "result": "right", "instance": pod}, sorted(high)))
    return series


def window(series: dict[str, list[Series]], start: float, end: float) -> dict[str, Answer]:
    return {
        metric: Answer(
            tuple(Series(s.labels, [x for x in s.samples if start <= x[0] <= end]) for s in rows), end
        )
        for metric, rows in series.items()
    }


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.lists(st.integers(1, 60), min_size=1, max_size=8))
def test_checkpoint_and_deltas_make_the_whole(seed: int, widths: list[int]) -> None:
    series = town(seed)
    whole = fold(NEW, window(series, 0, 1e9), WANTED)
    ledger, at = NEW, 0.0
    for width in [*widths, 100]:
        ledger = fold(ledger, window(series, max(0.0, at - 35), at + 10 * width), WANTED)
        ledger = Ledger.from_json(ledger.stamped(at).to_json())  # an operator restart at every checkpoint
        at += 10 * width
    for key, value in whole.totals.items():
        assert ledger.total(key) == pytest.approx(value), key
    again = fold(ledger, window(series, 0, 1e9), WANTED)
    assert again.totals == ledger.totals, "counting the same samples again adds nothing"


def test_the_database_total_is_counted_once_however_many_replicas_export_it() -> None:
    labels = {"rollout": "r", "arm": "candidate", "version": "v1", "field": "overall", "stratum": "all"}

    def answer(*values: float) -> dict[str, Answer]:
        rows = [
            Series({**labels, "result": "right", "instance": str(i)}, [(1.0, v)])
            for i, v in enumerate(values)
        ]
        return {LABELS_MATURED: Answer(tuple(rows), 1.0)}

    ledger = fold(NEW, answer(40, 38, 40), WANTED)
    assert ledger.total("labels/candidate/overall/right") == 40
    assert fold(ledger, answer(39), WANTED).totals == ledger.totals, "a replica that lags takes nothing back"
    assert fold(ledger, answer(0, 41), WANTED).total("labels/candidate/overall/right") == 41


def test_another_version_and_another_rollout_are_no_evidence() -> None:
    own = {"rollout": "r", "arm": "candidate", "outcome": "ok"}
    rows = (
        Series({**own, "version": "v1"}, [(1.0, 5.0)]),
        Series({**own, "version": "v0"}, [(1.0, 100.0)]),
        Series({**own, "version": "v1", "rollout": "other"}, [(1.0, 100.0)]),
    )
    assert fold(NEW, {REQUESTS: Answer(rows, 1.0)}, WANTED).total("requests/candidate/ok") == 5


def test_an_edge_asked_for_in_mid_rollout_starts_where_its_count_stands() -> None:
    own = {"rollout": "r", "arm": "candidate", "version": "v1", "instance": "a"}

    def answer(at: float, fast: float, whole: float) -> dict[str, Answer]:
        rows = (
            Series({**own, "le": "2.0"}, [(at, fast)]),
            Series({**own, "le": "3.0"}, [(at, whole)]),
            Series({**own, "le": "+Inf"}, [(at, whole)]),
        )
        return {DURATION: Answer(rows, at)}

    both = Wanted("r", "v1", edges=(3.0,))
    ledger = fold(NEW, answer(1.0, 90, 100), WANTED)
    merged = {
        DURATION: Answer(
            tuple(
                Series(a.labels, [*a.samples, *b.samples])
                for a, b in zip(
                    answer(1.0, 90, 100)[DURATION].series, answer(2.0, 95, 110)[DURATION].series, strict=True
                )
            ),
            2.0,
        )
    }
    ledger = fold(ledger, merged, both)
    assert ledger.total("duration/candidate/3/all") == 10
    assert ledger.total("duration/candidate/3/fast") == 10


def test_custom_counters_leave_out_what_was_before_the_rollout() -> None:
    wanted = Wanted("r", "v1", custom=(("g", "bad_total", "all_total"),))
    started = Ledger(uid="u", version="v1", started_at=100.0)
    answers = {
        custom_key("bad_total"): Answer((Series({"x": "1"}, [(90.0, 500.0), (110.0, 503.0)]),), 110.0),
        custom_key("all_total"): Answer((Series({"x": "1"}, [(105.0, 10.0), (110.0, 20.0)]),), 110.0),
    }
    ledger = fold(started, answers, wanted)
    assert ledger.total("custom/g/bad") == 3
    assert ledger.total("custom/g/total") == 20


def test_marks_tell_what_happened_in_a_step_and_forget_crashed_attempts() -> None:
    ledger = NEW.with_mark(0.0, 0)
    ledger = fold(ledger, window(town(1), 0, 100), WANTED)
    before = ledger.total("requests/candidate/ok")
    crashed = ledger.with_mark(100.0, 1)
    again = fold(crashed, window(town(1), 0, 150), WANTED).with_mark(150.0, 1)
    assert [(m.k, m.step) for m in again.marks] == [(1, 0), (2, 1)]
    grown = fold(again, window(town(1), 0, 300), WANTED)
    assert grown.since_step(1)["requests/candidate/ok"] == grown.total("requests/candidate/ok") - again.total(
        "requests/candidate/ok"
    )
    assert grown.since_step(0)["requests/candidate/ok"] == grown.total("requests/candidate/ok")
    assert before <= again.total("requests/candidate/ok")


def test_a_replaced_mark_never_leaves_the_tests_without_a_beginning() -> None:
    ledger = NEW.with_mark(0.0, 0).with_mark(1.0, 1).after_incident(2.0)
    assert (ledger.fresh_from, ledger.incidents) == (3, 1)
    again = ledger.with_mark(3.0, 1)
    assert again.epochs(again.fresh_from) != []
    assert ledger.rolled_incident(9.0, {}).incidents == 1
    assert ledger.rolled_incident(9.0, {}).marks[-1].at == 9.0


def test_an_epoch_that_began_in_an_incident_does_not_keep_its_bad_hours() -> None:
    hit = replace(NEW.with_mark(0.0, 0), totals={"requests/control/error": 5.0}).after_incident(1.0)
    later = replace(hit.with_mark(11_000.0), totals={"requests/control/error": 900.0})
    well = later.rolled_incident(12_000.0, later.totals)
    assert [totals for _, totals in well.epochs(well.fresh_from)] == [{"requests/control/error": 0.0}] * 2
    assert well.epochs()[0] == (1, {"requests/control/error": 900.0})


@pytest.mark.parametrize("first", [float("nan"), 140.0])
def test_an_edge_asked_for_anew_after_a_long_gap_counts_fast_and_all_of_the_same_time(first: float) -> None:
    own = {"rollout": "r", "arm": "candidate", "version": "v1", "instance": "a"}

    def answer(*series: Series) -> dict[str, Answer]:
        return {DURATION: Answer(series, 90.0)}

    known = fold(NEW, answer(Series({**own, "le": "+Inf"}, [(10.0, 100.0)])), Wanted("r", "v1"))
    whole = Series({**own, "le": "+Inf"}, [(10.0, 100.0), (70.0, 150.0), (75.0, 150.0), (80.0, 160.0)])
    fast = Series({**own, "le": "2.0"}, [(70.0, first), (75.0, 140.0), (80.0, 149.0)])
    ledger = fold(known, answer(whole, fast), WANTED)
    assert ledger.total("duration/candidate/2/fast") == 9.0
    assert ledger.total("duration/candidate/2/all") == 10.0


def test_a_fresh_start_forgets_counts_but_counts_no_sample_twice() -> None:
    series = town(2)
    ledger = fold(NEW, window(series, 0, 200), WANTED)
    fresh = ledger.afresh(200.0, "v1")
    assert (fresh.totals, fresh.marks, fresh.epoch) == ({}, (), 2)
    after = fold(fresh, window(series, 0, 1e9), WANTED)
    whole = fold(NEW, window(series, 0, 1e9), WANTED)
    for key in whole.totals:
        assert after.total(key) == pytest.approx(whole.total(key) - ledger.total(key))


def test_the_ledger_stays_bounded() -> None:
    ledger = NEW
    for step in range(20):
        ledger = ledger.with_mark(float(step), step)
    for epoch in range(200):
        ledger = ledger.with_mark(100.0 + epoch)
    assert len(ledger.marks) <= 40
    assert ledger.marks[0].k == 1
    assert ledger.mark_of_step(19) is not None
    many = {f"s{i}": (float(i), 1.0) for i in range(SERIES_KEPT + 500)}
    many |= {f"max:{i}": (0.0, 1.0) for i in range(10)}
    stamped = Ledger(uid="u", version="v", started_at=0.0, series={**many, "now": (1e6, 1.0)}).stamped(0.0)
    assert len(stamped.series) <= SERIES_KEPT + 1
    assert all(f"max:{i}" in stamped.series for i in range(10)), (
        "a database total comes back with its whole value"
    )
    assert stamped.ended == 511
    assert len(stamped.to_json()) < 900_000


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"schema_version": 1}', '{"schema_version": "x"}'])
def test_what_is_no_ledger_is_refused_with_words(text: str) -> None:
    with pytest.raises(LedgerError):
        Ledger.from_json(text)


def test_a_newer_schema_is_not_guessed_at() -> None:
    document = json.loads(NEW.to_json()) | {"schema_version": 99}
    with pytest.raises(LedgerError, match="newer"):
        Ledger.from_json(json.dumps(document))


def test_a_ledger_of_an_earlier_object_of_this_name_is_none() -> None:
    owner = Owner("cut", "claims", "u")
    config_map: dict[str, Any] = to_config_map(NEW, owner, None)
    assert from_config_map(config_map, "u") == NEW
    assert from_config_map(config_map, "another") is None
    assert from_config_map(None, "u") is None
    assert "resourceVersion" not in config_map["metadata"]
    current = {"metadata": {"resourceVersion": "7", "uid": "cm"}}
    assert to_config_map(NEW, owner, current)["metadata"]["resourceVersion"] == "7"


@given(
    st.dictionaries(st.text("abc/", min_size=1, max_size=6), st.floats(0, 1e12), max_size=5),
    st.lists(st.tuples(st.floats(0, 1e9), st.integers(0, 9)), max_size=4),
)
def test_round_trip(totals: dict[str, float], marks: list[tuple[float, int]]) -> None:
    ledger = Ledger(
        uid="u",
        version="v1",
        started_at=1.5,
        totals=totals,
        marks=tuple(Mark(i + 1, at, step, dict(totals)) for i, (at, step) in enumerate(marks)),
        series={"x": (1.0, 2.0)},
        cohorts={"3": (0.5, 2.0)},
        control={"name": "gpt-4"},
    )
    assert Ledger.from_json(ledger.to_json()) == ledger


def test_cost_cohorts_bet_once_per_closed_minute() -> None:
    def answers(cost: float) -> dict[str, Answer]:
        own = {"rollout": "r", "arm": "candidate", "version": "v1", "instance": "a"}
        n = [(10.0 * t, 10.0 * t) for t in range(120)]
        return {
            REQUESTS: Answer((Series({**own, "outcome": "ok"}, n),), 1200.0),
            COST: Answer((Series(own, [(at, cost * v) for at, v in n]),), 1200.0),
        }

    dear, cheap = fold(NEW, answers(0.02), WANTED), fold(NEW, answers(0.004), WANTED)
    for ledger, value in ((dear, 0.5), (cheap, 0.1)):
        purse = Purse.begun(drift=True)
        for _ in range(18):
            purse = purse.bet_on_mean(value, 0.25)
        assert ledger.cost_bets[limit_key(0.01)].in_play == pytest.approx(purse.in_play)
    won, lost = (float(one.cost_bets[limit_key(0.01)].log_wealth) for one in (dear, cheap))
    assert won > 2 > lost
    assert fold(dear, answers(0.02), WANTED).cost_bets == dear.cost_bets


def test_each_cost_limit_has_its_own_bets_from_when_it_is_asked_for() -> None:
    def answers(first: int, last: int) -> dict[str, Answer]:
        own = {"rollout": "r", "arm": "candidate", "version": "v1", "instance": "a"}
        n = [(10.0 * t, 10.0 * t) for t in range(first, last)]
        return {
            REQUESTS: Answer((Series({**own, "outcome": "ok"}, n),), n[-1][0]),
            COST: Answer((Series(own, [(at, 0.008 * v) for at, v in n]),), n[-1][0]),
        }

    one, both = replace(WANTED, cost_limits=(0.005,)), replace(WANTED, cost_limits=(0.005, 0.01))
    early = fold(NEW, answers(0, 60), one)
    late = fold(early, answers(60, 120), both)
    alone = fold(fold(NEW, answers(0, 60), one), answers(60, 120), one)
    assert late.cost_bets["0.005"] == alone.cost_bets["0.005"] != early.cost_bets["0.005"]
    assert late.cohorts == alone.cohorts, "minutes are shared"
    purse = Purse.begun(drift=True)
    for _ in range(10):
        purse = bet_on_cost(purse, 0.008, 0.01)
    assert late.cost_bets["0.01"].in_play == pytest.approx(purse.in_play)
    assert set(fold(late, {}, one).cost_bets) == {"0.005"}


def test_bets_on_costs_begin_an_epoch_with_each_mark_but_the_first() -> None:
    purse = Purse.begun(drift=True)
    ledger = replace(NEW, cost_bets={"0.01": purse}).with_mark(0.0, 0)
    assert ledger.cost_bets["0.01"] == purse
    marked = ledger.with_mark(10.0).after_incident(20.0).with_mark(30.0, 1)
    assert marked.cost_bets["0.01"] == purse.next_epoch().next_epoch().next_epoch()
    assert marked.with_mark(35.0, 1).cost_bets == marked.cost_bets, "a mark that is set again"
    assert marked.restarted_watch(40.0, 1).cost_bets == {}
    assert Ledger.from_json(marked.to_json()) == marked
