"""TrainingRun: from validated assessments to a registered model version.

The spec says what is wanted, the status what is true. Pure data and pure checks.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from cutover.api.base import (
    ApiModel,
    ClaimRef,
    Condition,
    Name,
    NodeSelector,
    SecretKeyRef,
    ShortName,
    StatusModel,
    TaskRef,
    Text,
    Toleration,
    Uri,
)

Fraction = Annotated[float, Field(ge=0, le=1)]


class UrlSource(ApiModel):
    """The export endpoint of the assessments service, or any URL that answers JSON lines."""

    url: Annotated[str, Field(min_length=8, max_length=2048, pattern=r"^https?://")]
    secret_ref: SecretKeyRef | None = None
    """Bearer token sent as `Authorization`."""


class DatasetSource(ApiModel):
    """Where the rows come from: exactly one of the three."""

    http: UrlSource | None = None
    uri: Annotated[str, Field(min_length=6, max_length=2048, pattern=r"^(s3|gs)://")] | None = None
    claim: ClaimRef | None = None


class Split(ApiModel):
    """Shares of the groups; they add up to 1."""

    train: Fraction = 0.8
    validation: Fraction = 0.1
    test: Fraction = 0.1


class Augmentation(ApiModel):
    """Drawn statelessly from (seed, epoch, row) while training; the test part is never touched."""

    enabled: bool = True
    rotation_degrees: Annotated[float, Field(ge=0, le=45)] = 10.0
    brightness: Annotated[float, Field(ge=0, le=0.9)] = 0.15
    contrast: Annotated[float, Field(ge=0, le=0.9)] = 0.15


class Quality(ApiModel):
    """What the data must be before a GPU is asked for."""

    min_examples: Annotated[int, Field(ge=1, le=10_000_000)] = 10_000
    min_control_accuracy: Fraction = 0.85
    """How often the answers of today's model must agree with the human labels."""
    min_validated_share: Fraction = 1.0
    """Share of rows with a human label; rows without one are never trained on."""
    min_per_class: Annotated[int, Field(ge=0, le=1_000_000)] = 1
    required_classes: Annotated[list[Annotated[str, Field(max_length=128)]], Field(max_length=256)] = Field(
        default_factory=list
    )
    max_bad_rows_share: Fraction = 0.01
    """Unreadable rows tolerated (each is listed in the data report); above it the run is refused."""


class Synthetic(ApiModel):
    """Rows with made-up pictures: counted apart, never in the test part."""

    uri: Uri
    max_share: Fraction = 0.2


class Dataset(ApiModel):
    source: DatasetSource
    limit: Annotated[int, Field(ge=1, le=10_000_000)] = 50_000
    split: Split = Field(default_factory=Split)
    seed: Annotated[int, Field(ge=0, le=2_147_483_647)] = 0
    group_by: Annotated[str, Field(min_length=1, max_length=128)] = "group_id"
    """Rows sharing this key never end up in different parts."""
    augmentation: Augmentation = Field(default_factory=Augmentation)
    quality: Quality = Field(default_factory=Quality)
    synthetic: Synthetic | None = None


Family = Literal["llava", "llava_next", "blip2"]


class BaseModelRef(ApiModel):
    """The pretrained model: `hf://org/name`, `s3://`, `gs://` or `claim://claim-name/path`."""

    uri: Annotated[str, Field(min_length=6, max_length=2048, pattern=r"^(hf|s3|gs|claim)://.+")]
    revision: Annotated[str, Field(max_length=128)] = "main"
    family: Family = "llava"


class Lora(ApiModel):
    """LoRA (Hu et al. 2021, arXiv:2106.09685)."""

    rank: Annotated[int, Field(ge=1, le=512)] = 16
    alpha: Annotated[int, Field(ge=1, le=1024)] = 32
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.05
    targets: Literal["language_model", "language_model_and_vision"] = "language_model"


class FineTune(ApiModel):
    learning_rate: Annotated[float, Field(ge=1e-6, le=1e-2)] = 2e-4
    batch_size: Annotated[int, Field(ge=1, le=1024)] = 8
    epochs: Annotated[int, Field(ge=1, le=100)] = 3
    optimizer: Literal["adamw"] = "adamw"
    lora: Lora = Field(default_factory=Lora)
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    seed: Annotated[int, Field(ge=0, le=2_147_483_647)] = 0


