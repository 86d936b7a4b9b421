"""What a label says about both models at once: pairs, confidence, second labellers, draws by stratum."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Table, select

from cutover import contract
from cutover.contract import CONFIDENCE_EDGES, confidence_bin
from cutover_server.assessments.accuracy import count_accuracy
from cutover_server.assessments.cohorts import mature
from cutover_server.assessments.database import Database
from cutover_server.assessments.intake import take
from cutover_server.assessments.labelling import validate
from cutover_server.assessments.listing import list_assessments, queue_length
from cutover_server.assessments.maturity import Label, double_results
from cutover_server.assessments.schema import (
    assessments,
    confidence_totals,
    double_totals,
    label_totals,
    pair_totals,
    pool_totals,
    weight_totals,
)
from fakes.assessments_service import (
    START,
    TASK,
    MovableClock,
    answer,
    new_settings,
    record,
    running,
    surveyor,
)
from fakes.postgres_server import new_database

TASKS = {TASK.name: TASK}


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    opened = Database(f"sqlite:///{tmp_path}/a.db")
    await opened.migrate()
    yield opened
    await opened.close()


async def totals(database: Database, table: Table) -> dict[tuple[str, ...], float]:
    async with database.read() as connection:
        return {tuple(row)[1:-1]: row.n for row in await connection.execute(select(table))}


async def label(database: Database, identity: str, labeller: str, damage: str, severity: str = "low") -> None:
    labels = {"damageType": damage, "severity": severity}
    await validate(database, MovableClock(START + 1), identity, TASK, surveyor(labeller), labels, "")


def shadow(identity: str, damage: str = "crack", **more: Any) -> dict[str, Any]:
    return {"id": identity, "candidate": answer(damage, version="mine", confidence=0.97)} | more


async def test_a_mirrored_request_says_who_of_both_was_right(database: Database) -> None:
    records = [record(f"r{n}") for n in range(5)]  # the control says crack, low
    mirrored = [shadow("r0"), shadow("r1", "leak"), shadow("r2", "leak"), shadow("r3", "leak"), shadow("r4")]
    await take(database, {"records": records, "shadows": mirrored}, START)
    for identity, truth in (("r0", "crack"), ("r1", "crack"), ("r2", "leak"), ("r3", "none")):
        await label(database, identity, "ann", truth)
    assert await mature(database, TASKS, START + 101) == 5
    assert await totals(database, pair_totals) == {
        ("mine", field, result): n
        for field, counts in {
            "damageType": {"both": 1, "control": 1, "candidate": 1, "neither": 1, "missing": 1},
            "severity": {"both": 4, "missing": 1},
            "overall": {"both": 1, "control": 1, "candidate": 1, "neither": 1, "missing": 1},
        }.items()
        for result, n in counts.items()
    }
    assert await totals(database, weight_totals) == {("mine", "all"): 5.0}
    assert await totals(database, pool_totals) == {("mine", "all"): 5}
    assert await mature(database, TASKS, START + 500) == 0


async def test_an_answer_nobody_would_have_been_given_is_no_merit_and_no_fault(database: Database) -> None:
    """Below the threshold in force: out of the kept answers' accuracy and of the pairs, in the choice of a threshold."""
    served = record(
        "r1", chosen="candidate", control=None, candidate=answer("leak", version="mine", confidence=0.2)
    )
    deferred = served | {"id": "r2", "assessmentId": "a-r2", "outcome": "deferred"}
    invalid = served | {
        "id": "r3",
        "assessmentId": "a-r3",
        "candidate": {"version": "mine", "error": "invalid"},
    }
    await take(
        database,
        {"records": [record("r0"), served, deferred, invalid], "shadows": [shadow("r0", "leak", kept=False)]},
        START,
    )
    for identity in ("r0", "r1", "r2", "r3"):
        await label(database, identity, "ann", "leak")
    await mature(database, TASKS, START + 101)
    assert await totals(database, pair_totals) == {}
    labels = await totals(database, label_totals)
    assert {key[3:]: n for key, n in labels.items() if key[0] == "candidate" and key[2] == "damageType"} == {
        ("all", "right"): 1,
        ("all", "wrong"): 1,
    }
    sure = await totals(database, confidence_totals)
    assert {key[2:]: n for key, n in sure.items() if key[1] == "damageType"} == {
        ("0.97", "right"): 1,
        ("0", "right"): 2,
    }


