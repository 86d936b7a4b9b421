"""A search whose operator is killed, or loses a write, anywhere in its story: the same winner every time.

A small search (three trials, two rungs) is hit at one write after another; the nine of `make soak-search` at many of them at once.
The trials' own Jobs are interrupted as well. Invariants hold at each change any watch could see.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from cutover.contract import LABEL_OWNER_NAME, LABEL_STAGE
from cutover.stages import StageConfig
from cutover_operator.port import JOBS, PODS, TRAINING_RUNS
from fakes.kube import Change
from fakes.kube_faults import Fault, FaultyKube
from fakes.search_town import SearchTown, searching
from fakes.training_town import INTERRUPTED, RUN, Ending

SMALL = searching(trials=3) | {"fineTune": {"epochs": 3}}
STEP_SECONDS = 15.0


@dataclass
class Chronicle:
    """Sees every change and refuses histories that must not happen."""

    town: SearchTown
    parallelism: int
    made: list[str] = field(default_factory=list)
    evaluated: int = 0

    def __post_init__(self) -> None:
        self.town.kube.watch(self.saw)

    def saw(self, change: Change) -> None:
        if change.type == "ADDED" and change.resource == TRAINING_RUNS and self._name(change) != RUN:
            self.made.append(self._name(change))
            assert self.made.count(self._name(change)) == 1, "a trial was begun twice"
        if change.type == "ADDED" and change.resource == JOBS:
            labels = change.obj["metadata"]["labels"]
            if labels[LABEL_STAGE] == "evaluate":
                assert labels[LABEL_OWNER_NAME] == RUN, "a trial reached for the test part"
                self.evaluated += 1
        alive = [p for p in self.town.kube.each(PODS) if p.get("status", {}).get("phase") == "Running"]
        assert len(alive) <= self.parallelism, "more trials at a time than asked for"
        by_run = [pod["metadata"]["labels"][LABEL_OWNER_NAME] for pod in alive]
        assert len(by_run) == len(set(by_run)), "two pods of one trial"

    @staticmethod
    def _name(change: Change) -> str:
        return str(change.obj["metadata"]["name"])


@dataclass
class Told:
    end: dict[str, Any]
    writes: list[str]
    epochs: float


def interrupted(config: StageConfig) -> Ending | None:
    """The first attempt of every promoted trial is taken away."""
    trial = config.spec.trial
    first = trial is not None and trial.rung and config.attempt == 1
    return Ending(30.0, INTERRUPTED.code, INTERRUPTED.message) if first else None


async def tell(spec: dict[str, Any], *faults: Fault) -> Told:
    town = SearchTown(spec=spec, disturb=interrupted)
    await town.open()
    chronicle = Chronicle(town, spec["tuning"].get("parallelism", 1))
    faulty = FaultyKube(town.kube, faults)
    await town.survive(faulty, lambda: town.over, step=STEP_SECONDS)
    for _ in range(3):
        await town.step(700)
    status = town.status
    end = {
        "made": sorted(chronicle.made),
        "evaluated": chronicle.evaluated,
        "tuning": status["tuning"],
        "conditions": [(c["type"], c["status"], c["reason"]) for c in status["conditions"]],
        "stages": [(s["name"], s["state"], s["attempt"], s["job"]) for s in status["stages"]],
        "model": status["model"],
    }
    return Told(end, faulty.writes, town.epochs_trained)


@pytest.fixture(scope="module")
def calm() -> Told:
    return asyncio.run(tell(SMALL))


async def test_undisturbed(calm: Told) -> None:
    assert calm.end["tuning"]["winner"] == 3
    assert len(calm.end["made"]) == 4
    assert calm.end["evaluated"] == 1
    assert calm.epochs == pytest.approx(5.0, abs=0.01)


@pytest.mark.parametrize(
    ("kind", "every"),
    [("before", 4), ("after", 2), ("conflict", 8), ("unavailable", 8), ("lost answer", 8)],
)
async def test_wherever_it_happens_the_same_trial_wins(
    calm: Told, kind: Literal["before", "after", "conflict", "unavailable", "lost answer"], every: int
) -> None:
    # Events are best effort and decide nothing; every other write is a place to hit.
    places = [n for n, write in enumerate(calm.writes, start=1) if " Event/" not in write]
    assert len(places) > 40
    for place in places[::every]:
        told = await tell(SMALL, Fault(place, kind))
        assert told.end == calm.end, f"{kind} write {place}: {calm.writes[place - 1]}"
        assert told.epochs == pytest.approx(calm.epochs, abs=0.01)


async def test_nine_trials_with_an_operator_that_keeps_dying() -> None:
    """Three at a time, so that results come in another order; the winner and the cost stay."""
    spec = searching(parallelism=3)
    undisturbed = await tell(spec)
    assert undisturbed.epochs <= 2.5 * 9
    chance = random.Random(1)
    kinds: list[Literal["before", "after", "conflict"]] = ["before", "after", "conflict"]
    faults = [Fault(n, chance.choice(kinds)) for n in range(3, 600) if chance.random() < 0.2]
    told = await tell(spec, *faults)
    assert told.end == undisturbed.end
    assert told.epochs == pytest.approx(undisturbed.epochs, abs=0.01)