class Tuning(ApiModel):
    """Search over the fine-tune settings."""

    trials: Annotated[int, Field(ge=1, le=64)] = 9
    parallelism: Annotated[int, Field(ge=1, le=16)] = 1
    space: Annotated[
        dict[str, Annotated[list[float], Field(min_length=1, max_length=32)]], Field(max_length=8)
    ] = Field(default_factory=dict)
    scheduler: Literal["asha", "none"] = "asha"


class EvaluationGate(ApiModel):
    """What the trained model must reach on the test part before it is registered."""

    metric: Literal["accuracy", "jsonValidity", "recall"] = "accuracy"
    field: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    """Answer field; none means every scored field right."""
    class_: Annotated[str | None, Field(alias="class", max_length=128)] = None
    """recall: the class whose share found is gated."""
    min: Fraction


class Evaluation(ApiModel):
    gates: Annotated[list[EvaluationGate], Field(max_length=32)] = Field(default_factory=list)
    compare_with: Literal["none", "base", "control", "baseAndControl"] = "baseAndControl"


class Compute(ApiModel):
    gpus: Annotated[int, Field(ge=0, le=64)] = 1
    """0 trains on the CPU (tests and tiny models)."""
    gpu_product: Annotated[str, Field(max_length=63)] = "NVIDIA-A100-SXM4-80GB"
    """Value of the node label `nvidia.com/gpu.product`; empty means any."""
    nodes: Annotated[int, Field(ge=1, le=16)] = 1
    spot: bool = True
    node_selector: NodeSelector = Field(default_factory=dict)
    tolerations: Annotated[list[Toleration], Field(max_length=16)] = Field(default_factory=list)
    gpu_hour_budget: Annotated[float, Field(gt=0, le=100_000)] = 50.0
    image: Annotated[str, Field(max_length=512)] = ""
    """Trainer image; empty means the operator's default."""
    queue_name: Annotated[str, Field(max_length=63)] = ""
    """Kueue LocalQueue."""
    service_account_name: Annotated[str, Field(max_length=253)] = ""
    max_attempts: Annotated[int, Field(ge=1, le=20)] = 5
    """Failed attempts of one stage before the run is given up; interruptions do not count."""
    memory: Annotated[str, Field(max_length=32)] = ""
    cpu: Annotated[str, Field(max_length=32)] = ""


class Mlflow(ApiModel):
    url: Annotated[str, Field(min_length=8, max_length=2048, pattern=r"^https?://")]
    model_name: Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9][-_.A-Za-z0-9]*$")]
    secret_ref: SecretKeyRef | None = None


class Registry(ApiModel):
    mlflow: Mlflow | None = None


class Output(ApiModel):
    """Where artifacts go: exactly one of the two."""

    claim: ClaimRef | None = None
    uri: Annotated[str, Field(min_length=6, max_length=2048, pattern=r"^(s3|gs)://")] | None = None


class TrainingRunSpec(ApiModel):
    task: TaskRef
    suspend: bool = False
    dataset: Dataset
    base_model: BaseModelRef
    fine_tune: FineTune = Field(default_factory=FineTune)
    tuning: Tuning | None = None
    evaluation: Evaluation = Field(default_factory=Evaluation)
    compute: Compute = Field(default_factory=Compute)
    registry: Registry = Field(default_factory=Registry)
    output: Output


Stage = Literal["prepare", "train", "evaluate", "register"]
STAGES: tuple[Stage, ...] = ("prepare", "train", "evaluate", "register")


class PodUse(StatusModel):
    """GPU time of one pod, kept by uid so that a deleted pod still counts."""

    uid: Annotated[str, Field(max_length=64)]
    gpu_seconds: Annotated[float, Field(ge=0)] = 0.0


