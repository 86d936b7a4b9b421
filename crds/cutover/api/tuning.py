"""Search over the fine-tune settings: what is asked for, what one trial is, and how far it has come.

Pure data. `SETTINGS` says what may be searched and within which bounds; the rules of the API server and the operator's
suggestions are both made from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from cutover.api.base import MEASURED_LIMIT, ApiModel, Count, Measured, StatusModel


@dataclass(frozen=True, slots=True)
class Setting:
    """A fine-tune setting that may be searched."""

    least: float
    most: float
    whole: bool = False


SETTINGS: dict[str, Setting] = {
    "learningRate": Setting(1e-6, 1e-2),
    "batchSize": Setting(1, 1024, whole=True),
    "lora.rank": Setting(1, 512, whole=True),
    "lora.alpha": Setting(1, 1024, whole=True),
    "lora.dropout": Setting(0, 0.999),
}
"""By name; a dot leads into `fineTune.lora`."""

MOST_TRIALS = 64
_Number = Annotated[float, Field(ge=-MEASURED_LIMIT, le=MEASURED_LIMIT)]


class Parameter(ApiModel):
    """What a setting may be: either a list of values, or a range from min to max."""

    values: Annotated[list[_Number], Field(min_length=1, max_length=32)] | None = None
    """The values to choose from."""
    min: _Number | None = None
    """Lower end of the range."""
    max: _Number | None = None
    """Upper end of the range."""
    log: bool = False
    """Spread over the range by its logarithm, as learning rates need."""


class Tuning(ApiModel):
    """Search over the fine-tune settings: the best by loss on the validation part is trained to the end and registered."""

    trials: Annotated[int, Field(ge=1, le=MOST_TRIALS)] = 9
    """Settings tried."""
    parallelism: Annotated[int, Field(ge=1, le=16)] = 1
    """Trials at a time; each takes compute.gpus. The winner does not depend on it."""
    space: Annotated[dict[str, Parameter], Field(max_length=8)] = Field(default_factory=dict)
    """What is searched, by name of the setting: learningRate, batchSize, lora.rank, lora.alpha, lora.dropout."""
    scheduler: Literal["asha", "none"] = "asha"
    """asha: a ninth of the epochs for all, a third for the best third, all of them for the best ninth (of fewer than
    nine trials: a third for all, all of them for the best third). none: all of them for all."""
    seed: Annotated[int, Field(ge=0, le=2_147_483_647)] = 0
    """Seed of the settings tried."""


_Folder = Annotated[str, Field(max_length=200, pattern=r"^[a-z0-9][-a-z0-9]*$")]


class Trial(ApiModel):
    """One rung of one trial of a search. The operator writes it into the runs it makes; it is not for people."""

    number: Annotated[int, Field(ge=1, le=MOST_TRIALS)]
    """Which of the search's settings, counted from 1."""
    rung: Annotated[int, Field(ge=0, le=8)]
    """How often it was promoted."""
    epochs: Annotated[float, Field(gt=0, le=100)]
    """Where this rung stops, of fineTune.epochs."""
    data: _Folder
    """Folder of the searching run below `output`: its prepared data is read."""
    folder: _Folder
    """Folder of this rung below `trials/` of the searching run's."""
    resume_from: _Folder | None = None
    """Folder of the rung before, whose last checkpoint is gone on from."""


class TrialStatus(StatusModel):
    """One trial as far as it has come. Its settings are committed here before its run is made."""

    number: Count
    settings: Annotated[dict[str, _Number], Field(max_length=8)] = Field(default_factory=dict)
    rung: Count = 0
    """The highest it has begun."""
    epochs: Measured = None
    """Where that rung stops."""
    state: Literal["Running", "Done", "Failed"] = "Running"
    """Of that rung."""
    objective: Measured = None
    """Loss on the validation part where it last stopped."""
    run: Annotated[str, Field(max_length=253)] = ""
    """The TrainingRun of that rung."""
    folder: Annotated[str, Field(max_length=253)] = ""


class TuningStatus(StatusModel):
    """How far a search has come."""

    trials: Annotated[
        list[TrialStatus],
        Field(
            max_length=MOST_TRIALS,
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["number"]},
        ),
    ] = Field(default_factory=list)
    winner: Count | None = None
    """Number of the trial whose settings the model is trained with."""
