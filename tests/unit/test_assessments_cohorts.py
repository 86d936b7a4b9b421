"""Matured labels in a real database: any order of events, two replicas, crashes. The heart of the evidence."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sqlalchemy import func, inspect, select

from cutover_server.assessments import cohorts
from cutover_server.assessments.cohorts import count_feedback, mature
from cutover_server.assessments.database import Database
from cutover_server.assessments.intake import take
from cutover_server.assessments.labelling import UnknownAssessment, give_feedback, validate
from cutover_server.assessments.schema import label_totals, maturities, metadata, satisfaction_totals
from fakes.assessments_service import START, TASK, MovableClock, answer, record, surveyor
from fakes.postgres_server import new_database

TASKS = {TASK.name: TASK}
DEADLINE = 100.0
IDS = ("r0", "r1", "r2")

RECORDS = {
    "r0": record("r0"),
    "r1": record("r1", chosen="candidate", control=None, candidate=answer("leak", version="mine")),
    "r2": record(
        "r2", control={"version": "gpt-4", "error": "timeout"}, outcome="error", received=START + 30
    ),
}
SHADOWS = {identity: answer("leak", "high", version="mine") for identity in IDS}


@pytest.fixture(scope="module")
def migrated() -> Iterator[Path]:
    """An empty, migrated SQLite file to copy."""
    folder = Path(tempfile.mkdtemp())

    async def make() -> None:
        database = Database(f"sqlite:///{folder}/empty.db")
        await database.migrate()
        await database.close()

    asyncio.run(make())
    yield folder / "empty.db"
    shutil.rmtree(folder)


@contextmanager
def copy_of(migrated: Path) -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(migrated, f"{folder}/copy.db")
        yield f"sqlite:///{folder}/copy.db"


async def totals(database: Database) -> dict[tuple[str, ...], int]:
    async with database.read() as connection:
        rows = await connection.execute(select(label_totals))
        return {(row.arm, row.version, row.field, row.result): row.n for row in rows}


async def matured(database: Database) -> int:
    async with database.read() as connection:
        return int((await connection.execute(select(func.count()).select_from(maturities))).scalar() or 0)


# ------------------------------------------------------------------ any order of events

STEP = st.tuples(st.just("step"), st.sampled_from([0.0, 20.0, 55.0]))
TICK = st.tuples(st.just("tick"), st.none())
RECORD = st.tuples(st.just("record"), st.sampled_from(IDS))
SHADOW = st.tuples(st.just("shadow"), st.sampled_from(IDS))
BOTH = st.tuples(st.just("both"), st.sampled_from(IDS))
LABEL = st.tuples(
    st.just("label"),
    st.tuples(
        st.sampled_from(IDS),
        st.sampled_from(["ann", "bob"]),
        st.sampled_from(["crack", "leak"]),
        st.sampled_from(["low", "high"]),
    ),
)
EVENTS = st.one_of(
    st.lists(st.one_of(STEP, TICK, RECORD, SHADOW, BOTH, LABEL), max_size=30),
    # Labels and mirrored answers dense around the deadline, with few turns of the loop between.
    st.lists(st.one_of(STEP, LABEL, LABEL, SHADOW, TICK), min_size=10, max_size=30).map(
        lambda events: [*(("record", identity) for identity in IDS), *events]
    ),
)


def expected(events: list[tuple[str, Any]]) -> Counter[tuple[str, ...]]:
    """The totals by a plain reading of the rules: no ticks, no database, one request after the other."""
    now, stored, mirrored = START, {}, {}
    labels: dict[str, list[tuple[float, str, dict[str, str]]]] = {identity: [] for identity in IDS}
    for kind, value in [*events, *(("record", identity) for identity in IDS)]:
        now += 0.001
        if kind == "step":
            now += value
        if kind in ("record", "both"):
            stored.setdefault(value, now)
        if kind in ("shadow", "both"):
            mirrored.setdefault(value, now)
        if kind == "label" and value[0] in stored:
            labels[value[0]].append((now, value[1], {"damageType": value[2], "severity": value[3]}))
    counts: Counter[tuple[str, ...]] = Counter()
    for identity in IDS:
        sent = RECORDS[identity]
        due = (START + 30 if identity == "r2" else START) + DEADLINE
        last: dict[str, dict[str, str]] = {}
        for at, labeller, said in labels[identity]:
            if at <= due:
                if last.get(labeller) != said:
                    last.pop(labeller, None)  # a change is newest; saying the same again is not
                last[labeller] = said
        truth = {}
        for field in ("damageType", "severity"):
            said_by_all = [said[field] for said in last.values()]
            if said_by_all:
                truth[field] = said_by_all[-1]  # at most two labellers: agreement or the latest
        arms: list[tuple[str, Any]] = []
        if sent["chosen"] == "control":
            arms.append(("control", sent["control"]))
            if identity in mirrored and mirrored[identity] <= max(due, stored[identity]):
                arms.append(("candidate", SHADOWS[identity]))
        else:
            arms.append(("candidate", sent["candidate"]))
        for arm, given_ in arms:
            right = {f: given_.get("answer", {}).get(f) == v for f, v in truth.items()}
            if truth:
                right["overall"] = all(right.values())
            for field in ("damageType", "severity", "overall"):
                result = ("right" if right[field] else "wrong") if field in right else "missing"
                counts[arm, given_["version"], field, result] += 1
    return counts


async def play(database: Database, events: list[tuple[str, Any]]) -> None:
    clock = MovableClock()
    for kind, value in [*events, *(("record", identity) for identity in IDS)]:
        clock.now += 0.001
        if kind == "step":
            clock.now += value
        elif kind == "tick":
            await mature(database, TASKS, clock.now)
        elif kind == "label":
            identity, labeller, damage, severity = value
            labels = {"damageType": damage, "severity": severity}
            try:
                await validate(database, clock, identity, TASK, surveyor(labeller), labels, "")
            except UnknownAssessment:
                continue
        else:
            records = [RECORDS[value]] if kind in ("record", "both") else []
            shadows = [{"id": value, "candidate": SHADOWS[value]}] if kind in ("shadow", "both") else []
            intake = await take(database, {"records": records, "shadows": shadows}, clock.now)
            assert intake.refused == []
    clock.now += 1000
    while await mature(database, TASKS, clock.now, limit=2):
        pass
    settled = await totals(database)
    # Whatever comes now is too late.
    await validate(
        database, clock, "r0", TASK, surveyor("cat"), {"damageType": "none", "severity": "low"}, ""
    )
    late = [{"id": identity, "candidate": SHADOWS[identity]} for identity in IDS]
    await take(database, {"records": list(RECORDS.values()), "shadows": late}, clock.now)
    clock.now += 1000
    assert await mature(database, TASKS, clock.now) == 0
    assert await totals(database) == settled


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(events=EVENTS)
@example(events=[("record", "r0"), ("step", 130.0), ("shadow", "r0")])  # too late, though before its turn
@example(events=[("step", 130.0), ("both", "r0"), ("shadow", "r1")])  # late as a whole: counted
@example(events=[("shadow", "r0"), ("step", 130.0), ("tick", None), ("record", "r0")])
@example(
    events=[
        ("record", "r0"),
        ("label", ("r0", "ann", "leak", "low")),
        ("step", 130.0),
        ("label", ("r0", "ann", "crack", "low")),
        ("label", ("r0", "bob", "crack", "low")),
    ]
)
def test_any_order_and_duplication_of_events_gives_the_totals_of_the_rules(
    migrated: Path, events: list[tuple[str, Any]]
) -> None:
    async def run(url: str) -> None:
        database = Database(url)
        try:
            await play(database, events)
            assert await totals(database) == expected(events)
            assert await matured(database) == len(IDS)
        finally:
            await database.close()

    with copy_of(migrated) as url:
        asyncio.run(run(url))


# ------------------------------------------------------------------ replicas and crashes


@contextmanager
def two_replicas() -> Iterator[tuple[Database, Database]]:
    _, url = new_database()
    yield Database(url), Database(url)


async def fill(database: Database, n: int, now: float = START) -> None:
    for start in range(0, n, 500):
        batch = [
            record(f"n{number:05}", stratum=f"s{number % 7}", control=answer(version=f"v{number % 5}"))
            for number in range(start, min(n, start + 500))
        ]
        assert not (await take(database, {"records": batch}, now)).refused


async def test_replicas_migrating_at_once_end_with_the_newest_tables() -> None:
    with two_replicas() as (one, two):
        await asyncio.gather(one.migrate(), two.migrate(), Database(str_url(one)).migrate())
        async with one.read() as connection:
            difference = await connection.run_sync(
                lambda c: compare_metadata(MigrationContext.configure(c), metadata)
            )
            assert [entry for entry in difference if "alembic_version" not in str(entry)] == []
        await one.close()
        await two.close()


def str_url(database: Database) -> str:
    return database.engine.url.render_as_string(hide_password=False)


async def test_sqlite_processes_migrating_at_once_end_with_the_newest_tables(tmp_path: Path) -> None:
    databases = [Database(f"sqlite:///{tmp_path}/a.db") for _ in range(3)]
    await asyncio.gather(*(database.migrate() for database in databases))
    async with databases[0].read() as connection:
        names = await connection.run_sync(lambda c: inspect(c).get_table_names())
    assert set(metadata.tables) < set(names)
    for database in databases:
        await database.close()


async def test_two_replicas_racing_count_every_request_once() -> None:
    with two_replicas() as (one, two):
        await one.migrate()
        await fill(one, 1500)
        now = START + 101

        async def drain(database: Database) -> int:
            done, idle = 0, 0
            while idle < 3:
                found = await mature(database, TASKS, now, limit=40)
                done += found
                idle = idle + 1 if not found else 0
            return done

        async def thumbs(database: Database) -> int:
            return await count_feedback(database)

        for client in ("a", "b"):
            for number in range(30):
                await give_feedback(one, now, f"n{number:05}", surveyor(client), "up", "")
        counted = await asyncio.gather(drain(one), drain(two), drain(one), drain(two))
        assert sum(counted) == 1500
        assert sum(n > 0 for n in counted) > 1
        assert sum((await totals(one)).values()) <= sum(counted) * 3
        async with one.read() as connection:
            assert (await connection.execute(select(func.sum(label_totals.c.n)))).scalar() == 3 * 1500
        assert sum(await asyncio.gather(thumbs(one), thumbs(two), thumbs(one))) == 60
        async with one.read() as connection:
            assert (await connection.execute(select(func.sum(satisfaction_totals.c.n)))).scalar() == 60
        await one.close()
        await two.close()


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
async def test_crash_between_count_and_mark_changes_nothing(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = Database(new_database()[1] if kind == "postgresql" else f"sqlite:///{tmp_path}/a.db")
    await database.migrate()
    await fill(database, 10)

    class Crash(BaseException):
        pass

    def crash(*_: object) -> None:
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(cohorts, "update", crash)  # the totals are added, the rows not yet marked
        with pytest.raises(Crash):
            await mature(database, TASKS, START + 101)
    assert (await totals(database), await matured(database)) == ({}, 0)
    assert await mature(database, TASKS, START + 101) == 10
    async with database.read() as connection:
        assert (await connection.execute(select(func.sum(label_totals.c.n)))).scalar() == 30
    await database.close()


async def test_labels_racing_maturity_are_in_the_totals_or_are_corrections() -> None:
    """On PostgreSQL, with the clock passing the deadline while labels come in."""
    with two_replicas() as (one, two):
        await one.migrate()
        await fill(one, 60)
        clock = MovableClock(START + 99.99)

        async def label(number: int) -> bool:
            clock.now += 0.0005
            labels = {"damageType": "crack", "severity": "low"}
            return (await validate(one, clock, f"n{number:05}", TASK, surveyor("ann"), labels, "")).late

        async def watch() -> None:
            for _ in range(12):
                clock.now += 0.0005
                await mature(two, TASKS, clock.now, limit=20)

        done = await asyncio.gather(*(label(n) for n in range(60)), watch())
        in_time = sum(late is False for late in done)
        while await mature(two, TASKS, START + 500):
            pass
        right: Counter[str] = Counter()
        for (_, _, field, result), n in (await totals(one)).items():
            if field == "overall":
                right[result] += n
        async with one.read() as connection:
            rows = await connection.execute(
                select(label_totals.c.result, func.sum(label_totals.c.n))
                .where(label_totals.c.field == "overall")
                .group_by(label_totals.c.result)
            )
            by_result = {row[0]: int(row[1]) for row in rows}
        assert by_result.get("right", 0) == in_time
        assert by_result.get("missing", 0) == 60 - in_time
        await one.close()
        await two.close()


async def test_row_of_an_unknown_task_waits_for_its_task(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/a.db")
    await database.migrate()
    await take(database, {"records": [record("other", task="roofs"), record("known")]}, START)
    assert await mature(database, TASKS, START + 101) == 1
    roofs = TASK.model_copy(update={"name": "roofs"})
    assert await mature(database, {**TASKS, "roofs": roofs}, START + 101) == 1
    await database.close()
