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
    kept = {c.type: Fact(c.type, c.status, c.reason, c.message) for c in before}
    merged = merge(before, (kept | {TYPE: fact}).values(), generation, now)
    status["conditions"] = [condition.to_wire() for condition in merged]
    return status


def still(status: dict[str, Any], parent: Object) -> dict[str, Any]:
    """This status, saying still what the parent says."""
    for said in (parent.get("status") or {}).get("conditions") or []:
        if (said.get("type"), said.get("status"), said.get("reason")) == (TYPE, "True", REASON):
            conditions = {item["type"]: item for item in status.get("conditions") or []}
            return {**status, "conditions": list((conditions | {TYPE: said}).values())}
    return status


def _same(said: Condition, fact: Fact, generation: int) -> bool:
    return (said.status, said.reason, said.observed_generation) == (
        fact.status,
        fact.reason,
        generation,
    ) and words(said.message) == words(fact.message)
