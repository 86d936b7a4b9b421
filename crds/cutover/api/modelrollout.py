"""ModelRollout: from a registered model version to all of the traffic, or back to none of it.

The operator never writes spec. Everything it knows stands in status and in the evidence ledger. Pure data.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from cutover.api.base import (
    ApiModel,
    Condition,
    Duration,
    Name,
    NodeSelector,
    Resources,
    ShortName,
    StatusModel,
    Text,
    Toleration,
)
from cutover.api.trainingrun import Family

Fraction = Annotated[float, Field(ge=0, le=1)]
MAP_BY_NAME = {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]}


class TrainingRunRef(ApiModel):
    name: Name


class ModelRef(ApiModel):
    """A model that no TrainingRun of this namespace made, or an endpoint that serves it already (engine external)."""

    uri: Annotated[str, Field(min_length=6, max_length=2048, pattern=r"^(hf|s3|gs|claim|https?)://.+")]
    """Full model, or the base when `adapterUri` is given, or the base URL of an external OpenAI-compatible endpoint."""
    version: Annotated[str, Field(min_length=1, max_length=128)]
    adapter_uri: Annotated[str, Field(max_length=2048, pattern=r"^(s3|gs|claim)://.+")] | None = None
    revision: Annotated[str, Field(max_length=128)] = "main"
    family: Family = "llava"
    served_name: Annotated[str, Field(max_length=128)] = ""
    """The `model` an external endpoint expects."""


class Candidate(ApiModel):
    """Exactly one of the two."""

    training_run_ref: TrainingRunRef | None = None
    model: ModelRef | None = None


class ModelCache(ApiModel):
    """Claim that keeps verified model files between pods; none means an emptyDir."""

    claim: Name | None = None


class ComputePrice(ApiModel):
    """What a candidate's answers cost: busy GPU-seconds x price."""

    usd_per_gpu_hour: Annotated[float, Field(ge=0, le=1000)] = 2.0
    gpus_per_replica: Annotated[float, Field(ge=0, le=64)] = 1.0


class Serving(ApiModel):
    engine: Literal["vllm", "tgi", "builtin", "external"] = "vllm"
    replicas: Annotated[int, Field(ge=1, le=100)] = 1
    image: Annotated[str, Field(max_length=512)] = ""
    """Engine image; empty means the operator's default for the engine."""
    resources: Resources = Field(default_factory=Resources)
    model_cache: ModelCache = Field(default_factory=ModelCache)
    node_selector: NodeSelector = Field(default_factory=dict)
    tolerations: Annotated[list[Toleration], Field(max_length=16)] = Field(default_factory=list)
    args: Annotated[list[Annotated[str, Field(max_length=1024)]], Field(max_length=64)] = Field(
        default_factory=list
    )
    price: ComputePrice = Field(default_factory=ComputePrice)
    start_deadline: Duration = "20m"
    """A candidate that is not ready by then stops the rollout."""


class Control(ApiModel):
    """Today's answers: the model promoted before on this gateway (default), or a provider of the gateway by name."""

    promoted: bool = True
    provider: ShortName | None = None


class Gate(ApiModel):
    """One limit. `bad` and `total` name counters of your own instead of a built-in metric."""

    name: ShortName | None = None
    """Default: the metric in lower case, with the field."""
    metric: Literal["accuracy", "latency", "errorRate", "cost", "satisfaction", "custom"]
    field: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    """accuracy: the answer field; none means all scored fields right."""
    limit: Annotated[float, Field(ge=0, le=1000)] | None = None
    """accuracy: least share right; latency: seconds that 95 % of answers must beat (an edge of the histogram);
    errorRate: greatest share; cost: USD per assessment; custom: greatest share bad/total."""
    margin: Fraction | None = None
    """Allowed loss against the control."""
    role: Literal["advance", "rollback", "both"] = "both"
    bad: Annotated[str, Field(max_length=512)] | None = None
    total: Annotated[str, Field(max_length=512)] | None = None


