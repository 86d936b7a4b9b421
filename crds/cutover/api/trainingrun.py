"""TrainingRun: from validated assessments to a registered model version.

The spec says what is wanted, the status what is true. Pure data and pure checks.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from cutover.api.base import (
    MEASURED_LIMIT,
    ApiModel,
    ClaimRef,
    Condition,
    Count,
    Fraction,
    LabelValue,
    Measured,
    Name,
    NodeSelector,
    Quantity,
    SecretKeyRef,
    ShortName,
    StatusModel,
    TaskRef,
    Text,
    Timestamp,
    Toleration,
)
from cutover.api.tuning import Trial, Tuning, TuningStatus


class UrlSource(ApiModel):
    """The export endpoint of the assessments service, or any URL that answers JSON lines."""

    url: Annotated[str, Field(min_length=8, max_length=2048, pattern=r"^https?://.+")]
    """Must match the operator's allow list."""
    secret_ref: SecretKeyRef | None = None
    """Bearer token sent as `Authorization`."""


class DatasetSource(ApiModel):
    """Where the rows come from: exactly one of the three."""

    http: UrlSource | None = None
    """A URL that answers JSON lines."""
    uri: Annotated[str, Field(min_length=6, max_length=2048, pattern=r"^(s3|gs)://.+")] | None = None
    """A file of JSON lines in an object store, `s3://` or `gs://`."""
    claim: ClaimRef | None = None
    """A file or folder of JSON lines on a claim."""


class Split(ApiModel):
    """Shares of the groups; they add up to 1."""

    train: Fraction = 0.8
    """What the weights are fitted to."""
    validation: Fraction = 0.1
    """What the best checkpoint is chosen on."""
    test: Fraction = 0.1
    """Held out; the evaluation uses nothing else."""


class Augmentation(ApiModel):
    """Drawn statelessly from (seed, epoch, row) while training; the test part is never touched."""

    enabled: bool = True
    """Off leaves every picture as it is."""
    rotation_degrees: Annotated[float, Field(ge=0, le=45)] = 10.0
    """Greatest turn to either side."""
    brightness: Annotated[float, Field(ge=0, le=0.9)] = 0.15
    """Greatest relative change of brightness."""
    contrast: Annotated[float, Field(ge=0, le=0.9)] = 0.15
    """Greatest relative change of contrast."""
    views: Annotated[int, Field(ge=0, le=100)] = 0
    """Distortions drawn per picture, taken in turn by the epochs: what a frozen vision tower makes of them is reckoned
    once. 0 draws anew in every epoch."""


class Quality(ApiModel):
    """What the data must be before a GPU is asked for."""

    min_examples: Annotated[int, Field(ge=1, le=10_000_000)] = 10_000
    """Usable rows needed."""
    min_control_accuracy: Fraction = 0.85
    """How often the answers of today's model must agree with the human labels."""
    min_validated_share: Fraction = 1.0
    """Share of rows with a human label; rows without one are never trained on."""
    min_per_class: Annotated[int, Field(ge=0, le=1_000_000)] = 1
    """Rows needed of each of them."""
    required_classes: Annotated[
        list[Annotated[str, Field(max_length=128)]],
        Field(max_length=256, json_schema_extra={"x-kubernetes-list-type": "set"}),
    ] = Field(default_factory=list)
    """Classes of the task's first scored field that must occur."""
    max_bad_rows_share: Fraction = 0.01
    """Unreadable rows tolerated (each is listed in the data report); above it the run is refused."""


class Synthetic(ApiModel):
    """Asks for made-up rows where a class is short of real ones: in the training part only, marked as synthetic for
    ever, counted for no demand of `quality`. They are the rows of the source given here and those of `source` that say
    `"synthetic": true`."""

    uri: Annotated[str, Field(min_length=6, max_length=2048, pattern=r"^(s3|gs)://.+")] | None = None
    """A file or folder of JSON lines in an object store, `s3://` or `gs://`."""
    claim: ClaimRef | None = None
    """A file or folder of JSON lines on a claim."""
    up_to_per_class: Annotated[int, Field(ge=1, le=1_000_000)] = 500
    """A class of the task's first scored field with fewer real training rows is filled up to this number."""
    max_share: Annotated[float, Field(gt=0, le=0.5)] = 0.2
    """Greatest share of the training part."""


