"""The trail of what people said: who, when, against which schema, and what became of it.

An entry is written in the transaction of the label or thumb it tells of, repeated and late ones too; it holds no label
and no comment, so it stays when an assessment is deleted.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from cutover.task import Task
from cutover_server.assessments.database import Database
from cutover_server.assessments.schema import audit

Action = Literal["label", "feedback"]
Effect = Literal["kept", "changed", "conflicting", "repeated", "late", "early", "refused"]
"""What became of it; see docs/gateway.md."""
_MAX_ROWS = 1000


@dataclass(frozen=True, slots=True)
class Actor:
    who: str
    """The person, or the program that speaks for it."""
    role: str
    via: str
    """How it was known: bearer, session or proxy."""


@dataclass(frozen=True, slots=True)
class Event:
    action: Action
    effect: Effect
    task: str = ""
    schema_version: str = ""
    """Of the task in force here; empty where nothing was checked against it."""


def schema_version(task: Task) -> str:
    """Twelve hexadecimal digits that change with what an answer or a label may be."""
    told = json.dumps([task.answer_schema, task.scored_fields], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(told.encode()).hexdigest()[:12]


async def enter(connection: AsyncConnection, request_id: str, at: float, actor: Actor, event: Event) -> None:
    await connection.execute(
        insert(audit).values(
            request_id=request_id,
            at=at,
            who=actor.who,
            role=actor.role,
            via=actor.via,
            action=event.action,
            effect=event.effect,
            task=event.task,
            schema_version=event.schema_version,
        )
    )


async def trail(database: Database, request_id: str) -> list[dict[str, Any]]:
    """What happened to a request, oldest first."""
    rows = select(audit).where(audit.c.request_id == request_id).order_by(audit.c.seq).limit(_MAX_ROWS)
    async with database.read() as connection:
        found = (await connection.execute(rows)).all()
    return [
        {
            "id": row.request_id,
            "at": row.at,
            "who": row.who,
            "role": row.role,
            "via": row.via,
            "action": row.action,
            "effect": row.effect,
            "task": row.task,
            "schemaVersion": row.schema_version,
        }
        for row in found
    ]
