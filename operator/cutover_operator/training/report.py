"""Where a run stands, as conditions, columns and events. Pure: every condition is there from the first pass."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from cutover.api.base import Condition
from cutover.api.trainingrun import Stage, StageStatus, TrainingRunSpec, TrainingRunStatus
from cutover.api.tuning import Trial
from cutover_operator.conditions import Fact, find, merge
from cutover_operator.plan import Notice
from cutover_operator.training import spending

CONDITION_OF: dict[Stage, str] = {
    "prepare": "DataReady",
    "tune": "Tuned",
    "train": "Trained",
    "evaluate": "Evaluated",
    "register": "Registered",
}
DONE = "done"
"""Value of the column Stage when nothing is left to do."""


@dataclass(frozen=True, slots=True)
class Standing:
    reason: str
    message: str
    stalled: bool = False
    """Somebody has to do something."""
    moving: bool = True
    over_budget: bool = False
    ended: bool | None = None
    """Succeeded (true) or failed (false); None while it may still become either."""


def succeeded(spec: TrainingRunSpec, status: TrainingRunStatus) -> Standing:
    if spec.trial is not None:
        return Standing("Succeeded", _trial_text(spec.trial, status), moving=False, ended=True)
    return Standing("Succeeded", f"registered {status.model_text or 'the model'}", moving=False, ended=True)


def _trial_text(trial: Trial, status: TrainingRunStatus) -> str:
    """Of a trial that reached its rung; short enough for a column."""
    loss = "no loss" if status.objective is None else f"loss {status.objective:.4f}"
    return f"rung {trial.rung}, {trial.epochs:g} epochs: {loss}"


def failed(stage: StageStatus) -> Standing:
    text = f"{stage.name}: {stage.message}"
    return Standing("StageFailed", text, stalled=True, moving=False, ended=False)


def written(
    status: TrainingRunStatus,
    before: TrainingRunStatus,
    standing: Standing,
    reasons: dict[str, str],
    spec: TrainingRunSpec,
    generation: int,
    now: datetime,
) -> tuple[TrainingRunStatus, tuple[Notice, ...]]:
    """The status with its conditions and columns, and the events of what turned since `before`."""
    facts = [_stage_fact(stage, before, reasons) for stage in status.stages]
    facts += [_ending(standing), _budget(status, standing, spec), *_health(standing)]
    conditions = merge(before.conditions, facts, generation, now)
    update: dict[str, object] = {
        "conditions": conditions,
        "reason": _column(status, standing, reasons, before),
    }
    if standing.ended:
        done = "100%" if spec.trial is None else _trial_text(spec.trial, status)
        update |= {"stage": DONE, "progress_text": done}
    elif status.stage != before.stage and status.stage != "tune":
        update |= {"progress": None, "progress_text": ""}
    return status.model_copy(update=update), _notices(before, conditions)


def standing_conditions(
    before: TrainingRunStatus, standing: Standing, generation: int, now: datetime
) -> list[Condition]:
    """Only the standing changes; the rest is kept as it is."""
    kept = [
        Fact(c.type, c.status, c.reason, c.message)
        for c in before.conditions
        if c.type not in ("Reconciling", "Stalled")
    ]
    return merge(before.conditions, [*kept, *_health(standing)], generation, now)


def _stage_fact(stage: StageStatus, before: TrainingRunStatus, reasons: dict[str, str]) -> Fact:
    type_ = CONDITION_OF[stage.name]
    if stage.state == "Done":
        return Fact(type_, "True", "StageDone", stage.message)
    if stage.state == "Failed":
        known = find(before.conditions, type_)
        kept = known.reason if known is not None and known.status == "False" else "StageFailed"
        return Fact(type_, "False", reasons.get(stage.name, kept), stage.message)
    if stage.state == "Pending":
        return Fact(type_, "Unknown", "Pending", "not started")
    return Fact(type_, "Unknown", f"Stage{stage.state}", stage.message or f"attempt {stage.attempt}")


def _ending(standing: Standing) -> Fact:
    if standing.ended is None:
        return Fact("Succeeded", "Unknown", "InProgress", "not at its end")
    return Fact("Succeeded", "True" if standing.ended else "False", standing.reason, standing.message)


def _budget(status: TrainingRunStatus, standing: Standing, spec: TrainingRunSpec) -> Fact:
    if standing.over_budget:
        return Fact("BudgetExceeded", "True", standing.reason, standing.message)
    budget = spending.hours_text(spending.budget_seconds(spec))
    return Fact("BudgetExceeded", "False", "WithinBudget", f"{status.gpu_hours} of {budget} GPU-hours spent")


def _health(standing: Standing) -> list[Fact]:
    stalled = Fact("Stalled", "True", standing.reason, standing.message)
    calm = Fact("Stalled", "False", "NothingBlocks")
    return [
        Fact("Reconciling", "True" if standing.moving else "False", standing.reason, standing.message),
        stalled if standing.stalled else calm,
    ]


def _column(
    status: TrainingRunStatus, standing: Standing, reasons: dict[str, str], before: TrainingRunStatus
) -> str:
    """The reason a person looks for first: of a failed stage its own."""
    failed_stage = next((stage for stage in status.stages if stage.state == "Failed"), None)
    if failed_stage is None:
        return standing.reason
    return _stage_fact(failed_stage, before, reasons).reason


def _notices(before: TrainingRunStatus, conditions: list[Condition]) -> tuple[Notice, ...]:
    said = []
    stalled, ended = find(conditions, "Stalled"), find(conditions, "Succeeded")
    was = find(before.conditions, "Stalled")
    if stalled and stalled.status == "True" and (was is None or was.reason != stalled.reason):
        said.append(Notice(stalled.reason, stalled.message, "Warning", "stalled"))
    had = find(before.conditions, "Succeeded")
    if ended and ended.status == "True" and (had is None or had.status != "True"):
        said.append(Notice("Succeeded", ended.message))
    return tuple(said)
