"""One registered model of MLflow in memory, and Kubernetes running the Jobs that tell it how rollouts ended.

What a Job does there is what it does in its pod: the trainer's own command, given the arguments of the Job's template.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from cutover.stages import StageResult
from cutover_operator.port import JOBS, PODS, Object
from cutover_trainer.champion import tell
from cutover_trainer.champion_rule import CHAMPION, TAG, Word
from cutover_trainer.outcome import BadInput
from fakes.kube import FakeKube

Told = tuple[str, str, bool, str]
"""(rollout's uid, version, promoted, at)"""


class CutShort(Exception):
    """The process that was writing died."""


@dataclass
class ModelInMemory:
    """As `MlflowClient` shows it; every write may be the last one of its Job."""

    tags: dict[str, dict[str, str]]
    """By version."""
    champion: str | None = None
    writes_left: int = 1_000_000
    between: list[Told] = field(default_factory=list)
    """Jobs of others that run when somebody is about to move the alias."""

    def tell(self, told: Told) -> str:
        uid, version, promoted, at = told
        return tell(self, "m", version, TAG + uid, Word(promoted, at, f"claims/{uid}"))[0]

    def get_registered_model(self, name: str) -> Any:
        return SimpleNamespace(aliases={CHAMPION: self.champion} if self.champion else {})

    def search_model_versions(self, text: str, page_token: str | None) -> Any:
        class Page(list[Any]):
            token = None

        return Page(SimpleNamespace(version=v, tags=dict(tags)) for v, tags in self.tags.items())

    def set_model_version_tag(self, name: str, version: str, key: str, value: str) -> None:
        self._write()
        self.tags[version][key] = value

    def set_registered_model_alias(self, name: str, alias: str, version: str) -> None:
        if self.between:
            self.tell(self.between.pop())
        self._write()
        assert version in self.tags
        self.champion = version

    def delete_registered_model_alias(self, name: str, alias: str) -> None:
        self._write()
        self.champion = None

    def _write(self) -> None:
        if self.writes_left == 0:
            raise CutShort
        self.writes_left -= 1


@dataclass
class ChampionJobs:
    """The part of Kubernetes that runs them."""

    kube: FakeKube
    model: ModelInMemory
    away: bool = False
    """No Job reaches MLflow."""
    refused: bool = False
    """MLflow refuses the token."""
    stuck: bool = False
    """Pods do not start."""
    ran: list[Object] = field(default_factory=list)

    def waiting(self) -> list[Object]:
        return [job for job in self.kube.all(JOBS) if not job.get("status")]

    def work(self) -> None:
        """Run what there is to its end."""
        for job in [] if self.stuck else self.waiting():
            self.ran.append(job)
            result, code = self._run(arguments(job))
            self._pod(job, result, code)
            done = {"type": "Complete", "status": "True"}
            failed = {"type": "Failed", "status": "True", "reason": "PodFailurePolicy", "message": ""}
            self._end(job, failed if code else done)

    def out_of_time(self) -> None:
        """The Jobs there are reach their deadline."""
        for job in self.waiting():
            self._end(job, {"type": "Failed", "status": "True", "reason": "DeadlineExceeded", "message": ""})

    def _end(self, job: Object, condition: Object) -> None:
        meta = job["metadata"]
        self.kube.set_status(JOBS, meta["namespace"], meta["name"], {"conditions": [condition]})

    def _run(self, said: dict[str, str]) -> tuple[StageResult, int]:
        if self.away or self.refused:
            reason = "RegistryUnavailable" if self.away else "RegistryRefused"
            outcome: Any = "failed" if self.away else "badInput"
            message = f"status.registry: {said['url']}: {reason}"
            code = 1 if self.away else BadInput.exit_code
            return StageResult(stage="champion", outcome=outcome, reason=reason, message=message), int(code)
        word = Word(said["outcome"] == "promoted", said["at"], said["rollout"])
        reason, message = tell(self.model, said["model"], said["version"], TAG + said["uid"], word)
        return StageResult(stage="champion", outcome="done", reason=reason, message=message), 0

    def _pod(self, job: Object, result: StageResult, code: int) -> None:
        meta = job["metadata"]
        ended = {"exitCode": code, "message": result.model_dump_json(by_alias=True, exclude_none=True)}
        own = job["spec"]["template"]["metadata"]["labels"]
        labels = {**own, "batch.kubernetes.io/job-name": meta["name"]}
        self.kube.force(
            {
                "apiVersion": PODS.api_version,
                "kind": PODS.kind,
                "metadata": {
                    "name": f"{meta['name']}-x",
                    "namespace": meta["namespace"],
                    "labels": labels,
                    "ownerReferences": [{"apiVersion": "batch/v1", "kind": "Job", "uid": meta["uid"]}],
                },
                "spec": job["spec"]["template"]["spec"],
                "status": {
                    "phase": "Failed" if code else "Succeeded",
                    "containerStatuses": [{"name": "trainer", "state": {"terminated": ended}}],
                },
            }
        )


def arguments(job: Object) -> dict[str, str]:
    """What the trainer's command is told, by option."""
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["command"] == ["cutover-trainer", "champion"]
    parts = (one.removeprefix("--").split("=", 1) for one in container["args"])
    return {option: value for option, value in parts}