class Step(ApiModel):
    """Either `shadow` (share of requests mirrored, no user served) or `weight` (share of users served, in percent)."""

    shadow: Annotated[int, Field(ge=1, le=100)] | None = None
    weight: Annotated[int, Field(ge=1, le=100)] | None = None
    min_duration: Duration = "1h"
    min_requests: Annotated[int, Field(ge=0, le=100_000_000)] = 50
    deadline: Duration | None = None
    on_deadline: Literal["hold", "rollback"] = "hold"
    gates: Annotated[list[ShortName], Field(max_length=32)] | None = None
    """Names of the gates that must pass to leave this step; default: in a shadow step accuracy, in a weight step
    latency, errorRate and cost, each as far as declared."""


class Labels(ApiModel):
    """The human labels that prove accuracy."""

    per_hour: Annotated[float, Field(gt=0, le=100_000)] = 60.0
    """Labels people can give; the gateway samples accordingly."""
    deadline: Duration = "24h"
    """A sampled request counts when it is this old: right, wrong, or missing (which counts against what is being proven)."""
    strata: Literal["none", "disagreement"] = "none"


class OnUnavailable(ApiModel):
    after: Duration = "1h"
    action: Literal["hold", "rollback"] = "hold"


class PrometheusRef(ApiModel):
    url: Annotated[str, Field(min_length=8, max_length=2048, pattern=r"^https?://")] | None = None
    """Must match the operator's allow list; default: the operator's own."""


class Analysis(ApiModel):
    interval: Duration = "30s"
    risk: Annotated[float, Field(gt=0, le=0.5)] = 0.05
    """Chance, over the whole rollout, of promoting a model beyond a limit, and of rolling back one within all of them."""
    prometheus: PrometheusRef = Field(default_factory=PrometheusRef)
    labels: Labels = Field(default_factory=Labels)
    on_unavailable: OnUnavailable = Field(default_factory=OnUnavailable)


class Fallback(ApiModel):
    """Who answers when the chosen arm does not."""

    provider: ShortName | None = None
    """Default: the gateway's default provider."""
    on: Annotated[
        tuple[Literal["error", "timeout", "invalid", "overload"], ...],
        Field(max_length=4, json_schema_extra={"x-kubernetes-list-type": "set"}),
    ] = ("error", "timeout", "invalid", "overload")
    deadline_seconds: Annotated[float, Field(gt=0, le=600)] = 10.0
    """Time the chosen arm has before the fallback is asked."""
    confidence: Annotated[float, Field(ge=0, le=1)] | Literal["auto"] | None = None
    """Answers below this confidence go to the fallback; `auto` finds the threshold that keeps the accuracy floor."""
    reverse: bool = True
    """Once promoted, the candidate also answers for a dead control."""


class Request(ApiModel):
    """A one-shot order, carried out once per id."""

    id: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[-._A-Za-z0-9]+$")]
    action: Literal["promote", "abort", "retry", "skip"]


class ModelRolloutSpec(ApiModel):
    gateway_ref: Annotated[
        ShortName, Field(description="Name of a gateway of the chart in the same namespace.")
    ]
    candidate: Candidate
    serving: Serving = Field(default_factory=Serving)
    control: Control = Field(default_factory=Control)
    steps: Annotated[list[Step], Field(min_length=1, max_length=20)]
    gates: Annotated[list[Gate], Field(min_length=1, max_length=32)]
    analysis: Analysis = Field(default_factory=Analysis)
    fallback: Fallback = Field(default_factory=Fallback)
    freeze: bool = False
    """Hold every advance; rollbacks still happen."""
    hold: bool = False
    """Stay at the present step for a person to look."""
    supersede: bool = False
    """Take the gateway over from the rollout that is active on it."""
    request: Request | None = None
    deletion_policy: Literal["RouteToControl", "KeepPromoted"] = "RouteToControl"


Phase = Literal[
    "Pending",
    "Starting",
    "Progressing",
    "Holding",
    "Frozen",
    "Promoted",
    "RolledBack",
    "Aborted",
    "Superseded",
]
Finish = Literal["Promoted", "RolledBack", "Aborted", "Superseded"]
VerdictName = Literal["pass", "fail", "insufficient", "unavailable"]


