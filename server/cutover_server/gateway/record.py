"""What is written down about a request. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cutover.records import ArmAnswer, ArmName, AssessmentRecord
from cutover.route import Route, label_probability, labellers_wanted, sampled_for_label
from cutover_server.gateway.attempt import Attempt
from cutover_server.gateway.settlement import Settlement

_TEXT_CHARACTERS = 65_536


def arm_answer(attempt: Attempt) -> ArmAnswer:
    reading = attempt.reading
    error = "" if reading.kind == "answered" else f"{reading.kind}: {reading.problem}"
    return ArmAnswer(
        version=attempt.arm.version,
        provider=attempt.arm.name,
        # Lone surrogates cannot be stored as UTF-8; only an invalid answer can hold them.
        text=reading.text[:_TEXT_CHARACTERS].encode("utf-8", "replace").decode(),
        answer=reading.answer,
        error=error,
        latency_seconds=None if reading.kind == "breaker" else attempt.seconds,
        cost_usd=attempt.cost_usd,
        confidence=attempt.confidence,
    )


def assessment_record(
    *,
    request_id: str,
    assessment_id: str | None,
    received_at: str,
    gateway: str,
    route: Route,
    chosen: ArmName,
    settlement: Settlement,
    attempts: Sequence[Attempt],
    messages: list[dict[str, Any]],
    pictures: Sequence[str],
    drawn_later: bool = False,
) -> AssessmentRecord:
    """The record of a settled request. Labels are sampled by the request's own id; `drawn_later` leaves that to the
    mirrored answer, which tells the stratum."""
    first = arm_answer(attempts[0])
    later = attempts[settlement.served or -1] if len(attempts) > 1 else None
    served = attempts[settlement.served] if settlement.served is not None else None
    return AssessmentRecord(
        id=request_id,
        assessment_id=assessment_id or request_id,
        group_id=assessment_id or "",
        received_at=received_at,
        gateway=gateway,
        task=route.task.name,
        rollout=route.rollout,
        chosen=chosen,
        outcome=settlement.outcome,
        served_version=served.arm.version
        if served is not None and served.reading.completion is not None
        else "",
        fallback_reason=settlement.reason,
        messages=messages,
        pictures=tuple(pictures),
        control=first if chosen == "control" else None,
        candidate=first if chosen == "candidate" else None,
        fallback=arm_answer(later) if later is not None else None,
        sampled=not drawn_later and settlement.outcome != "rejected" and sampled_for_label(route, request_id),
        sampling_probability=label_probability(route),
        labellers=labellers_wanted(route, request_id),
        label_deadline_seconds=route.labels.deadline_seconds,
    )


def record_line(record: AssessmentRecord) -> bytes:
    """The record as an entry of the spool."""
    return b'{"record":' + record.model_dump_json(by_alias=True, exclude_none=True).encode() + b"}"
