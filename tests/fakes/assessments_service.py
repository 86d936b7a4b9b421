"""The real assessments service on loopback ports, with a clock the test moves, and records to feed it."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import itertools
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import uvicorn

from cutover.task import Task
from cutover_server.assessments.app import build_app, build_ops_app
from cutover_server.assessments.audit import Actor
from cutover_server.assessments.service import Service
from cutover_server.assessments.settings import Settings

ADMIN, SURVEYOR, INTERNAL = "admin-token-0123456789", "surveyor-token-0123456", "internal-token-0123456"
START = 1_800_000_000.0

TASK = Task.model_validate(
    {
        "name": "building-damage",
        "systemPrompt": "You assess buildings.",
        "userPrompt": "Assess the damage.",
        "answerSchema": {
            "type": "object",
            "properties": {
                "damageType": {"enum": ["crack", "leak", "none"]},
                "severity": {"enum": ["low", "high"]},
                "advice": {"type": "string"},
            },
        },
        "scoredFields": ["damageType", "severity"],
    }
)
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="
)
PNG_DIGEST = hashlib.sha256(PNG).hexdigest()
_numbers = itertools.count(1)


def surveyor(name: str) -> Actor:
    return Actor(name, "surveyor", "bearer")


@dataclass
class MovableClock:
    now: float = START

    def __call__(self) -> float:
        return self.now


def new_settings(folder: Path, database_url: str = "", **changes: Any) -> Settings:
    settings = Settings(
        database_url=database_url or f"sqlite:///{folder}/assessments.db",
        pictures_uri=str(folder / "pictures"),
        tasks={TASK.name: TASK},
        admin_token=ADMIN,
        internal_token=INTERNAL,
        surveyor_token=SURVEYOR,
        tick_seconds=0.05,
    )
    return replace(settings, **changes)


def answer(
    damage: str = "crack", severity: str = "low", *, version: str = "gpt-4", **more: Any
) -> dict[str, Any]:
    value = {"damageType": damage, "severity": severity, "advice": "call someone"}
    return {"version": version, "answer": value, "latencySeconds": 0.4, "costUsd": 0.01} | more


def record(identity: str = "", **changes: Any) -> dict[str, Any]:
    identity = identity or f"r{next(_numbers)}"
    received = changes.pop("received", START)
    return {
        "id": identity,
        "assessmentId": f"a-{identity}",
        "receivedAt": datetime.fromtimestamp(received, UTC).isoformat(),
        "gateway": "main",
        "task": TASK.name,
        "rollout": "0a1b2c3d-4e5f",
        "chosen": "control",
        "outcome": "ok",
        "servedVersion": "gpt-4",
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "Assess the damage."},
                    *(
                        {"type": "image_url", "image_url": {"url": f"sha256:{digest}"}}
                        for digest in changes.get("pictures", [PNG_DIGEST])
                    ),
                ],
            }
        ],
        "pictures": [PNG_DIGEST],
        "control": answer(),
        "sampled": True,
        "samplingProbability": 0.5,
        "labelDeadlineSeconds": 100,
    } | changes


@dataclass
class Running:
    service: Service
    clock: MovableClock
    base: str
    ops: str
    client: aiohttp.ClientSession
    """Without cookies and without a token."""
    headers: dict[str, dict[str, str]] = field(
        default_factory=lambda: {
            role: {"Authorization": f"Bearer {token}"}
            for role, token in (("admin", ADMIN), ("surveyor", SURVEYOR), ("internal", INTERNAL))
        }
    )

    async def call(self, method: str, path: str, role: str = "admin", **options: Any) -> tuple[int, Any]:
        headers = {**self.headers.get(role, {}), **options.pop("headers", {})}
        async with self.client.request(
            method, self.base + path, headers=headers, allow_redirects=False, **options
        ) as response:
            if response.content_type == "application/json":
                return response.status, await response.json()
            return response.status, await response.read()

    async def deliver(self, *records: dict[str, Any], shadows: list[dict[str, Any]] | None = None) -> Any:
        status, result = await self.call(
            "POST", "/internal/records", "internal", json={"records": list(records), "shadows": shadows or []}
        )
        assert status == 200, result
        return result

    async def label(self, identity: str, labeller: str = "ann", **labels: str) -> Any:
        status, result = await self.call(
            "POST", f"/api/assessments/{identity}/validation", json={"labeller": labeller, "labels": labels}
        )
        assert status == 200, result
        return result

    async def metrics(self) -> dict[str, float]:
        async with self.client.get(f"{self.ops}/metrics") as response:
            lines = (await response.text()).splitlines()
        return {
            name: float(value)
            for name, _, value in (line.rpartition(" ") for line in lines if not line.startswith("#"))
        }

    async def until(self, holds: Callable[[dict[str, float]], bool], seconds: float = 15) -> dict[str, float]:
        """The metrics once they are as wanted."""
        deadline = asyncio.get_running_loop().time() + seconds
        while True:
            metrics = await self.metrics()
            if holds(metrics):
                return metrics
            assert asyncio.get_running_loop().time() < deadline, metrics
            await asyncio.sleep(0.03)


@asynccontextmanager
async def running(
    settings: Settings, clock: MovableClock | None = None, *, wait: bool = True
) -> AsyncIterator[Running]:
    clock = clock or MovableClock()
    service = Service(settings, clock)
    servers = [_Server(_config(app)) for app in (build_app(service), build_ops_app(service))]
    tasks = [asyncio.create_task(server.serve()) for server in servers]
    await service.start()
    try:
        async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as client:
            async with asyncio.timeout(60):
                await _until(lambda: all(server.started for server in servers))
                await _until(lambda: service.database.migrated or not wait)
            base, ops = (
                f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}" for server in servers
            )
            yield Running(service, clock, base, ops, client)
    finally:
        for server in servers:
            server.should_exit = True
        await asyncio.gather(*tasks)
        await service.stop()


async def _until(holds: Callable[[], bool]) -> None:
    while not holds():  # noqa: ASYNC110  (plain flags of others: there is no event to wait for)
        await asyncio.sleep(0.01)


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _config(app: Any) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        host="127.0.0.1",
        port=0,
        lifespan="off",
        log_config=None,
        proxy_headers=False,
        timeout_graceful_shutdown=1,
    )
