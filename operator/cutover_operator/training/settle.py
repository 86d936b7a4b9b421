"""What the world says about the stages, taken into the status: results, failures, waits, GPU time, progress. Pure.

It only records what has happened; what to do next is `decide`'s. Taken twice from the same world it changes nothing
the second time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from cutover.api.trainingrun import StageStatus, TrainingRunSpec, TrainingRunStatus, stages_of
from cutover.contract import FIELD_OVERALL
from cutover.stages import StageResult
from cutover_operator.conditions import timestamp
from cutover_operator.plan import Notice
from cutover_operator.training import progress, search, spending
from cutover_operator.training.observed import JobSeen, PodSeen
from cutover_operator.training.outcome import Outcome, judge
from cutover_operator.training.world import World

FIRST_BACK_OFF_SECONDS = 30.0
LONGEST_BACK_OFF_SECONDS = 1800.0
LINGER_SECONDS = 180.0
"""How long after the end of its grace a pod on a node that does not answer keeps the next attempt waiting."""
INTERRUPTED_WAIT_SECONDS = 10.0
"""An interruption costs no attempt, but is no reason to spin either."""


@dataclass(frozen=True, slots=True)
class Settled:
    status: TrainingRunStatus
    reasons: dict[str, str]
    """Of stages that ended in this pass: the condition's reason."""
    notices: tuple[Notice, ...] = ()


def settle(world: World, spec: TrainingRunSpec, before: TrainingRunStatus, now: datetime) -> Settled:
    status = before.model_copy(
        update={
            "stages": _all_stages(before, spec),
            "pods": spending.counted(
                before.pods, world.pods, now, {one.uid: one.gpu_seconds for one in world.trials}
            ),
            "observed_generation": world.generation,
        }
    )
    if before.observed_generation < world.generation:
        status = _forgiven(status)
    spent = spending.spent_seconds(status.pods)
    status = status.model_copy(update={"gpu_hours": spending.hours_text(spent)})
    stage = current(status)
    if stage is not None and stage.name == search.STAGE and stage.state in ("Running", "Waiting"):
        status, stage, notices = search.taken(world, spec, status, stage, now)
        reasons: dict[str, str] = {stage.name: "NoTrialSucceeded"} if stage.state == "Failed" else {}
        return Settled(with_stage(status, stage), reasons, notices)
    if stage is None or not stage.at_work:
        return Settled(status, {})
    job = job_of(world, stage)
    if job is None:
        return Settled(status, {})
    pods = pods_of(world, job)
    if not job.active or (job.failing and _cannot_end(pods, now)):
        return _ended(status, stage, judge(stage.name, job, pods), pods, spec, now)
    state = "Queued" if job.suspended else "Running"
    if stage.state != state:
        status = with_stage(status, stage.model_copy(update={"state": state}))
    if pods and pods[0].running and world.progress is not None:
        status = status.model_copy(
            update={"progress": world.progress, "progress_text": progress.text(world.progress)}
        )
    return Settled(status, {})


def current(status: TrainingRunStatus) -> StageStatus | None:
    """The first stage that is not done."""
    return next((stage for stage in status.stages if stage.state != "Done"), None)


def with_stage(status: TrainingRunStatus, stage: StageStatus) -> TrainingRunStatus:
    stages = [stage if one.name == stage.name else one for one in status.stages]
    return status.model_copy(update={"stages": stages})


def job_of(world: World, stage: StageStatus) -> JobSeen | None:
    """The Job of the stage's current attempt, whatever its content was when it was made."""
    wanted = [job for job in world.jobs if job.stage == stage.name and job.attempt == stage.attempt]
    return next((job for job in wanted if job.name == stage.job), wanted[0] if wanted else None)


def pods_of(world: World, job: JobSeen) -> tuple[PodSeen, ...]:
    """The Job's pods by index, those there are; of one index the youngest, should there ever be two."""
    mine = [pod for pod in world.pods if pod.job == job.name]
    mine.sort(key=lambda pod: (pod.created_at is not None, pod.created_at))
    youngest = {pod.index: pod for pod in mine}
    return tuple(youngest[index] for index in sorted(youngest))


def _cannot_end(pods: Sequence[PodSeen], now: datetime) -> bool:
    """Whether a failing Job will not count as failed soon. Where all pods have ended it will, and then it is kept with its
    logs; one that is judged before is in the next attempt's way and has to be deleted."""
    dark = [pod for pod in pods if not pod.over]
    return bool(dark) and not any(may_still_write(pod, now) for pod in dark)


def may_still_write(pod: PodSeen, now: datetime) -> bool:
    """It has not ended, and was not asked to leave so long ago that its node must be gone."""
    if pod.over:
        return False
    return pod.delete_by is None or (now - pod.delete_by).total_seconds() < LINGER_SECONDS


