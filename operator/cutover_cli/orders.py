"""The one-shot orders a person may give a rollout. Pure: an order is a change of `spec.request`, nothing else."""

from __future__ import annotations

from datetime import datetime
from typing import Any, get_args

from cutover.api.modelrollout import Request

ACTIONS: tuple[str, ...] = get_args(Request.model_fields["action"].annotation)
MEANING = {
    "promote": "give the candidate all requests now, whatever is still unproven",
    "abort": "stop and send every request to the control",
    "retry": "start again from the first step after a rollback, an abort or lost evidence",
    "skip": "leave the present step unproven and enter the next",
}


def request_id(action: str, now: datetime, chance: str) -> str:
    """An id that is new every time and sorts by time: an id carried out once is never carried out again."""
    return f"{action}-{now:%Y%m%dT%H%M%SZ}-{chance}"


def change(action: str, identity: str) -> dict[str, Any]:
    """The merge patch of an order."""
    return {"spec": {"request": Request(id=identity, action=action).to_wire()}}
