"""Whether a status says something new, or only the same with other figures. Pure.

A look every ten seconds finds other counts each time. Writing them each time would make an operator's load grow with
the number of its rollouts; so figures alone go out with the next evidence checkpoint.
"""

from __future__ import annotations

import re
from typing import Any

from cutover.api.base import Condition
from cutover.api.modelrollout import ModelRolloutStatus

_FIGURES = re.compile(r"[-+]?\d[\d.,:]*")
WAITING = "Waiting"
"""Begins the reasons under which the message only says how far the evidence has come."""


def is_news(before: ModelRolloutStatus, after: ModelRolloutStatus) -> bool:
    """True when a verdict, a phase, a reason, a condition or anything else but a figure is another one."""
    return _gist(before) != _gist(after)


def _gist(status: ModelRolloutStatus) -> dict[str, Any]:
    gist = {name: getattr(status, name) for name in type(status).model_fields}
    gist.update(
        actual_weight="",
        accuracy_text="",
        message=_words(status.reason, status.message),
        gates=[(gate.name, gate.verdict, gate.limit) for gate in status.gates],
        conditions=[_condition(condition) for condition in status.conditions],
    )
    return gist


def _condition(condition: Condition) -> tuple[object, ...]:
    words = _words(condition.reason, condition.message)
    return condition.type, condition.status, condition.reason, condition.observed_generation, words


def _words(reason: str, message: str) -> str:
    return "" if reason.startswith(WAITING) else _FIGURES.sub("#", message)
