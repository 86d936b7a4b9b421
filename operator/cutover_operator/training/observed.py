"""Jobs and pods as the decision sees them: a few plain facts read from the objects. Pure, and never raises on odd ones."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pydantic import ValidationError

from cutover.contract import LABEL_ATTEMPT, LABEL_OWNER_UID, LABEL_QUEUE, LABEL_STAGE, RESOURCE_GPU
from cutover.stages import StageResult
from cutover_operator.conditions import parse_timestamp
from cutover_operator.port import Object

LABEL_JOB = "batch.kubernetes.io/job-name"
LABEL_INDEX = "batch.kubernetes.io/job-completion-index"
WAITING_TROUBLES = frozenset(
    {
        "ImagePullBackOff",
        "ErrImagePull",
        "InvalidImageName",
        "ErrImageNeverPull",
        "CreateContainerConfigError",
        "CreateContainerError",
        "RunContainerError",
        "CrashLoopBackOff",
    }
)
_EXIT_CODE = re.compile(r"failed with exit code (\d+)")


@dataclass(frozen=True, slots=True)
class JobSeen:
    name: str
    uid: str
    stage: str
    attempt: int
    active: bool
    """Neither complete nor failed."""
    succeeded: bool = False
    reason: str = ""
    message: str = ""
    deleting: bool = False
    suspended: bool = False
    """It has no pods and starts none until somebody lets it go on."""
    queue: str = ""
    """Kueue LocalQueue it waits in, or runs from."""
    pods: int = 1
    """How many it has, one a node."""
    failing: bool = False
    """A pod has ended it; it counts as failed once its other pods have ended as well."""

    @property
    def exit_code(self) -> int | None:
        """The exit code as the Job itself tells it; it outlives the pod."""
        found = _EXIT_CODE.search(self.message)
        return int(found.group(1)) if found else None


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why a pod does not start, in the words of scheduler or kubelet."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class PodSeen:
    name: str
    uid: str
    job: str
    stage: str
    owner_uid: str
    """Of the run: a namesake that was deleted may have left pods behind."""
    over: bool
    """Its containers have ended."""
    running: bool = False
    created_at: datetime | None = None
    started_at: datetime | None = None
    """When a node took it: from then on its GPUs are nobody else's."""
    ended_at: datetime | None = None
    delete_by: datetime | None = None
    """Set when it was asked to leave: the end of its grace."""
    gpus: int = 0
    node: str = ""
    reason: str = ""
    message: str = ""
    exit_code: int | None = None
    killed_for: str = ""
    """The container's own reason for its end, for example OOMKilled."""
    disrupted: bool = False
    result: StageResult | None = None
    trouble: Trouble | None = None
    index: int = 0
    """Which of its Job's pods it is."""


def job_seen(job: Object) -> JobSeen:
    meta = job["metadata"]
    labels = meta.get("labels") or {}
    complete = _condition(job, "Complete")
    failed = _condition(job, "Failed")
    ended = complete or failed or {}
    # The same reason and message as those it will have failed for.
    said = ended or _condition(job, "FailureTarget") or {}
    attempt = str(labels.get(LABEL_ATTEMPT, "0"))
    spec = job.get("spec") or {}
    return JobSeen(
        name=meta["name"],
        uid=meta["uid"],
        stage=str(labels.get(LABEL_STAGE, "")),
        attempt=int(attempt) if attempt.isdecimal() else 0,
        active=not ended,
        succeeded=complete is not None,
        reason=str(said.get("reason") or ""),
        message=str(said.get("message") or ""),
        deleting="deletionTimestamp" in meta,
        suspended=spec.get("suspend") is True,
        queue=str(labels.get(LABEL_QUEUE, "")),
        failing=_condition(job, "FailureTarget") is not None,
        pods=completions if isinstance(completions := spec.get("completions"), int) else 1,
    )


def pod_seen(pod: Object) -> PodSeen:
    meta, spec, status = pod["metadata"], pod.get("spec") or {}, pod.get("status") or {}
    labels = meta.get("labels") or {}
    statuses = [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]
    ends = [end for end in ((one.get("state") or {}).get("terminated") for one in statuses) if end]
    # The container that failed explains the pod; when none did, the last one does.
    end = next((one for one in ends if one.get("exitCode")), ends[-1] if ends else None)
    phase = status.get("phase")
    over = phase in ("Succeeded", "Failed")
    index = str(labels.get(LABEL_INDEX, "0"))
    ended_at = (_last_end(ends) or _last_turn(pod) or _moment(status.get("startTime"))) if over else None
    return PodSeen(
        name=meta["name"],
        uid=meta["uid"],
        job=str(labels.get(LABEL_JOB) or labels.get("job-name") or ""),
        stage=str(labels.get(LABEL_STAGE, "")),
        owner_uid=str(labels.get(LABEL_OWNER_UID, "")),
        over=over,
        running=not over
        and (phase == "Running" or any("running" in (one.get("state") or {}) for one in statuses)),
        created_at=_moment(meta.get("creationTimestamp")),
        started_at=_moment(status.get("startTime")),
        ended_at=ended_at,
        delete_by=_moment(meta.get("deletionTimestamp")),
        gpus=_gpus(spec),
        node=str(spec.get("nodeName") or ""),
        reason=str(status.get("reason") or ""),
        message=str(status.get("message") or ""),
        exit_code=int(end["exitCode"]) if end and over and "exitCode" in end else None,
        killed_for=str((end or {}).get("reason") or ""),
        disrupted=_condition(pod, "DisruptionTarget") is not None,
        result=_result((end or {}).get("message")),
        trouble=None if over else _trouble(pod, statuses),
        index=int(index) if index.isdecimal() else 0,
    )


def _trouble(pod: Object, statuses: list[Any]) -> Trouble | None:
    for one in statuses:
        waiting = (one.get("state") or {}).get("waiting") or {}
        if waiting.get("reason") in WAITING_TROUBLES:
            text = waiting.get("message") or f"container {one.get('name')} cannot start"
            return Trouble(str(waiting["reason"]), str(text)[:1000])
    for condition in (pod.get("status") or {}).get("conditions") or []:
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            reason = str(condition.get("reason") or "Unschedulable")
            return Trouble(reason, str(condition.get("message") or "no node takes the pod")[:1000])
    return None


def _result(text: Any) -> StageResult | None:
    try:
        return StageResult.model_validate_json(text) if isinstance(text, str) and text else None
    except ValidationError:
        return None


def _last_end(ends: list[Any]) -> datetime | None:
    moments = [moment for moment in (_moment(end.get("finishedAt")) for end in ends) if moment]
    return max(moments, default=None)


def _last_turn(pod: Object) -> datetime | None:
    """For a pod that ended without a container: evicted before its start, or on a node that is gone."""
    found = [
        _moment(one.get("lastTransitionTime")) for one in (pod.get("status") or {}).get("conditions") or []
    ]
    return max((moment for moment in found if moment), default=None)


def _gpus(spec: Mapping[str, Any]) -> int:
    wanted = [
        str(((container.get("resources") or {}).get("limits") or {}).get(RESOURCE_GPU, "0"))
        for container in spec.get("containers") or []
    ]
    return sum(int(text) for text in wanted if text.isdecimal())


def _condition(obj: Object, type_: str) -> Mapping[str, Any] | None:
    for condition in (obj.get("status") or {}).get("conditions") or []:
        if condition.get("type") == type_ and condition.get("status") == "True":
            found: Mapping[str, Any] = condition
            return found
    return None


def _moment(text: Any) -> datetime | None:
    try:
        return parse_timestamp(text) if isinstance(text, str) else None
    except ValueError:
        return None
