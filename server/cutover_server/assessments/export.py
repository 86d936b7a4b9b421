"""Training rows out of stored assessments: one JSON line each, streamed, newest first.

A row is a conversation: system, user with text and picture URLs, and the assistant's answer as people would have it. Of
an assessment that was asked several times there is one row, the best: validated before not, then the newest. A row
whose pictures the retention has taken is no training row and is left out.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from sqlalchemy import Row, and_, or_, select, tuple_

from cutover.task import Task
from cutover_server.assessments.database import Database
from cutover_server.assessments.listing import pictures_of
from cutover_server.assessments.reply import sound_text
from cutover_server.assessments.schema import assessments, labels, shadows

PAGE_ROWS = 200


async def export_rows(
    database: Database,
    tasks: Mapping[str, Task],
    base_url: str,
    *,
    limit: int | None,
    since: float | None,
    validated_only: bool,
) -> AsyncIterator[str]:
    """JSON lines. Reads page by page, so that a slow reader holds no transaction open."""
    left, before = limit, None
    while left is None or left > 0:
        page = PAGE_ROWS if left is None else min(PAGE_ROWS, left)
        rows, documents = await _page(database, tasks, base_url, page, before, since, validated_only)
        for document in documents:
            yield json.dumps(document, separators=(",", ":")) + "\n"
        if len(rows) < page:
            return
        before = (rows[-1].received_at, rows[-1].id)
        left = None if left is None else left - len(documents)


async def _page(
    database: Database,
    tasks: Mapping[str, Task],
    base_url: str,
    size: int,
    before: tuple[float, str] | None,
    since: float | None,
    validated_only: bool,
) -> tuple[Sequence[Row[Any]], list[dict[str, Any]]]:
    better = assessments.alias("better")
    a, b = assessments.c, better.c
    beaten = (
        select(b.id)
        .where(b.assessment_id == a.assessment_id, b.erased.is_(False), b.task.in_(sorted(tasks)))
        .where(
            or_(
                and_(b.validated, ~a.validated),
                and_(b.validated == a.validated, tuple_(b.received_at, b.id) > tuple_(a.received_at, a.id)),
            )
        )
        .exists()
    )
    query = select(assessments).where(a.erased.is_(False), a.task.in_(sorted(tasks)), ~beaten)
    if validated_only:
        query = query.where(a.validated.is_(True))
    if since is not None:
        query = query.where(a.received_at >= since)
    if before is not None:
        query = query.where(tuple_(a.received_at, a.id) < before)
    async with database.read() as connection:
        rows = (await connection.execute(query.order_by(a.received_at.desc(), a.id.desc()).limit(size))).all()
        ids = [row.id for row in rows]
        images = await pictures_of(connection, ids)
        mirrored = {
            row.request_id: row.candidate
            for row in await connection.execute(select(shadows).where(shadows.c.request_id.in_(ids)))
        }
        history: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
        for label in await connection.execute(
            select(labels).where(labels.c.request_id.in_(ids)).order_by(labels.c.seq)
        ):
            history[label.request_id].append({"labeller": label.labeller, "labels": label.labels})
    documents = (
        training_row(tasks[row.task], row, images[row.id], mirrored.get(row.id), history[row.id], base_url)
        for row in rows
    )
    return rows, [document for document in documents if document is not None]


def training_row(
    task: Task,
    row: Row[Any],
    images: Sequence[str],
    mirrored: Mapping[str, Any] | None,
    history: list[dict[str, Any]],
    base_url: str,
) -> dict[str, Any] | None:
    """The row of one request; none without any answer to learn, or without the pictures its messages name."""
    control, candidate = _valid(row.control), _valid(row.candidate) or _valid(mirrored)
    # The fields nobody labels stay as a model said them; the labelled ones are the person's.
    answer = {**(control or candidate or _valid(row.fallback) or {}), **(row.truth or {})}
    kept = set(images)
    messages = _conversation(task, row.messages or [], kept, base_url)
    if not answer or messages is None:
        return None
    return {
        "messages": [
            *messages,
            {"role": "assistant", "content": sound_text(json.dumps(answer, ensure_ascii=False))},
        ],
        "id": row.id,
        "group_id": row.group_id or row.assessment_id,
        "validated": row.validated,
        "control_answer": control,
        "candidate_answer": candidate,
        "labels": history,
    }


def _conversation(
    task: Task, messages: Sequence[Mapping[str, Any]], kept: set[str], base_url: str
) -> list[dict[str, Any]] | None:
    system = next((m for m in messages if m.get("role") in ("system", "developer")), None)
    turns = [m for m in messages if m.get("role") == "user"]
    if not turns:
        return None
    told: list[dict[str, Any]] = [
        {"role": "system", "content": system.get("content") if system else task.system_prompt}
    ]
    for turn in turns:
        content = turn.get("content")
        if isinstance(content, str):
            told.append({"role": "user", "content": [{"type": "text", "text": content}]})
            continue
        parts: list[Any] = []
        for part in content if isinstance(content, list) else []:
            url = _picture_url(part)
            if url is not None and url.startswith("sha256:"):
                digest = url.removeprefix("sha256:").lower()
                if digest not in kept:
                    return None
                part = {"type": "image_url", "image_url": {"url": f"{base_url}/api/pictures/{digest}"}}
            parts.append(part)
        told.append({"role": "user", "content": parts})
    return told


def _picture_url(part: Any) -> str | None:
    if not isinstance(part, Mapping) or part.get("type") != "image_url":
        return None
    image = part.get("image_url")
    url = image.get("url") if isinstance(image, Mapping) else image
    return url if isinstance(url, str) else None


def _valid(answer: Any) -> dict[str, Any] | None:
    return (
        answer["answer"] if isinstance(answer, Mapping) and isinstance(answer.get("answer"), dict) else None
    )
