"""What an object says when the operator cannot get on with it: the condition Stalled, with a reason of its own. Pure."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from cutover.api.base import Condition
from cutover_operator.conditions import Fact, find, merge, words
from cutover_operator.port import Object

TYPE = "Stalled"
REASON = "OperatorError"
LONGEST_MESSAGE = 1000


def saying(parent: Object, error: Exception, now: datetime) -> dict[str, Any] | None:
    """The parent's status, saying what went wrong. None when it does so already, if with other figures: a port or the
    number of a request is another one each time."""
    status = dict(parent.get("status") or {})
    generation = int(parent["metadata"].get("generation", 0))
    before = [Condition.model_validate(item) for item in status.get("conditions", [])]
    message = f"the operator fails on this object and keeps trying: {type(error).__name__}: {error}"
    fact = Fact(TYPE, "True", REASON, message[:LONGEST_MESSAGE])
    said = find(before, TYPE)
    if said is not None and _same(said, fact, generation):
        return None
    kept = [Fact(c.type, c.status, c.reason, c.message) for c in before if c.type != TYPE]
    merged = merge(before, [*kept, fact], generation, now)
    status["conditions"] = [condition.to_wire() for condition in merged]
    return status


def _same(said: Condition, fact: Fact, generation: int) -> bool:
    return (said.status, said.reason, said.observed_generation) == (
        fact.status,
        fact.reason,
        generation,
    ) and words(said.message) == words(fact.message)
