"""ModelRollout: from a registered model version to all of the traffic, or back to none of it.

The operator never writes spec. Everything it knows stands in status and in the evidence ledger. Pure data.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from cutover.api.base import (
    ApiModel,
    Condition,
    Count,
    Duration,
    Fraction,
    Measured,
    Name,
    NodeSelector,
    Resources,
    ShortName,
    StatusModel,
    Text,
    Timestamp,
    Toleration,
    between,
)
from cutover.api.trainingrun import Family, Mlflow
from cutover.contract import FIELD_OVERALL

Engine = Literal["vllm", "tgi", "builtin", "external"]
ENGINE_FAMILIES: dict[Engine, tuple[Family, ...]] = {
    "builtin": ("llava", "llava_next", "blip2"),
    "vllm": ("llava", "llava_next", "blip2"),
    "tgi": ("llava_next",),
    "external": ("llava", "llava_next", "blip2"),
}
"""Which engine serves which architecture (an external endpoint serves what it likes)."""

_MATCHER = r'\s*[a-zA-Z_][a-zA-Z0-9_]*\s*(=|!=|=~|!~)\s*"([^"\\]|\\.)*"\s*'
SELECTOR_PATTERN = rf"^[a-zA-Z_:][a-zA-Z0-9_:]*(\{{({_MATCHER}(,{_MATCHER})*,?\s*)?\}})?$"
"""What a custom gate may name: a PromQL series selector with a metric name."""

MAP_BY_NAME = {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]}


class TrainingRunRef(ApiModel):
    """A TrainingRun of the same namespace; the rollout waits until it has registered its model."""

    name: Name
    """Name of the TrainingRun."""


class RegisteredVersion(Mlflow):
    """A version of a registered model in MLflow; its alias `champion` follows the rollout."""

    version: Annotated[str, Field(min_length=1, max_length=18, pattern=r"^[1-9][0-9]*$")]
    """Number of the version."""


class ModelRef(ApiModel):
    """A model that no TrainingRun of this namespace made, or an endpoint that serves it already (engine external)."""

    uri: Annotated[str, Field(min_length=6, max_length=2048, pattern=r"^(hf|s3|gs|claim|https?)://.+")]
    """Full model, or the base when `adapterUri` is given, or the base URL of an external OpenAI-compatible endpoint."""
    version: Annotated[str, Field(min_length=1, max_length=128)]
    """Name of this version in metrics, records and reports."""
    adapter_uri: Annotated[str, Field(max_length=2048, pattern=r"^(s3|gs|claim)://.+")] | None = None
    """Folder of a LoRA adapter for the base at `uri`."""
    revision: Annotated[str, Field(max_length=128)] = "main"
    """Branch, tag or commit of a Hugging Face repository."""
    family: Family = "llava"
    """Architecture; decides which engines can serve it."""
    served_name: Annotated[str, Field(max_length=128)] = ""
    """The `model` an external endpoint expects."""
    mlflow: RegisteredVersion | None = None
    """What this model is in MLflow: on promotion that version gets the alias `champion`. For a TrainingRun it is known."""


class Candidate(ApiModel):
    """The model that shall take over: exactly one of the two. It never changes; a new candidate is a new rollout."""

    training_run_ref: TrainingRunRef | None = None
    """The model a TrainingRun of this namespace makes."""
    model: ModelRef | None = None
    """Any other model."""


class ModelCache(ApiModel):
    """Claim that keeps verified model files between pods; none means an emptyDir."""

    claim: Name | None = None
    """Name of the PersistentVolumeClaim."""


class ComputePrice(ApiModel):
    """What a candidate's answers cost: busy GPU-seconds x price."""

    usd_per_gpu_hour: Annotated[float, Field(ge=0, le=1000)] = 2.0
    """Price of one GPU for an hour."""
    gpus_per_replica: Annotated[float, Field(ge=0, le=64)] = 1.0
    """GPUs a busy replica keeps busy."""


