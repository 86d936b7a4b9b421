"""What a TrainingRun does next: settle what happened, then a chain of named checks whose order is the policy. Pure.

Each check answers what keeps the run from going on, or lets it pass to the next. What is left starts the attempt. An
attempt begins with one compare-and-swap that writes its number and its Job's name; the Job is made from what was
committed, again and again if need be, always under that name.
"""

from __future__ import annotations

import hashlib
import json
from datetime import datetime
from typing import Any

from cutover.api.trainingrun import StageStatus, TrainingRun, TrainingRunSpec, TrainingRunStatus
from cutover.task import Task
from cutover_operator.conditions import find, parse_timestamp, timestamp
from cutover_operator.origins import is_allowed
from cutover_operator.plan import Action, Apply, Delete, Notice, Plan
from cutover_operator.port import CONFIG_MAPS, JOBS
from cutover_operator.training import report, spending
from cutover_operator.training.at_work import PENDING_SECONDS, POLL_SECONDS, at_work
from cutover_operator.training.observed import PodSeen
from cutover_operator.training.report import Standing
from cutover_operator.training.resources import NAME_LIMIT, Attempt, build
from cutover_operator.training.search import STAGE, paused, search, tuned, winner_of
from cutover_operator.training.settle import current, job_of, may_still_write, settle, with_stage
from cutover_operator.training.sharing import not_shared
from cutover_operator.training.situation import Answer, Check, Situation
from cutover_operator.training.world import NoTask, World

LOOK_AGAIN_SECONDS = 30.0
OVERDRAFT_SECONDS = 60.0
"""Per GPU: starting and checkpointing are not the trainer's to count."""
KEPT_JOBS = 12
FIXED_FIELDS = ("task", "dataset", "base_model", "fine_tune", "tuning", "trial", "output")
"""What artifacts are made from; the API server refuses a change once the run has started."""


def decide(world: World, now: datetime) -> Plan:
    if "deletionTimestamp" in world.parent["metadata"]:
        return Plan()
    if not isinstance(world.run, TrainingRun):
        return _unreadable(world, world.run, now)
    spec, before = world.run.spec, world.run.status
    settled = settle(world, spec, before, now)
    stage = current(settled.status)
    if stage is None:
        answer = Answer(report.succeeded(spec, settled.status))
    else:
        situation = Situation(world, spec, settled.status, stage, now)
        answer = next(found for check in CHECKS if (found := check(situation)) is not None)
    status = settled.status
    status = status.model_copy(update=dict(answer.update))
    if answer.stage is not None:
        status = with_stage(status, answer.stage)
    if answer.started:
        fresh = {"stage": answer.stage.name if answer.stage else status.stage}
        status = status.model_copy(update=fresh | {"spec_digest": spec_digest(spec)})
    status, said = report.written(
        status, before, answer.standing, settled.reasons, spec, world.generation, now
    )
    return Plan(
        status=status.to_wire(),
        after=(*answer.actions, *_pruned(world, status)),
        notices=(*settled.notices, *answer.notices, *said),
        again_in_seconds=answer.again_in_seconds,
    )


def spec_digest(spec: TrainingRunSpec) -> str:
    """Digest of what was asked for. Defaults are left out, so that a new field of a later version changes nothing."""
    wire = spec.model_dump(mode="json", by_alias=True, exclude_defaults=True, include=set(FIXED_FIELDS))
    return hashlib.sha256(json.dumps(wire, sort_keys=True).encode()).hexdigest()[:16]


# ------------------------------------------------------------------ the checks, in order
def failed_for_good(s: Situation) -> Answer | None:
    """No attempt follows until the spec is edited."""
    if s.stage.state != "Failed":
        return None
    return Answer(report.failed(s.stage), actions=(*_ended_by_force(s), *paused(s)))


def suspended(s: Situation) -> Answer | None:
    """The trainer writes a checkpoint on its way out; the next attempt goes on from there."""
    if not s.spec.suspend:
        return None
    waits = _lingering(s) is not None
    return Answer(
        Standing("Suspended", "spec.suspend is true; set it to false to go on", moving=False),
        stage=_put_off(s, "suspended"),
        actions=(*_ended_by_force(s, spare_current=False), *paused(s)),
        again_in_seconds=POLL_SECONDS if waits else None,
    )


def overdrawn(s: Situation) -> Answer | None:
    """The trainer stops by itself when its time is used; one that does not, or a lowered budget, ends here."""
    if not s.gpus or not s.stage.at_work:
        return None
    if s.spent_seconds < spending.budget_seconds(s.spec) + OVERDRAFT_SECONDS * s.gpus:
        return None
    return budget_spent(s)


def job_runs(s: Situation) -> Answer | None:
    """Somebody is at work: say how far, and touch nothing."""
    job = job_of(s.world, s.stage)
    if not s.stage.at_work or job is None or not job.active or job.deleting:
        return None
    return at_work(s, job)