@pytest.mark.parametrize("order", list(permutations(("record", "shadow", "again"))))
async def test_a_draw_by_stratum_holds_in_any_order_of_delivery(
    database: Database, order: tuple[str, ...]
) -> None:
    drawn = shadow("r0", "leak", pooled=True, sampled=True, stratum="disagree", samplingProbability=0.4)
    batches = {
        "record": {"records": [record("r0", sampled=False, samplingProbability=0.1)]},
        "shadow": {"shadows": [drawn]},
        "again": {"records": [record("r0", sampled=False, samplingProbability=0.1)], "shadows": [drawn]},
    }
    for name in order:
        assert (await take(database, batches[name], START)).refused == []
    await label(database, "r0", "ann", "leak")
    assert await mature(database, TASKS, START + 101) == 1
    assert await totals(database, weight_totals) == {("mine", "disagree"): 2.5}
    assert await totals(database, pool_totals) == {("mine", "disagree"): 1}
    async with database.read() as connection:
        row = (await connection.execute(select(assessments))).one()
    assert (row.sampled, row.stratum, row.sampling_probability) == (True, "disagree", 0.4)


async def test_postgresql_draws_and_counts_alike() -> None:
    database = Database(new_database()[1])
    await database.migrate()
    drawn = shadow("r0", "leak", pooled=True, sampled=True, stratum="disagree", samplingProbability=0.4)
    await take(database, {"shadows": [drawn]}, START)
    undrawn = shadow("r1", pooled=True, stratum="agree", samplingProbability=0.25)
    records = [record(f"r{n}", sampled=False, labellers=2) for n in range(2)]
    await take(database, {"records": records, "shadows": [undrawn]}, START)
    for labeller in ("ann", "bob"):
        offered = await list_assessments(
            database, status="toLabel", limit=9, cursor="", now=START + 1, blind=True, reader=labeller
        )
        assert [row["id"] for row in offered.rows] == ["r0"]
        await label(database, "r0", labeller, "leak")
    assert await queue_length(database, START + 1) == 0
    assert await mature(database, TASKS, START + 101) == 2
    assert await totals(database, pool_totals) == {("mine", "disagree"): 1, ("mine", "agree"): 1}
    assert await totals(database, weight_totals) == {("mine", "disagree"): 2.5}
    assert (await totals(database, double_totals))["overall", "same"] == 1
    assert (await totals(database, pair_totals))["mine", "damageType", "candidate"] == 1
    await database.close()


async def test_a_draw_that_comes_too_late_is_none(database: Database) -> None:
    drawn = [
        shadow(f"r{n}", pooled=True, sampled=True, stratum="agree", samplingProbability=0.1) for n in range(2)
    ]
    await take(database, {"records": [record("r0", sampled=False), record("r1", sampled=False)]}, START)
    await take(database, {"shadows": drawn}, START + 101)
    assert await mature(database, TASKS, START + 300) == 0
    late = [record("r2", sampled=False)]
    both = {
        "records": late,
        "shadows": [shadow("r2", pooled=True, sampled=True, stratum="agree", samplingProbability=0.1)],
    }
    await take(database, both, START + 400)
    assert await mature(database, TASKS, START + 500) == 1, (
        "delivered late as a whole: in the sample, unlabelled"
    )
    assert (await totals(database, pair_totals))["mine", "overall", "missing"] == 1


async def test_a_draw_without_a_probability_is_refused(database: Database) -> None:
    intake = await take(
        database, {"shadows": [shadow("r0", pooled=True, sampled=True, stratum="agree")]}, START
    )
    assert "samplingProbability" in intake.refused[0]["reason"]
    unpooled = shadow("r0", sampled=True, samplingProbability=0.5)
    assert "pooled" in (await take(database, {"shadows": [unpooled]}, START)).refused[0]["reason"]


async def test_what_was_not_drawn_is_counted_in_the_pool_and_asked_of_nobody(database: Database) -> None:
    await take(
        database,
        {
            "records": [
                record("r0", sampled=False),
                record("r1", sampled=False),
                record("r2", sampled=False),
            ],
            "shadows": [
                shadow("r0", pooled=True, stratum="agree", samplingProbability=0.25),
                shadow("r1", pooled=True, sampled=True, stratum="agree", samplingProbability=0.25),
                shadow("r2"),
            ],
        },
        START,
    )
    page = await list_assessments(database, status="toLabel", limit=9, cursor="", now=START + 1, blind=True)
    assert [row["id"] for row in page.rows] == ["r1"]
    assert await queue_length(database, START + 1) == 1
    await label(database, "r1", "ann", "crack")
    assert await mature(database, TASKS, START + 101) == 2
    assert await totals(database, pool_totals) == {("mine", "agree"): 2}
    assert await totals(database, weight_totals) == {("mine", "agree"): 4.0}
    labels = await totals(database, label_totals)
    assert {key[3:]: n for key, n in labels.items() if key[0] == "candidate" and key[2] == "overall"} == {
        ("agree", "right"): 1
    }
    assert await mature(database, TASKS, START + 999) == 0


