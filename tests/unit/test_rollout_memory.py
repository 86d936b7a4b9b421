"""Looks at which nothing happens cost no read; whatever happens is found as if every look were a whole one."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest

from cutover.api.base import Condition
from cutover.api.modelrollout import GateStatus, ModelRolloutStatus
from cutover_operator.loop import Loop
from cutover_operator.plan import Key, Plan
from cutover_operator.port import MODEL_ROLLOUTS, Object, Resource
from cutover_operator.rollout.decide import decide
from cutover_operator.rollout.gather import Watchtower
from cutover_operator.rollout.memory import LOOK_SECONDS, Memory
from cutover_operator.rollout.news import is_news
from cutover_operator.rollout.world import Unreadable, World
from fakes.rollout_town import NAMESPACE, SITE, Behaviour, Town, finished, run_until, started

KEY = Key(MODEL_ROLLOUTS, NAMESPACE, "cut")
LIVE = [{"weight": 10, "minDuration": "1d"}, {"weight": 100, "minDuration": "1d"}]


class Counting:
    """A cluster that counts what is read from it and written to it."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.reads = 0
        self.writes = 0

    async def get(self, resource: Resource, namespace: str, name: str) -> Object | None:
        self.reads += 1
        found: Object | None = await self._inner.get(resource, namespace, name)
        return found

    async def list(self, resource: Resource, namespace: str | None, label_selector: str = "") -> list[Object]:
        self.reads += 1
        found: list[Object] = await self._inner.list(resource, namespace, label_selector)
        return found

    def __getattr__(self, name: str) -> Any:
        self.writes += 1
        return getattr(self._inner, name)


class Reconciler:
    resource = MODEL_ROLLOUTS

    def __init__(self, tower: Watchtower) -> None:
        self.tower = tower

    async def gather(self, key: Key, now: datetime) -> World | Unreadable | None:
        return await self.tower.look(key.namespace, key.name, now)

    def decide(self, world: World | Unreadable, now: datetime) -> Plan:
        return decide(world, now)


def remembering(town: Town) -> tuple[Counting, Memory]:
    """Give the town an operator with a memory, as the process has it."""
    kube = Counting(town.kube)
    tower = Watchtower(kube, town, town, SITE, lambda: town.now)
    memory = Memory(tower, lambda: town.now)
    town.loop = Loop(kube, [Reconciler(tower)], lambda: town.clock, memories={MODEL_ROLLOUTS: memory})
    return kube, memory


async def live(town: Town) -> None:
    await run_until(town, lambda status: bool(status.get("stepConfirmedAt")))
    for _ in range(30):
        await town.tick()
        await town.run_pass()


async def ticks(town: Town, count: int) -> None:
    for _ in range(count):
        await town.tick()
        await town.run_pass()


async def test_a_quiet_step_is_watched_without_reading_or_writing() -> None:
    town = await started(spec={"steps": LIVE})
    kube, _ = remembering(town)
    await live(town)
    await ticks(town, int(LOOK_SECONDS / town.tick_seconds))
    kube.reads = kube.writes = 0
    hour = int(3600 / town.tick_seconds)
    before = await town.status()
    await ticks(town, hour)
    # A checkpoint of two writes in five minutes, and whole looks when the memory is older than that.
    assert kube.reads <= 9 * 3600 / LOOK_SECONDS
    assert kube.writes <= 2 * 13
    after = await town.status()
    assert after["ledger"]["revision"] - before["ledger"]["revision"] <= 13
    assert after["gates"][0]["samples"] > before["gates"][0]["samples"], (
        "the figures go out with the checkpoint"
    )


async def test_a_look_at_which_nothing_is_written_leaves_the_remembered_world_as_it_is() -> None:
    town = await started(spec={"steps": LIVE})
    kube, memory = remembering(town)
    await live(town)
    seen = set()
    for _ in range(5):
        kube.writes = 0
        before = list(memory._worlds.values())
        await ticks(town, 1)
        same = [now is then for now, then in zip(memory._worlds.values(), before, strict=True)]
        seen.add((kube.writes == 0, tuple(same)))
    assert (True, (True,)) in seen
    assert (True, (False,)) not in seen


