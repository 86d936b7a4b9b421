"""A trial of a search: train to its rung, and say what the adapter is worth on the validation part.

The learning rate follows fineTune.epochs, whatever the rung: a rung is an early stop of the whole training. So a trial
that is promoted, and the model that is made of the winner, go on from the rung's checkpoint with the losses of a
training that was never stopped. No adapter is written, and the test part is not read.
"""

from __future__ import annotations

import math

from cutover.api.trainingrun import Progress, TrainingRunSpec
from cutover.stages import StageConfig, StageResult
from cutover_trainer.outcome import BadInput
from cutover_trainer.schedule import Schedule
from cutover_trainer.storage import ArtifactStore

OBJECTIVE_ROWS = 1024
"""Of the validation part, at most: a difference between settings that more rows are needed to see is not worth its time."""


def data_store(config: StageConfig, store: ArtifactStore) -> ArtifactStore:
    """Where the prepared data lies: a trial reads that of the run that searches."""
    return ArtifactStore(config.data_artifacts) if config.data_artifacts else store


def check(spec: TrainingRunSpec, validation_rows: int) -> None:
    """Raises BadInput for what cannot be compared."""
    if spec.tuning is not None:
        raise BadInput(
            "SearchNotMade",
            "tuning: the operator searches, by runs with settings of their own; remove tuning to train with fineTune as it is",
        )
    if spec.trial is not None and not validation_rows:
        raise BadInput(
            "NoValidationRows",
            "dataset.split.validation: the validation part is empty, so trials cannot be compared; raise it in a new run",
        )


def end_step(spec: TrainingRunSpec, schedule: Schedule) -> int:
    """Steps done when this training stops: all of them, or those of the rung."""
    if spec.trial is None:
        return schedule.steps
    return max(1, min(schedule.steps, math.ceil(spec.trial.epochs * schedule.steps_per_epoch - 1e-6)))


def result(loss: float, rows: int, progress: Progress) -> StageResult:
    """Of a trial that has reached its rung."""
    if not math.isfinite(loss):
        raise BadInput("TrainingDiverged", f"fineTune.learningRate: the validation loss is {loss}; lower it")
    rate = progress.samples_per_second
    return StageResult(
        stage="train",
        outcome="done",
        message=f"{progress.step} steps, loss {loss:.4f} on {rows} validation rows",
        progress=progress,
        samples_per_second=rate,
        objective=loss,
    )
