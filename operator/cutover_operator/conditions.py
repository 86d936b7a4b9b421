"""Conditions: merged with the ones before, so that a transition time moves only when the status does. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from cutover.api.base import Condition, ConditionStatus

_FIGURES = re.compile(r"[-+]?\d[\d.,:]*")


@dataclass(frozen=True, slots=True)
class Fact:
    """What a condition says now."""

    type: str
    status: ConditionStatus
    reason: str
    message: str = ""


def timestamp(moment: datetime) -> str:
    """RFC 3339 in UTC to the second, as Kubernetes writes it."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_timestamp(text: str) -> datetime:
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


def merge(
    before: Sequence[Condition], facts: Iterable[Fact], generation: int, now: datetime
) -> list[Condition]:
    """The facts as conditions, in their own order. Conditions without a fact are dropped: facts are the whole truth."""
    known = {condition.type: condition for condition in before}
    merged = []
    for fact in facts:
        old = known.get(fact.type)
        kept = old is not None and old.status == fact.status
        merged.append(
            Condition(
                type=fact.type,
                status=fact.status,
                reason=fact.reason,
                message=fact.message,
                observed_generation=generation,
                last_transition_time=old.last_transition_time if old and kept else timestamp(now),
            )
        )
    return merged


def find(conditions: Iterable[Condition], type_: str) -> Condition | None:
    return next((condition for condition in conditions if condition.type == type_), None)


def words(message: str) -> str:
    """The message without its figures: two that have the same words say the same."""
    return _FIGURES.sub("#", message)
