"""A searching TrainingRun's surroundings: trials with loss curves, checkpoints by folder, several runs reconciled.

A pod trains a minute an epoch from the best checkpoint it can find, its own folder's or the one it was told to go on
from, and a checkpoint follows it closely; so what is lost by starting anew shows in the epochs trained.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import yaml

from cutover.contract import LABEL_STAGE
from cutover.stages import StageConfig
from cutover_operator import watches
from cutover_operator.plan import Key
from cutover_operator.port import CONFIG_MAPS, PODS, TRAINING_RUNS, Conflict, Kube, KubeError, Object
from cutover_operator.training.observed import LABEL_JOB
from fakes.kube import Change
from fakes.training_town import NAMESPACE, RUN, Ending, Town, result, written

EPOCH_SECONDS = 60.0
SPACE = {"learningRate": {"min": 2e-5, "max": 5e-4, "log": True}}
Curve = Callable[[float, float], float]
"""Loss on the validation part, of a learning rate after some epochs."""


def bowl(learning_rate: float, epochs: float) -> float:
    """The nearer to 2e-4 the lower, at every rung."""
    away = abs(math.log(learning_rate / 2e-4))
    return 0.2 + 0.1 * away + math.exp(-epochs / 3)


@dataclass
class SearchTown(Town):
    curve: Curve = bowl
    disturb: Callable[[StageConfig], Ending | None] = lambda config: None
    """An ending in place of the usual one."""
    reached: dict[str, float] = field(default_factory=dict)
    """Epochs of the newest checkpoint, by folder."""
    trained: dict[str, float] = field(default_factory=dict)
    """Epochs a pod has trained, by pod."""
    due: dict[Key, datetime] = field(default_factory=dict)
    """When the next pass of a run is wanted."""

    # -------------------------------------------------------------- looking
    def runs(self) -> list[str]:
        """Names of the trials' runs, whoever made them."""
        names = [run["metadata"]["name"] for run in self.kube.each(TRAINING_RUNS)]
        return [name for name in names if name != RUN]

    @property
    def epochs_trained(self) -> float:
        return sum(self.trained.values())

    @property
    def trials(self) -> dict[int, dict[str, Any]]:
        return {entry["number"]: entry for entry in self.status["tuning"]["trials"]}

    # -------------------------------------------------------------- time
    def restart(self, kube: Kube) -> None:
        """A new process looks at everything once."""
        super().restart(kube)
        self.due = {
            Key(TRAINING_RUNS, NAMESPACE, run["metadata"]["name"]): self.clock
            for run in self.kube.each(TRAINING_RUNS)
        }

    def saw(self, change: Change) -> None:
        """The watches: whose passes a change asks for."""
        if change.resource in (*watches.CHILDREN, TRAINING_RUNS):
            for key in watches.keys_of(change.resource, change.obj["metadata"]):
                self.due[key] = self.clock

    async def step(self, seconds: float = 5.0) -> None:
        self.clock += timedelta(seconds=seconds)
        self.play()
        await self.run_pass()

    async def run_pass(self) -> None:
        for key in sorted((key for key, at in self.due.items() if at <= self.clock), key=str):
            # A crash in the pass must not lose the key: the next process is told by `restart`.
            del self.due[key]
            try:
                again = await self.loop.run_pass(key)
            except (Conflict, KubeError):
                self.due[key] = self.clock
                continue
            if again is not None:
                later = self.clock + timedelta(seconds=again)
                self.due[key] = min(later, self.due.get(key, later))

    # -------------------------------------------------------------- pods
    def _live(self, pod: Object) -> None:
        if pod["status"]["phase"] in ("Succeeded", "Failed"):
            return
        super()._live(pod)
        name, config = pod["metadata"]["name"], self._config(pod)
        now = self.kube.objects.get((PODS, NAMESPACE, name))
        if config is None or now is None or pod["metadata"]["labels"][LABEL_STAGE] != "train":
            return
        passed = self.clock - datetime.fromisoformat(now["status"].get("startTime") or written(self.clock))
        start = self._begun(name, config)
        gone = min(passed.total_seconds() / EPOCH_SECONDS, max(0.0, _target(config) - start))
        self.trained[name] = max(self.trained.get(name, 0.0), gone)
        self.reached[config.artifacts] = max(self.reached.get(config.artifacts, 0.0), start + gone)

    def _begun(self, name: str, config: StageConfig) -> float:
        known = self._starts.get(name)
        if known is None:
            own = self.reached.get(config.artifacts)
            known = own if own is not None else self.reached.get(config.resume_artifacts, 0.0)
            self._starts[name] = known
        return known

    def _ending(self, pod: Object) -> Ending:
        config = self._config(pod)
        stage = pod["metadata"]["labels"][LABEL_STAGE]
        if stage != "train" or config is None:
            return super()._ending(pod)
        other = self.disturb(config)
        if other is not None:
            return other
        left = _target(config) - self._begun(pod["metadata"]["name"], config)
        more: dict[str, Any] = {}
        if config.spec.trial is not None:
            more["objective"] = self.curve(config.spec.fine_tune.learning_rate, config.spec.trial.epochs)
        return Ending(seconds=max(5.0, left * EPOCH_SECONDS), message=result("train", **more))

    def _config(self, pod: Object) -> StageConfig | None:
        name = pod["metadata"]["labels"][LABEL_JOB]
        if (CONFIG_MAPS, NAMESPACE, name) not in self.kube.objects:
            return None
        if name not in self._configs:
            text = self.kube.peek(CONFIG_MAPS, NAMESPACE, name)["data"]["stage.yaml"]
            self._configs[name] = StageConfig.model_validate(yaml.safe_load(text))
        return self._configs[name]

    def __post_init__(self) -> None:
        super().__post_init__()
        self.kube.watch(self.saw)
        self._starts: dict[str, float] = {}
        self._configs: dict[str, StageConfig] = {}


def _target(config: StageConfig) -> float:
    trial = config.spec.trial
    return trial.epochs if trial is not None else float(config.spec.fine_tune.epochs)


def searching(**tuning: Any) -> dict[str, Any]:
    """The parts of a spec that ask for a search over nine epochs."""
    return {"fineTune": {"epochs": 9}, "tuning": {"trials": 9, "space": SPACE, **tuning}}
