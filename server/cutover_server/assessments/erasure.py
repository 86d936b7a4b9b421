"""Deletes what belongs to an assessment: answers, messages, labels, comments and pictures. People's homes are on them.

The counts a request has given to the totals stay, and a sampled request that still waits is counted first, with the
labels there are. A tombstone remains, so that a record still under way cannot bring the answers back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import delete, select, update

from cutover.task import Task
from cutover_server.assessments.cohorts import count_assessment
from cutover_server.assessments.database import Database
from cutover_server.assessments.pictures import PictureStore, purge
from cutover_server.assessments.schema import (
    assessment_pictures,
    assessments,
    erasures,
    feedback,
    labels,
    maturities,
    pictures,
    shadows,
)


@dataclass(frozen=True, slots=True)
class Erased:
    requests: int
    pictures: int
    """Pictures that no other assessment names; they leave the store with this call."""


async def erase(
    database: Database, store: PictureStore, tasks: Mapping[str, Task], assessment_id: str, now: float
) -> Erased:
    """Idempotent. When it returns, nothing of the assessment is left; when it raises, call it again."""
    async with database.write() as connection:
        await database.hold_apart(connection, [assessment_id], alone=True)
        tombstone = database.insert(erasures).values(assessment_id=assessment_id, erased_at=now)
        await connection.execute(
            tombstone.on_conflict_do_update(index_elements=["assessment_id"], set_={"erased_at": now})
        )
        rows = select(assessments.c.id).where(
            assessments.c.assessment_id == assessment_id, assessments.c.erased.is_(False)
        )
        ids = list((await connection.execute(rows.order_by(assessments.c.id).with_for_update())).scalars())
        await count_assessment(database, connection, tasks, ids, now)
        named = select(assessment_pictures.c.sha256).where(assessment_pictures.c.request_id.in_(ids))
        digests = sorted(set((await connection.execute(named)).scalars()))
        for table in (assessment_pictures, labels, shadows, feedback, maturities):
            await connection.execute(delete(table).where(table.c.request_id.in_(ids)))
        await connection.execute(
            update(assessments)
            .where(assessments.c.id.in_(ids))
            .values(
                messages=None,
                control=None,
                candidate=None,
                fallback=None,
                truth=None,
                validated=False,
                open_due_at=None,
                erased=True,
            )
        )
        others = select(assessment_pictures.c.sha256).where(assessment_pictures.c.sha256.in_(digests))
        shared = set((await connection.execute(others)).scalars())
        alone = [digest for digest in digests if digest not in shared]
        await connection.execute(update(pictures).where(pictures.c.sha256.in_(alone)).values(last_put_at=0.0))
    # From here on a failure leaves pictures that no record names and that are due: the next purge takes them.
    await purge(database, store, now, retention_days=float("inf"), only=alone)
    return Erased(len(ids), len(alone))
