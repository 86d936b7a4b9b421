"""A gateway on loopback with stand-ins for everything around it: control, candidate, assessments, route file."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import uvicorn
import yaml
from starlette.types import ASGIApp

from cutover.route import Arm, FallbackRules, GatewayConfig, LabelSampling, Price, Provider, Route
from cutover.task import Task
from cutover_server.gateway.process import serve
from cutover_server.gateway.settings import Settings
from fakes.assessments_server import FakeAssessments
from fakes.free_ports import free_port
from fakes.openai_server import FakeOpenAI, Model

TASK = Task.model_validate(
    {
        "name": "building-damage",
        "systemPrompt": "You assess damage.",
        "userPrompt": "Assess the photo.",
        "answerSchema": {
            "type": "object",
            "properties": {
                "damage": {"enum": ["none", "minor", "major", "destroyed"]},
                "usable": {"enum": ["yes", "no"]},
                "reason": {"type": "string"},
            },
            "required": ["damage", "usable", "reason"],
            "additionalProperties": False,
        },
        "scoredFields": ["damage", "usable"],
    }
)
CONTROL_PRICE = Price(usd_per_million_input_tokens=10.0, usd_per_million_output_tokens=30.0)
CANDIDATE_PRICE = Price(kind="busySeconds", usd_per_busy_second=0.001)
INTERNAL_TOKEN = "internal"


@contextlib.asynccontextmanager
async def running(app: ASGIApp, port: int) -> AsyncIterator[None]:
    """The app on a loopback port, in this event loop."""
    config = uvicorn.Config(
        app, host="127.0.0.1", port=port, log_level="critical", lifespan="off", timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign, assignment]
    task = asyncio.create_task(server.serve())
    await until(lambda: server.started)
    try:
        yield
    finally:
        # Not the polite way out, which takes a fifth of a second each time.
        for listener in server.servers:
            listener.close()
        for connection in list(server.server_state.connections):
            connection.transport.abort()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(condition: Callable[[], Any], seconds: float = 10.0) -> Any:
    """Waits until the condition holds and gives its value."""
    end = asyncio.get_running_loop().time() + seconds
    while True:
        value = condition()
        if asyncio.iscoroutine(value):
            value = await value
        if value:
            return value
        if asyncio.get_running_loop().time() > end:
            raise AssertionError(f"not within {seconds} s")
        await asyncio.sleep(0.02)


def picture(number: int) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + f"picture {number}".encode()


def data_url(body: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(body).decode()


def chat_body(url: str, **extra: Any) -> dict[str, Any]:
    return {
        "model": "gpt-4o",
        "messages": [
            {"role": "system", "content": TASK.system_prompt},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": TASK.user_prompt},
                    {"type": "image_url", "image_url": {"url": url}},
                ],
            },
        ],
        **extra,
    }


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def document(self) -> dict[str, Any]:
        value: dict[str, Any] = json.loads(self.body)
        return value

    @property
    def answer(self) -> dict[str, Any]:
        value: dict[str, Any] = json.loads(self.document["choices"][0]["message"]["content"])
        return value


@dataclass
class Rig:
    folder: Path
    session: aiohttp.ClientSession
    control: Model = field(default_factory=lambda: Model(TASK, "gpt-4o", key="sk-control"))
    candidate: Model = field(default_factory=lambda: Model(TASK, "damage-7b"))
    assessments: FakeAssessments = field(default_factory=lambda: FakeAssessments(INTERNAL_TOKEN))
    ports: dict[str, int] = field(
        default_factory=lambda: {
            name: free_port() for name in ("control", "candidate", "assessments", "app", "ops")
        }
    )
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        (self.folder / "keys").mkdir(exist_ok=True)
        (self.folder / "keys" / "gpt").write_text("sk-control\n")

    @property
    def config(self) -> GatewayConfig:
        provider = Provider(
            base_url=f"http://127.0.0.1:{self.ports['control']}/v1",
            model="gpt-4o",
            key="gpt",
            price=CONTROL_PRICE,
        )
        return GatewayConfig(name="main", task=TASK, providers={"gpt-4": provider}, default_provider="gpt-4")

    @property
    def control_arm(self) -> Arm:
        return self.config.provider_arm("gpt-4")

    @property
    def candidate_arm(self) -> Arm:
        return Arm(
            name="damage",
            version="v2",
            base_url=f"http://127.0.0.1:{self.ports['candidate']}/v1",
            model="damage-7b",
            price=CANDIDATE_PRICE,
        )

    def route(self, **changes: Any) -> Route:
        parts: dict[str, Any] = {
            "generation": 1,
            "rollout": "0123456789abc",
            "rollout_name": "damage",
            "task": TASK,
            "control": self.control_arm,
            "candidate": self.candidate_arm,
            "fallback": self.control_arm,
            "salt": "salt",
            "fallback_rules": FallbackRules(deadline_seconds=2.0),
            "labels": LabelSampling(probability={"all": 1.0}),
        }
        return Route(**{**parts, **changes})

    def write_route(self, route: Route | str) -> None:
        text = route if isinstance(route, str) else json.dumps(route.to_wire())
        part = self.folder / "route.part"
        part.write_text(text)
        part.replace(self.folder / "route.json")

    def made_settings(self) -> Settings:
        plain: dict[str, Any] = {
            "gateway": "main",
            "config": self.config,
            "spool": self.folder / "spool",
            "assessments_url": f"http://127.0.0.1:{self.ports['assessments']}",
            "internal_token": INTERNAL_TOKEN,
            "route_file": self.folder / "route.json",
            "pod": "gateway-0",
            "keys_folder": self.folder / "keys",
            "host": "127.0.0.1",
            "port_app": self.ports["app"],
            "port_ops": self.ports["ops"],
            "drain_delay_seconds": 0.0,
            "drain_seconds": 5.0,
        }
        return Settings(**{**plain, **self.settings})

    def environment(self, drain_delay_seconds: float = 0.5) -> dict[str, str]:
        """The same for a gateway that is a process of its own."""
        config = self.folder / "gateway.yaml"
        config.write_text(yaml.safe_dump(self.config.to_wire()))
        return {
            "CUTOVER_GATEWAY_NAME": "main",
            "CUTOVER_GATEWAY_CONFIG": str(config),
            "CUTOVER_ROUTE_FILE": str(self.folder / "route.json"),
            "CUTOVER_SPOOL_DIR": str(self.folder / "spool"),
            "CUTOVER_ASSESSMENTS_URL": f"http://127.0.0.1:{self.ports['assessments']}",
            "CUTOVER_INTERNAL_TOKEN": "internal",
            "CUTOVER_KEYS_FOLDER": str(self.folder / "keys"),
            "CUTOVER_PORT_APP": str(self.ports["app"]),
            "CUTOVER_PORT_OPS": str(self.ports["ops"]),
            "CUTOVER_HOST": "127.0.0.1",
            "CUTOVER_DRAIN_DELAY_SECONDS": str(drain_delay_seconds),
            "POD_NAME": "gateway-0",
        }

    @contextlib.asynccontextmanager
    async def models(self) -> AsyncIterator[None]:
        async with (
            running(FakeOpenAI(self.control).app, self.ports["control"]),
            running(FakeOpenAI(self.candidate).app, self.ports["candidate"]),
        ):
            yield

    @contextlib.asynccontextmanager
    async def gateway(self) -> AsyncIterator[None]:
        stop = asyncio.Event()
        task = asyncio.create_task(serve(self.made_settings(), stop))
        try:
            await until(lambda: task.done() or self.ready())
            if task.done():
                await task
            yield
        finally:
            stop.set()
            await task

    @contextlib.asynccontextmanager
    async def all(self, route: Route | None = None) -> AsyncIterator[Rig]:
        """Everything up, with the route in force."""
        if route is not None:
            self.write_route(route)
        async with self.models(), running(self.assessments.app(), self.ports["assessments"]), self.gateway():
            yield self

    # ------------------------------------------------------------------ asking

    def url(self, path: str, port: str = "app") -> str:
        return f"http://127.0.0.1:{self.ports[port]}{path}"

    async def ready(self) -> bool:
        try:
            async with self.session.get(self.url("/readyz", "ops")) as response:
                return response.status == 200
        except aiohttp.ClientError:
            return False

    @contextlib.asynccontextmanager
    async def streamed_by_hand(
        self, write: Callable[[asyncio.StreamWriter], Awaitable[None]]
    ) -> AsyncIterator[None]:
        """A gateway that passes streams through, of a control whose events `write` writes, head and all the rest apart."""

        async def control(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            head = await reader.readuntil(b"\r\n\r\n")
            length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
            await reader.readexactly(int(length))
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")
            await write(writer)
            writer.close()

        self.settings["streaming"] = "passthrough"
        self.write_route(self.route(candidate=None))
        serving = await asyncio.start_server(control, "127.0.0.1", self.ports["control"])
        async with serving, running(self.assessments.app(), self.ports["assessments"]), self.gateway():
            yield

    async def ask(
        self,
        number: int = 0,
        key: str | None = None,
        url: str | None = None,
        headers: dict[str, str] | None = None,
        **extra: Any,
    ) -> Answer:
        sent = dict(headers or {})
        if key is not None:
            sent["x-cutover-assessment-id"] = key
        return await self.post(chat_body(url or data_url(picture(number)), **extra), sent)

    async def post(self, body: Any, headers: dict[str, str] | None = None) -> Answer:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        async with self.session.post(
            self.url("/v1/chat/completions"),
            data=raw,
            headers={"content-type": "application/json", **(headers or {})},
        ) as response:
            told = {name.lower(): value for name, value in response.headers.items()}
            return Answer(response.status, told, await response.read())

    async def report(self) -> dict[str, Any]:
        async with self.session.get(self.url("/internal/route", "ops")) as response:
            value: dict[str, Any] = await response.json()
            return value

    async def scrape(self) -> str:
        async with self.session.get(self.url("/metrics", "ops")) as response:
            return await response.text()

    async def value(self, metric: str, **labels: str) -> float:
        """Sum of the series of a metric with these labels."""
        return sample_sum(await self.scrape(), metric, **labels)

    async def generation(self, number: int) -> None:
        async def reached() -> bool:
            return bool((await self.report())["generation"] == number)

        await until(reached)


def sample_sum(text: str, metric: str, **labels: str) -> float:
    total, found = 0.0, False
    for line in text.splitlines():
        match = re.fullmatch(r"(\w+)(?:\{(.*)\})? (\S+)", line)
        if match and match[1] == metric:
            told = dict(re.findall(r'(\w+)="([^"]*)"', match[2] or ""))
            if labels.items() <= told.items():
                total, found = total + float(match[3]), True
    if not found:
        raise AssertionError(f"no series {metric} with {labels}")
    return total
