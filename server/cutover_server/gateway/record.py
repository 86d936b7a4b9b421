"""What is written down about a request, as an entry of the spool. Pure.

The entries are `{"record": AssessmentRecord}` and `{"shadow": ShadowUpdate}` in their wire form. They are put together
here rather than by the models, which takes nearly twice as long; the assessments service checks each one when it takes
it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from cutover.records import ArmName
from cutover.route import Route, label_probability, labellers_wanted, sampled_for_label
from cutover_server.gateway.attempt import Attempt
from cutover_server.gateway.settlement import Settlement

_TEXT_CHARACTERS = 65_536


def arm_answer(attempt: Attempt) -> dict[str, Any]:
    """The wire form of an ArmAnswer."""
    reading = attempt.reading
    told: dict[str, Any] = {
        "version": attempt.arm.version,
        "provider": attempt.arm.name,
        # Lone surrogates cannot be stored as UTF-8; only an invalid answer can hold them.
        "text": reading.text[:_TEXT_CHARACTERS].encode("utf-8", "replace").decode(),
        "error": "" if reading.kind == "answered" else f"{reading.kind}: {reading.problem}",
        "costUsd": attempt.cost_usd,
    }
    if reading.answer is not None:
        told["answer"] = reading.answer
    if reading.kind != "breaker":
        told["latencySeconds"] = attempt.seconds
    if attempt.confidence is not None:
        told["confidence"] = attempt.confidence
    return told


def record_line(
    *,
    request_id: str,
    assessment_id: str | None,
    received_at: str,
    gateway: str,
    route: Route,
    chosen: ArmName,
    settlement: Settlement,
    attempts: Sequence[Attempt],
    messages: bytes,
    pictures: Sequence[str],
    drawn_later: bool = False,
) -> bytes:
    """The record of a settled request. Labels are sampled by the request's own id; `drawn_later` leaves that to the
    mirrored answer, which tells the stratum. `messages` is JSON, each picture by its digest."""
    later = attempts[settlement.served or -1] if len(attempts) > 1 else None
    served = attempts[settlement.served] if settlement.served is not None else None
    answered = served is not None and served.reading.completion is not None
    record: dict[str, Any] = {
        "id": request_id,
        "assessmentId": assessment_id or request_id,
        "groupId": assessment_id or "",
        "receivedAt": received_at,
        "gateway": gateway,
        "task": route.task.name,
        "rollout": route.rollout,
        "chosen": chosen,
        "outcome": settlement.outcome,
        "servedVersion": served.arm.version if served is not None and answered else "",
        "fallbackReason": settlement.reason,
        "messages": orjson.Fragment(messages),
        "pictures": pictures,
        chosen: arm_answer(attempts[0]),
        "sampled": not drawn_later
        and settlement.outcome != "rejected"
        and sampled_for_label(route, request_id),
        "samplingProbability": label_probability(route),
        "labellers": labellers_wanted(route, request_id),
        "labelDeadlineSeconds": route.labels.deadline_seconds,
    }
    if later is not None:
        record["fallback"] = arm_answer(later)
    return orjson.dumps({"record": record})


def shadow_line(request_id: str, candidate: Attempt, kept: bool, draw: Mapping[str, Any]) -> bytes:
    """The mirrored answer of a request; `draw` is where it is drawn for a label, if it is."""
    return orjson.dumps(
        {"shadow": {"id": request_id, "candidate": arm_answer(candidate), "kept": kept, **draw}}
    )
