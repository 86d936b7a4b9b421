"""The route: followed by watch or file, refused when it is none, kept when its source is gone."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route as Path_

from cutover import contract
from cutover.route import BASIS_POINTS
from cutover_server.gateway.route_board import RouteBoard, RouteRefused, read_route
from cutover_server.gateway.route_watch import ConfigMapWatch
from fakes.free_ports import free_port
from fakes.gateway_rig import Rig, running, until


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with aiohttp.ClientSession() as session:
        yield Rig(tmp_path, session)


@dataclass
class FakeConfigMaps:
    """The list and watch of one ConfigMap, as an API server answers them."""

    version: int = 10
    text: str | None = None
    status: int = 200
    expired: bool = False
    token: str = "first"
    lists: int = 0
    denied: int = 0
    watches: list[dict[str, str]] = field(default_factory=list)
    queues: list[asyncio.Queue[dict[str, Any] | None]] = field(default_factory=list)

    def app(self) -> Starlette:
        return Starlette(routes=[Path_("/api/v1/namespaces/ns/configmaps", self._handle)])

    def item(self) -> dict[str, Any]:
        return {
            "metadata": {"name": "main-route", "resourceVersion": str(self.version)},
            "data": {contract.ROUTE_KEY: self.text},
        }

    def send(self, kind: str, text: str | None = None) -> None:
        self.version += 1
        self.text = text if kind != "DELETED" else None
        for queue in self.queues:
            queue.put_nowait({"type": kind, "object": self.item()})

    def bookmark(self) -> None:
        self.version += 1
        told = {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": str(self.version)}}}
        for queue in self.queues:
            queue.put_nowait(told)

    def end_watches(self) -> None:
        for queue in self.queues:
            queue.put_nowait(None)

    async def _handle(self, request: Request) -> Response:
        if request.headers["authorization"] != f"Bearer {self.token}":
            self.denied += 1
            return JSONResponse({"code": 401}, 401)
        if self.status != 200:
            return JSONResponse({"code": self.status}, self.status)
        assert request.query_params["fieldSelector"] == "metadata.name=main-route"
        if request.query_params.get("watch") != "1":
            self.lists += 1
            items = [self.item()] if self.text is not None else []
            return JSONResponse({"metadata": {"resourceVersion": str(self.version)}, "items": items})
        self.watches.append(dict(request.query_params))
        return StreamingResponse(self._events(), media_type="application/json")

    async def _events(self) -> AsyncIterator[bytes]:
        if self.expired:
            self.expired = False
            yield json.dumps({"type": "ERROR", "object": {"code": 410}}).encode() + b"\n"
            return
        queue: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        self.queues.append(queue)
        try:
            while (event := await queue.get()) is not None:
                line = json.dumps(event).encode() + b"\n"
                yield line[:7]
                yield line[7:]
        finally:
            self.queues.remove(queue)


@dataclass
class Watching:
    api: FakeConfigMaps
    watch: ConfigMapWatch
    taken: list[str | None]
    account: Path


@asynccontextmanager
async def watching(tmp_path: Path, api: FakeConfigMaps) -> AsyncIterator[Watching]:
    (tmp_path / "token").write_text("first")
    taken: list[str | None] = []

    async def take(text: str | None) -> bool:
        taken.append(text)
        return True

    port = free_port()
    async with aiohttp.ClientSession() as session, running(api.app(), port):
        watch = ConfigMapWatch(
            session, f"http://127.0.0.1:{port}", tmp_path, "ns", "main-route", take, lambda: 0.5
        )
        task = asyncio.create_task(watch.run())
        try:
            yield Watching(api, watch, taken, tmp_path)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def test_the_watch_lists_and_then_follows(tmp_path: Path) -> None:
    async with watching(tmp_path, FakeConfigMaps(text="one")) as it:
        await until(lambda: it.taken == ["one"] and it.api.queues)
        it.api.send("MODIFIED", "two")
        it.api.send("DELETED")
        it.api.send("ADDED", "three")
        await until(lambda: it.taken == ["one", "two", None, "three"])
        it.api.bookmark()
        version = str(it.api.version)
        it.api.end_watches()
        await until(lambda: len(it.api.watches) == 2)
        assert it.api.watches[1]["resourceVersion"] == version, "it goes on from the bookmark"
        assert it.api.watches[1]["allowWatchBookmarks"] == "true"
        assert it.api.lists == 1


async def test_a_forgotten_version_means_a_new_list(tmp_path: Path) -> None:
    async with watching(tmp_path, FakeConfigMaps(text="one")) as it:
        await until(lambda: it.api.queues)
        it.api.expired = True
        it.api.text = "missed"
        it.api.end_watches()
        await until(lambda: it.taken[-1] == "missed")
        assert it.api.lists == 2


async def test_the_watch_outlives_the_api_server_and_a_new_token(tmp_path: Path) -> None:
    api = FakeConfigMaps(text="one", status=500)
    async with watching(tmp_path, api) as it:
        await asyncio.wait_for(it.watch.heard.wait(), 5)
        assert it.taken == []
        api.status = 200
        await until(lambda: it.taken == ["one"] and api.queues)
        api.token = "second"
        api.text = "two"
        api.end_watches()
        await until(lambda: api.denied)
        (it.account / "token").write_text("second")
        await until(lambda: it.taken[-1] == "two")


# ------------------------------------------------------------------ the board


def board(rig: Rig, refusals: list[int]) -> RouteBoard:
    return RouteBoard(rig.config, rig.folder / "cache.json", lambda route: None, lambda: refusals.append(1))


async def test_the_last_good_route_survives_nonsense_and_a_restart(rig: Rig) -> None:
    refusals: list[int] = []
    first = board(rig, refusals)
    assert first.current.route.generation == 0
    good = json.dumps(rig.route(generation=7, weight_basis_points=500).to_wire())
    assert await first.take(good)
    for bad in (
        "",
        "{",
        "[]",
        good.replace('"generation": 7', '"generation": "x"'),
        good.replace("http:", "ftp:"),
    ):
        assert not await first.take(bad)
        assert not await first.take(bad)
    assert len(refusals) == 5, "each refusal is told once"
    assert not await first.take(None)
    assert first.current.route.generation == 7
    second = board(rig, refusals)
    assert second.current.route.weight_basis_points == 500
    assert await second.take(json.dumps(rig.route(generation=3).to_wire())), "the source is the truth"
    assert second.current.route.generation == 3
    (rig.folder / "cache.json").write_text("torn{")
    assert board(rig, refusals).current.route.generation == 0


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"weightBasisPoints": BASIS_POINTS + 1}, "weightBasisPoints"),
        ({"weightBasisPoints": 5, "candidate": None}, "candidate"),
        ({"schemaVersion": 9}, "schemaVersion"),
        ({"control": {"name": "a", "version": "1", "baseUrl": "nowhere", "model": "m"}}, "control.baseUrl"),
    ],
)
async def test_a_refusal_names_the_field(rig: Rig, change: dict[str, Any], word: str) -> None:
    with pytest.raises(RouteRefused, match=word):
        read_route(json.dumps({**rig.route().to_wire(), **change}))


async def test_an_answer_schema_opens_no_other_document(rig: Rig) -> None:
    document = rig.route().to_wire()
    document["task"]["answerSchema"]["properties"]["reason"] = {"$ref": "http://169.254.169.254/schema"}
    with pytest.raises(RouteRefused, match="answerSchema"):
        read_route(json.dumps(document))


async def test_keys_unknown_to_this_version_are_ignored(rig: Rig) -> None:
    assert (
        read_route(json.dumps({**rig.route().to_wire(), "schemaVersion": 2, "new": 1})).route.generation == 1
    )


async def test_a_route_change_under_load_fails_no_request_and_nonsense_changes_nothing(rig: Rig) -> None:
    async with rig.all(rig.route()):
        stop = asyncio.Event()
        statuses: list[int] = []

        async def load(worker: int) -> None:
            number = 0
            while not stop.is_set():
                number += 1
                statuses.append((await rig.ask(number, f"house-{worker}-{number}")).status)

        workers = [asyncio.create_task(load(worker)) for worker in range(4)]
        for generation in range(2, 6):
            rig.write_route(rig.route(generation=generation, weight_basis_points=generation * 1000))
            await rig.generation(generation)
        rig.write_route("{nonsense")

        async def refused() -> bool:
            return await rig.value("cutover_route_refused_total") == 1

        await until(refused)
        assert (await rig.report())["weightBasisPoints"] == 5000
        rig.write_route(rig.route(generation=2))
        await rig.generation(2)
        stop.set()
        await asyncio.gather(*workers)
        assert set(statuses) == {200}
        assert await rig.value("cutover_requests_total") == len(statuses)
        assert await rig.value("cutover_route_generation") == 2


async def test_metrics_are_those_of_the_contract_and_begin_at_zero(rig: Rig) -> None:
    async with rig.all(rig.route()):
        text = await rig.scrape()
        expected = {
            contract.REQUESTS: {"gateway", "rollout", "arm", "version", "outcome"},
            contract.DURATION + "_bucket": {"gateway", "rollout", "arm", "version", "le"},
            contract.COST: {"gateway", "rollout", "arm", "version"},
            contract.FALLBACKS: {"gateway", "rollout", "arm", "reason"},
            contract.BREAKER_OPEN: {"gateway", "arm"},
            contract.CONFIDENCE: {"gateway", "rollout", "version", "bin"},
            contract.SHADOW_PAIRS: {"gateway", "rollout", "version", "agreement"},
            contract.SHADOW_DURATION + "_bucket": {"gateway", "rollout", "version", "le"},
            contract.SHADOW_DROPPED: {"gateway", "rollout", "reason"},
            contract.ROUTE_GENERATION: {"gateway"},
            contract.SPOOL_RECORDS: {"gateway"},
            contract.SPOOL_FULL: {"gateway"},
            contract.SPOOL_DEAD_LETTERS: {"gateway"},
            contract.ROUTE_REFUSED: {"gateway"},
            contract.REQUESTS_REFUSED: {"gateway", "reason"},
            contract.LABEL_PROBABILITY: {"gateway", "rollout", "stratum"},
        }
        found: dict[str, set[str]] = {}
        edges: set[str] = set()
        for line in text.splitlines():
            if line.startswith("cutover_"):
                name, _, labels = line.rpartition(" ")[0].partition("{")
                pairs = dict(part.split("=", 1) for part in labels.rstrip("}").split(",") if part)
                found[name] = set(pairs)
                if name == contract.DURATION + "_bucket":
                    edges.add(pairs["le"].strip('"'))
                if name not in (contract.ROUTE_GENERATION, contract.LABEL_PROBABILITY):
                    assert line.endswith(" 0.0"), line
        stray = {name for name in found if name.endswith(("_sum", "_count", "_created"))}
        assert {name: labels for name, labels in found.items() if name not in stray} == expected
        assert {float(edge) for edge in edges} == {*contract.LATENCY_EDGES_SECONDS, float("inf")}
        for outcome in contract.OUTCOMES:
            for arm in ("control", "candidate"):
                assert await rig.value(contract.REQUESTS, arm=arm, outcome=outcome) == 0
        rig.write_route(rig.route(generation=2, rollout="fedcba9876543"))
        await rig.generation(2)
        assert await rig.value(contract.REQUESTS, rollout="fedcba9876543", arm="candidate", outcome="ok") == 0
