"""What people say: labels of surveyors, with their history, and the users' thumbs.

A label repeated changes nothing; a changed one is a new line of the history, and each person's last word counts. Of
people who differ the majority prevails, and the newest label where they are as many. A label after the deadline never
moves the totals: it is kept for training and counted as a correction. The first thumb of a client stands. Everything
leaves an entry in the audit, whatever became of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import insert, select, update

from cutover.task import Task
from cutover_server.assessments.audit import Actor, Effect, Event, enter, schema_version
from cutover_server.assessments.cohorts import labels_of
from cutover_server.assessments.database import Clock, Database
from cutover_server.assessments.maturity import Label, Request, judged_answers, prevailing
from cutover_server.assessments.schema import assessments, correction_totals, feedback, labels, shadows


class UnknownAssessment(LookupError):
    """No such request, or its answers were deleted."""


@dataclass(frozen=True, slots=True)
class Validated:
    truth: dict[str, str]
    """The prevailing label, of all labellers."""
    changed: bool
    late: bool
    """Given after the deadline: kept, and not part of the totals."""


async def validate(
    database: Database,
    clock: Clock,
    identity: str,
    task: Task,
    actor: Actor,
    values: Mapping[str, str],
    comment: str,
) -> Validated:
    """Keeps a label of the actor whose values are already checked against the task."""
    labeller = actor.who
    async with database.write() as connection:
        # The lock orders this label against the row's maturity; the clock is read behind it for the same reason.
        row = (
            await connection.execute(
                select(assessments).where(assessments.c.id == identity).with_for_update()
            )
        ).one_or_none()
        if row is None or row.erased:
            raise UnknownAssessment(identity)
        now = clock()
        late = row.sampled and (row.open_due_at is None or now > row.due_at)
        given = (await labels_of(connection, [identity]))[identity]
        last = next((label for label in reversed(given) if label.labeller == labeller), None)
        repeated = last is not None and dict(last.values) == dict(values)
        effect = _effect(given, labeller, values, repeated=repeated, late=late)
        event = Event("label", effect, task.name, schema_version(task))
        await enter(connection, identity, now, actor, event)
        if repeated:
            return Validated(prevailing(given), changed=False, late=late)
        await connection.execute(
            insert(labels).values(
                request_id=identity,
                labeller=labeller,
                labels=dict(values),
                comment=comment,
                labelled_at=now,
            )
        )
        truth = prevailing((await labels_of(connection, [identity]))[identity])
        await connection.execute(
            update(assessments).where(assessments.c.id == identity).values(truth=truth, validated=True)
        )
        if late:
            shadow = (
                await connection.execute(select(shadows).where(shadows.c.request_id == identity))
            ).one_or_none()
            mirrored = (shadow.candidate, shadow.kept) if shadow is not None else (None, True)
            judged = judged_answers(Request(row.chosen, row.outcome, row.control, row.candidate, *mirrored))
            keys = {(row.rollout, answer.arm, answer.version): (1,) for answer in judged}
            await database.add(connection, correction_totals, keys)
    return Validated(truth, changed=True, late=late)


def _effect(
    given: Sequence[Label], labeller: str, values: Mapping[str, str], *, repeated: bool, late: bool
) -> Effect:
    if repeated:
        return "repeated"
    if late:
        return "late"
    others = {label.labeller: label.values for label in given if label.labeller != labeller}
    if any(said.get(field, value) != value for said in others.values() for field, value in values.items()):
        return "conflicting"
    return "changed" if any(label.labeller == labeller for label in given) else "kept"


async def give_feedback(
    database: Database, now: float, identity: str, actor: Actor, score: str, comment: str
) -> bool:
    """Keeps a thumb up or down, once per request and client: the first stands. Returns whether it was new.

    The request may still be on its way from the gateway: the thumb waits for it.
    """
    statement = (
        database.insert(feedback)
        .values(
            request_id=identity, client=actor.who, score=score, comment=comment, given_at=now, counted=False
        )
        .on_conflict_do_nothing()
        .returning(feedback.c.request_id)
    )
    async with database.write() as connection:
        new = (await connection.execute(statement)).first() is not None
        known = (
            await connection.execute(select(assessments.c.task).where(assessments.c.id == identity))
        ).scalar()
        effect: Effect = ("kept" if known else "early") if new else "repeated"
        if not new:
            first = await connection.execute(
                select(feedback.c.score).where(
                    feedback.c.request_id == identity, feedback.c.client == actor.who
                )
            )
            effect = "repeated" if first.scalar() == score else "refused"
        await enter(connection, identity, now, actor, Event("feedback", effect, known or ""))
        return new