async def test_a_breach_is_found_at_the_first_look_that_can_see_it() -> None:
    town = await started(spec={"steps": LIVE})
    remembering(town)
    await live(town)
    await ticks(town, 5)
    town.candidate = Behaviour(errors=0.9)
    town.requests_per_second = 100.0
    await ticks(town, 1)
    status = await town.status()
    assert (status["phase"], status["weight"]) == ("RolledBack", 0)
    route = await town.route()
    assert route is not None
    assert route.weight_basis_points == 0


async def test_the_route_follows_what_the_evidence_asks_for_without_a_whole_look() -> None:
    """How many answers are labelled depends on the traffic, of which no watch tells."""
    town = await started(spec={"steps": LIVE})
    remembering(town)
    await live(town)
    before = await town.route()
    assert before is not None
    town.requests_per_second *= 20
    for _ in range(int(LOOK_SECONDS / 4 / town.tick_seconds)):
        await ticks(town, 1)
        route = await town.route()
        assert route is not None
        if route.labels.probability != before.labels.probability:
            break
    assert route.labels.probability["all"] < before.labels.probability["all"]
    assert (await town.status())["routeGeneration"] == route.generation == before.generation + 1


async def test_what_a_watch_reports_is_looked_at_at_once() -> None:
    town = await started(spec={"steps": LIVE})
    kube, memory = remembering(town)
    await live(town)
    await ticks(town, 2)
    kube.reads = 0
    await ticks(town, 1)
    assert kube.reads == 0
    town.edit(hold=True)
    await ticks(town, 1)
    assert (await town.status())["phase"] != "Holding", "nobody told"
    memory.changed(KEY)
    await ticks(town, 1)
    assert (await town.status())["phase"] == "Holding"


async def test_what_no_watch_reports_is_seen_within_ten_minutes() -> None:
    town = await started(spec={"steps": LIVE})
    remembering(town)
    await live(town)
    town.edit(freeze=True)
    await ticks(town, int(LOOK_SECONDS / town.tick_seconds) + 1)
    assert (await town.status())["phase"] == "Frozen"


async def test_a_gateway_pod_that_went_away_is_looked_for() -> None:
    town = await started(spec={"steps": LIVE})
    kube, _ = remembering(town)
    await live(town)
    await ticks(town, 1)
    kube.reads = 0
    town.names.pop("gw-1")
    for key in [key for key in town.counters if dict(key[1])["instance"] == "gw-1"]:
        del town.counters[key]
    await ticks(town, 13)
    assert kube.reads > 0
    assert [pod["pod"] for pod in (await town.status())["gateways"]] == ["gw-0"]


async def test_a_gateway_pod_that_falls_back_to_an_old_route_is_seen_by_its_metric() -> None:
    town = await started(spec={"steps": LIVE})
    remembering(town)
    await live(town)
    await ticks(town, 1)
    town.pods_stuck = True
    route = town.in_force["gw-1"]
    town.in_force["gw-1"] = route.model_copy(update={"generation": route.generation - 1})
    await ticks(town, 2)
    (in_sync,) = [c for c in (await town.status())["conditions"] if c["type"] == "RouteInSync"]
    assert in_sync["status"] == "False"
    assert "gw-1" in in_sync["message"]


async def test_a_checkpoint_that_somebody_else_wrote_ends_in_a_whole_look() -> None:
    """The routine checkpoint is written from memory; compare-and-swap finds out when that is out of date."""
    town = await started(spec={"steps": LIVE})
    kube, _ = remembering(town)
    await live(town)
    await ticks(town, 2)
    town.kube.edit(
        MODEL_ROLLOUTS, NAMESPACE, "cut", lambda obj: obj["metadata"].setdefault("labels", {"by": "us"})
    )
    revision = (await town.status())["ledger"]["revision"]
    kube.reads = 0
    await ticks(town, 65)
    assert kube.reads > 0
    assert (await town.status())["ledger"]["revision"] > revision


