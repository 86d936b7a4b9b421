"""A TrainingRun's surroundings on a clock of their own: Jobs that get pods, pods that run, end, or are taken away.

`behave` says what the pods of a stage do, attempt by attempt; the last one is for all that follow. A pod is deleted with
its Job and leaves after its grace, as in a cluster. Nothing here calls the operator: a test does, pass by pass.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from cutover.contract import LABEL_QUEUE, LABEL_STAGE, ExitCode
from cutover_operator.loop import Loop
from cutover_operator.plan import Key
from cutover_operator.port import CONFIG_MAPS, JOBS, PODS, TRAINING_RUNS, Conflict, Kube, KubeError, Object
from cutover_operator.settings import Settings
from cutover_operator.training.observed import LABEL_INDEX, LABEL_JOB
from cutover_operator.training.reconciler import TrainingReconciler
from fakes.kube import FakeKube
from fakes.kube_faults import Crash

NAMESPACE = "claims"
RUN = "damage"
KEY = Key(TRAINING_RUNS, NAMESPACE, RUN)
START = datetime(2026, 11, 22, 8, 0, tzinfo=UTC)
SETTINGS = Settings(allowed_urls=("http://assessments:8080", "http://mlflow:5000"), trainer_image="trainer:1")
TASK = """
name: building-damage
systemPrompt: Answer with JSON.
userPrompt: Which damage?
answerSchema:
  type: object
  required: [damageType]
  properties: {damageType: {type: string, enum: [crack, mould]}}
scoredFields: [damageType]
"""
SPEC: dict[str, Any] = {
    "task": {"configMap": "task"},
    "dataset": {"source": {"http": {"url": "http://assessments:8080/api/export"}}, "limit": 20000},
    "baseModel": {"uri": "claim://models/llava"},
    "compute": {"gpus": 1, "gpuHourBudget": 50},
    "output": {"claim": {"name": "artifacts"}},
}
DATA = {"rows": 10000, "train": 8000, "validation": 1000, "test": 1000, "digest": "d" * 64}
MODEL = {
    "name": "building-damage",
    "version": "3",
    "adapterUri": "claim://artifacts/x/adapter",
    "family": "llava",
}
PARTS: dict[str, dict[str, Any]] = {
    "prepare": {"data": DATA},
    "train": {"progress": {"step": 3000, "steps": 3000, "loss": 0.1}},
    "evaluate": {"evaluation": {"n": 1000, "accuracy": {"overall": 0.934, "damageType": 0.95}}},
    "register": {"model": MODEL},
}


def result(stage: str, outcome: str = "done", **more: Any) -> str:
    parts = PARTS[stage] if outcome == "done" else {}
    return json.dumps({"stage": stage, "outcome": outcome, **parts, **more})


@dataclass(frozen=True)
class Ending:
    """What a pod does: end after some seconds with a code and a message, or never start, or be lost."""

    seconds: float = 60.0
    code: int = 0
    message: str | None = None
    """None: the stage's usual result."""
    trouble: tuple[str, str] | None = None
    lost: bool = False
    """Deleted together with its node: no message, no pod."""


DONE = Ending()
CRASHED = Ending(code=1, message="")
INTERRUPTED = Ending(code=int(ExitCode.INTERRUPTED), message="")
LOST = Ending(lost=True)


def bad_input(stage: str, reason: str, message: str) -> Ending:
    return Ending(
        code=int(ExitCode.BAD_INPUT), message=result(stage, "badInput", reason=reason, message=message)
    )