class Serving(ApiModel):
    """How the candidate is served."""

    engine: Engine = "vllm"
    """vllm: llava, llava_next, blip2; tgi: llava_next; builtin: llava, llava_next, blip2; external: an endpoint that
    runs already, candidate.model.uri is its base URL."""
    replicas: Annotated[int, Field(ge=1, le=100)] = 1
    """Pods; all are warm before a weight rises."""
    image: Annotated[str, Field(max_length=512)] = ""
    """Engine image; empty means the operator's default for the engine."""
    resources: Resources = Field(default_factory=Resources)
    model_cache: ModelCache = Field(default_factory=ModelCache)
    node_selector: NodeSelector = Field(default_factory=dict)
    """Node labels the pods need."""
    tolerations: Annotated[list[Toleration], Field(max_length=16)] = Field(default_factory=list)
    """Taints the pods tolerate."""
    service_account_name: Annotated[str, Field(max_length=253)] = ""
    """Service account of the pods, for object stores that trust one; empty means the namespace's default."""
    args: Annotated[list[Annotated[str, Field(max_length=1024)]], Field(max_length=64)] = Field(
        default_factory=list
    )
    """Further arguments of the engine. --allow-unproven (builtin, vllm) serves an adapter that has no probe.json."""
    price: ComputePrice = Field(default_factory=ComputePrice)
    start_deadline: Annotated[Duration, between("1s", "1d")] = "20m"
    """A candidate that is not ready by then stops the rollout."""


class Control(ApiModel):
    """Today's answers, what the candidate is compared with: exactly one of the two."""

    promoted: bool = False
    """The model promoted before on this gateway, else the gateway's default provider."""
    provider: ShortName | None = None
    """A provider of the gateway by name."""


class Gate(ApiModel):
    """One limit. `bad` and `total` name counters of your own instead of a built-in metric."""

    name: ShortName | None = None
    """Default: the metric in lower case, and after a dash the field in lower case, with - for _: `accuracy-damagetype`."""
    metric: Literal["accuracy", "latency", "errorRate", "cost", "satisfaction", "custom"]
    """What is judged."""
    field: (
        Annotated[
            str, Field(min_length=1, max_length=54, pattern=r"^[A-Za-z0-9]([-_A-Za-z0-9]*[A-Za-z0-9])?$")
        ]
        | None
    ) = None
    """accuracy: the answer field; none means all scored fields right."""
    limit: Annotated[float, Field(ge=0, le=1000)] | None = None
    """accuracy: least share right; latency: seconds that 95 % of answers must beat (an edge of the histogram);
    errorRate: greatest share; cost: USD per assessment; custom: greatest share bad/total."""
    margin: Fraction | None = None
    """Allowed loss against the control. accuracy: as a difference of shares, 0.02 for two points, judged on the requests
    both models answered; errorRate, latency and satisfaction: as a ratio, 0.5 for one and a half times the control's share."""
    role: Literal["advance", "rollback", "both"] = "both"
    """advance: must pass before a step is left; rollback: ends the rollout when it fails; both: both."""
    bad: Annotated[str, Field(min_length=1, max_length=512)] | None = None
    """custom: PromQL selector of the counter of bad events, for example `claims_total{result="appealed"}`; no functions.
    A series that is missing, old or NaN is unavailable, never zero: export it from zero on."""
    total: Annotated[str, Field(min_length=1, max_length=512)] | None = None
    """custom: PromQL selector of the counter of all events, the bad ones included."""

    @property
    def full_name(self) -> str:
        """The name steps, status and reports use; the API server proves it unique by the same rule."""
        if self.name:
            return self.name
        field = "" if self.field in (None, FIELD_OVERALL) else f"-{self.field}"
        return f"{self.metric}{field}".lower().replace("_", "-")


class Step(ApiModel):
    """Either `shadow` (share of requests mirrored, no user served) or `weight` (share of users served, in percent)."""

    shadow: Annotated[int, Field(ge=1, le=100)] | None = None
    """Percent of the requests copied to the candidate; the control answers them all."""
    weight: Annotated[int, Field(ge=1, le=100)] | None = None
    """Percent of the requests the candidate answers; rises from step to step."""
    min_duration: Annotated[Duration, between("1s", "365d")] = "1h"
    """Least time at this step, counted from when every gateway serves it."""
    min_requests: Annotated[int, Field(ge=0, le=100_000_000)] = 50
    """Least number of the candidate's answers at this step."""
    deadline: Annotated[Duration, between("1s", "365d")] | None = None
    """When the step should be over; none waits for ever."""
    on_deadline: Literal["hold", "rollback"] = "hold"
    """What happens at the deadline."""
    gates: (
        Annotated[list[ShortName], Field(max_length=32, json_schema_extra={"x-kubernetes-list-type": "set"})]
        | None
    ) = None
    """Names of the gates that must pass to leave this step; default: in a shadow step accuracy, in a weight step
    latency, errorRate and cost, each as far as declared."""


