"""What a TrainingRun's decision looks at, frozen. Filled by `gather`, read by `decide`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from cutover.api.trainingrun import Progress, TrainingRun
from cutover.task import Task
from cutover_operator.port import Object
from cutover_operator.training.observed import JobSeen, PodSeen
from cutover_operator.training.trials import TrialSeen


@dataclass(frozen=True, slots=True)
class Site:
    """What the operator's own settings say."""

    allowed_urls: tuple[str, ...] = ()
    trainer_image: str = ""
    pull_secrets: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class NoTask:
    """The task document cannot be used."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class World:
    parent: Object
    run: TrainingRun | str
    """Or why the object cannot be read."""
    task: Task | NoTask
    site: Site
    jobs: tuple[JobSeen, ...] = ()
    pods: tuple[PodSeen, ...] = ()
    config_maps: tuple[str, ...] = ()
    trials: tuple[TrialSeen, ...] = ()
    """Runs that a search has made."""
    progress: Progress | None = None
    """Of the running stage, read from its log just now."""
    access_modes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """By claim, of those that several nodes are to share; without those that do not exist."""

    @property
    def uid(self) -> str:
        return str(self.parent["metadata"]["uid"])

    @property
    def name(self) -> str:
        return str(self.parent["metadata"]["name"])

    @property
    def namespace(self) -> str:
        return str(self.parent["metadata"]["namespace"])

    @property
    def generation(self) -> int:
        return int(self.parent["metadata"].get("generation", 0))
