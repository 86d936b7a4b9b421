"""What a gateway writes down about a request: the row that reaches the spool before the caller gets the answer."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from cutover.contract import ROLLOUT_NONE, STRATUM_ALL
from cutover.route import WireModel

ArmName = Literal["control", "candidate"]


NOT_ASKED = "not asked"
"""How the problem in an answer's `error` begins when the request never reached the arm."""


class ArmAnswer(WireModel):
    """One arm's answer to a request, given to the caller or not."""

    version: str
    provider: str = ""
    text: Annotated[str, Field(max_length=65536)] = ""
    answer: dict[str, Any] | None = None
    """The parsed answer when it is valid for the task, else none."""
    error: str = ""
    """How the arm failed: the kind of failure, a colon, and the problem."""
    latency_seconds: float | None = None
    cost_usd: float | None = None
    confidence: float | None = None


class AssessmentRecord(WireModel):
    """One request, or (with `shadow_of` semantics) an update that adds the mirrored answer under the same id."""

    id: Annotated[str, Field(min_length=1, max_length=128)]
    """Request id issued by the gateway (UUIDv7); also the `id` of the chat completion."""
    assessment_id: Annotated[str, Field(min_length=1, max_length=256)]
    """The caller's key, else the request id; rows of one assessment share a group."""
    group_id: Annotated[str, Field(max_length=256)] = ""
    received_at: str
    """RFC 3339, UTC."""
    gateway: str
    task: str
    rollout: str = ROLLOUT_NONE
    chosen: ArmName
    outcome: Literal["ok", "error", "deferred", "rejected"]
    served_version: str = ""
    fallback_reason: str = ""
    messages: list[dict[str, Any]]
    """The caller's messages with each picture replaced by `{"type": "image_url", "image_url": {"url": "sha256:<hex>"}}`."""
    pictures: tuple[str, ...] = ()
    """SHA-256 in hex of each picture, stored apart."""
    control: ArmAnswer | None = None
    candidate: ArmAnswer | None = None
    fallback: ArmAnswer | None = None
    sampled: bool = False
    """People are asked to label this request."""
    stratum: str = STRATUM_ALL
    sampling_probability: float = 0.0
    label_deadline_seconds: float = 86400.0
    labellers: Annotated[int, Field(ge=1, le=8)] = 1
    """How many people label it, apart from one another, when it is sampled."""


class ShadowUpdate(WireModel):
    """The mirrored candidate answer of a request, sent after its record."""

    id: str
    candidate: ArmAnswer
    kept: bool = True
    """False: valid, but below the threshold of confidence in force, so that nobody would have been given it."""
    pooled: bool = False
    """Where pairs are drawn by stratum: the request might have been drawn for a label. Decided here, not with its record."""
    sampled: bool = False
    """It was drawn: people are asked to label it."""
    stratum: str = STRATUM_ALL
    sampling_probability: float = 0.0
    """Chance of being drawn, once in the pool."""


class RecordBatch(WireModel):
    """Body of `POST /internal/records`. Idempotent by id; records are taken before shadows.

    A reply of 200 names the unfit entries, `{"refused": [{"id", "reason"}]}`: the gateway puts them aside. A 400, 413
    or 422 means that the whole cannot be taken: the gateway halves it. Every other failure is repeated for ever.
    """

    records: list[AssessmentRecord] = Field(default_factory=list)
    shadows: list[ShadowUpdate] = Field(default_factory=list)
