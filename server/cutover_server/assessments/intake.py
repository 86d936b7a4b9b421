"""Takes records and mirrored answers from the gateways into the database.

Idempotent by id. Each entry stands alone: an unfit one is refused with its reason while its neighbours are kept. When
the call returns, what it accepted is committed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from pydantic import ValidationError
from sqlalchemy import delete, or_, select, update
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, StatementError
from sqlalchemy.ext.asyncio import AsyncConnection

from cutover.records import AssessmentRecord, ShadowUpdate
from cutover_server.assessments.database import Database, sqlstate
from cutover_server.assessments.schema import (
    assessment_pictures,
    assessments,
    erasures,
    shadows,
    traffic_totals,
)
from cutover_server.assessments.traffic import TrafficKey, traffic_of

MAX_ENTRIES = 5000
MAX_DEADLINE_SECONDS = 366 * 86400.0
_AT_FAULT = ("22", "23")
"""SQLSTATE classes of values that will never fit: data exception, integrity constraint violation."""


@dataclass
class Intake:
    """What became of a batch, by id."""

    accepted: list[str] = field(default_factory=list)
    duplicate: list[str] = field(default_factory=list)
    refused: list[dict[str, str]] = field(default_factory=list)

    def refuse(self, entry: Mapping[str, Any] | object, reason: str) -> None:
        identity = entry.get("id", "") if isinstance(entry, Mapping) else ""
        self.refused.append({"id": str(identity)[:128], "reason": reason})

    def to_wire(self) -> dict[str, Any]:
        return {"accepted": self.accepted, "duplicate": self.duplicate, "refused": self.refused}


async def take(database: Database, body: Mapping[str, Any], now: float) -> Intake:
    """Stores a batch `{"records": [...], "shadows": [...]}`; raises ValueError when it is no such object."""
    records, mirrored = body.get("records", []), body.get("shadows", [])
    if not isinstance(records, list) or not isinstance(mirrored, list):
        raise ValueError("records and shadows must be lists")
    if len(records) + len(mirrored) > MAX_ENTRIES:
        raise ValueError(f"{len(records) + len(mirrored)} entries; send at most {MAX_ENTRIES} at once")
    intake = Intake()
    rows = {row["id"]: (record, row) for record, row in _read_records(records, now, intake)}
    updates = {row["request_id"]: row for row in _read_shadows(mirrored, now, intake)}
    if not rows and not updates:
        return intake
    try:
        async with database.write() as connection:
            stored = await _store(database, connection, list(rows.values()), list(updates.values()))
    except StatementError as error:
        if not _unfit(error):
            raise
        stored = await _store_one_by_one(database, list(rows.values()), list(updates.values()), intake)
    refused = {entry["id"] for entry in intake.refused}
    for identity in (*rows, *updates):
        if identity not in refused:
            (intake.accepted if identity in stored else intake.duplicate).append(identity)
    return intake


async def _store_one_by_one(
    database: Database,
    rows: Sequence[tuple[AssessmentRecord, dict[str, Any]]],
    updates: Sequence[dict[str, Any]],
    intake: Intake,
) -> set[str]:
    """The slow way, when the database itself refuses something in the batch."""
    stored: set[str] = set()
    for some_rows, some_updates in [([row], []) for row in rows] + [([], [one]) for one in updates]:
        try:
            async with database.write() as connection:
                stored |= await _store(database, connection, some_rows, some_updates)
        except StatementError as error:
            if not _unfit(error):
                raise
            identity = some_rows[0][1]["id"] if some_rows else some_updates[0]["request_id"]
            intake.refuse(
                {"id": identity}, f"the database refuses it: {type(error.__cause__ or error).__name__}"
            )
    return stored


async def _store(
    database: Database,
    connection: AsyncConnection,
    rows: Sequence[tuple[AssessmentRecord, dict[str, Any]]],
    updates: Sequence[dict[str, Any]],
) -> set[str]:
    """Inserts what is new and returns the ids of it. Rows in the order of their ids: no two batches lock crosswise."""
    stored: set[str] = set()
    if rows:
        await database.hold_apart(connection, (row["assessment_id"] for _, row in rows), alone=False)
        gone = await _erased(connection, {row["assessment_id"] for _, row in rows})
        ordered = [
            _emptied(row) if row["received_at"] <= gone.get(row["assessment_id"], -math.inf) else row
            for _, row in sorted(rows, key=lambda pair: pair[1]["id"])
        ]
        insert = database.insert(assessments).on_conflict_do_nothing().returning(assessments.c.id)
        stored |= set((await connection.execute(insert, ordered)).scalars())
        emptied = [row["id"] for row in ordered if row["erased"]]
        await connection.execute(delete(shadows).where(shadows.c.request_id.in_(emptied)))
        await _after_insert(
            database, connection, [record for record, row in rows if row["id"] in stored], ordered
        )
        await _draw(connection, sorted(stored))
    if updates:
        erased = await _lock(connection, [row["request_id"] for row in updates])
        insert = database.insert(shadows).on_conflict_do_nothing().returning(shadows.c.request_id)
        ordered = sorted(updates, key=lambda row: str(row["request_id"]))
        if kept := [row for row in ordered if row["request_id"] not in erased]:
            new = set((await connection.execute(insert, kept)).scalars())
            stored |= new
            await _draw(connection, sorted(new))
    return stored


async def _draw(connection: AsyncConnection, ids: Sequence[str]) -> None:
    """Puts requests whose draw came with their mirrored answer into the pool, whichever of the two came last.

    An answer that is too late to be judged does not draw: nobody would have had the time to label it.
    """
    a, s = assessments.c, shadows.c
    drawn = (
        select(a.id, a.due_at, s.sampled, s.stratum, s.sampling_probability)
        .join_from(assessments, shadows, s.request_id == a.id)
        .where(a.id.in_(ids), s.pooled.is_(True), a.sampled.is_(False), a.erased.is_(False))
        .where(or_(s.arrived_at <= a.due_at, s.arrived_at <= a.stored_at))
    )
    for row in (await connection.execute(drawn)).all():
        await connection.execute(
            update(assessments)
            .where(a.id == row.id)
            .values(
                sampled=row.sampled,
                stratum=row.stratum,
                sampling_probability=row.sampling_probability,
                open_due_at=row.due_at,
            )
        )


async def _after_insert(
    database: Database,
    connection: AsyncConnection,
    new: Iterable[AssessmentRecord],
    ordered: Iterable[Mapping[str, Any]],
) -> None:
    kept = {row["id"]: row for row in ordered}
    traffic: dict[TrafficKey, tuple[float, ...]] = {}
    links: list[dict[str, Any]] = []
    for record in new:
        row = kept[record.id]
        key, increments = traffic_of(record, row["received_at"])
        before = traffic.get(key, (0, 0.0, 0.0))
        traffic[key] = tuple(a + b for a, b in zip(before, increments, strict=True))
        if not row["erased"]:
            links += [
                {"request_id": record.id, "position": position, "sha256": digest.lower()}
                for position, digest in enumerate(record.pictures)
            ]
    await database.add(connection, traffic_totals, traffic)
    if links:
        await connection.execute(database.insert(assessment_pictures).on_conflict_do_nothing(), links)


async def _lock(connection: AsyncConnection, ids: Iterable[str]) -> set[str]:
    """Holds the rows so that maturity comes either wholly before a mirrored answer or wholly after it.

    Returns the ids whose answers were deleted.
    """
    rows = select(assessments.c.id, assessments.c.erased).where(assessments.c.id.in_(sorted(ids)))
    found = await connection.execute(rows.order_by(assessments.c.id).with_for_update())
    return {row.id for row in found if row.erased}


async def _erased(connection: AsyncConnection, assessment_ids: set[str]) -> dict[str, float]:
    found = await connection.execute(
        select(erasures.c.assessment_id, erasures.c.erased_at).where(
            erasures.c.assessment_id.in_(sorted(assessment_ids))
        )
    )
    return {row.assessment_id: row.erased_at for row in found}


def _unfit(error: StatementError) -> bool:
    """Whether the values are at fault. Of anything else, a missing table or a full disk, no record may be the victim."""
    if not isinstance(error, DBAPIError):
        return True
    state = sqlstate(error)
    if state is None:
        return isinstance(error, DataError | IntegrityError)
    return state[:2] in _AT_FAULT


def _emptied(row: dict[str, Any]) -> dict[str, Any]:
    """A record of an assessment that was deleted while the record was on its way: its id stays, nothing else does."""
    nothing = dict.fromkeys(("messages", "control", "candidate", "fallback", "open_due_at"))
    return row | nothing | {"erased": True}


def _read_records(
    entries: Iterable[Any], now: float, intake: Intake
) -> Iterable[tuple[AssessmentRecord, dict[str, Any]]]:
    for entry in entries:
        try:
            record = AssessmentRecord.model_validate(entry)
            yield record, _row(record, now)
        except ValidationError as error:
            intake.refuse(entry, _first(error))
        except ValueError as error:
            intake.refuse(entry, str(error))


def _read_shadows(entries: Iterable[Any], now: float, intake: Intake) -> Iterable[dict[str, Any]]:
    for entry in entries:
        try:
            mirrored = ShadowUpdate.model_validate(entry)
            _check_text(id=mirrored.id, version=mirrored.candidate.version, stratum=mirrored.stratum)
            candidate = mirrored.candidate.to_wire()
            _check_finite(candidate, "candidate")
            chance = mirrored.sampling_probability
            if not 0 <= chance <= 1 or (mirrored.sampled and not chance):
                raise ValueError(
                    f"samplingProbability is {chance}; it must lie in 0..1, above 0 when sampled"
                )
            if mirrored.sampled and not mirrored.pooled:
                raise ValueError("sampled: only a request of the pool can be drawn; set pooled")
            yield {
                "request_id": mirrored.id,
                "candidate": candidate,
                "arrived_at": now,
                "kept": mirrored.kept,
                "pooled": mirrored.pooled,
                "sampled": mirrored.sampled,
                "stratum": mirrored.stratum,
                "sampling_probability": mirrored.sampling_probability,
            }
        except ValidationError as error:
            intake.refuse(entry, _first(error))
        except ValueError as error:
            intake.refuse(entry, str(error))


def _row(record: AssessmentRecord, now: float) -> dict[str, Any]:
    received_at = _instant(record.received_at)
    deadline = record.label_deadline_seconds
    if not 0 < deadline <= MAX_DEADLINE_SECONDS:
        raise ValueError(
            f"labelDeadlineSeconds is {deadline}; it must be above 0 and at most {MAX_DEADLINE_SECONDS:g}"
        )
    if not 0 <= record.sampling_probability <= 1:
        raise ValueError(f"samplingProbability is {record.sampling_probability}; it must lie in 0..1")
    for digest in record.pictures:
        if len(digest) != 64 or not set(digest.lower()) <= set("0123456789abcdef"):
            raise ValueError(f"pictures: {digest[:80]!r} is not a SHA-256 in hex")
    answers = {
        name: answer.to_wire() if answer is not None else None
        for name, answer in (
            ("control", record.control),
            ("candidate", record.candidate),
            ("fallback", record.fallback),
        )
    }
    texts = {
        name: getattr(record, name)
        for name in ("id", "assessment_id", "group_id", "gateway", "task", "rollout", "served_version")
    } | {"fallback_reason": record.fallback_reason, "stratum": record.stratum}
    _check_text(**texts, **{f"{name}.version": (a or {}).get("version", "") for name, a in answers.items()})
    _check_finite({**answers, "messages": record.messages}, "record")
    due_at = received_at + deadline
    return {
        **texts,
        "received_at": received_at,
        "stored_at": now,
        "due_at": due_at,
        "open_due_at": due_at if record.sampled else None,
        "chosen": record.chosen,
        "outcome": record.outcome,
        "messages": record.messages,
        **answers,
        "sampled": record.sampled,
        "sampling_probability": record.sampling_probability,
        "labellers": record.labellers,
        "truth": None,
        "validated": False,
        "erased": False,
    }


def _instant(text: str) -> float:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise ValueError(
            f"receivedAt is {text[:40]!r}; give RFC 3339, such as 2026-01-31T12:00:00Z"
        ) from error
    if moment.tzinfo is None:
        raise ValueError(f"receivedAt is {text[:40]!r}; it has no time zone, append Z for UTC")
    return moment.astimezone(UTC).timestamp()


def _check_text(**values: str) -> None:
    for name, value in values.items():
        if "\x00" in value or any("\ud800" <= character <= "\udfff" for character in value):
            raise ValueError(
                f"{name} holds a character that no database keeps (U+0000 or half a surrogate pair)"
            )


def _check_finite(value: Any, where: str) -> None:
    """NaN and infinity are no JSON; one of them inside an answer would make the row unreadable."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where} holds {value}, which is not a JSON number")
    if isinstance(value, Mapping):
        for key, inner in value.items():
            _check_finite(inner, f"{where}.{key}")
    elif isinstance(value, list):
        for inner in value:
            _check_finite(inner, where)


def _first(error: ValidationError) -> str:
    problem = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(str(part) for part in problem['loc'])}: {problem['msg']}"
