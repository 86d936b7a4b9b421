"""TrainingRuns for the operator's loop: gather what is, decide what to do."""

from __future__ import annotations

from datetime import datetime
from functools import lru_cache

import yaml
from pydantic import ValidationError

from cutover.api.trainingrun import Progress, TrainingRun
from cutover.contract import LABEL_OWNER_KIND, LABEL_OWNER_NAME
from cutover.task import Task
from cutover_operator.plan import Key, Plan
from cutover_operator.port import CLAIMS, CONFIG_MAPS, JOBS, PODS, TRAINING_RUNS, Kube, KubeError
from cutover_operator.settings import Settings
from cutover_operator.training import progress
from cutover_operator.training.decide import decide
from cutover_operator.training.observed import PodSeen, job_seen, pod_seen
from cutover_operator.training.sharing import shared_claims
from cutover_operator.training.trials import TrialSeen, trial_seen
from cutover_operator.training.world import NoTask, Site, World

LOG_EVERY_SECONDS = 5.0
KEPT_READINGS = 1000


class TrainingReconciler:
    resource = TRAINING_RUNS

    def __init__(self, kube: Kube, settings: Settings) -> None:
        self._kube = kube
        self._site = Site(settings.allowed_urls, settings.trainer_image, settings.pull_secrets)
        self._readings: dict[str, tuple[datetime, Progress | None]] = {}
        """By pod uid: when its log was read and what it said. Losing it costs one more read."""

    async def gather(self, key: Key, now: datetime) -> World | None:
        parent = await self._kube.get(TRAINING_RUNS, key.namespace, key.name)
        if parent is None:
            return None
        try:
            run: TrainingRun | str = TrainingRun.from_object(parent)
        except ValidationError as error:
            return World(parent, _first(error), NoTask("Unread", ""), self._site)
        assert isinstance(run, TrainingRun)
        mine = f"{LABEL_OWNER_KIND}={TRAINING_RUNS.kind},{LABEL_OWNER_NAME}={key.name}"
        if len(key.name) > 63:
            # No object can carry such a name as a label, so there are no children.
            return World(parent, run, NoTask("Unread", ""), self._site)
        uid = parent["metadata"]["uid"]
        jobs = [job for job in await self._kube.list(JOBS, key.namespace, mine) if _owned(job, uid)]
        maps = [item for item in await self._kube.list(CONFIG_MAPS, key.namespace, mine) if _owned(item, uid)]
        pods = [pod_seen(pod) for pod in await self._kube.list(PODS, key.namespace, mine)]
        pods = [pod for pod in pods if pod.owner_uid == uid]
        return World(
            parent=parent,
            run=run,
            task=await self._task(key.namespace, run),
            site=self._site,
            jobs=tuple(job_seen(job) for job in jobs),
            pods=tuple(pods),
            config_maps=tuple(item["metadata"]["name"] for item in maps),
            trials=await self._trials(key.namespace, mine, run, uid),
            progress=await self._progress(key.namespace, pods, now),
            access_modes=await self._access_modes(key.namespace, run),
        )

    def decide(self, world: World, now: datetime) -> Plan:
        return decide(world, now)

    async def _trials(self, namespace: str, mine: str, run: TrainingRun, uid: str) -> tuple[TrialSeen, ...]:
        if run.spec.tuning is None:
            return ()
        found = [
            trial_seen(obj)
            for obj in await self._kube.list(TRAINING_RUNS, namespace, mine)
            if _owned(obj, uid)
        ]
        return tuple(one for one in found if one is not None)

    async def _access_modes(self, namespace: str, run: TrainingRun) -> dict[str, tuple[str, ...]]:
        names = sorted({claim.name for claim in shared_claims(run.spec)})
        found = {name: await self._kube.get(CLAIMS, namespace, name) for name in names}
        return {
            name: tuple((claim.get("spec") or {}).get("accessModes") or ())
            for name, claim in found.items()
            if claim is not None
        }

    async def _task(self, namespace: str, run: TrainingRun) -> Task | NoTask:
        wanted = run.spec.task
        found = await self._kube.get(CONFIG_MAPS, namespace, wanted.config_map)
        text = ((found or {}).get("data") or {}).get(wanted.key)
        if text is None:
            what = f"has no key {wanted.key!r}" if found else f"does not exist in namespace {namespace}"
            return NoTask("TaskNotFound", f"spec.task: ConfigMap {wanted.config_map!r} {what}; create it")
        parsed = _parsed(text)
        if isinstance(parsed, Task):
            return parsed
        return NoTask(
            "TaskInvalid", f"spec.task: ConfigMap {wanted.config_map!r}, key {wanted.key!r}: {parsed}"
        )

    async def _progress(self, namespace: str, pods: list[PodSeen], now: datetime) -> Progress | None:
        at_work = [pod for pod in pods if pod.running and pod.delete_by is None]
        pod = min(at_work, key=lambda pod: pod.index, default=None)
        if pod is None:
            return None
        read_at, known = self._readings.get(pod.uid, (None, None))
        if read_at is not None and 0 <= (now - read_at).total_seconds() < LOG_EVERY_SECONDS:
            return known
        try:
            log = await self._kube.pod_log(namespace, pod.name, progress.TAIL_LINES)
        except KubeError:
            # A log that cannot be read yet is no reason to fail a pass.
            return known
        if len(self._readings) >= KEPT_READINGS:
            self._readings.clear()
        said = progress.latest(log, pod.stage) or known
        self._readings[pod.uid] = (now, said)
        return said


@lru_cache(maxsize=64)
def _parsed(text: str) -> Task | str:
    """The document, or what is wrong with it. Kept, because every pass asks."""
    try:
        return Task.model_validate(yaml.safe_load(text))
    except yaml.YAMLError as error:
        return f"not YAML: {' '.join(str(error).split())}"[:1000]
    except ValidationError as error:
        return _first(error)


def _owned(obj: dict[str, object], uid: str) -> bool:
    """Not a namesake's that is about to be collected."""
    meta = obj["metadata"]
    references = meta.get("ownerReferences") if isinstance(meta, dict) else None
    return any(reference.get("uid") == uid for reference in references or [])


def _first(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    return f"{where or 'document'}: {first['msg']}"[:1000]
