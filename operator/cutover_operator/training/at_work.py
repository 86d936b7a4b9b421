"""What a Job that is at work waits for, or that it runs. Pure."""

from __future__ import annotations

from datetime import datetime

from cutover_operator.training.observed import JobSeen, PodSeen
from cutover_operator.training.report import Standing
from cutover_operator.training.resources import needs
from cutover_operator.training.settle import pods_of
from cutover_operator.training.situation import Answer, Situation

POLL_SECONDS = 5.0
"""While a pod runs: its log is read for progress."""
PENDING_SECONDS = 15.0
UNSCHEDULABLE_SECONDS = 10.0
SLOW_START_SECONDS = 60.0
"""A missing Secret leaves no word in the pod itself: after this the run names what the pod waits for."""


def at_work(s: Situation, job: JobSeen) -> Answer:
    """Of a Job that is neither complete, failed nor being deleted. On several nodes all of its pods have to run."""
    if job.suspended:
        return Answer(_queued(s, job), again_in_seconds=PENDING_SECONDS)
    pods = pods_of(s.world, job)
    trouble = next((found for pod in pods if (found := _trouble(pod, s.now))), None)
    if trouble is not None:
        return Answer(trouble, again_in_seconds=PENDING_SECONDS)
    if job.failing or any(pod.over for pod in pods):
        text = f"{s.stage.name}: the pod of attempt {s.stage.attempt} has ended"
        return Answer(Standing("StageEnding", text), again_in_seconds=POLL_SECONDS)
    running = sum(pod.running for pod in pods)
    late = next(
        (pod for pod in pods if not pod.running and _age_seconds(pod, s.now) > SLOW_START_SECONDS), None
    )
    if late is not None:
        wanted = "; ".join(needs(s.spec, s.stage.name)) or "its image"
        text = f"pod {late.name} has not started on node {late.node or '?'}; it needs {wanted}; see kubectl describe pod"
        return Answer(Standing("PodNotStarting", text), again_in_seconds=PENDING_SECONDS)
    if running < job.pods:
        whom = "its pod" if job.pods == 1 else f"{job.pods - running} of its {job.pods} pods"
        text = f"{s.stage.name}: attempt {s.stage.attempt} waits for {whom} to start"
        return Answer(Standing("PodPending", text), again_in_seconds=PENDING_SECONDS)
    where = "" if job.pods == 1 else f" on {job.pods} nodes"
    text = f"{s.stage.name}: attempt {s.stage.attempt} runs{where}"
    return Answer(Standing("StageRunning", text), again_in_seconds=POLL_SECONDS)


def _queued(s: Situation, job: JobSeen) -> Standing:
    """Suspended from outside. Kueue does that to a Job it has not admitted, or has taken the room from."""
    about = f"{s.stage.name}: attempt {s.stage.attempt}"
    if job.queue:
        text = (
            f"{about} waits in the Kueue queue {job.queue}; see kubectl get workloads -n {s.world.namespace}; "
            "a Job that was admitted before goes on from its last checkpoint"
        )
        return Standing("Queued", text)
    text = (
        f"{about}: Job {job.name} was suspended, not by this operator; set its spec.suspend to false to go on"
    )
    return Standing("JobSuspended", text)


def _trouble(pod: PodSeen, now: datetime) -> Standing | None:
    """A pod that cannot start, in its own words: told, never counted as a failure."""
    if pod.trouble is None:
        return None
    if pod.trouble.reason == "Unschedulable" and _age_seconds(pod, now) < UNSCHEDULABLE_SECONDS:
        return None
    return Standing(pod.trouble.reason, f"pod {pod.name}: {pod.trouble.message}")


def _age_seconds(pod: PodSeen, now: datetime) -> float:
    return (now - pod.created_at).total_seconds() if pod.created_at else 0.0