class Dataset(ApiModel):
    """The rows, how they are parted, and what they must be."""

    source: DatasetSource
    limit: Annotated[int, Field(ge=1, le=10_000_000)] = 50_000
    """Rows read at most; a `limit` in the source's URL that is smaller holds as well."""
    split: Split = Field(default_factory=Split)
    seed: Annotated[int, Field(ge=0, le=2_147_483_647)] = 0
    """Seed of the split and of the augmentation."""
    group_by: Annotated[str, Field(min_length=1, max_length=128)] = "group_id"
    """Rows sharing this key never end up in different parts."""
    augmentation: Augmentation = Field(default_factory=Augmentation)
    quality: Quality = Field(default_factory=Quality)
    synthetic: Synthetic | None = None


Family = Literal["llava", "llava_next", "blip2"]


class BaseModelRef(ApiModel):
    """The pretrained model: `hf://org/name`, `s3://`, `gs://` or `claim://claim-name/path`."""

    uri: Annotated[str, Field(min_length=6, max_length=2048, pattern=r"^(hf|s3|gs|claim)://.+")]
    """Where the weights are."""
    revision: Annotated[str, Field(max_length=128)] = "main"
    """Branch, tag or commit of a Hugging Face repository."""
    family: Family = "llava"
    """Architecture; decides which engines can serve the result."""


class Lora(ApiModel):
    """LoRA (Hu et al. 2021, arXiv:2106.09685)."""

    rank: Annotated[int, Field(ge=1, le=512)] = 16
    """Rank of the update."""
    alpha: Annotated[int, Field(ge=1, le=1024)] = 32
    """The update is scaled by alpha / rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Dropout in front of the update."""
    targets: Literal["language_model", "language_model_and_vision"] = "language_model"
    """Which linear layers are adapted; engines serve a language-model adapter unmerged."""


class FineTune(ApiModel):
    """How the adapter is trained."""

    learning_rate: Annotated[float, Field(ge=1e-6, le=1e-2)] = 2e-4
    """Peak learning rate."""
    batch_size: Annotated[int, Field(ge=1, le=1024)] = 8
    """Examples per optimizer step; what does not fit the card is accumulated."""
    epochs: Annotated[int, Field(ge=1, le=100)] = 3
    """Passes over the training part."""
    optimizer: Literal["adamw"] = "adamw"
    """The only one there is."""
    lora: Lora = Field(default_factory=Lora)
    quantization: Literal["none", "nf4"] = "none"
    """nf4: while training, the language model's frozen linear layers are held in 4 bits (QLoRA, Dettmers et al. 2023,
    arXiv:2305.14314), for cards with little memory. Evaluated and served is the adapter on the base as it is."""
    kernels: Literal["torch", "liger"] = "torch"
    """liger: fused RMSNorm, RoPE and SwiGLU (Hsu et al. 2024, arXiv:2410.10989) in a Llama, Mistral or Qwen2 language
    model; for GPUs only."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """auto: bf16 where the card has it (A100), fp16 on an older card, fp32 on a CPU."""
    seed: Annotated[int, Field(ge=0, le=2_147_483_647)] = 0
    """Seed of the initial weights, the order of examples and dropout."""


class EvaluationGate(ApiModel):
    """What the trained model must reach on the test part before it is registered."""

    metric: Literal["accuracy", "macroF1", "recall", "jsonValidity"] = "accuracy"
    """accuracy, macroF1 (mean F1 of the classes that occur) and recall compare with human labels; jsonValidity: answers
    that fit the task's schema."""
    field: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    """Answer field. None means for accuracy every scored field right, for macroF1 and recall the task's first scored
    field."""
    class_: Annotated[str | None, Field(alias="class", max_length=128)] = None
    """recall: the class whose share found is gated."""
    min: Fraction
    """Least share."""


class Evaluation(ApiModel):
    """What is measured on the test part after training."""

    gates: Annotated[list[EvaluationGate], Field(max_length=32)] = Field(default_factory=list)
    """A model that misses one is not registered."""
    compare_with: Literal["none", "base", "control", "baseAndControl"] = "baseAndControl"
    """Whose answers are scored beside the trained model's: the untrained base, today's model, or both."""
    previous_adapter: (
        Annotated[
            str,
            Field(
                min_length=6,
                max_length=2048,
                pattern=r"^(s3|gs|claim)://.+/[^/]+$",
            ),
        ]
        | None
    ) = None
    """An earlier run's adapter of the same base, as its `status.model.adapterUri` has it: asked the same questions, and
    compared in pairs on the rows it was not trained on."""


