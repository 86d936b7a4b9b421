"""The stage tune: trials are made, promoted and compared until one has won. Pure, and without any memory.

What the trials' runs say is taken into the status (`taken`), then the runs that should be at work are made (`search`).
A trial's settings are committed to the status before its run exists, so that they stay what they are whoever makes the
next one. The test part has no place here: a trial has no evaluation.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

from cutover.api.trainingrun import StageStatus, TrainingRunSpec, TrainingRunStatus
from cutover.api.tuning import TrialStatus, Tuning, TuningStatus
from cutover_operator.conditions import timestamp
from cutover_operator.plan import Action, Apply, Notice
from cutover_operator.training import spending
from cutover_operator.training.halving import Rung, Search, judge, ladder
from cutover_operator.training.report import Standing
from cutover_operator.training.situation import Answer, Situation
from cutover_operator.training.suggest import (
    Settings,
    settings_of,
    settings_text,
    suggestions,
    with_settings,
)
from cutover_operator.training.trials import TrialSeen, Wanted, child, differs, revised
from cutover_operator.training.world import World

STAGE = "tune"
AGAIN_SECONDS = 30.0
"""A trial's own changes ask for a pass; this is for one that was not seen."""


# ------------------------------------------------------------------ what has happened
def taken(
    world: World, spec: TrainingRunSpec, status: TrainingRunStatus, stage: StageStatus, now: datetime
) -> tuple[TrainingRunStatus, StageStatus, tuple[Notice, ...]]:
    """The search as the trials' runs tell it. The stage is done once there is a winner."""
    assert spec.tuning is not None
    before = status.tuning or TuningStatus()
    rungs = ladder(spec.tuning.trials, spec.fine_tune.epochs, spec.tuning.scheduler)
    search = judge(rungs, _results(world.trials, spec))
    known = {entry.number: entry for entry in before.trials}
    trials = _told(known, world.trials, spec.tuning)
    notices = [
        notice for entry in trials for notice in _news(entry, known.get(entry.number), world.trials, rungs)
    ]
    tuning = TuningStatus(trials=trials, winner=search.winner)
    text = progress_text(tuning, spec.tuning)
    status = status.model_copy(update={"tuning": tuning, "progress": None, "progress_text": text})
    if not search.finished:
        return status, stage, tuple(notices)
    ended = {"finished_at": timestamp(now), "not_before": None}
    winner = next((entry for entry in trials if entry.number == search.winner), None)
    if winner is None:
        message = f"none of the {len(trials)} trials could be trained; {_first_failure(world.trials)}"
        notices.append(Notice("NoTrialSucceeded", f"tune: {message}", "Warning", STAGE))
        return (
            status,
            stage.model_copy(update=ended | {"state": "Failed", "message": message}),
            tuple(notices),
        )
    message = (
        f"trial {winner.number} of {len(trials)} won with {settings_text(winner.settings)}: "
        f"validation loss {_loss(winner.objective)}"
    )
    notices.append(Notice("StageDone", f"tune: {message}", about=STAGE))
    return status, stage.model_copy(update=ended | {"state": "Done", "message": message}), tuple(notices)


def tuned(spec: TrainingRunSpec, status: TrainingRunStatus) -> TrainingRunSpec:
    """The spec that the stages after the search work by: the winner's settings, and no search."""
    winner = winner_of(status)
    if spec.tuning is None or winner is None:
        return spec
    fine_tune = with_settings(spec.fine_tune, winner.settings)
    return spec.model_copy(update={"fine_tune": fine_tune, "tuning": None})


def winner_of(status: TrainingRunStatus) -> TrialStatus | None:
    tuning = status.tuning or TuningStatus()
    return next((entry for entry in tuning.trials if entry.number == tuning.winner), None)


def progress_text(tuning: TuningStatus, wanted: Tuning) -> str:
    """`trial 5 of 9, best 0.2310`: how many have a result, and the lowest loss so far."""
    settled = sum(entry.state != "Running" or entry.rung > 0 for entry in tuning.trials)
    losses = [entry.objective for entry in tuning.trials if entry.objective is not None]
    best = f", best {_loss(min(losses))}" if losses else ""
    return f"trial {settled} of {wanted.trials}{best}"


# ------------------------------------------------------------------ what is to be done
def search(s: Situation) -> Answer | None:
    """Make the runs that should be at work; the furthest rung first."""
    if s.stage.name != STAGE:
        return None
    tuning = s.spec.tuning
    assert tuning is not None
    rungs = ladder(tuning.trials, s.spec.fine_tune.epochs, tuning.scheduler)
    state = judge(rungs, _results(s.world.trials, s.spec))
    seen = {(one.number, one.rung): one for one in s.world.trials}
    chosen = _at_work(state, seen, tuning.parallelism)
    status = s.status.tuning or TuningStatus()
    entries = {entry.number: entry for entry in status.trials}
    fresh = suggestions(tuning)
    actions: list[Action] = []
    notices: list[Notice] = []
    for number, at in chosen:
        entry = entries.get(number)
        settings = entry.settings if entry else fresh[number - 1]
        run = seen.get((number, at))
        if run is not None:
            actions += _revised(s, run, suspend=False)
            continue
        wanted = Wanted(
            namespace=s.world.namespace,
            parent=s.world.name,
            parent_uid=s.world.uid,
            spec=s.spec,
            number=number,
            rung=at,
            epochs=rungs[at].epochs,
            settings=settings,
            budget_hours=_left_hours(s),
        )
        actions.append(Apply(child(wanted)))
        notices.append(_started(entry, number, rungs, at, settings))
        entries[number] = TrialStatus(
            number=number,
            settings=settings,
            rung=at,
            epochs=rungs[at].epochs,
            objective=entry.objective if entry else None,
            run=wanted.name,
            folder=wanted.folder,
        )
    now = status.model_copy(update={"trials": [entries[number] for number in sorted(entries)]})
    update = {"state": "Running", "attempt": max(1, s.stage.attempt), "message": "", "not_before": None}
    return Answer(
        _standing(now, tuning, [seen[one] for one in chosen if one in seen]),
        stage=s.stage.model_copy(update=update | {"started_at": s.stage.started_at or timestamp(s.now)}),
        actions=tuple(actions),
        again_in_seconds=AGAIN_SECONDS,
        started=True,
        notices=tuple(notices),
        update={"tuning": now, "progress_text": progress_text(now, tuning)},
    )