def name_too_long(s: Situation) -> Answer | None:
    name = s.world.name
    if len(name) <= NAME_LIMIT:
        return None
    text = f"metadata.name: {name!r} has {len(name)} characters; its pods carry it as a label, which holds {NAME_LIMIT}"
    return Answer(Standing("NameTooLong", text, stalled=True, moving=False))


def spec_changed(s: Situation) -> Answer | None:
    """The API server refuses this; a cluster without that rule must not mix two data sets in one model."""
    if not s.status.spec_digest or s.status.spec_digest == spec_digest(s.spec):
        return None
    text = "spec: task, dataset, baseModel, fineTune, tuning, trial or output changed after the start; create a new TrainingRun"
    return Answer(Standing("SpecChanged", text, stalled=True, moving=False))


def task_unusable(s: Situation) -> Answer | None:
    task = s.world.task
    if not isinstance(task, NoTask):
        return None
    standing = Standing(task.reason, task.message, stalled=True, moving=False)
    return Answer(standing, again_in_seconds=LOOK_AGAIN_SECONDS)


def url_not_allowed(s: Situation) -> Answer | None:
    http, mlflow = s.spec.dataset.source.http, s.spec.registry.mlflow
    urls = (
        ("spec.dataset.source.http.url", http.url if http else ""),
        ("spec.registry.mlflow.url", mlflow.url if mlflow else ""),
    )
    for name, url in urls:
        if url and not is_allowed(url, s.world.site.allowed_urls):
            allowed = ", ".join(s.world.site.allowed_urls) or "none"
            text = f"{name}: {url} is not on the operator's allow list ({allowed}); ask whoever runs the operator"
            return Answer(Standing("UrlNotAllowed", text, stalled=True, moving=False))
    return None


def no_image(s: Situation) -> Answer | None:
    if s.spec.compute.image or s.world.site.trainer_image:
        return None
    text = "spec.compute.image: empty, and the operator has no default; set it, or CUTOVER_TRAINER_IMAGE"
    return Answer(Standing("NoTrainerImage", text, stalled=True, moving=False))


def claim_not_shared(s: Situation) -> Answer | None:
    """Before anything is prepared for a training whose pods could not start."""
    if s.stage.name not in ("prepare", STAGE, "train"):
        return None
    text = not_shared(s.spec, s.world.access_modes)
    if not text:
        return None
    standing = Standing("ClaimNotShared", text, stalled=True, moving=False)
    return Answer(standing, again_in_seconds=LOOK_AGAIN_SECONDS)


def forecast_over_budget(s: Situation) -> Answer | None:
    """Said before the first GPU is asked for, once the rows are known."""
    first = "train" if s.spec.tuning is None else STAGE
    if not s.gpus or s.stage.name != first or s.stage.attempt or s.status.data is None:
        return None
    forecast = spending.forecast_seconds(s.spec, s.status.data)
    budget = spending.budget_seconds(s.spec)
    if forecast <= budget:
        return None
    trials = "" if s.spec.tuning is None else f", searched in {s.spec.tuning.trials} trials,"
    text = (
        f"{s.status.data.train} rows x {s.spec.fine_tune.epochs} epochs{trials} take about "
        f"{spending.hours_text(forecast)} A100-hours; compute.gpuHourBudget is {spending.hours_text(budget)}; "
        "raise it to go on"
    )
    return Answer(Standing("ForecastOverBudget", text, stalled=True, moving=False, over_budget=True))


def budget_spent(s: Situation) -> Answer | None:
    if not s.gpus or s.spent_seconds < spending.budget_seconds(s.spec):
        return None
    text = (
        f"{spending.hours_text(s.spent_seconds)} of {spending.hours_text(spending.budget_seconds(s.spec))} GPU-hours "
        "are spent; raise compute.gpuHourBudget to go on from the last checkpoint"
    )
    return Answer(
        Standing("BudgetExceeded", text, stalled=True, moving=False, over_budget=True),
        stage=_put_off(s, "the GPU budget is spent"),
        actions=(*_ended_by_force(s, spare_current=False), *paused(s)),
    )


def others_at_work(s: Situation) -> Answer | None:
    """Never two pods of one run: they would write the same checkpoints."""
    pod = _lingering(s)
    actions = _ended_by_force(s)
    if pod is None and not actions:
        return None
    text = (
        f"waits for pod {pod.name} on node {pod.node or '?'} to end"
        if pod
        else "waits for an earlier Job to end"
    )
    return Answer(Standing("EarlierPodEnding", text), actions=actions, again_in_seconds=POLL_SECONDS)