class Compute(ApiModel):
    """Where and with what the stages run."""

    gpus: Annotated[int, Field(ge=0, le=64)] = 1
    """Of each of the training's pods; 0 trains on the CPU (tests and tiny models)."""
    gpu_product: LabelValue = "NVIDIA-A100-SXM4-80GB"
    """Value of the node label `nvidia.com/gpu.product`; empty means any."""
    nodes: Annotated[int, Field(ge=1, le=16)] = 1
    """Pods one training spans, with `gpus` each. Above 1 the claims of `output` and `baseModel` have to be mountable on
    several nodes (ReadWriteMany), or be object stores."""
    spot: bool = True
    """Train on reclaimable nodes: an interruption costs at most the time since the last checkpoint."""
    node_selector: NodeSelector = Field(default_factory=dict)
    """Further node labels the pods need."""
    tolerations: Annotated[list[Toleration], Field(max_length=16)] = Field(default_factory=list)
    """Further taints the pods tolerate."""
    gpu_hour_budget: Annotated[float, Field(gt=0, le=100_000)] = 50.0
    """GPU-hours of all attempts and trials together; above it the run stops (condition BudgetExceeded)."""
    image: Annotated[str, Field(max_length=512)] = ""
    """Trainer image; empty means the operator's default."""
    queue_name: Annotated[str, Field(max_length=63, pattern=r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?)?$")] = ""
    """Kueue LocalQueue of the namespace: every Job is made suspended and starts when Kueue admits it. The queue has to
    cover `cpu` and `memory`, and the GPUs' resource."""
    service_account_name: Annotated[str, Field(max_length=253)] = ""
    """Service account of the pods, for object stores that trust one; empty means the namespace's default."""
    max_attempts: Annotated[int, Field(ge=1, le=20)] = 5
    """Failed attempts of one stage before the run is given up; interruptions do not count."""
    memory: Quantity = ""
    """Memory of a stage's pod, for example 64Gi; empty means a default per stage."""
    cpu: Quantity = ""
    """CPUs of a stage's pod, for example 8; empty means a default per stage."""


class Mlflow(ApiModel):
    """An MLflow tracking server with its model registry."""

    url: Annotated[str, Field(min_length=8, max_length=2048, pattern=r"^https?://.+")]
    """Must match the operator's allow list."""
    model_name: Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9][-_.A-Za-z0-9]*$")]
    """Registered model that gets the new version."""
    secret_ref: SecretKeyRef | None = None
    """Bearer token."""


class Registry(ApiModel):
    """Where the result is written down besides `output`."""

    mlflow: Mlflow | None = None


class Output(ApiModel):
    """Where artifacts go: exactly one of the two."""

    claim: ClaimRef | None = None
    """A folder on a claim."""
    uri: Annotated[str, Field(min_length=6, max_length=2048, pattern=r"^(s3|gs)://.+")] | None = None
    """A folder in an object store, `s3://` or `gs://`."""


class TrainingRunSpec(ApiModel):
    """What is wanted. What the artifacts are made from (task, dataset, baseModel, fineTune, tuning, trial, output) is fixed
    once the run has started; the rest may change."""

    task: TaskRef
    suspend: bool = False
    """Stop after a checkpoint and give the GPUs back; false goes on from there."""
    dataset: Dataset
    base_model: BaseModelRef
    fine_tune: FineTune = Field(default_factory=FineTune)
    tuning: Tuning | None = None
    trial: Trial | None = None
    evaluation: Evaluation = Field(default_factory=Evaluation)
    compute: Compute = Field(default_factory=Compute)
    registry: Registry = Field(default_factory=Registry)
    output: Output


Stage = Literal["prepare", "tune", "train", "evaluate", "register"]
STAGES: tuple[Stage, ...] = ("prepare", "train", "evaluate", "register")
"""Those with Jobs of their own; tune is made of trials, which are TrainingRuns."""


def stages_of(spec: TrainingRunSpec) -> tuple[Stage, ...]:
    """What a run goes through, in order. A trial only trains, on the data of the run that searches."""
    if spec.trial is not None:
        return ("train",)
    return STAGES if spec.tuning is None else ("prepare", "tune", "train", "evaluate", "register")


