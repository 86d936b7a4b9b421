"""A TrainingRun as text for a terminal. Pure: the object, its events and the time in, text out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from cutover.api.trainingrun import EvaluationSummary, StageStatus, TrainingRunStatus
from cutover_cli.layout import age, columns, condition_rows, event_rows, fields, table, tree
from cutover_operator.rollout.wording import number

Object = Mapping[str, Any]
STATE_MARK = {"Done": "✔", "Failed": "✖", "Running": "●", "Queued": "…", "Waiting": "…", "Pending": "○"}


def status_of(obj: Object) -> TrainingRunStatus:
    return TrainingRunStatus.model_validate(obj.get("status") or {})


def view(obj: Object, events: Sequence[Object], now: datetime) -> str:
    """Head, stages, data, evaluation, conditions and events of one run."""
    status, meta = status_of(obj), obj["metadata"]
    parts = [
        fields(_head(obj, status, meta)),
        tree("Stages", table([_stage_row(stage, now) for stage in status.stages])),
        tree("Data", table(_data_rows(status))),
        tree("Trials", table(_trial_rows(status))),
        tree("Test part", table(_evaluation_rows(status.evaluation))),
        tree("Conditions", table(condition_rows(status.conditions, now))),
        tree("Events", table(event_rows(events, now))),
    ]
    return "\n\n".join(part for part in parts if part)


def _head(obj: Object, status: TrainingRunStatus, meta: Object) -> list[tuple[str, str]]:
    spec = obj.get("spec") or {}
    base, compute = spec.get("baseModel") or {}, spec.get("compute") or {}
    progress, text = status.progress, status.progress_text
    if progress is not None and progress.steps:
        text = f"step {progress.step}/{progress.steps}"
        if progress.loss is not None:
            text += f", loss {number(progress.loss)}"
        if progress.samples_per_second:
            text += f", {number(progress.samples_per_second)} samples/s"
    spent = f"{status.gpu_hours or '0'} of {number(float(compute.get('gpuHourBudget') or 50))} GPU-hours"
    return [
        ("Name", f"{meta['name']}  (namespace {meta.get('namespace', '')})"),
        ("Base", str(base.get("uri", ""))),
        ("Stage", status.stage + ("  (suspended)" if spec.get("suspend") else "")),
        ("Progress", text),
        ("Spent", spent),
        ("Accuracy", status.accuracy_text),
        ("Model", status.model_text),
        ("Adapter", status.model.adapter_uri if status.model else ""),
        ("Reason", status.reason),
    ]


def _stage_row(stage: StageStatus, now: datetime) -> list[str]:
    times = ""
    if stage.finished_at and stage.started_at:
        times = f"took {age(stage.started_at, datetime.fromisoformat(stage.finished_at))}"
    elif stage.started_at:
        times = f"since {age(stage.started_at, now)}"
    tries = f"attempt {stage.attempt}" if stage.attempt > 1 else ""
    if stage.failures:
        tries += f", {stage.failures} failed"
    mark = STATE_MARK.get(stage.state, " ")
    return [f"{mark} {stage.name}", stage.state, times, tries.removeprefix(", "), stage.message]


def _data_rows(status: TrainingRunStatus) -> list[list[str]]:
    data = status.data
    if data is None:
        return []
    rows = [["rows", f"{data.rows} ({data.train} train, {data.validation} validation, {data.test} test)"]]
    if data.bad_rows:
        rows.append(["unreadable", str(data.bad_rows)])
    if data.control_accuracy is not None:
        rows.append(["today's model", f"{data.control_accuracy:.1%} right"])
    return rows


def _trial_rows(status: TrainingRunStatus) -> list[list[str]]:
    tuning = status.tuning
    if tuning is None:
        return []
    rows = []
    for trial in tuning.trials:
        settings = ", ".join(f"{name} {value:g}" for name, value in sorted(trial.settings.items()))
        loss = "" if trial.objective is None else f"validation loss {trial.objective:.4f}"
        won = "won" if trial.number == tuning.winner else ""
        mark = STATE_MARK.get(trial.state, " ")
        rung = f"rung {trial.rung}, {number(trial.epochs or 0.0)} epochs"
        rows.append([f"{mark} {trial.number}", rung, loss, settings, won])
    return rows


def _evaluation_rows(evaluation: EvaluationSummary | None) -> list[list[str]]:
    if evaluation is None:
        return []
    rows = []
    for field, share in sorted(evaluation.accuracy.items()):
        before, control = evaluation.accuracy_before.get(field), evaluation.accuracy_control.get(field)
        note = f"{share:.1%} of {evaluation.examples}"
        if before is not None:
            note += f", base {before:.1%}"
        if control is not None:
            note += f", today's model {control:.1%}"
        rows.append([field, note])
    if evaluation.json_validity is not None:
        rows.append(["valid JSON", f"{evaluation.json_validity:.1%}"])
    return rows


def list_view(objects: Sequence[Object], now: datetime) -> str:
    """One line a run."""
    rows = []
    for obj in objects:
        status, meta = status_of(obj), obj["metadata"]
        rows.append(
            [
                str(meta.get("namespace", "")),
                str(meta["name"]),
                status.stage,
                status.progress_text,
                status.accuracy_text,
                status.gpu_hours,
                status.model_text,
                status.reason,
                age(meta.get("creationTimestamp"), now),
            ]
        )
    header = ["NAMESPACE", "NAME", "STAGE", "PROGRESS", "ACCURACY", "GPU-HOURS", "MODEL", "REASON", "AGE"]
    return columns(header, rows)