async def test_metrics_that_go_away_and_come_back_are_said_although_nothing_else_is_read() -> None:
    town = await started(spec={"steps": LIVE})
    remembering(town)
    await live(town)
    town.prometheus_down = "connection refused"
    await ticks(town, 2)
    status = await town.status()
    assert (status["phase"], status["verdict"]) == ("Holding", "unavailable")
    town.prometheus_down = ""
    await ticks(town, 2)
    assert (await town.status())["phase"] == "Progressing"


@pytest.mark.parametrize("errors", [0.005, 0.3])
async def test_the_story_ends_as_without_a_memory(errors: float) -> None:
    ends = []
    for with_memory in (False, True):
        town = await started(seed=3, candidate=Behaviour(errors=errors))
        if with_memory:
            _, memory = remembering(town)
            await run_until(town, finished, each=lambda _, m=memory: m.changed(KEY))
        else:
            await run_until(town, finished)
        status = await town.status()
        ends.append(
            (status["finish"], status["weight"], [(s["index"], s["outcome"]) for s in status["steps"]])
        )
    assert ends[0] == ends[1]


async def test_a_change_during_a_look_is_not_forgotten() -> None:
    town = await started(spec={"steps": LIVE})
    kube, memory = remembering(town)
    await live(town)
    world = await Watchtower(kube, town, town, SITE, lambda: town.now).look(NAMESPACE, "cut", town.clock)
    assert world is not None
    seen = memory.changes(KEY)
    memory.changed(KEY)
    memory.keep(KEY, world, [], seen, True)
    assert await memory.recall(KEY, town.clock) is None
    memory.keep(KEY, world, [], memory.changes(KEY), True)
    recalled = await memory.recall(KEY, town.clock)
    assert recalled is not None
    assert isinstance(world, World)
    for name in ("parent", "spec", "status", "gateway", "route", "route_map", "deployment", "gateways"):
        assert getattr(recalled, name) == getattr(world, name), name


def status(**changes: Any) -> ModelRolloutStatus:
    condition = Condition(
        type="Ready",
        status="False",
        reason="WaitingForEvidence",
        message="3 of 50",
        observed_generation=1,
        last_transition_time="2026-11-22T08:00:00Z",
    )
    base = ModelRolloutStatus(
        phase="Progressing",
        weight=10,
        reason="WaitingForEvidence",
        message="latency: 3 of 50 answers; the rest in about 2 hours",
        gates=[GateStatus(name="latency", verdict="insufficient", samples=3, value=0.1)],
        conditions=[condition],
    )
    return base.model_copy(update=changes)


def test_figures_alone_are_no_news() -> None:
    later = status(
        message="latency: 9 of 50 answers; the rest in about 40 minutes",
        actual_weight="9.7%",
        accuracy_text="0.93 (n=12)",
        gates=[GateStatus(name="latency", verdict="insufficient", samples=9, value=0.2, message="9 of 50")],
    )
    assert not is_news(status(), later)


@pytest.mark.parametrize(
    "changes",
    [
        {"phase": "Holding"},
        {"weight": 25},
        {"reason": "WaitingForRequests"},
        {"route_generation": 7},
        {"gates": [GateStatus(name="latency", verdict="pass", samples=3, value=0.1)]},
        {"conditions": []},
        {"observed_generation": 2},
    ],
)
def test_everything_else_is(changes: dict[str, Any]) -> None:
    assert is_news(status(), status(**changes))


def test_another_sentence_is_news_unless_it_only_says_how_far_one_waits() -> None:
    held = status(reason="RouteNotInSync", message="gateway pod gw-0 serves route 3, not 4")
    assert not is_news(held, held.model_copy(update={"message": "gateway pod gw-0 serves route 4, not 5"}))
    assert is_news(held, held.model_copy(update={"message": "no pod of gateway assessor is ready"}))