class Labels(ApiModel):
    """The human labels that prove accuracy."""

    per_hour: Annotated[float, Field(gt=0, le=100_000)] = 60.0
    """Labels people can give; the gateway samples accordingly."""
    deadline: Annotated[Duration, between("1s", "90d")] = "24h"
    """A sampled request counts when it is this old: right, wrong, or missing (which counts against what is being proven)."""
    pool: Literal["served", "mirrored"] = "mirrored"
    """mirrored: a sampled request that the control answers is copied to the candidate too, so that one label judges both
    models at every step; served: only answers that reached somebody, and those of a shadow step."""
    strata: Literal["none", "disagreement"] = "none"
    """disagreement: draw requests on which the two models differ more often, up to four times, and weigh them back; fewer
    labels for the same proof, told once an hour."""
    double_share: Fraction = 0.05
    """Share of the labelled requests that a second person labels, not seeing the first label. It measures how often people
    err, and accuracy limits are corrected by what it proves; a tenth of the risk of a pass pays for it."""


class OnUnavailable(ApiModel):
    """What happens when there are no metrics; until then the rollout holds."""

    after: Annotated[Duration, between("1s", "90d")] = "1h"
    """How long metrics may be missing."""
    action: Literal["hold", "rollback"] = "hold"
    """hold: the weight stays; rollback: the control answers everything."""


class PrometheusRef(ApiModel):
    """Where the evidence comes from."""

    url: Annotated[str, Field(min_length=8, max_length=2048, pattern=r"^https?://.+")] | None = None
    """Must match the operator's allow list; default: the operator's own."""


class Analysis(ApiModel):
    """How the gates are judged."""

    interval: Annotated[Duration, between("1s", "1h")] = "30s"
    """Time between two looks; a breach is answered within one interval and a second."""
    risk: Annotated[float, Field(gt=0, le=0.5)] = 0.05
    """Chance, over the whole rollout, of promoting a model beyond a limit, and of rolling back one within all of them."""
    prometheus: PrometheusRef = Field(default_factory=PrometheusRef)
    labels: Labels = Field(default_factory=Labels)
    on_unavailable: OnUnavailable = Field(default_factory=OnUnavailable)


class Fallback(ApiModel):
    """Who answers when the chosen arm does not."""

    provider: ShortName | None = None
    """Default: the gateway's default provider."""
    when: Annotated[
        tuple[Literal["error", "timeout", "invalid", "overload"], ...],
        Field(max_length=4, json_schema_extra={"x-kubernetes-list-type": "set"}),
    ] = ("error", "timeout", "invalid", "overload")
    """When it answers: the arm failed, took too long, gave no valid answer, or had no room."""
    deadline_seconds: Annotated[float, Field(gt=0, le=600)] = 10.0
    """Time the chosen arm has before the fallback is asked."""
    confidence: Fraction | None = None
    """Candidate answers whose confidence in the decisive field is below it go to the fallback."""
    auto_confidence: bool = False
    """Find the threshold at which the answers kept meet the limit of the one accuracy gate, instead of `confidence`: by
    labels, once an hour, at the rollout's risk. Until one is proven only answers of the highest confidence are kept."""
    reverse: bool = True
    """Once promoted, the candidate also answers for a dead control."""


class Request(ApiModel):
    """A one-shot order, carried out once per id."""

    id: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[-._A-Za-z0-9]+$")]
    """A new id is a new order; the same id is never carried out twice."""
    action: Literal["promote", "abort", "retry", "skip"]
    """promote: go to the last step; abort: back to the control for good; retry: start again at the first step after a
    rollback; skip: leave the present step."""


class ModelRolloutSpec(ApiModel):
    """What is wanted. The operator never writes here."""

    gateway_ref: ShortName
    """Name of a gateway of the chart in the same namespace. One rollout at a time is active on it."""
    candidate: Candidate
    serving: Serving = Field(default_factory=Serving)
    control: Control = Field(default_factory=lambda: Control(promoted=True))
    steps: Annotated[list[Step], Field(min_length=1, max_length=20)]
    """Taken in this order: shadow steps, then weights that rise."""
    gates: Annotated[list[Gate], Field(min_length=1, max_length=32)]
    """The limits the candidate must keep."""
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
    """Where the traffic goes when this object is deleted; KeepPromoted leaves a promoted candidate serving."""


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
    value: Measured = None
    """Observed share or mean in the gate's own unit."""
    limit: Measured = None
    samples: Count = 0
    log_e_pass: Measured = None
    log_e_fail: Measured = None


