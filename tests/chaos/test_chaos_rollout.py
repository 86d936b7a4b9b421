"""A rollout whose operator is killed, or loses a write, at every single write of its story: the same end every time."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest

from cutover.contract import ROUTE_KEY
from cutover_operator.port import CONFIG_MAPS, DEPLOYMENTS, MODEL_ROLLOUTS, SERVICES, KubeError
from fakes.kube import Change
from fakes.kube_faults import Crash, Fault, FaultyKube
from fakes.rollout_town import GATEWAY, NAMESPACE, Behaviour, Town

STEPS = [
    {"shadow": 100, "minDuration": "20s", "minRequests": 20},
    {"weight": 50, "minDuration": "20s", "minRequests": 20},
    {"weight": 100, "minDuration": "20s", "minRequests": 20},
]
SPEC: dict[str, Any] = {
    "steps": STEPS,
    "analysis": {"interval": "10s", "labels": {"perHour": 100000, "deadline": "10s"}},
}


@dataclass
class Told:
    """How a story ended, and how it got there."""

    end: dict[str, Any]
    writes: list[str]


class Chronicle:
    """Watches every change and refuses histories that must not happen."""

    def __init__(self, town: Town) -> None:
        self.routes: dict[int, str] = {}
        self.generation = 0
        self.revision = 0
        self.steps: list[tuple[int, int]] = []
        self.town = town
        town.kube.watch(self.saw)

    def saw(self, change: Change) -> None:
        obj = change.obj
        if change.resource == CONFIG_MAPS and obj["metadata"]["name"] == f"{GATEWAY}-route":
            route = json.loads(obj["data"][ROUTE_KEY])
            generation = route.pop("generation")
            text = json.dumps(route, sort_keys=True)
            committed = self.town.kube.peek(MODEL_ROLLOUTS, NAMESPACE, "cut").get("status", {})
            assert route["weightBasisPoints"] <= 100 * committed.get("weight", 0), "the route ran ahead"
            assert generation >= self.generation, "the route's generation went back"
            assert self.routes.setdefault(generation, text) == text, f"two routes of generation {generation}"
            self.generation = generation
        if change.resource == CONFIG_MAPS and obj["metadata"]["name"] == "cut-evidence":
            revision = json.loads(obj["data"]["ledger.json"])["revision"]
            assert revision >= self.revision, "the ledger went back"
            self.revision = revision
        if change.resource == MODEL_ROLLOUTS and obj.get("status", {}).get("steps"):
            status = obj["status"]
            at = (len(status["steps"]), status["step"])
            if not self.steps or self.steps[-1] != at:
                assert at[0] == (self.steps[-1][0] + 1 if self.steps else 1), (
                    "a step was taken twice or skipped"
                )
                self.steps.append(at)


async def tell(behaviour: Behaviour, faults: tuple[Fault, ...] = ()) -> Told:
    town = Town(candidate=behaviour, requests_per_second=40.0)
    await town.prepare()
    await town.submit(**SPEC)
    chronicle = Chronicle(town)
    faulty = FaultyKube(town.kube, faults)
    town.restart_operator(faulty)
    for _ in range(80):
        await town.tick()
        try:
            await town.run_pass()
        except Crash:
            town.restart_operator(faulty)
            continue
        except KubeError:
            continue
        status = await town.status()
        route = await town.route()
        calm = route is not None and route.generation == status.get("routeGeneration") and report_of(town)
        if "finish" in status and calm and (status["finish"] == "Promoted" or not town.kube.all(DEPLOYMENTS)):
            break
    else:
        raise AssertionError(f"no end: {(await town.status()).get('message')}")
    return Told(await ending(town, chronicle), list(faulty.writes))


def report_of(town: Town) -> str:
    """Which end the written report is about; empty while there is none."""
    for obj in town.kube.all(CONFIG_MAPS, NAMESPACE):
        if obj["metadata"]["name"] == "cut-report":
            return str(obj["metadata"]["annotations"]["cutover.dev/report-of"]).split()[0]
    return ""


async def ending(town: Town, chronicle: Chronicle) -> dict[str, Any]:
    status, route = await town.status(), await town.route()
    assert route is not None
    return {
        "finish": status["finish"],
        "report": report_of(town),
        "reason": status["reason"],
        "weight": status["weight"],
        "steps": [(s["index"], s["name"], s["outcome"]) for s in status["steps"]],
        "path": chronicle.steps,
        "candidate": route.candidate.version if route.candidate else None,
        "weights": (route.weight_basis_points, route.shadow_basis_points, route.promoted, route.control.name),
        "children": sorted(
            o["metadata"]["name"] for kind in (DEPLOYMENTS, SERVICES) for o in town.kube.all(kind, NAMESPACE)
        ),
    }


@pytest.mark.parametrize(
    ("behaviour", "finish"),
    [(Behaviour(accuracy=0.98), "Promoted"), (Behaviour(accuracy=0.70), "RolledBack")],
    ids=["good", "bad"],
)
async def test_killed_at_every_write_the_story_ends_the_same(behaviour: Behaviour, finish: str) -> None:
    calm = await tell(behaviour)
    assert calm.end["finish"] == finish
    # Events are best effort and decide nothing; every other write is hit before and after it happened.
    places = [n for n, write in enumerate(calm.writes, start=1) if " Event/" not in write]
    assert len(places) >= 10
    for place in places:
        for kind in ("before", "after"):
            told = await tell(behaviour, (Fault(place, kind),))
            assert told.end == calm.end, f"{kind} write {place}: {calm.writes[place - 1]}"


@pytest.mark.parametrize("kind", ["conflict", "unavailable", "lost answer"])
async def test_a_failed_write_anywhere_changes_nothing_in_the_end(kind: Any) -> None:
    behaviour = Behaviour(accuracy=0.98)
    calm = await tell(behaviour)
    places = [n for n, write in enumerate(calm.writes, start=1) if " Event/" not in write]
    for place in places[::2]:
        told = await tell(behaviour, (Fault(place, kind),))
        assert told.end == calm.end, f"{kind} at write {place}: {calm.writes[place - 1]}"


async def test_an_operator_that_dies_at_every_third_write_still_arrives() -> None:
    behaviour = Behaviour(accuracy=0.98)
    calm = await tell(behaviour)
    faults = tuple(Fault(n, "after" if n % 2 else "before") for n in range(3, 200, 3))
    told = await tell(behaviour, faults)
    assert told.end == calm.end
