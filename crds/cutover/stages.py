"""What the operator hands a trainer stage, and what the stage hands back.

One YAML in (`StageConfig`), artifacts under one URI, one JSON out (`StageResult`, also the termination message).
Pure data; the layout of the artifact folder is fixed here so that a later stage finds an earlier one's work.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from cutover.api.trainingrun import (
    DataSummary,
    EvaluationSummary,
    ModelVersion,
    Progress,
    Stage,
    TrainingRunSpec,
)
from cutover.route import WireModel
from cutover.task import Task

StageName = Stage | Literal["export", "champion"]
"""The commands of the trainer; export is also the first step of prepare, and champion is asked for by rollouts, with
arguments of its own instead of a StageConfig."""

DATA_FOLDER = "data"
"""train.jsonl (synthetic rows among them marked), validation.jsonl, test.jsonl, pictures/<sha256>, report.json, MANIFEST.json (written last)."""
DATA_PAGE = "report.html"
"""In the data folder: the data report for people."""
EXPORT_FOLDER = "export"
"""rows.jsonl as exported, the rows of dataset.synthetic last; MANIFEST.json."""
CHECKPOINT_FOLDER = "checkpoints"
"""step-00000123/: adapter, optimizer, MANIFEST.json written last."""
ADAPTER_FOLDER = "adapter"
"""The trained adapter: peft files, processor, `cutover.json` (base digest, versions), probe.json, MANIFEST.json."""
TRIALS_FOLDER = "trials"
"""One folder per rung of a trial, each with checkpoints of its own."""
EVALUATION_FILE = "evaluation.json"
"""Everything measured on the test part, and the confidence curve."""
EVALUATION_PAGE = "evaluation.html"
"""The same for people, with pictures of the worst errors."""


def done_file(stage: str) -> str:
    """Relative name of the manifest that proves a stage finished; it holds the StageResult."""
    return f"DONE-{stage}.json"


class RunIdentity(WireModel):
    name: str
    namespace: str
    uid: str


class StageConfig(WireModel):
    """`stage.yaml`."""

    schema_version: int = 1
    run: RunIdentity
    artifacts: str
    """fsspec URI of the run's folder: file:///…, s3://…, gs://…"""
    published_artifacts: str = ""
    """The same folder as other pods name it: claim://name/path, s3://…, gs://…; default `artifacts`."""
    data_artifacts: str = ""
    """Where the prepared data lies, if not in `artifacts`: a trial reads that of the run that searches."""
    resume_artifacts: str = ""
    """Whose newest checkpoint training goes on from while `artifacts` holds none: the rung before."""
    task: Task
    spec: TrainingRunSpec
    base_model_path: str
    """Local folder, or hf:// s3:// gs:// URI as in the spec."""
    source_path: str | None = None
    """Local file or folder when the dataset source is a claim."""
    synthetic_path: str | None = None
    """The same for `dataset.synthetic`."""
    source_token_file: str | None = None
    previous_adapter_path: str | None = None
    """`evaluation.previousAdapter` as the pod finds it: file://…, s3://…, gs://…"""
    mlflow_token_file: str | None = None
    allowed_origins: tuple[str, ...] = ()
    """Origins (scheme://host:port) of private addresses the fetcher may open: the export source itself."""
    gpu_seconds_left: float | None = None
    attempt: int = 1
    mlflow_run_id: str = ""


class StageResult(WireModel):
    """How a stage ended."""

    stage: StageName
    outcome: Literal["done", "badInput", "interrupted", "failed", "budgetExceeded"]
    message: str = ""
    """One sentence with the numbers; for badInput it names the field, the value and the remedy."""
    reason: str = ""
    """CamelCase condition reason, for example TooFewExamples, BaseModelNotFound, UnreadableRows."""
    data: DataSummary | None = None
    evaluation: EvaluationSummary | None = None
    model: ModelVersion | None = None
    progress: Progress | None = None
    samples_per_second: float | None = None
    objective: float | None = None
    """Of a trial: mean loss per answer token on the validation part."""
    details: dict[str, str] = Field(default_factory=dict)


class ProgressLine(WireModel):
    """A line of a stage's log that the operator reads: {"event": "progress", ...}."""

    event: Literal["progress"] = "progress"
    stage: StageName
    step: int
    steps: int
    loss: float | None = None
    samples_per_second: float | None = None