class GateStatus(StatusModel):
    """The last verdict of one gate, with its numbers."""

    name: Annotated[str, Field(max_length=64)]
    verdict: VerdictName
    message: Text = ""
    value: float | None = None
    """Observed share or mean in the gate's own unit."""
    limit: float | None = None
    samples: Annotated[int, Field(ge=0)] = 0
    log_e_pass: float | None = None
    log_e_fail: float | None = None


class StepRecord(StatusModel):
    """What happened at one step."""

    index: Annotated[int, Field(ge=0)]
    name: Annotated[str, Field(max_length=32)]
    entered_at: Annotated[str, Field(max_length=40)]
    left_at: Annotated[str, Field(max_length=40)] | None = None
    outcome: Annotated[str, Field(max_length=64)] = ""
    message: Text = ""


class GatewayReport(StatusModel):
    """One gateway replica, as it answered last."""

    pod: Annotated[str, Field(max_length=253)]
    generation: Annotated[int, Field(ge=0)]


class LedgerRef(StatusModel):
    """The evidence checkpoint this status stands on."""

    name: Annotated[str, Field(max_length=253)] = ""
    revision: Annotated[int, Field(ge=0)] = 0


class ModelRolloutStatus(StatusModel):
    schema_version: int = 1
    observed_generation: Annotated[int, Field(ge=0)] = 0
    steps_hash: Annotated[str, Field(max_length=64)] = ""
    phase: Phase = "Pending"
    finish: Finish | None = None
    finished_at: Annotated[str, Field(max_length=40)] | None = None
    step: Annotated[int, Field(ge=0)] = 0
    step_text: Annotated[str, Field(max_length=32)] = ""
    step_entered_at: Annotated[str, Field(max_length=40)] | None = None
    step_confirmed_at: Annotated[str, Field(max_length=40)] | None = None
    """Since when every gateway serves this step's route: the step's time counts from here."""
    weight: Annotated[int, Field(ge=0, le=100)] = 0
    shadow: Annotated[int, Field(ge=0, le=100)] = 0
    actual_weight: Annotated[str, Field(max_length=16)] = ""
    """Observed share of requests assigned to the candidate in this step, in percent."""
    route_generation: Annotated[int, Field(ge=0)] = 0
    gateways: Annotated[list[GatewayReport], Field(max_length=64)] = Field(default_factory=list)
    candidate_version: Annotated[str, Field(max_length=260)] = ""
    control_version: Annotated[str, Field(max_length=260)] = ""
    accuracy_text: Annotated[str, Field(max_length=32)] = ""
    verdict: Annotated[str, Field(max_length=32)] = ""
    reason: Annotated[str, Field(max_length=128)] = ""
    message: Text = ""
    gates: Annotated[list[GateStatus], Field(max_length=32, json_schema_extra=MAP_BY_NAME)] = Field(
        default_factory=list
    )
    steps: Annotated[list[StepRecord], Field(max_length=64)] = Field(default_factory=list)
    ledger: LedgerRef | None = None
    unavailable_since: Annotated[str, Field(max_length=40)] | None = None
    handled_request: Annotated[str, Field(max_length=64)] = ""
    conditions: Annotated[
        list[Condition],
        Field(
            max_length=16,
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
        ),
    ] = Field(default_factory=list)


class ModelRollout(ApiModel):
    """kind ModelRollout, short name `mro`."""

    kind_name: ClassVar[str] = "ModelRollout"
    plural: ClassVar[str] = "modelrollouts"
    short_names: ClassVar[tuple[str, ...]] = ("mro",)

    spec: ModelRolloutSpec
    status: ModelRolloutStatus = Field(default_factory=ModelRolloutStatus)

    @classmethod
    def from_object(cls, obj: dict[str, Any]) -> ModelRollout:
        """Read an object as the API server returns it. Raises pydantic.ValidationError."""
        return cls.model_validate({"spec": obj["spec"], "status": obj.get("status") or {}})