def _all_stages(status: TrainingRunStatus, spec: TrainingRunSpec) -> list[StageStatus]:
    known = {stage.name: stage for stage in status.stages}
    return [known.get(name) or StageStatus(name=name) for name in stages_of(spec)]


def _forgiven(status: TrainingRunStatus) -> TrainingRunStatus:
    """Somebody edited the spec: a stage that was given up, or waits after a failure, is tried again now."""
    stage = current(status)
    if stage is None or stage.state not in ("Failed", "Waiting"):
        return status
    fresh = {"state": "Waiting", "failures": 0, "not_before": None, "finished_at": None}
    return with_stage(status, stage.model_copy(update=fresh))


def _ended(
    status: TrainingRunStatus,
    stage: StageStatus,
    outcome: Outcome,
    pods: Sequence[PodSeen],
    spec: TrainingRunSpec,
    now: datetime,
) -> Settled:
    status = _recorded(status, outcome.result, spec)
    ended_at = timestamp(max((pod.ended_at for pod in pods if pod.ended_at), default=now))
    about = f"{stage.name}-{stage.attempt}"
    update: dict[str, object]
    if outcome.kind == "done":
        update = {"state": "Done", "finished_at": ended_at, "not_before": None, "message": outcome.message}
        notice = Notice("StageDone", f"{stage.name}: {outcome.message or 'done'}", about=about)
    elif outcome.kind == "badInput":
        update = {"state": "Failed", "finished_at": ended_at, "message": outcome.message}
        notice = Notice(outcome.reason, f"{stage.name}: {outcome.message}", "Warning", about)
    elif outcome.kind == "interrupted":
        wait = now + timedelta(seconds=INTERRUPTED_WAIT_SECONDS)
        update = {"state": "Waiting", "not_before": timestamp(wait), "message": outcome.message}
        notice = Notice("StageInterrupted", f"{stage.name}: {outcome.message}", about=about)
    else:
        return _failed(status, stage, outcome, ended_at, spec, now)
    return Settled(
        with_stage(status, stage.model_copy(update=update)), {stage.name: outcome.reason}, (notice,)
    )


def _failed(
    status: TrainingRunStatus,
    stage: StageStatus,
    outcome: Outcome,
    ended_at: str,
    spec: TrainingRunSpec,
    now: datetime,
) -> Settled:
    failures = stage.failures + 1
    most = spec.compute.max_attempts
    update: dict[str, object] = {"failures": failures}
    if failures >= most:
        message = f"given up after {failures} failed attempts (compute.maxAttempts {most}): {outcome.message}"
        update |= {"state": "Failed", "finished_at": ended_at, "message": message}
        reason = "AttemptsUsedUp"
    else:
        wait = min(FIRST_BACK_OFF_SECONDS * 2.0 ** (failures - 1), LONGEST_BACK_OFF_SECONDS)
        message = f"attempt {stage.attempt} failed ({failures} of {most}): {outcome.message}"
        due = timestamp(now + timedelta(seconds=wait))
        update |= {"state": "Waiting", "not_before": due, "message": message}
        reason = outcome.reason
    notice = Notice(outcome.reason, f"{stage.name}: {message}", "Warning", f"{stage.name}-{stage.attempt}")
    return Settled(with_stage(status, stage.model_copy(update=update)), {stage.name: reason}, (notice,))


def _recorded(
    status: TrainingRunStatus, result: StageResult | None, spec: TrainingRunSpec
) -> TrainingRunStatus:
    """The figures of a result; kept also when the stage was refused for them."""
    if result is None:
        return status
    update: dict[str, object] = {}
    if result.data is not None:
        update["data"] = result.data
    if result.objective is not None and result.outcome == "done":
        update["objective"] = result.objective
    if result.evaluation is not None:
        update["evaluation"] = result.evaluation
        share = _shown_accuracy(spec, result.evaluation.accuracy)
        update["accuracy_text"] = "" if share is None else f"{share:.3f}"
    if result.model is not None and result.outcome == "done":
        update["model"] = result.model
        update["model_text"] = "/".join(filter(None, (result.model.name, result.model.version)))
    if result.progress is not None:
        update |= {"progress": result.progress, "progress_text": progress.text(result.progress)}
    return status.model_copy(update=update)


def _shown_accuracy(spec: TrainingRunSpec, shares: Mapping[str, float]) -> float | None:
    """What the column Accuracy shows: the field the first gate is about, so that it stands beside its own limit."""
    gated = (gate.field or FIELD_OVERALL for gate in spec.evaluation.gates if gate.metric != "jsonValidity")
    return shares.get(next(gated, FIELD_OVERALL), shares.get(FIELD_OVERALL))
