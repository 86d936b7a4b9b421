"""Tells MLflow, by a Job, that a rollout has promoted its version or has withdrawn it again. Pure.

What MLflow has to know is committed in the status with the end itself, and a Job follows from the status: whoever crashes
where, the next pass goes on. One Job at a time, retried with back-off for ever. Nothing here changes what a rollout
decides: it writes `status.registry` and the condition RegistryUpdated, and comes last in a pass.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Literal

from pydantic import ValidationError

from cutover.api.modelrollout import RegisteredVersion, RegistryStatus
from cutover.api.trainingrun import TrainingRun
from cutover.contract import ExitCode
from cutover.stages import StageResult
from cutover_operator.origins import is_allowed
from cutover_operator.plan import Apply
from cutover_operator.rollout import champion_job
from cutover_operator.rollout.draft import Draft, parsed, stamp
from cutover_operator.training.observed import JobSeen, PodSeen, job_seen, pod_seen

CONDITION = "RegistryUpdated"
FIRST_BACK_OFF_SECONDS = 30.0
LONGEST_BACK_OFF_SECONDS = 1800.0
"""Also after a refusal: somebody may mend the Secret, and nothing would tell."""
MISSING_SECONDS = 120.0
"""How long a Job that is not there is made again, before that counts as a failure and waits."""
LOOK_AGAIN_SECONDS = 600.0
FIGURES = ("url", "model_name", "version", "secret_name", "secret_key")
"""Of a record: where MLflow is and what the candidate is there."""


def follow(d: Draft) -> tuple[Apply, ...]:
    """Bring `status.registry` and the condition up to date; the Job that follows from it."""
    if d.world.deleted_at is not None:
        return ()
    record = _wanted(d, _remembered(d, d.status.registry))
    actions: tuple[Apply, ...] = ()
    if record is not None:
        record, actions = _go_on(d, record)
        if record is not d.status.registry:
            d.set(registry=record)
    _say(d, record)
    return actions


# ------------------------------------------------------------------ what MLflow has to know
def registered_version(d: Draft) -> RegisteredVersion | None:
    """What the candidate is in MLflow, if it is anything there."""
    if d.spec.candidate.model is not None:
        return d.spec.candidate.model.mlflow
    if d.world.training_run is None:
        return None
    try:
        run = TrainingRun.from_object(d.world.training_run)
        mlflow, model = run.spec.registry.mlflow, run.status.model
        if mlflow is None or model is None or not model.mlflow_run_id:
            return None
        return RegisteredVersion(
            url=mlflow.url, model_name=model.name, version=model.version, secret_ref=mlflow.secret_ref
        )
    except (ValidationError, KeyError):
        return None


def _remembered(d: Draft, record: RegistryStatus | None) -> RegistryStatus | None:
    """The figures are kept from the start on: the TrainingRun may be gone by the end."""
    if d.world.remembered:
        # Nothing is another than at the whole look, and a TrainingRun takes long to read.
        return record
    at_rest = record is None or record.state == "Idle" or (record.state == "Done" and d.status.finish is None)
    started = d.status.phase != "Pending" and d.model is not None
    if not at_rest or not started or d.model is None or d.model.version != d.status.candidate_version:
        return record
    found = registered_version(d)
    if found is None:
        return record
    secret = found.secret_ref
    fresh = RegistryStatus(
        url=found.url,
        model_name=found.model_name,
        version=found.version,
        secret_name=secret.name if secret is not None else "",
        secret_key=secret.key if secret is not None else "",
    )
    same = record is not None and all(getattr(record, name) == getattr(fresh, name) for name in FIGURES)
    return record if same else fresh


def _wanted(d: Draft, record: RegistryStatus | None) -> RegistryStatus | None:
    """The record with the last end that MLflow has to know. A rollout that was only superseded was not found wanting."""
    if record is None:
        return None
    at = d.status.finished_at or ""
    outcome: Literal["", "promoted", "withdrawn"] = record.outcome
    if d.status.finish == "Promoted":
        outcome = "promoted"
    elif d.status.finish in ("RolledBack", "Aborted") and record.outcome == "promoted":
        outcome = "withdrawn"
    else:
        at = record.at
    if (outcome, at) == (record.outcome, record.at):
        return record
    at_work = record.state in ("Running", "Outdated")
    return record.model_copy(
        update={
            "outcome": outcome,
            "at": at,
            "state": "Outdated" if at_work else "Waiting",
            "job": record.job if at_work else "",
            "failures": 0,
            "not_before": None,
            "reason": "",
            "message": "",
        }
    )


# ------------------------------------------------------------------ the Job
def _go_on(d: Draft, record: RegistryStatus) -> tuple[RegistryStatus, tuple[Apply, ...]]:
    job = _job(d, record)
    if record.state == "Outdated":
        if job is not None and job.active:
            # Two at once, and the one that is late could have the last word.
            message = f"waits for the end of Job {record.job}, which tells of an earlier outcome"
            return record.model_copy(update={"message": message}), ()
        record = record.model_copy(update={"state": "Waiting", "job": "", "since": None})
    elif record.state == "Running":
        if job is None:
            return _missing(d, record)
        if job.active:
            return record.model_copy(update={"message": _at_work(d, record)}), ()
        return _ended(d, record, job), ()
    return _started(d, record) if record.state == "Waiting" else (record, ())


def _started(d: Draft, record: RegistryStatus) -> tuple[RegistryStatus, tuple[Apply, ...]]:
    reason, message = _refusal(d, record)
    if reason:
        d.again(LOOK_AGAIN_SECONDS)
        return record.model_copy(update={"reason": reason, "message": message}), ()
    due = parsed(record.not_before)
    if due is not None and due > d.now:
        d.again((due - d.now).total_seconds())
        return record, ()
    number = record.attempt + 1
    obj = champion_job.build(record, number, d.spec, d.owner, d.world.site.images)
    name = obj["metadata"]["name"]
    update = {
        "state": "Running",
        "attempt": number,
        "job": name,
        "since": stamp(d.now),
        "not_before": None,
        "message": _sentence(record, f"Job {name} tells MLflow that version {record.version} "),
    }
    d.again(MISSING_SECONDS)
    return record.model_copy(update=update), (Apply(obj, vital=False),)


def _missing(d: Draft, record: RegistryStatus) -> tuple[RegistryStatus, tuple[Apply, ...]]:
    """Committed, but not there: the pass that made it died, or the API server refused it."""
    if d.since(record.since) >= MISSING_SECONDS:
        text = f"Job {record.job} is not there: it was refused or deleted, see the events"
        return _failed(d, record, "JobMissing", text), ()
    obj = champion_job.build(record, record.attempt, d.spec, d.owner, d.world.site.images)
    d.again(MISSING_SECONDS / 4)
    return record.model_copy(update={"job": obj["metadata"]["name"]}), (Apply(obj, vital=False),)


def _ended(d: Draft, record: RegistryStatus, job: JobSeen) -> RegistryStatus:
    pod = _pod(d, record)
    result = pod.result if pod is not None else None
    if job.succeeded and pod is not None and not _says_done(result):
        text = (
            f"Job {job.name} ended with exit code 0 but did not say what it did; is this the trainer image?"
        )
        return _failed(d, record, "NoResult", text)
    if job.succeeded:
        reason, message = (
            (result.reason, result.message) if result is not None else ("Told", f"Job {job.name} succeeded")
        )
        d.notice(reason or "Told", message, about=f"{record.outcome}-{record.at}")
        update = {"state": "Done", "failures": 0, "reason": reason or "Told", "message": message}
        return record.model_copy(update=update)
    code = pod.exit_code if pod is not None and pod.exit_code is not None else job.exit_code
    if result is not None and result.outcome != "done":
        reason, message = result.reason or "Failed", result.message
    elif job.reason == "DeadlineExceeded":
        seconds = champion_job.DEADLINE_SECONDS
        reason, message = job.reason, f"Job {job.name} was not over after {seconds} s: {record.message}"
    else:
        ended = f"exit code {code}" if code is not None else job.message or "its pod is gone"
        reason, message = "JobFailed", f"Job {job.name} failed: {ended}"
    return _failed(d, record, reason, message, for_good=code == ExitCode.BAD_INPUT)


def _failed(
    d: Draft, record: RegistryStatus, reason: str, message: str, *, for_good: bool = False
) -> RegistryStatus:
    """`for_good`: trying again helps only once somebody has mended something."""
    wait = FIRST_BACK_OFF_SECONDS * 2.0 ** min(record.failures, 10)
    wait = LONGEST_BACK_OFF_SECONDS if for_good else min(wait, LONGEST_BACK_OFF_SECONDS)
    if record.failures == 0:
        d.notice(reason, message, "Warning", f"{record.outcome}-{record.at}")
    d.again(wait)
    return record.model_copy(
        update={
            "state": "Waiting",
            "job": "",
            "since": None,
            "failures": record.failures + 1,
            "not_before": stamp(d.now + timedelta(seconds=wait)),
            "reason": reason,
            "message": message,
        }
    )


def _refusal(d: Draft, record: RegistryStatus) -> tuple[str, str]:
    """(reason, sentence) why no Job is made; empty when one can be."""
    allowed = d.world.site.allowed_urls
    if not is_allowed(record.url, allowed):
        known = ", ".join(allowed) or "none"
        return (
            "UrlNotAllowed",
            f"status.registry.url {record.url} is not on the operator's allow list ({known})",
        )
    if not d.world.site.images.trainer:
        return "NoTrainerImage", "the operator has no trainer image; set CUTOVER_TRAINER_IMAGE"
    return "", ""


def _job(d: Draft, record: RegistryStatus) -> JobSeen | None:
    """The committed Job; one of the same name that belongs to nobody here is none."""
    live = d.world.champion_job
    if live is None or live["metadata"]["name"] != record.job:
        return None
    owners = live["metadata"].get("ownerReferences") or []
    return job_seen(live) if any(one.get("uid") == d.world.uid for one in owners) else None


def _pod(d: Draft, record: RegistryStatus) -> PodSeen | None:
    seen = [pod_seen(pod) for pod in d.world.champion_pods]
    return next((pod for pod in seen if pod.job == record.job), None)


def _at_work(d: Draft, record: RegistryStatus) -> str:
    pod = _pod(d, record)
    if pod is not None and pod.trouble is not None:
        return f"Job {record.job}: its pod does not start: {pod.trouble.reason}: {pod.trouble.message}"
    if pod is not None and pod.running:
        return _sentence(record, f"Job {record.job} tells MLflow that version {record.version} ")
    secret, key = record.secret_name, record.secret_key
    needs = f"; it needs Secret {secret!r} with key {key!r}" if secret else ""
    return f"Job {record.job}: its pod has not started yet{needs}"


def _sentence(record: RegistryStatus, beginning: str) -> str:
    what = "is promoted" if record.outcome == "promoted" else "is withdrawn"
    return f"{beginning}{what} (attempt {record.failures + 1})"


def _says_done(result: StageResult | None) -> bool:
    return result is not None and result.outcome == "done" and result.stage == champion_job.COMMAND


# ------------------------------------------------------------------ the condition
def _say(d: Draft, record: RegistryStatus | None) -> None:
    if record is None:
        if d.status.phase != "Pending":
            d.condition(CONDITION, "Unknown", "NoRegistry", "no version in MLflow is known of the candidate")
        return
    name = f"{record.model_name} version {record.version}"
    if record.state == "Idle":
        d.condition(CONDITION, "Unknown", "NotPromoted", f"{name} has not been promoted by this rollout")
        return
    if record.state == "Done":
        d.condition(CONDITION, "True", record.reason, record.message)
        return
    said = [record.message]
    if record.state == "Waiting" and record.not_before:
        said.append(f"next attempt at {record.not_before}")
    text = "; ".join(part for part in said if part)
    d.condition(CONDITION, "False", record.reason or "Updating", f"{name}: {text}")
