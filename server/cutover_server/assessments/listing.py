"""What a surveyor or an administrator sees of the stored requests, newest first, page by page.

Blind rows tell the answer that was given but not who gave it.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, Row, Select, and_, false, func, or_, select, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection

from cutover_server.assessments.database import Database
from cutover_server.assessments.schema import assessment_pictures, assessments, labels, shadows

STATUSES = ("toLabel", "unlabelled", "all")
MAX_ROWS = 200


@dataclass(frozen=True, slots=True)
class Page:
    rows: list[dict[str, Any]]
    next_cursor: str
    """Empty on the last page."""


def iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


async def list_assessments(
    database: Database, *, status: str, limit: int, cursor: str, now: float, blind: bool, reader: str = ""
) -> Page:
    """Raises ValueError for an unknown status or a cursor that is none.

    `reader` is the name of who asks: a request drawn for a second labeller is offered again, to somebody else than the
    first, who does not see what the first said. To a reader without a name it is not offered.
    """
    if status not in STATUSES:
        raise ValueError(f"status is {status!r}; use one of {list(STATUSES)}")
    query = select(assessments).where(assessments.c.erased.is_(False))
    if status == "toLabel":
        query = query.where(
            # The column that holds nothing but waiting rows: its index is as small as the queue.
            assessments.c.open_due_at >= now,
            assessments.c.sampled.is_(True),
            or_(assessments.c.validated.is_(False), and_(_wants_another(), _never_by(reader))),
        )
    elif status == "unlabelled":
        query = query.where(assessments.c.validated.is_(False))
    if cursor:
        query = query.where(tuple_(assessments.c.received_at, assessments.c.id) < _read_cursor(cursor))
    query = query.order_by(assessments.c.received_at.desc(), assessments.c.id.desc()).limit(limit + 1)
    async with database.read() as connection:
        shown = await _shown(connection, query, blind, _Reader(reader, now))
    more = len(shown) > limit
    rows = [row for _, row in shown[:limit]]
    last = shown[limit - 1][0] if more else None
    return Page(rows, _write_cursor(last.received_at, last.id) if last is not None else "")


async def one_assessment(
    database: Database, identity: str, *, blind: bool, now: float = 0.0, reader: str = ""
) -> dict[str, Any] | None:
    """Blind, the labels of others are hidden as in the list."""
    async with database.read() as connection:
        shown = await _shown(
            connection,
            select(assessments).where(assessments.c.id == identity, assessments.c.erased.is_(False)),
            blind,
            _Reader(reader, now) if blind else None,
        )
        if not shown:
            return None
        stored, row = shown[0]
        return row | {"messages": stored.messages}


async def queue_length(database: Database, now: float) -> int:
    """How many sampled requests still wait for a label."""
    waiting = (
        select(func.count())
        .select_from(assessments)
        .where(
            assessments.c.open_due_at > now,
            assessments.c.sampled.is_(True),
            or_(assessments.c.validated.is_(False), _wants_another()),
        )
    )
    async with database.read() as connection:
        return int((await connection.execute(waiting)).scalar() or 0)


@dataclass(frozen=True, slots=True)
class _Reader:
    """Who asks, and when."""

    name: str
    now: float

    def may_not_see_labels(self, row: Row[Any], history: Sequence[dict[str, Any]]) -> bool:
        """Whether somebody is still wanted who labels this apart from those before."""
        people = {entry["labeller"] for entry in history}
        waiting = row.open_due_at is not None and row.open_due_at >= self.now
        return waiting and row.sampled and len(people) < row.labellers and self.name not in people


def _wants_another() -> ColumnElement[bool]:
    """Drawn for more people than have labelled it."""
    people = (
        select(func.count(labels.c.labeller.distinct()))
        .where(labels.c.request_id == assessments.c.id)
        .scalar_subquery()
    )
    return and_(assessments.c.labellers > 1, people < assessments.c.labellers)


def _never_by(reader: str) -> ColumnElement[bool]:
    if not reader:
        return false()
    mine = select(labels.c.seq).where(labels.c.request_id == assessments.c.id, labels.c.labeller == reader)
    return ~mine.exists()


async def _shown(
    connection: AsyncConnection, query: Select[Any], blind: bool, reader: _Reader | None
) -> list[tuple[Row[Any], dict[str, Any]]]:
    rows = (await connection.execute(query)).all()
    ids = [row.id for row in rows]
    images = await pictures_of(connection, ids)
    history: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for label in await connection.execute(
        select(labels).where(labels.c.request_id.in_(ids)).order_by(labels.c.seq)
    ):
        history[label.request_id].append(
            {
                "labeller": label.labeller,
                "labels": label.labels,
                "comment": label.comment,
                "labelledAt": iso(label.labelled_at),
            }
        )
    mirrored = {
        row.request_id: row.candidate
        for row in await connection.execute(select(shadows).where(shadows.c.request_id.in_(ids)))
    }
    shown = []
    for row in rows:
        wire = _wire(row, images[row.id], history[row.id], mirrored.get(row.id), blind)
        if reader is not None and reader.may_not_see_labels(row, history[row.id]):
            wire |= {"labels": [], "truth": None, "validated": False}
        shown.append((row, wire))
    return shown


def _wire(
    row: Row[Any], images: Sequence[str], history: list[dict[str, Any]], mirrored: Any, blind: bool
) -> dict[str, Any]:
    shown = {
        "id": row.id,
        "assessmentId": row.assessment_id,
        "receivedAt": iso(row.received_at),
        "labelBy": iso(row.due_at) if row.sampled else None,
        "task": row.task,
        "pictures": [f"/api/pictures/{digest}" for digest in images],
        "answer": given_answer(row),
        "sampled": row.sampled,
        "validated": row.validated,
        "truth": row.truth,
        "labels": history,
    }
    if blind:
        return shown
    return shown | {
        "chosen": row.chosen,
        "outcome": row.outcome,
        "servedVersion": row.served_version,
        "rollout": row.rollout,
        "fallbackReason": row.fallback_reason,
        "control": row.control,
        "candidate": row.candidate or mirrored,
        "mirrored": mirrored is not None,
        "fallback": row.fallback,
    }


def given_answer(row: Row[Any]) -> dict[str, Any] | None:
    """The valid answer the caller got: the fallback's when it stood in, else the chosen arm's."""
    chosen = row.control if row.chosen == "control" else row.candidate
    for answer in (row.fallback, chosen):
        if answer and answer.get("answer") is not None:
            valid: dict[str, Any] = answer["answer"]
            return valid
    return None


async def pictures_of(connection: AsyncConnection, ids: Sequence[str]) -> defaultdict[str, list[str]]:
    found: defaultdict[str, list[str]] = defaultdict(list)
    query = (
        select(assessment_pictures)
        .where(assessment_pictures.c.request_id.in_(ids))
        .order_by(assessment_pictures.c.position)
    )
    for link in await connection.execute(query):
        found[link.request_id].append(link.sha256)
    return found


def _write_cursor(received_at: float, identity: str) -> str:
    return base64.urlsafe_b64encode(json.dumps([received_at, identity]).encode()).decode().rstrip("=")


def _read_cursor(cursor: str) -> tuple[float, str]:
    try:
        received_at, identity = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        return float(received_at), str(identity)
    except (ValueError, TypeError, binascii.Error) as error:
        raise ValueError("cursor is not one that an earlier page gave") from error