class StepRecord(StatusModel):
    """What happened at one step."""

    index: Count
    name: Annotated[str, Field(max_length=32)]
    entered_at: Timestamp
    left_at: Timestamp | None = None
    outcome: Annotated[str, Field(max_length=64)] = ""
    message: Text = ""


class GatewayReport(StatusModel):
    """One gateway replica, as it answered last."""

    pod: Annotated[str, Field(max_length=253)]
    generation: Count


class LedgerRef(StatusModel):
    """The evidence checkpoint this status stands on."""

    name: Annotated[str, Field(max_length=253)] = ""
    revision: Count = 0


class RoutingStatus(StatusModel):
    """The threshold that fallback.autoConfidence found, and what follows from it."""

    threshold: Measured = None
    """Candidate answers whose confidence is below it go to the fallback."""
    certified: bool = False
    """False: nothing is proven yet, so the threshold is the strictest there is."""
    decided_at: Timestamp | None = None
    epoch: Count = 1
    """Fresh start of the evidence it stands on."""
    labels: Count = 0
    kept_share: Measured = None
    """Of the candidate's valid answers."""
    kept_accuracy: Measured = None
    """Share right among the labels of the answers kept; a missing label counts as wrong."""
    auroc: Measured = None
    """Chance that a right answer is surer than a wrong one; 0.5 says that confidence is worthless."""
    usd_per_assessment: Measured = None
    """Expected, both models together."""
    message: Text = ""


class RegistryStatus(StatusModel):
    """What the candidate is in MLflow, and how far MLflow has been told of the rollout's end. It outlives the TrainingRun."""

    url: Annotated[str, Field(max_length=2048)]
    model_name: Annotated[str, Field(max_length=128)]
    version: Annotated[str, Field(max_length=128)]
    secret_name: Annotated[str, Field(max_length=253)] = ""
    """Of the Secret with the bearer token; empty when MLflow asks for none."""
    secret_key: Annotated[str, Field(max_length=253)] = ""
    outcome: Literal["", "promoted", "withdrawn"] = ""
    """What MLflow has to know; empty while the rollout has not been promoted."""
    at: Annotated[str, Field(max_length=40)] = ""
    """When that was decided."""
    state: Literal["Idle", "Waiting", "Running", "Outdated", "Done"] = "Idle"
    """Outdated: the Job of an earlier outcome is still there, and its end is waited for."""
    attempt: Count = 0
    failures: Count = 0
    """In a row."""
    job: Annotated[str, Field(max_length=253)] = ""
    since: Timestamp | None = None
    """When the Job was asked for."""
    not_before: Timestamp | None = None
    reason: Annotated[str, Field(max_length=128)] = ""
    """How the last attempt ended."""
    message: Text = ""


class ModelRolloutStatus(StatusModel):
    schema_version: Count = 1
    observed_generation: Count = 0
    steps_hash: Annotated[str, Field(max_length=64)] = ""
    phase: Phase = "Pending"
    finish: Finish | None = None
    finished_at: Timestamp | None = None
    step: Count = 0
    step_text: Annotated[str, Field(max_length=32)] = ""
    step_entered_at: Timestamp | None = None
    step_confirmed_at: Timestamp | None = None
    """Since when every gateway serves this step's route and, after the first step, is read: its time counts from here."""
    weight: Annotated[int, Field(ge=0, le=100)] = 0
    shadow: Annotated[int, Field(ge=0, le=100)] = 0
    actual_weight: Annotated[str, Field(max_length=16)] = ""
    """Observed share of requests assigned to the candidate in this step, in percent."""
    route_generation: Count = 0
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
    routing: RoutingStatus | None = None
    registry: RegistryStatus | None = None
    ledger: LedgerRef | None = None
    unavailable_since: Timestamp | None = None
    handled_request: Annotated[str, Field(max_length=64)] = ""
    conditions: Annotated[
        list[Condition],
        Field(
            max_length=16,
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
        ),
    ] = Field(default_factory=list)


class ModelRollout(ApiModel):
    """From a registered model version to all of the traffic, or back to none of it."""

    kind_name: ClassVar[str] = "ModelRollout"
    plural: ClassVar[str] = "modelrollouts"
    short_names: ClassVar[tuple[str, ...]] = ("mro",)

    spec: ModelRolloutSpec
    status: ModelRolloutStatus = Field(default_factory=ModelRolloutStatus)

    @classmethod
    def from_object(cls, obj: dict[str, Any]) -> ModelRollout:
        """Read an object as the API server returns it. Raises pydantic.ValidationError."""
        return cls.model_validate({"spec": obj["spec"], "status": obj.get("status") or {}})
