"""A rung of a trial as an object: a TrainingRun that only trains, owned by the run that searches. Pure.

Its name holds a digest of whose it is, which trial, which rung and which settings: whoever builds it gets the same name.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

from pydantic import ValidationError

from cutover.api.trainingrun import Compute, Evaluation, Registry, TrainingRun, TrainingRunSpec
from cutover.api.tuning import Trial
from cutover.contract import (
    LABEL_COMPONENT,
    LABEL_MANAGED_BY,
    LABEL_OWNER_KIND,
    LABEL_OWNER_NAME,
    LABEL_OWNER_UID,
    MANAGED_BY,
)
from cutover_operator.conditions import find
from cutover_operator.port import TRAINING_RUNS, Object
from cutover_operator.training.resources import owner_reference, run_folder
from cutover_operator.training.spending import spent_seconds
from cutover_operator.training.suggest import Settings, with_settings

NAME_LIMIT = 52
"""The API server's own for a TrainingRun."""
COMPONENT = "trial"
LEAST_HOURS = 0.0001
"""The API has no budget of nothing."""


@dataclass(frozen=True, slots=True)
class TrialSeen:
    """A child run as the decision sees it."""

    name: str
    uid: str
    number: int
    rung: int
    spec: TrainingRunSpec
    gpu_seconds: float = 0.0
    ended: bool | None = None
    """True: trained to its rung. False: failed for good."""
    objective: float | None = None
    reason: str = ""
    message: str = ""
    stalled: bool = False
    over_budget: bool = False
    deleting: bool = False


def trial_seen(obj: Object) -> TrialSeen | None:
    """None for what is no trial, or cannot be read: it will be made anew under its name."""
    try:
        run = TrainingRun.from_object(obj)
    except (ValidationError, KeyError):
        return None
    if run.spec.trial is None:
        return None
    conditions = run.status.conditions
    succeeded, stalled = find(conditions, "Succeeded"), find(conditions, "Stalled")
    over_budget = find(conditions, "BudgetExceeded")
    return TrialSeen(
        name=obj["metadata"]["name"],
        uid=obj["metadata"]["uid"],
        number=run.spec.trial.number,
        rung=run.spec.trial.rung,
        spec=run.spec,
        gpu_seconds=spent_seconds(run.status.pods),
        # An edit it has not seen yet may bring it back to work.
        ended={"True": True, "False": False}.get(succeeded.status)
        if succeeded and run.status.observed_generation >= obj["metadata"].get("generation", 0)
        else None,
        objective=run.status.objective,
        reason=run.status.reason,
        message=stalled.message if stalled else "",
        stalled=stalled is not None and stalled.status == "True",
        over_budget=over_budget is not None and over_budget.status == "True",
        deleting="deletionTimestamp" in obj["metadata"],
    )


@dataclass(frozen=True, slots=True)
class Wanted:
    """A rung of a trial as it is to be."""

    namespace: str
    parent: str
    parent_uid: str
    spec: TrainingRunSpec
    """Of the run that searches."""
    number: int
    rung: int
    epochs: float
    settings: Settings
    budget_hours: float
    """GPU-hours granted."""

    @property
    def name(self) -> str:
        tail = f"-{self.folder}"
        return self.parent[: NAME_LIMIT - len(tail)].rstrip("-") + tail

    @property
    def folder(self) -> str:
        return _folder(self.parent_uid, self.number, self.rung, self.settings)


def child_spec(wanted: Wanted) -> TrainingRunSpec:
    """The parent's spec with the trial's settings, and nothing of what follows the training."""
    spec = wanted.spec
    before = _folder(wanted.parent_uid, wanted.number, wanted.rung - 1, wanted.settings)
    trial = Trial(
        number=wanted.number,
        rung=wanted.rung,
        epochs=wanted.epochs,
        data=run_folder(wanted.namespace, wanted.parent, wanted.parent_uid),
        folder=wanted.folder,
        resume_from=before if wanted.rung else None,
    )
    return spec.model_copy(
        update={
            "fine_tune": with_settings(spec.fine_tune, wanted.settings),
            "tuning": None,
            "trial": trial,
            "compute": _granted(spec.compute, wanted.budget_hours),
            "evaluation": Evaluation(),
            "registry": Registry(),
        }
    )


def child(wanted: Wanted) -> Object:
    return _object(wanted.namespace, wanted.name, (wanted.parent, wanted.parent_uid), child_spec(wanted))


def revised(
    seen: TrialSeen,
    parent: tuple[str, str, str],
    compute: Compute,
    budget_hours: float,
    *,
    suspend: bool,
) -> Object | None:
    """The run with what may change while it is at work; None when nothing has to. `parent`: namespace, name, uid.

    More time is granted only when it comes to work again or has used up what it had: what is left of the budget
    changes with every second that another trial takes, and is no reason to write.
    """
    granted = seen.spec.compute.gpu_hour_budget
    wakes = seen.spec.suspend and not suspend
    hours = budget_hours if wakes or (seen.over_budget and budget_hours > granted) else granted
    spec = seen.spec.model_copy(update={"suspend": suspend, "compute": _granted(compute, hours)})
    if spec == seen.spec:
        return None
    namespace, name, uid = parent
    return _object(namespace, seen.name, (name, uid), spec)


def differs(seen: TrialSeen, compute: Compute) -> bool:
    """Whether its run was made from another `compute`; the GPU-hours it was granted are its own."""
    return _granted(compute, seen.spec.compute.gpu_hour_budget) != seen.spec.compute


def _granted(compute: Compute, hours: float) -> Compute:
    return compute.model_copy(update={"gpu_hour_budget": max(hours, LEAST_HOURS)})


def _object(namespace: str, name: str, parent: tuple[str, str], spec: TrainingRunSpec) -> Object:
    return {
        "apiVersion": TRAINING_RUNS.api_version,
        "kind": TRAINING_RUNS.kind,
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": {
                LABEL_MANAGED_BY: MANAGED_BY,
                LABEL_COMPONENT: COMPONENT,
                LABEL_OWNER_KIND: TRAINING_RUNS.kind,
                LABEL_OWNER_NAME: parent[0],
                LABEL_OWNER_UID: parent[1],
            },
            "ownerReferences": [owner_reference(*parent)],
        },
        "spec": spec.to_wire(),
    }


def _folder(uid: str, number: int, rung: int, settings: Settings) -> str:
    return f"t{number:02d}-r{rung}-{_digest_of(uid, number, rung, settings)}"


def _digest_of(uid: str, number: int, rung: int, settings: Settings) -> str:
    return hashlib.sha256(json.dumps([uid, number, rung, settings], sort_keys=True).encode()).hexdigest()[:8]
