"""Whether a status says something new, or only the same with other figures. Pure.

A look every ten seconds finds other counts each time. Writing them each time would make an operator's load grow with
the number of its rollouts; so figures alone go out with the next evidence checkpoint.
"""

from __future__ import annotations

from typing import Any

from cutover.api.base import Condition
from cutover.api.modelrollout import ModelRolloutStatus
from cutover_operator.conditions import words

FIGURES = ("actual_weight", "accuracy_text")
WAITING = "Waiting"
"""Begins the reasons under which the message only says how far the evidence has come."""


def is_news(before: ModelRolloutStatus, after: ModelRolloutStatus) -> bool:
    """True when a verdict, a phase, a reason, a condition or anything else but a figure is another one."""
    return any(
        not _alike(name, getattr(before, name), getattr(after, name), before, after)
        for name in type(after).model_fields
    )


def _alike(name: str, old: Any, new: Any, before: ModelRolloutStatus, after: ModelRolloutStatus) -> bool:
    if name in FIGURES or old is new:
        return True
    if name == "message":
        return _same_words(before, after)
    if name == "gates":
        return [(g.name, g.verdict, g.limit) for g in old] == [(g.name, g.verdict, g.limit) for g in new]
    if name == "conditions":
        return len(old) == len(new) and all(map(_same_condition, old, new))
    return bool(old == new)


def _same_condition(old: Condition, new: Condition) -> bool:
    return old is new or (
        (old.type, old.status, old.reason, old.observed_generation)
        == (new.type, new.status, new.reason, new.observed_generation)
        and _same_words(old, new)
    )


def _same_words(old: Condition | ModelRolloutStatus, new: Condition | ModelRolloutStatus) -> bool:
    if (old.reason, old.message) == (new.reason, new.message):
        return True
    return _words(old.reason, old.message) == _words(new.reason, new.message)


def _words(reason: str, message: str) -> str:
    return "" if reason.startswith(WAITING) else words(message)