def paused(s: Situation) -> tuple[Action, ...]:
    """Every trial at work is told to write a checkpoint and give its GPUs back."""
    if s.stage.name != STAGE:
        return ()
    at_work = [one for one in s.world.trials if one.ended is None]
    return tuple(action for one in at_work for action in _revised(s, one, suspend=True))


def _at_work(
    state: Search, seen: dict[tuple[int, int], TrialSeen], parallelism: int
) -> list[tuple[int, int]]:
    """Those that run already keep their places; an ended run that is not judged yet holds none."""
    begun = [one for one in state.due if one in seen and seen[one].ended is None]
    fresh = [one for one in state.due if one not in begun]
    return [*begun, *fresh[: max(0, parallelism - len(begun))]]


def _revised(s: Situation, run: TrialSeen, *, suspend: bool) -> list[Action]:
    """Granted is what the whole search has left, and what this run has used itself."""
    if run.deleting:
        return []
    hours = _left_hours(s, run.gpu_seconds)
    parent = s.world.namespace, s.world.name, s.world.uid
    obj = revised(run, parent, s.spec.compute, hours, suspend=suspend)
    return [] if obj is None else [Apply(obj)]


def _left_hours(s: Situation, used_seconds: float = 0.0) -> float:
    left = max(0.0, spending.budget_seconds(s.spec) - s.spent_seconds)
    return round((left + used_seconds) / spending.SECONDS_PER_HOUR, 4)


# ------------------------------------------------------------------ words
def _results(trials: Iterable[TrialSeen], spec: TrainingRunSpec) -> dict[tuple[int, int], float | None]:
    """A run that says it is done and names no loss is a failed one: it cannot be compared. One that failed with another
    `compute` than the run has by now is tried again."""
    return {
        (one.number, one.rung): one.objective if one.ended else None
        for one in trials
        if one.ended or (one.ended is False and not differs(one, spec.compute))
    }


def _told(before: Mapping[int, TrialStatus], runs: Iterable[TrialSeen], tuning: Tuning) -> list[TrialStatus]:
    """Every trial as its furthest run tells it; one that is committed and has no run yet as it was committed."""
    entries = dict(before)
    for run in sorted(runs, key=lambda one: (one.number, one.rung)):
        entry, trial = entries.get(run.number), run.spec.trial
        assert trial is not None
        if entry is not None and entry.rung > run.rung:
            continue
        earlier = entry.objective if entry else None
        failed = run.ended is False or (run.ended is True and run.objective is None)
        entries[run.number] = TrialStatus(
            number=run.number,
            settings=settings_of(run.spec.fine_tune, tuning.space),
            rung=run.rung,
            epochs=trial.epochs,
            state="Failed" if failed else "Done" if run.ended else "Running",
            objective=run.objective if run.ended and not failed else earlier,
            run=run.name,
            folder=trial.folder,
        )
    return [entries[number] for number in sorted(entries)]


def _news(
    entry: TrialStatus, before: TrialStatus | None, trials: Iterable[TrialSeen], rungs: Sequence[Rung]
) -> Iterable[Notice]:
    if before is not None and (entry.state, entry.rung) == (before.state, before.rung):
        return
    about = f"trial-{entry.number}-{entry.rung}"
    if entry.state == "Done":
        text = (
            f"trial {entry.number}: validation loss {_loss(entry.objective)} after {_span(rungs, entry.rung)}"
        )
        yield Notice("TrialDone", text, about=about)
    elif entry.state == "Failed":
        why = next((one.message for one in trials if one.name == entry.run), "its run is gone")
        yield Notice("TrialFailed", f"trial {entry.number}: {why}", "Warning", about)


def _started(
    entry: TrialStatus | None, number: int, rungs: Sequence[Rung], at: int, settings: Settings
) -> Notice:
    about = f"trial-{number}-{at}"
    if entry is None or at == 0:
        text = f"trial {number} starts with {settings_text(settings)}, {_span(rungs, at)}"
        return Notice("TrialStarted", text, about=about)
    text = f"trial {number} goes on to {_span(rungs, at)}: validation loss {_loss(entry.objective)}"
    return Notice("TrialPromoted", text, about=about)


def _standing(now: TuningStatus, tuning: Tuning, running: list[TrialSeen]) -> Standing:
    stuck = next((one for one in running if one.stalled), None)
    if stuck is not None:
        text = f"trial {stuck.number} waits ({stuck.name}): {stuck.message}"
        return Standing(stuck.reason or "TrialStalled", text, stalled=True)
    working = ", ".join(str(entry.number) for entry in now.trials if entry.state == "Running")
    return Standing("Searching", f"{progress_text(now, tuning)}; at work: {working or 'none'}")


def _first_failure(trials: Iterable[TrialSeen]) -> str:
    failed = min((one for one in trials if one.ended is False), key=lambda one: one.number, default=None)
    return f"{failed.name}: {failed.message}" if failed else "no run says why"


def _span(rungs: Sequence[Rung], at: int) -> str:
    return f"{rungs[at].epochs:g} of {rungs[-1].epochs:g} epochs"


def _loss(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4f}"
