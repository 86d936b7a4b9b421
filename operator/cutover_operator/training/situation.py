"""What a check of the decision is given, and what it answers. Pure data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from cutover.api.trainingrun import StageStatus, TrainingRunSpec, TrainingRunStatus
from cutover_operator.plan import Action, Notice
from cutover_operator.training import spending
from cutover_operator.training.report import Standing
from cutover_operator.training.resources import gpus_of
from cutover_operator.training.sharing import nodes_of
from cutover_operator.training.world import World


@dataclass(frozen=True, slots=True)
class Situation:
    world: World
    spec: TrainingRunSpec
    status: TrainingRunStatus
    stage: StageStatus
    """The first stage that is not done."""
    now: datetime

    @property
    def gpus(self) -> int:
        """Of all pods of the stage."""
        return gpus_of(self.spec, self.stage.name) * nodes_of(self.spec, self.stage.name)

    @property
    def spent_seconds(self) -> float:
        return spending.spent_seconds(self.status.pods)


@dataclass(frozen=True, slots=True)
class Answer:
    """Where a check leaves the run."""

    standing: Standing
    stage: StageStatus | None = None
    """The current stage as it is to be, when it changes."""
    actions: tuple[Action, ...] = ()
    again_in_seconds: float | None = None
    started: bool = False
    notices: tuple[Notice, ...] = field(default=())
    update: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of the status that change."""


Check = Callable[[Situation], Answer | None]