class StageStatus(StatusModel):
    """One stage of the run. `state` is derived from the Jobs and the stage's result document."""

    name: Stage
    state: Literal["Pending", "Running", "Waiting", "Done", "Failed"] = "Pending"
    attempt: Annotated[int, Field(ge=0)] = 0
    """Number of the current Job, counted from 1; interruptions count too."""
    failures: Annotated[int, Field(ge=0)] = 0
    job: Annotated[str, Field(max_length=253)] = ""
    not_before: Annotated[str, Field(max_length=40)] | None = None
    started_at: Annotated[str, Field(max_length=40)] | None = None
    finished_at: Annotated[str, Field(max_length=40)] | None = None
    message: Text = ""


class Progress(StatusModel):
    step: Annotated[int, Field(ge=0)] = 0
    steps: Annotated[int, Field(ge=0)] = 0
    loss: float | None = None
    samples_per_second: float | None = None


class DataSummary(StatusModel):
    rows: int = 0
    train: int = 0
    validation: int = 0
    test: int = 0
    bad_rows: int = 0
    control_accuracy: float | None = None
    digest: Annotated[str, Field(max_length=128)] = ""


class EvaluationSummary(StatusModel):
    """Shares in 0..1 on the test part."""

    n: int = 0
    accuracy: dict[str, float] = Field(default_factory=dict, json_schema_extra={"maxProperties": 32})
    """Per answer field, and `overall` for all scored fields right."""
    accuracy_before: dict[str, float] = Field(default_factory=dict, json_schema_extra={"maxProperties": 32})
    accuracy_control: dict[str, float] = Field(default_factory=dict, json_schema_extra={"maxProperties": 32})
    json_validity: float | None = None
    latency_p95_seconds: float | None = None


class ModelVersion(StatusModel):
    """What a ModelRollout needs to serve the result."""

    name: Annotated[str, Field(max_length=128)] = ""
    version: Annotated[str, Field(max_length=128)] = ""
    base_uri: Annotated[str, Field(max_length=2048)] = ""
    base_revision: Annotated[str, Field(max_length=128)] = ""
    adapter_uri: Annotated[str, Field(max_length=2048)] = ""
    """`claim://name/path`, `s3://` or `gs://`."""
    family: Family = "llava"
    digest: Annotated[str, Field(max_length=128)] = ""
    mlflow_run_id: Annotated[str, Field(max_length=128)] = ""


class TrainingRunStatus(StatusModel):
    schema_version: int = 1
    observed_generation: Annotated[int, Field(ge=0)] = 0
    spec_digest: Annotated[str, Field(max_length=128)] = ""
    """Digest of the part of spec the artifacts depend on; a change after the start is refused."""
    stage: Annotated[str, Field(max_length=32)] = ""
    stages: Annotated[
        list[StageStatus],
        Field(
            max_length=8,
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
        ),
    ] = Field(default_factory=list)
    progress: Progress | None = None
    progress_text: Annotated[str, Field(max_length=64)] = ""
    gpu_hours: Annotated[str, Field(max_length=32)] = ""
    pods: Annotated[
        list[PodUse],
        Field(
            max_length=500,
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["uid"]},
        ),
    ] = Field(default_factory=list)
    data: DataSummary | None = None
    evaluation: EvaluationSummary | None = None
    accuracy_text: Annotated[str, Field(max_length=32)] = ""
    model: ModelVersion | None = None
    model_text: Annotated[str, Field(max_length=260)] = ""
    reason: Annotated[str, Field(max_length=128)] = ""
    conditions: Annotated[
        list[Condition],
        Field(
            max_length=16,
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
        ),
    ] = Field(default_factory=list)


class TrainingRun(ApiModel):
    """kind TrainingRun, short name `tr`."""

    kind_name: ClassVar[str] = "TrainingRun"
    plural: ClassVar[str] = "trainingruns"
    short_names: ClassVar[tuple[str, ...]] = ("tr",)

    spec: TrainingRunSpec
    status: TrainingRunStatus = Field(default_factory=TrainingRunStatus)

    @classmethod
    def from_object(cls, obj: dict[str, Any]) -> TrainingRun:
        """Read an object as the API server returns it. Raises pydantic.ValidationError."""
        return cls.model_validate({"spec": obj["spec"], "status": obj.get("status") or {}})


__all__ = ["STAGES", "Name", "ShortName", "Stage", "TrainingRun", "TrainingRunSpec", "TrainingRunStatus"]