@dataclass
class Town:
    spec: dict[str, Any] = field(default_factory=dict)
    behave: dict[str, list[Ending | tuple[Ending, ...]]] = field(default_factory=dict)
    """Of several pods by index, where an attempt has a tuple."""
    clock: datetime = START
    admitting: bool = True
    """Kueue: whether there is room in the queue. Jobs without one are none of its business."""
    kube: FakeKube = field(init=False)
    loop: Loop = field(init=False)
    next_pass_at: datetime = field(init=False)

    def __post_init__(self) -> None:
        self.kube = FakeKube(lambda: self.clock)
        self.next_pass_at = self.clock
        self._seen: dict[str, int] = {}
        self._passed_at = 0
        self.restart(self.kube)

    def restart(self, kube: Kube) -> None:
        """A new operator process that knows nothing."""
        self.loop = Loop(kube, [TrainingReconciler(kube, SETTINGS)], lambda: self.clock)
        self.next_pass_at = self.clock

    async def open(self) -> None:
        user = self.kube.as_user()
        meta = {"name": "task", "namespace": NAMESPACE}
        await user.create(
            {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": {"task.yaml": TASK}}
        )
        await user.create(
            {
                "apiVersion": TRAINING_RUNS.api_version,
                "kind": TRAINING_RUNS.kind,
                "metadata": {"name": RUN, "namespace": NAMESPACE},
                "spec": SPEC | self.spec,
            }
        )

    # -------------------------------------------------------------- looking
    @property
    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = self.kube.peek(TRAINING_RUNS, NAMESPACE, RUN).get("status", {})
        return found

    def condition(self, type_: str) -> tuple[str, str]:
        found = next(one for one in self.status["conditions"] if one["type"] == type_)
        return found["status"], found["reason"]

    def stage(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = next(one for one in self.status["stages"] if one["name"] == name)
        return found

    def jobs(self) -> list[str]:
        """`stage-attempt` of every Job there is, in the order of their making."""
        jobs = sorted(self.kube.all(JOBS), key=lambda job: job["metadata"]["uid"])
        return [_about(job) for job in jobs]

    @property
    def over(self) -> bool:
        return any(
            one["type"] == "Succeeded" and one["status"] != "Unknown"
            for one in self.status.get("conditions", [])
        )

    # -------------------------------------------------------------- time
    async def step(self, seconds: float = 5.0) -> None:
        """Time passes, pods live, and the operator is called if it asked for it or something changed."""
        self.clock += timedelta(seconds=seconds)
        changed = self.play()
        # An edit by the test is a change as well.
        changed = changed or self.kube.version != self._passed_at
        if changed or self.clock >= self.next_pass_at:
            await self.run_pass()

    async def run_pass(self) -> None:
        self._passed_at = self.kube.version
        try:
            again = await self.loop.run_pass(KEY)
        except (Conflict, KubeError):
            self.next_pass_at = self.clock
            return
        self.next_pass_at = self.clock + timedelta(seconds=600 if again is None else again)

    async def until(self, reached: Callable[[], bool], seconds: float = 86400.0, step: float = 5.0) -> None:
        end = self.clock + timedelta(seconds=seconds)
        await self.run_pass()
        while not reached():
            assert self.clock < end, f"not reached; status {json.dumps(self.status, indent=1)}"
            await self.step(step)

    async def survive(
        self, faulty: Kube, reached: Callable[[], bool], seconds: float = 86400.0, step: float = 5.0
    ) -> None:
        """Until it is reached, with a new operator after every crash."""
        end = self.clock + timedelta(seconds=seconds)
        self.restart(faulty)
        while not reached():
            assert self.clock < end, f"not reached; status {json.dumps(self.status, indent=1)}"
            try:
                await self.step(step)
            except Crash:
                self.restart(faulty)

    # -------------------------------------------------------------- Kubernetes
    def play(self) -> bool:
        """One round of the Job controller and the kubelet; whether anything changed."""
        before = self.kube.version
        for job in self.kube.each(JOBS):
            self._admit(job)
        for pod in self.kube.each(PODS):
            self._live(pod)
        for job in self.kube.each(JOBS):
            self._control(job)
        return self.kube.version != before

    def _admit(self, job: Object) -> None:
        if LABEL_QUEUE not in job["metadata"]["labels"] or job["spec"].get("suspend") is not self.admitting:
            return
        name = job["metadata"]["name"]
        self.kube.edit(JOBS, NAMESPACE, name, lambda obj: obj["spec"].update(suspend=not self.admitting))

    def _control(self, job: Object) -> None:
        meta = job["metadata"]
        if job.get("status", {}).get("conditions"):
            return
        pods = [pod for pod in self.kube.each(PODS) if pod["metadata"]["labels"][LABEL_JOB] == meta["name"]]
        if job["spec"].get("suspend"):
            for pod in pods:
                self.kube.vanish(PODS, NAMESPACE, pod["metadata"]["name"])
            if job.get("status", {}).get("active"):
                self.kube.set_status(JOBS, NAMESPACE, meta["name"], {"active": 0})
        elif not pods and not job.get("status", {}).get("active"):
            self._start(job)
        elif len(pods) < job["spec"]["completions"]:
            self._finish(job, "Failed", "BackoffLimitExceeded", "Job has reached the specified backoff limit")
        elif all(pod["status"]["phase"] == "Succeeded" for pod in pods):
            self._finish(job, "Complete", "CompletionsReached", "")
        elif failed := [pod for pod in pods if pod["status"]["phase"] == "Failed"]:
            code = failed[0]["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"]
            text = (
                f"Container trainer failed with exit code {code} matching FailJob rule"
                if code in (65, 75)
                else ""
            )
            self._finish(job, "Failed", "PodFailurePolicy" if text else "BackoffLimitExceeded", text)

    def _start(self, job: Object) -> None:
        meta = job["metadata"]
        assert self.kube.peek(CONFIG_MAPS, NAMESPACE, meta["name"])["data"]["stage.yaml"]
        self.kube.set_status(JOBS, NAMESPACE, meta["name"], {"active": job["spec"]["completions"]})
        number = len(self._seen)
        self._seen[meta["name"]] = number
        for index in range(job["spec"]["completions"]):
            self._add_pod(job, index, f"{meta['name']}-{number}-{index}")

    def _add_pod(self, job: Object, index: int, name: str) -> None:
        meta = job["metadata"]
        ident = (PODS, NAMESPACE, name)
        template = job["spec"]["template"]
        reference = {"apiVersion": "batch/v1", "kind": "Job", "name": meta["name"], "uid": meta["uid"]}
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": ident[2],
                "namespace": NAMESPACE,
                "labels": {
                    **template["metadata"]["labels"],
                    LABEL_JOB: meta["name"],
                    LABEL_INDEX: str(index),
                },
                "ownerReferences": [reference],
            },
            "spec": {**template["spec"], "nodeName": "node-1"},
            "status": {"phase": "Pending"},
        }
        self.kube.force(pod)
        self._live(self.kube.peek(*ident))

    def _live(self, pod: Object) -> None:
        meta, status = pod["metadata"], pod["status"]
        if status["phase"] in ("Succeeded", "Failed"):
            return
        ending = self._ending(pod)
        started = status.get("startTime")
        if ending.trouble is not None:
            reason, message = ending.trouble
            condition = {"type": "PodScheduled", "status": "False", "reason": reason, "message": message}
            self._pod_status(meta, {"phase": "Pending", "conditions": [condition]})
        elif started is None:
            state = {"running": {"startedAt": written(self.clock)}}
            statuses = [{"name": "trainer", "state": state}]
            self._pod_status(
                meta, {"phase": "Running", "startTime": written(self.clock), "containerStatuses": statuses}
            )
        elif self.clock >= datetime.fromisoformat(started) + timedelta(seconds=ending.seconds):
            if ending.lost:
                self.kube.vanish(PODS, NAMESPACE, meta["name"])
            else:
                self._end(pod, ending)

    def _end(self, pod: Object, ending: Ending) -> None:
        meta, stage = pod["metadata"], pod["metadata"]["labels"][LABEL_STAGE]
        message = result(stage) if ending.message is None else ending.message
        terminated = {"exitCode": ending.code, "finishedAt": written(self.clock), "message": message}
        statuses = [{"name": "trainer", "state": {"terminated": terminated}}]
        phase = "Failed" if ending.code else "Succeeded"
        self._pod_status(
            meta,
            {"phase": phase, "startTime": pod["status"]["startTime"], "containerStatuses": statuses},
        )

    def _ending(self, pod: Object) -> Ending:
        labels = pod["metadata"]["labels"]
        endings = self.behave.get(labels[LABEL_STAGE], [DONE])
        tries = sorted(number for name, number in self._seen.items() if f"-{labels[LABEL_STAGE]}-" in name)
        mine = tries.index(self._seen[labels[LABEL_JOB]])
        ending = endings[min(mine, len(endings) - 1)]
        return ending[int(labels[LABEL_INDEX])] if isinstance(ending, tuple) else ending

    def _pod_status(self, meta: Object, status: dict[str, Any]) -> None:
        self.kube.set_status(PODS, NAMESPACE, meta["name"], status)

    def _finish(self, job: Object, type_: str, reason: str, message: str) -> None:
        for pod in self.kube.each(PODS):
            labels, phase = pod["metadata"]["labels"], pod["status"]["phase"]
            if labels[LABEL_JOB] == job["metadata"]["name"] and phase not in ("Succeeded", "Failed"):
                self.kube.vanish(PODS, NAMESPACE, pod["metadata"]["name"])
        condition = {"type": type_, "status": "True", "reason": reason, "message": message}
        self.kube.set_status(JOBS, NAMESPACE, job["metadata"]["name"], {"conditions": [condition]})


def _about(job: Object) -> str:
    labels = job["metadata"]["labels"]
    return f"{labels[LABEL_STAGE]}-{labels['cutover.dev/attempt']}"


def written(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
