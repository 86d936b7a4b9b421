"""Labels in the ledger: the same sums and the same hours however the samples are cut, across replicas and versions."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cutover.contract import (
    CONFIDENCE,
    LABEL_CONFIDENCE,
    LABEL_DOUBLES,
    LABEL_PAIRS,
    LABEL_POOL,
    LABEL_WEIGHT,
    LABELS_MATURED,
    REQUESTS,
    ROUTE_GENERATION,
)
from cutover_operator.evidence.folding import Wanted, fold
from cutover_operator.evidence.ledger import HOURS_KEPT, LATE_SECONDS, Ledger, LedgerError
from cutover_operator.evidence.reading import FROM_DATABASE, Wish, asked, digest
from cutover_operator.evidence.samples import Answer, Series, Unavailable

WANTED = Wanted("r", "v1", hourly_fields=("overall",), sure_fields=("overall",))
NEW = Ledger(uid="u", version="v1", started_at=0.0)
STEP = 300.0
"""Seconds between two scrapes."""
OWN = {"rollout": "r", "version": "v1"}
KEYS: tuple[tuple[str, dict[str, str]], ...] = (
    *(
        (LABELS_MATURED, OWN | {"arm": arm, "field": field, "stratum": stratum, "result": result})
        for arm in ("candidate", "control")
        for field in ("overall", "severity")
        for stratum in ("all", "agree", "disagree")
        for result in ("right", "wrong", "missing")
    ),
    *((LABEL_POOL, OWN | {"stratum": stratum}) for stratum in ("agree", "disagree")),
    *((LABEL_WEIGHT, OWN | {"stratum": stratum}) for stratum in ("agree", "disagree")),
    *((LABEL_PAIRS, OWN | {"field": "overall", "result": r}) for r in ("both", "candidate", "missing")),
    *((LABEL_DOUBLES, {"rollout": "r", "field": "overall", "result": r}) for r in ("same", "different")),
    *((LABEL_CONFIDENCE, OWN | {"field": "overall", "bin": b, "result": "right"}) for b in ("none", "0.9")),
)


def exported(seed: int, scrapes: int = 60) -> dict[str, list[Series]]:
    """Two replicas that export one database, one of them up to two scrapes behind."""
    rng = random.Random(seed)
    found: dict[str, list[Series]] = {}
    for metric, labels in KEYS:
        truth, total = [], 0
        for _ in range(scrapes):
            total += rng.randrange(4)
            truth.append(total)
        for replica in ("a", "b"):
            behind = [max(0, i - (rng.randrange(3) if replica == "b" else 0)) for i in range(scrapes)]
            samples = [(STEP * i, float(truth[b])) for i, b in enumerate(behind)]
            found.setdefault(metric, []).append(Series(labels | {"instance": replica}, samples))
    return found


def window(series: dict[str, list[Series]], start: float, end: float) -> dict[str, Answer]:
    return {
        metric: Answer(
            tuple(Series(s.labels, [x for x in s.samples if start <= x[0] <= end]) for s in rows), end
        )
        for metric, rows in series.items()
    }


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.lists(st.integers(1, 20), min_size=1, max_size=8))
def test_hours_and_sums_do_not_depend_on_how_the_samples_are_cut(seed: int, widths: list[int]) -> None:
    series = exported(seed)
    whole = fold(NEW, window(series, 0, 1e9), WANTED)
    ledger, at = NEW, 0.0
    for width in [*widths, 100]:
        ledger = fold(ledger, window(series, max(0.0, at - 1000), at + STEP * width), WANTED)
        ledger = Ledger.from_json(ledger.stamped(at).to_json())  # an operator restart at every checkpoint
        at += STEP * width
    assert ledger.totals == whole.totals
    assert ledger.hours == whole.hours
    assert ledger.closed_hours() == whole.closed_hours() != []
    again = fold(ledger, window(series, 0, 1e9), WANTED)
    assert (again.totals, again.hours) == (ledger.totals, ledger.hours)
    for key, by_hour in (
        ("drawn/candidate/overall/agree/right", "labels/overall/agree/right"),
        ("labels/candidate/overall/right", "labels/overall/all/right"),
        ("pool/disagree", "pool/disagree"),
        ("pairs/overall/both", "pairs/overall/both"),
    ):
        assert whole.total(key) == sum(grown.get(by_hour, 0.0) for grown in whole.hours.values()) > 0
    assert not any("severity" in key for grown in whole.hours.values() for key in grown)


def test_an_hour_is_closed_when_it_is_over_and_late_samples_had_their_time() -> None:
    def at(seconds: float, value: float) -> dict[str, Answer]:
        labels = OWN | {"arm": "candidate", "field": "overall", "stratum": "all", "result": "right"}
        return {LABELS_MATURED: Answer((Series(labels, [(seconds, value)]),), seconds)}

    ledger = fold(NEW, at(3590.0, 4), WANTED)
    assert fold(ledger, at(3600.0 + LATE_SECONDS - 1, 9), WANTED).closed_hours() == []
    ledger = fold(ledger, at(3600.0 + LATE_SECONDS, 9), WANTED)
    assert ledger.closed_hours() == [(0, {"labels/overall/all/right": 4.0})]
    late = fold(ledger, at(3599.0, 11), WANTED)
    assert late.closed_hours() == ledger.closed_hours(), "a bet that was made stays as it was made"
    assert late.hours[1] == {"labels/overall/all/right": 7.0}


def test_gateway_counts_by_confidence_are_sums_over_pods() -> None:
    rows = [
        Series(OWN | {"gateway": "g", "bin": "0.9", "instance": pod}, [(10.0, n)])
        for pod, n in (("a", 3.0), ("b", 4.0))
    ]
    assert fold(NEW, {CONFIDENCE: Answer(tuple(rows), 10.0)}, WANTED).total("confidence/0.9") == 7


def test_bets_asked_for_in_mid_rollout_begin_with_what_comes_then() -> None:
    series = exported(5)
    plain = Wanted("r", "v1")
    before = fold(NEW, window({LABELS_MATURED: series[LABELS_MATURED]}, 0, 6000), plain)
    assert before.hours == {}
    ledger = fold(before, window(series, 0, 1e9), WANTED)
    whole = fold(NEW, window(series, 0, 1e9), WANTED)
    later = [
        fold(NEW, window(series, 0, end), WANTED).total("drawn/candidate/overall/agree/right")
        for end in (6000, 1e9)
    ]
    by_hour = sum(grown.get("labels/overall/agree/right", 0.0) for grown in ledger.hours.values())
    assert by_hour == later[1] - later[0]
    assert ledger.total("pool/agree") == 0, (
        "a pool without its labels would make undrawn requests of drawn ones"
    )
    assert ledger.totals["labels/control/overall/right"] == whole.totals["labels/control/overall/right"]
    more = {
        LABEL_POOL: [Series(OWN | {"stratum": "agree", "instance": "a"}, [(99_999.0, 1e6)])],
    }
    grown = fold(ledger, window(more, 0, 1e9), WANTED).total("pool/agree")
    top = max(s.samples[-1][1] for s in series[LABEL_POOL] if s.label("stratum") == "agree")
    assert grown == 1e6 - top


def test_a_new_week_and_a_fresh_start_forget_the_hours_before() -> None:
    ledger = fold(NEW, window(exported(3), 0, 1e9), WANTED)
    assert len(ledger.hours) > 3
    assert min(ledger.restarted_watch(2 * 3600.0 + 5, 4).hours) == 2
    assert ledger.afresh(9.0, "v1").hours == {}
    many = replace(ledger, hours={h: {"pool/all": 1.0} for h in range(HOURS_KEPT + 7)})
    assert sorted(many.stamped(0.0).hours) == list(range(7, HOURS_KEPT + 7))


def test_six_weeks_of_hours_fit_into_the_ledger() -> None:
    row = {key: 12.0 for key in (f"labels/{f}/{s}/{r}" for f in "abc" for s in "def" for r in "ghi")}
    ledger = replace(NEW, hours={500_000 + h: row for h in range(24 * 42)})
    text = ledger.to_json()
    assert len(text) < 200_000
    assert Ledger.from_json(text) == ledger


# ---------------------------------------------------------------- reading
def answers(now: float = 1000.0) -> dict[str, Answer | Unavailable]:
    own = {"gateway": "assessor", "instance": "a"}
    gateway = Series(own, [(now - 15, 1.0), (now, 1.0)])
    requests = Series(own | OWN | {"arm": "candidate", "outcome": "ok"}, [(now - 15, 0.0), (now, 5.0)])
    found: dict[str, Answer | Unavailable] = {
        ROUTE_GENERATION: Answer((gateway,), now),
        REQUESTS: Answer((requests,), now),
    }
    for metric, labels in KEYS:
        before = found.get(metric)
        assert not isinstance(before, Unavailable)
        rows = before.series if before is not None else ()
        found[metric] = Answer((*rows, Series(labels | {"instance": "x"}, [(now, 2.0)])), now)
    return found


WISH = Wish(url="http://p", gateway="assessor", wanted=WANTED, doubles=True)


def test_only_what_the_rollout_needs_is_asked_for() -> None:
    assert asked(WISH).metrics >= {*FROM_DATABASE, CONFIDENCE}
    plain = Wish(url="http://p", gateway="assessor", wanted=Wanted("r", "v1"))
    assert asked(plain).metrics & {*FROM_DATABASE, CONFIDENCE} == {LABELS_MATURED}
    counted = digest(answers(), plain, NEW).current
    assert {key.split("/")[0] for key in counted.totals} == {"requests", "labels", "drawn"}, (
        "not what a neighbour asked for"
    )


@pytest.mark.parametrize("metric", FROM_DATABASE)
def test_one_snapshot_of_the_database_or_none_of_it(metric: str) -> None:
    assert digest(answers(), WISH, NEW).current.total("pairs/overall/both") == 2
    away = answers() | {metric: Unavailable("HttpError", "answered 500")}
    found = digest(away, WISH, NEW)
    assert (found.metrics, found.labels) == (None, away[metric])
    assert not any(
        key.split("/")[0] in ("labels", "drawn", "pairs", "pool", "weight", "doubles", "sure")
        for key in found.current.totals
    )
    assert found.current.total("requests/candidate/ok") == 5


# ---------------------------------------------------------------- versions
V1: dict[str, Any] = {
    "uid": "u",
    "version": "v1",
    "started_at": 100.0,
    "files": "f",
    "epoch": 1,
    "revision": 7,
    "written_at": 400.0,
    "control": {"name": "gpt-4"},
    "series": {"max:0a1b2c3d4e5f": [390.0, 12.0]},
    "totals": {"labels/candidate/overall/right": 12.0, "requests/candidate/ok": 80.0},
    "marks": [{"k": 1, "at": 100.0, "step": 0, "totals": {}}],
    "bettor": {"cohorts": 3, "mean": 0.1, "squares": 0.0, "log_wealth": -0.2},
    "cost_limit": 0.01,
    "cohorts": {"6": [0.4, 40.0]},
    "fresh_from": 1,
    "incidents": 0,
    "resets": 1,
    "ended": 0,
    "refused": 0,
    "schema_version": 1,
}


def test_a_ledger_of_the_version_before_goes_on_in_mid_rollout() -> None:
    ledger = Ledger.from_json(json.dumps(V1))
    assert (ledger.revision, ledger.total("labels/candidate/overall/right")) == (7, 12.0)
    assert (ledger.cohorts, ledger.hours) == ({"6": (0.4, 40.0)}, {})
    # What one bettor had won is half of what plays on.
    won = float(ledger.cost_bets["0.01"].log_wealth)
    assert won == pytest.approx(math.log(0.5 * math.exp(-0.2) + 0.5))
    unlimited = Ledger.from_json(json.dumps({**V1, "schema_version": 2, "cost_limit": None}))
    assert unlimited.cost_bets == {}
    written = json.loads(ledger.stamped(500.0).to_json())
    assert (written["schema_version"], written["revision"]) == (3, 8)
    assert Ledger.from_json(json.dumps(written)) == ledger.stamped(500.0)
    grown = fold(ledger, window(exported(1), 0, 1e9), WANTED)
    assert grown.total("requests/candidate/ok") == 80.0
    assert grown.total("pool/agree") == 0, "its pool began before the hours did"


@pytest.mark.parametrize(
    "hours",
    [
        {"columns": ["a"], "rows": {"3": [1, 2]}},
        {"columns": ["a"], "rows": {"x": [1]}},
        {"columns": ["a"], "rows": {"3": ["much"]}},
        {"rows": {}},
        [1],
    ],
)
def test_hours_that_make_no_sense_are_refused(hours: Any) -> None:
    with pytest.raises(LedgerError):
        Ledger.from_json(json.dumps(V1 | {"schema_version": 2, "hours": hours}))