def backing_off(s: Situation) -> Answer | None:
    if s.stage.state != "Waiting" or s.stage.not_before is None:
        return None
    left = (parse_timestamp(s.stage.not_before) - s.now).total_seconds()
    if left <= 0:
        return None
    text = f"{s.stage.message}; next attempt at {s.stage.not_before}"
    return Answer(Standing("BackingOff", text), again_in_seconds=left)


def start(s: Situation) -> Answer | None:
    """A new attempt; or the Job of an attempt that is committed but not there."""
    stage = s.stage
    committed = stage.at_work
    number = stage.attempt if committed else stage.attempt + 1
    assert isinstance(s.world.task, Task)
    winner = winner_of(s.status)
    built = build(
        Attempt(
            namespace=s.world.namespace,
            name=s.world.name,
            uid=s.world.uid,
            spec=tuned(s.spec, s.status),
            task=s.world.task,
            stage=stage.name,
            number=number,
            image=s.spec.compute.image or s.world.site.trainer_image,
            pull_secrets=s.world.site.pull_secrets,
            gpu_seconds_left=round(spending.budget_seconds(s.spec) - s.spent_seconds, 1) if s.gpus else None,
            resume_trial=winner.folder if winner and stage.name == "train" else "",
        )
    )
    state = "Queued" if s.spec.compute.queue_name else "Running"
    update: dict[str, Any] = {"state": state, "attempt": number, "job": built.name, "not_before": None}
    if not committed:
        update |= {"started_at": stage.started_at or timestamp(s.now), "finished_at": None, "message": ""}
    text = f"{stage.name}: attempt {number} starts"
    notice = Notice("StageStarted", text, about=f"{stage.name}-{number}")
    return Answer(
        Standing("StageStarting", text),
        stage=stage.model_copy(update=update),
        actions=tuple(Apply(obj) for obj in (built.config_map, built.service, built.job) if obj),
        again_in_seconds=PENDING_SECONDS,
        started=True,
        notices=() if committed else (notice,),
    )


CHECKS: tuple[Check, ...] = (
    failed_for_good,
    suspended,
    overdrawn,
    job_runs,
    name_too_long,
    spec_changed,
    task_unusable,
    url_not_allowed,
    no_image,
    claim_not_shared,
    forecast_over_budget,
    budget_spent,
    others_at_work,
    backing_off,
    search,
    start,
)


# ------------------------------------------------------------------ parts of the checks
def _put_off(s: Situation, message: str) -> StageStatus:
    """The running attempt is given up without penalty. One whose Job was never made does not count as an
    attempt; a search has none, and has begun."""
    stage = s.stage
    if not stage.at_work:
        return stage
    begun = stage.name == STAGE or job_of(s.world, stage) is not None
    number = stage.attempt if begun else stage.attempt - 1
    update = {"state": "Waiting", "attempt": number, "not_before": None, "message": message}
    return stage.model_copy(update=update)


def _ended_by_force(s: Situation, *, spare_current: bool = True) -> tuple[Action, ...]:
    """Delete every Job at work, but the current attempt's."""
    current_job = job_of(s.world, s.stage) if spare_current and s.stage.at_work else None
    return tuple(
        Delete(JOBS, s.world.namespace, job.name, job.uid)
        for job in s.world.jobs
        if job.active and not job.deleting and job != current_job
    )


def _lingering(s: Situation) -> PodSeen | None:
    """A pod of an earlier attempt that may still write."""
    return next((pod for pod in s.world.pods if may_still_write(pod, s.now)), None)


def _pruned(world: World, status: TrainingRunStatus) -> tuple[Action, ...]:
    """Many interruptions leave many Jobs; the last ones are kept to be looked at."""
    current_jobs = {stage.job for stage in status.stages}
    over = sorted((job for job in world.jobs if not job.active), key=lambda job: (job.attempt, job.name))
    surplus = [job for job in over if job.name not in current_jobs][: max(0, len(over) - KEPT_JOBS)]
    kept = {job.name for job in world.jobs} - {job.name for job in surplus} | current_jobs
    return (
        *(Delete(JOBS, world.namespace, job.name, job.uid) for job in surplus if not job.deleting),
        *(Delete(CONFIG_MAPS, world.namespace, name) for name in world.config_maps if name not in kept),
    )


def _unreadable(world: World, why: str, now: datetime) -> Plan:
    before = TrainingRunStatus.model_validate(
        {"conditions": (world.parent.get("status") or {}).get("conditions") or []}
    )
    standing = Standing(
        "SpecUnreadable", f"{why}; this operator cannot read the object", stalled=True, moving=False
    )
    known = find(before.conditions, "Stalled")
    if known is not None and known.message == standing.message:
        return Plan()
    status = dict(world.parent.get("status") or {})
    facts = report.standing_conditions(before, standing, world.generation, now)
    status["conditions"] = [condition.to_wire() for condition in facts]
    status["reason"] = standing.reason
    return Plan(status=status)
