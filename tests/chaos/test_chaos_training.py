"""A TrainingRun whose operator is killed, or loses a write, at every single write of its story: the same end every time.

The story has everything: a crash of a stage, a spot interruption, a lost node, and four stages. Invariants hold at each
change any watch could see.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from cutover.contract import LABEL_ATTEMPT, LABEL_STAGE
from cutover_operator.port import JOBS, PODS, TRAINING_RUNS, Object
from fakes.kube import Change
from fakes.kube_faults import Fault, FaultyKube
from fakes.training_town import CRASHED, DONE, INTERRUPTED, LOST, NAMESPACE, RUN, Town

BEHAVE = {"prepare": [CRASHED, DONE], "train": [INTERRUPTED, CRASHED, LOST, DONE]}
EXPECTED_JOBS = [
    "prepare-1",
    "prepare-2",
    "train-1",
    "train-2",
    "train-3",
    "train-4",
    "evaluate-1",
    "register-1",
]


@dataclass
class Chronicle:
    """Sees every change and refuses histories that must not happen."""

    town: Town
    made: list[str] = field(default_factory=list)
    attempts: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.town.kube.watch(self.saw)

    def saw(self, change: Change) -> None:
        if change.resource == JOBS and change.type == "ADDED":
            labels = change.obj["metadata"]["labels"]
            self.made.append(f"{labels[LABEL_STAGE]}-{labels[LABEL_ATTEMPT]}")
        active = [job for job in self.town.kube.each(JOBS) if not job.get("status", {}).get("conditions")]
        assert len(active) <= 1, "two Jobs at work"
        alive = [
            p for p in self.town.kube.each(PODS) if p.get("status", {}).get("phase") in ("Pending", "Running")
        ]
        assert len(alive) <= 1, "two pods at work"
        if change.resource == TRAINING_RUNS and "status" in change.obj:
            self._saw_status(change.obj)

    def _saw_status(self, run: Object) -> None:
        status = run["status"]
        assert status["observedGeneration"] <= run["metadata"]["generation"]
        order = [stage["state"] == "Done" for stage in status["stages"]]
        assert order == sorted(order, reverse=True), "a stage was done before an earlier one"
        for stage in status["stages"]:
            before = self.attempts.get(stage["name"], 0)
            assert stage["attempt"] in (before, before + 1), "an attempt was skipped or taken back"
            self.attempts[stage["name"]] = stage["attempt"]


@dataclass
class Told:
    end: dict[str, Any]
    writes: list[str]


async def tell(*faults: Fault) -> Told:
    town = Town(behave=BEHAVE)
    await town.open()
    chronicle = Chronicle(town)
    faulty = FaultyKube(town.kube, faults)
    await town.survive(faulty, lambda: town.over)
    for _ in range(3):
        await town.step(700)
    status = town.status
    end = {
        "made": chronicle.made,
        "jobs": [job["metadata"]["name"] for job in town.kube.all(JOBS)],
        "conditions": [(c["type"], c["status"], c["reason"]) for c in status["conditions"]],
        "stages": [(s["name"], s["state"], s["attempt"], s["failures"], s["job"]) for s in status["stages"]],
        "model": status["model"],
        "columns": [
            status[name] for name in ("stage", "progressText", "accuracyText", "modelText", "reason")
        ],
        "gpuHours": status["gpuHours"],
    }
    return Told(end, faulty.writes)


@pytest.fixture(scope="module")
def calm() -> Told:
    return asyncio.run(tell())


async def test_undisturbed(calm: Told) -> None:
    assert calm.end["made"] == EXPECTED_JOBS
    assert calm.end["columns"] == ["done", "100%", "0.934", "building-damage/3", "Succeeded"]


@pytest.mark.parametrize("kind", ["before", "after", "conflict", "unavailable", "lost answer"])
async def test_at_every_write_the_story_ends_the_same(
    calm: Told, kind: Literal["before", "after", "conflict", "unavailable", "lost answer"]
) -> None:
    # Events are best effort and decide nothing; every other write is hit.
    places = [n for n, write in enumerate(calm.writes, start=1) if " Event/" not in write]
    assert len(places) > 30
    for place in places:
        told = await tell(Fault(place, kind))
        assert told.end == calm.end, f"{kind} write {place}: {calm.writes[place - 1]}"


async def test_killed_after_every_second_write_it_still_ends_the_same(calm: Told) -> None:
    told = await tell(*(Fault(n, "after") for n in range(2, 400, 2)))
    assert told.end == calm.end


async def test_an_old_leader_cannot_take_a_step() -> None:
    """What it read is old by the time it writes: compare-and-swap refuses, nothing else happens."""
    town = Town(behave={"prepare": [DONE]})
    await town.open()
    await town.step()
    old = FaultyKube(town.kube)
    stale = await old.get(TRAINING_RUNS, NAMESPACE, RUN)
    await town.until(lambda: "train-1" in town.jobs())
    assert stale is not None

    class Past(FaultyKube):
        async def get(self, resource: Any, namespace: str, name: str) -> Any:
            return stale if resource == TRAINING_RUNS else await super().get(resource, namespace, name)

    before = town.kube.version
    town.restart(Past(town.kube))
    await town.run_pass()
    assert town.kube.version == before