async def test_what_was_drawn_more_often_is_no_fair_sample_for_people_to_read(database: Database) -> None:
    drawn = shadow("r1", "leak", pooled=True, sampled=True, stratum="disagree", samplingProbability=1.0)
    await take(database, {"records": [record("r0"), record("r1", sampled=False)], "shadows": [drawn]}, START)
    for identity in ("r0", "r1"):
        await label(database, identity, "ann", "crack")
    counts = await count_accuracy(database, TASKS)
    assert {(arm, sampled) for arm, _, sampled in counts.tallies} == {
        ("control", True),
        ("control", False),
        ("candidate", False),
    }


# ------------------------------------------------------------------ second labellers
def said(labeller: str, damage: str, at: float = 1.0, **more: str) -> Label:
    return Label(labeller, {"damageType": damage, "severity": "low"} | more, at)


def test_two_people_agree_or_differ_field_by_field() -> None:
    assert double_results(TASK, [said("ann", "leak")], 9.0) == []
    assert double_results(TASK, [said("ann", "leak"), said("ann", "crack")], 9.0) == []
    assert double_results(TASK, [said("ann", "leak"), said("bob", "leak", 99.0)], 9.0) == [], "too late"
    found = double_results(
        TASK, [said("ann", "crack"), said("ann", "leak"), said("bob", "leak", severity="high")], 9.0
    )
    assert found == [("damageType", "same"), ("severity", "different"), ("overall", "different")]
    third = [said("ann", "leak"), said("bob", "leak"), said("cat", "crack")]
    assert double_results(TASK, third, 9.0) == [(f, "same") for f in ("damageType", "severity", "overall")]
    part = [said("ann", "leak"), Label("bob", {"damageType": "crack"}, 1.0)]
    assert double_results(TASK, part, 9.0) == [("damageType", "different")]


async def test_only_requests_drawn_for_it_measure_the_reviewers(database: Database) -> None:
    await take(database, {"records": [record("r0", labellers=2), record("r1")]}, START)
    for identity in ("r0", "r1"):
        await label(database, identity, "ann", "leak")
        await label(database, identity, "bob", "crack")
    await mature(database, TASKS, START + 101)
    assert await totals(database, double_totals) == {
        ("damageType", "different"): 1,
        ("severity", "same"): 1,
        ("overall", "different"): 1,
    }


# ------------------------------------------------------------------ metrics
def test_an_edge_belongs_to_the_bin_a_threshold_there_keeps() -> None:
    assert [confidence_bin(c) for c in (None, 0.0, 0.29, 0.3, 0.95, 0.9501, 0.999, 1.0)] == [
        "none", "0", "0", "0.3", "0.95", "0.95", "0.999", "0.999",
    ]  # fmt: skip
    assert {confidence_bin(edge) for edge in CONFIDENCE_EDGES} == set(contract.CONFIDENCE_BINS[2:])


async def test_every_total_is_exported_with_all_its_results(tmp_path: Path) -> None:
    clock = MovableClock()
    async with running(new_settings(tmp_path), clock) as service:
        await service.deliver(record("r0", labellers=2), shadows=[shadow("r0", "leak")])
        for labeller in ("ann", "bob"):
            await service.label("r0", labeller, damageType="leak", severity="low")
        clock.now = START + 101
        key = (
            contract.LABEL_PAIRS
            + '{field="overall",result="candidate",rollout="0a1b2c3d-4e5f",version="mine"}'
        )
        metrics = await service.until(lambda found: found.get(key, 0) == 1)
        counted = Counter(name.split("{")[0] for name in metrics)
        assert counted[contract.LABEL_PAIRS] == 3 * len(contract.PAIR_RESULTS)
        assert counted[contract.LABEL_DOUBLES] == 3 * len(contract.DOUBLE_RESULTS)
        assert counted[contract.LABEL_CONFIDENCE] == 3 * len(contract.LABEL_RESULTS)
        assert counted[contract.LABEL_WEIGHT] == counted[contract.LABEL_POOL] == 1
        await asyncio.sleep(0)
