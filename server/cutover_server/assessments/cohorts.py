"""Matures label cohorts: each sampled request is counted once, when its deadline has passed, whoever runs this.

One transaction locks the due rows, adds their results to the totals and marks them. Replicas skip each other's locks;
the key of `maturities` makes a second count impossible even so; a crash before the commit leaves no trace.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Table, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from cutover.contract import STRATUM_ALL
from cutover.task import Task
from cutover_server.assessments.database import Database
from cutover_server.assessments.maturity import (
    Label,
    Request,
    Result,
    confidence_results,
    counts_as_shadow,
    double_results,
    judged_answers,
    pair_results,
    prevailing,
    results,
)
from cutover_server.assessments.schema import (
    assessments,
    confidence_totals,
    double_totals,
    feedback,
    label_totals,
    labels,
    maturities,
    pair_totals,
    pool_totals,
    satisfaction_totals,
    shadows,
    weight_totals,
)
from cutover_server.assessments.traffic import chosen_version

BATCH_ROWS = 500

_NEEDED = (
    assessments.c.id,
    assessments.c.task,
    assessments.c.rollout,
    assessments.c.sampled,
    assessments.c.stratum,
    assessments.c.sampling_probability,
    assessments.c.labellers,
    assessments.c.chosen,
    assessments.c.outcome,
    assessments.c.control,
    assessments.c.candidate,
    assessments.c.due_at,
    assessments.c.stored_at,
)


async def mature(database: Database, tasks: Mapping[str, Task], now: float, limit: int = BATCH_ROWS) -> int:
    """Counts up to `limit` due requests; returns how many. Rows of a task nobody configured wait for it."""
    due = (
        select(*_NEEDED)
        .where(assessments.c.open_due_at < now, assessments.c.task.in_(sorted(tasks)))
        .order_by(assessments.c.open_due_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    async with database.write() as connection:
        rows = (await connection.execute(due)).all()
        await count(database, connection, tasks, rows, now)
    return len(rows)


async def count_assessment(
    database: Database, connection: AsyncConnection, tasks: Mapping[str, Task], ids: Sequence[str], now: float
) -> None:
    """Counts these requests at once, with the labels there are: they are about to be deleted."""
    waiting = select(*_NEEDED).where(assessments.c.id.in_(ids), assessments.c.open_due_at.is_not(None))
    rows = (await connection.execute(waiting.order_by(assessments.c.id).with_for_update())).all()
    await count(database, connection, tasks, [row for row in rows if row.task in tasks], now)


async def count(
    database: Database,
    connection: AsyncConnection,
    tasks: Mapping[str, Task],
    rows: Sequence[Any],
    now: float,
) -> None:
    if not rows:
        return
    ids = [row.id for row in rows]
    given = await labels_of(connection, ids)
    mirrored = {
        row.request_id: row
        for row in await connection.execute(select(shadows).where(shadows.c.request_id.in_(ids)))
    }
    totals: Counter[tuple[str, ...]] = Counter()
    pool: Counter[tuple[str, ...]] = Counter()
    weights: defaultdict[tuple[str, ...], float] = defaultdict(float)
    pairs: Counter[tuple[str, ...]] = Counter()
    doubles: Counter[tuple[str, ...]] = Counter()
    sure: Counter[tuple[str, ...]] = Counter()
    marks: list[dict[str, Any]] = []
    for row in rows:
        shadow = mirrored.get(row.id)
        in_time = shadow is not None and counts_as_shadow(shadow.arrived_at, row.due_at, row.stored_at)
        request = Request(
            chosen=row.chosen,
            outcome=row.outcome,
            control=row.control,
            candidate=row.candidate,
            shadow=shadow.candidate if shadow is not None and in_time else None,
            shadow_kept=shadow.kept if shadow is not None and in_time else True,
        )
        task, truth = tasks[row.task], prevailing(given[row.id], by=row.due_at)
        mine = {judged.version for judged in judged_answers(request) if judged.arm == "candidate"}
        pool.update((row.rollout, version, row.stratum) for version in mine)
        if not row.sampled:
            marks.append({"request_id": row.id, "matured_at": now, "results": []})
            continue
        found = results(task, request, truth)
        totals.update((row.rollout, r.arm, r.version, r.field, row.stratum, r.result) for r in found)
        for version in mine:
            # Of stratum all, only what was drawn is in the pool.
            drawn = row.sampling_probability if row.stratum != STRATUM_ALL else 1.0
            weights[row.rollout, version, row.stratum] += 1.0 / drawn
        pairs.update((row.rollout, *pair) for pair in pair_results(task, request, truth))
        sure.update((row.rollout, *one) for one in confidence_results(task, request, truth))
        if row.labellers > 1:
            doubles.update((row.rollout, *one) for one in double_results(task, given[row.id], row.due_at))
        marks.append({"request_id": row.id, "matured_at": now, "results": [_compact(r) for r in found]})
    await connection.execute(insert(maturities), marks)
    counted: tuple[tuple[Table, Mapping[tuple[str, ...], float]], ...] = (
        (label_totals, totals),
        (pool_totals, pool),
        (weight_totals, weights),
        (pair_totals, pairs),
        (confidence_totals, sure),
        (double_totals, doubles),
    )
    for table, increments in counted:
        await database.add(connection, table, {key: (n,) for key, n in increments.items()})
    await connection.execute(update(assessments).where(assessments.c.id.in_(ids)).values(open_due_at=None))


async def labels_of(connection: AsyncConnection, ids: Iterable[str]) -> defaultdict[str, list[Label]]:
    """The labels of these requests in the order they were given."""
    found: defaultdict[str, list[Label]] = defaultdict(list)
    rows = select(labels).where(labels.c.request_id.in_(list(ids))).order_by(labels.c.seq)
    for row in await connection.execute(rows):
        found[row.request_id].append(Label(row.labeller, row.labels, row.labelled_at))
    return found


async def count_feedback(database: Database, limit: int = BATCH_ROWS) -> int:
    """Adds feedback whose request has arrived to the satisfaction totals, once; returns how many."""
    new = (
        select(
            feedback.c.request_id,
            feedback.c.client,
            feedback.c.score,
            assessments.c.rollout,
            assessments.c.chosen,
            assessments.c.served_version,
            assessments.c.control,
            assessments.c.candidate,
        )
        .join_from(feedback, assessments, assessments.c.id == feedback.c.request_id)
        .where(feedback.c.counted.is_(False))
        .order_by(feedback.c.request_id, feedback.c.client)
        .limit(limit)
        .with_for_update(skip_locked=True, of=feedback)
    )
    async with database.write() as connection:
        rows = (await connection.execute(new)).all()
        totals = Counter(
            (
                row.rollout,
                row.chosen,
                chosen_version(row.chosen, row.control, row.candidate, row.served_version),
                row.score,
            )
            for row in rows
        )
        await database.add(connection, satisfaction_totals, {key: (n,) for key, n in totals.items()})
        for row in rows:
            await connection.execute(
                update(feedback)
                .where(feedback.c.request_id == row.request_id, feedback.c.client == row.client)
                .values(counted=True)
            )
    return len(rows)


def _compact(result: Result) -> list[str]:
    return [result.arm, result.version, result.field, result.result]
