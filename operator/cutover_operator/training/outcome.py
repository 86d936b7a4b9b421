"""How an attempt ended, judged from its Job and its pods. Pure.

done: the Job succeeded and the stage said so. badInput: trying again cannot help. interrupted: the pod was taken away;
no penalty. failed: counts towards compute.maxAttempts. A kubelet's own eviction counts as failed, because a stage that
fills its node's disk would otherwise do so for ever.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from cutover.contract import ExitCode
from cutover.stages import StageResult
from cutover_operator.training.observed import JobSeen, PodSeen

Kind = Literal["done", "badInput", "interrupted", "failed"]
KILLED = 137
TERMINATED = 143


@dataclass(frozen=True, slots=True)
class Outcome:
    kind: Kind
    reason: str
    message: str
    result: StageResult | None = None


LATEST = datetime.max.replace(tzinfo=UTC)
WEIGHT: dict[Kind, int] = {"badInput": 0, "failed": 1, "interrupted": 2, "done": 3}
"""Of several pods' ends the one that explains the others: they stop because of it, with the code for interruptions."""


def judge(stage: str, job: JobSeen, pods: Sequence[PodSeen]) -> Outcome:
    """Of a Job that is complete or failed. `pods`: what is left of them, by index."""
    if job.succeeded:
        done = next((pod for pod in pods if _says_done(stage, pod.result)), None)
        return _judge_success(stage, done or next(iter(pods), None))
    # One that was done before another failed is not to blame.
    to_blame = [pod for pod in pods if job.pods == 1 or pod.exit_code != ExitCode.DONE]
    if not to_blame:
        return _judge_failure(stage, job, None)
    ends = [(pod.ended_at or LATEST, _judge_failure(stage, job, pod)) for pod in to_blame]
    return min(ends, key=lambda end: (WEIGHT[end[1].kind], end[0]))[1]


def _judge_failure(stage: str, job: JobSeen, pod: PodSeen | None) -> Outcome:
    result = pod.result if pod else None
    code = pod.exit_code if pod else None
    if code is None and (pod is None or job.pods == 1):
        # Of several pods the Job tells the code of one, and not of which.
        code = job.exit_code
    if code == ExitCode.BAD_INPUT:
        return _said(
            "badInput", result, "BadInput", f"the stage {stage} refused its input; see the pod's log"
        )
    if pod is not None and pod.reason == "Evicted":
        # Also where the stage had the time to leave with a checkpoint.
        return Outcome("failed", "Evicted", pod.message or "the kubelet evicted the pod")
    if code == ExitCode.INTERRUPTED:
        return _said("interrupted", result, "Interrupted", "the pod was asked to stop; a checkpoint is kept")
    if pod is None:
        return Outcome(
            "interrupted", "PodGone", "the pod is gone without a word: its node left or it was deleted"
        )
    if pod.killed_for == "OOMKilled":
        text = "the stage ran out of memory; raise compute.memory or lower fineTune.batchSize in a new run"
        return Outcome("failed", "OutOfMemory", text)
    if pod.disrupted or pod.delete_by is not None or code is None or code == TERMINATED:
        why = pod.message or job.message or "its node was taken away"
        return Outcome("interrupted", "PodDisrupted", f"the pod was ended from outside: {why}"[:1000])
    return _said(
        "failed", result, "StageFailed", f"the stage {stage} ended with exit code {code}; see the pod's log"
    )


def _says_done(stage: str, result: StageResult | None) -> bool:
    return result is not None and result.outcome == "done" and result.stage == stage


def _judge_success(stage: str, pod: PodSeen | None) -> Outcome:
    if pod is None:
        # Asked again, a stage that is done answers at once from its manifest.
        return Outcome(
            "interrupted", "ResultGone", "the pod of the finished Job is gone; the stage is asked again"
        )
    result = pod.result
    if result is None or not _says_done(stage, result):
        text = f"the stage {stage} ended with exit code 0 but did not say that it is done; is this the trainer image?"
        return Outcome("failed", "NoResult", text)
    return Outcome("done", result.reason or "Done", result.message, result)


def _said(kind: Kind, result: StageResult | None, reason: str, message: str) -> Outcome:
    """In the stage's own words where it left any."""
    if result is None or result.outcome == "done":
        return Outcome(kind, reason, message)
    return Outcome(kind, result.reason or reason, result.message or message, result)