class PodUse(StatusModel):
    """GPU time of one pod, or of one trial's run, kept by uid so that what is deleted still counts."""

    uid: Annotated[str, Field(max_length=64)]
    gpu_seconds: Annotated[float, Field(ge=0, le=MEASURED_LIMIT)] = 0.0


class StageStatus(StatusModel):
    """One stage of the run. `state` is derived from the Jobs and the stage's result document."""

    name: Stage
    state: Literal["Pending", "Queued", "Running", "Waiting", "Done", "Failed"] = "Pending"
    """Queued: its Job is there and suspended, Kueue has not admitted it or has taken it back."""
    attempt: Count = 0
    """Number of the current Job, counted from 1; interruptions count too."""
    failures: Count = 0
    job: Annotated[str, Field(max_length=253)] = ""
    not_before: Timestamp | None = None
    started_at: Timestamp | None = None
    finished_at: Timestamp | None = None
    message: Text = ""

    @property
    def at_work(self) -> bool:
        """An attempt is committed: its Job is there, or is made from this status."""
        return self.state in ("Queued", "Running")


class Progress(StatusModel):
    step: Count = 0
    steps: Count = 0
    loss: Measured = None
    samples_per_second: Measured = None


class DataSummary(StatusModel):
    rows: Count = 0
    train: Count = 0
    """Synthetic ones included."""
    validation: Count = 0
    test: Count = 0
    synthetic: Count = 0
    """Rows of the training part that are made up."""
    bad_rows: Count = 0
    control_accuracy: Measured = None
    digest: Annotated[str, Field(max_length=128)] = ""


Shares = Annotated[dict[str, Fraction], Field(max_length=32)]


class ConfidenceSummary(StatusModel):
    """What answering only when sure would be worth: from the validation part, never from the test part."""

    rows: Count = 0
    """Valid answers the curve stands on."""
    auroc: Measured = None
    """Chance that a right answer is more confident than a wrong one; 0.5 says that confidence is worthless."""
    floor: Measured = None
    """Accuracy the kept answers must have: the accuracy gate's `min`."""
    threshold: Measured = None
    """Lowest confidence whose kept answers are proven to have it; absent when none is."""
    kept_share: Measured = None
    """Share of the valid answers that are at least so confident."""


class EvaluationSummary(StatusModel):
    """Shares in 0..1 on the test part."""

    examples: Count = 0
    accuracy: Shares = Field(default_factory=dict)
    """Per answer field, and `overall` for all scored fields right."""
    accuracy_before: Shares = Field(default_factory=dict)
    accuracy_control: Shares = Field(default_factory=dict)
    accuracy_previous: Shares = Field(default_factory=dict)
    """Of `evaluation.previousAdapter`, on the rows it was not trained on."""
    macro_f1: Shares = Field(default_factory=dict)
    """Per answer field: the mean F1 of the classes that occur."""
    human_agreement: Shares = Field(default_factory=dict)
    """How often two people say the same of one row, over all prepared rows: the ceiling of what accuracy can show."""
    human_rows: Count = 0
    """Rows two or more people labelled."""
    confidence: ConfidenceSummary | None = None
    json_validity: Measured = None
    latency_p95_seconds: Measured = None


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
    schema_version: Count = 1
    observed_generation: Count = 0
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
    tuning: TuningStatus | None = None
    objective: Measured = None
    """Of a trial: loss on the validation part where its rung stops."""
    evaluation: EvaluationSummary | None = None
    accuracy_text: Annotated[str, Field(max_length=32)] = ""
    """Accuracy of the field the first of `evaluation.gates` is about; without one, `overall`."""
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
    """From validated assessments to a registered model version."""

    kind_name: ClassVar[str] = "TrainingRun"
    plural: ClassVar[str] = "trainingruns"
    short_names: ClassVar[tuple[str, ...]] = ("tr",)

    spec: TrainingRunSpec
    status: TrainingRunStatus = Field(default_factory=TrainingRunStatus)

    @classmethod
    def from_object(cls, obj: dict[str, Any]) -> TrainingRun:
        """Read an object as the API server returns it. Raises pydantic.ValidationError."""
        return cls.model_validate({"spec": obj["spec"], "status": obj.get("status") or {}})


__all__ = [
    "STAGES",
    "Name",
    "ShortName",
    "Stage",
    "TrainingRun",
    "TrainingRunSpec",
    "TrainingRunStatus",
    "stages_of",
]
