"""Applications that ask a gateway without pause and remember every single request: what was sent, what came back.

    python -m fakes.gateway_load --port 8080 --gateway http://assessor:8080 --ops http://assessor-pods:9090

Two kinds of client take turns, the OpenAI SDK with its default retries and a plain one that never sends anything twice;
each asks with a small picture, with one of 200 KB, and for a stream. Beside them the gateways' reported routes are read
twice a second, every address of the ops name by itself. Steered over HTTP: POST /load {requestsPerSecond, phase},
GET /state, /asked?from=, /routes?from=.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import dataclasses
import io
import json
import random
import secrets
import socket
import time
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import openai
import uvicorn
from PIL import Image
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from cutover import contract

CLIENTS = ("raw", "sdk")
KINDS = ("small", "picture", "stream")
PICTURES = 24
POLL_SECONDS = 0.5
TICK_SECONDS = 0.1
RAW_SECONDS = 100.0
"""Longer than any request may take in a gateway."""
MOST_OPEN = 400
PAGE = 1500


@dataclass(slots=True)
class Asked:
    """One request of an application, from its side. Times are Unix seconds."""

    key: str
    """Its assessment id, which no other request has."""
    client: str
    kind: str
    phase: str
    """In which it was sent."""
    sent_at: float
    ended_at: float = 0.0
    result: str = ""
    """answered; refused: an error with a status; unreached: no connection; broken: the connection broke before anything
    came; cut: a stream that broke after its first piece; invalid: an answer that is none."""
    status: int = 0
    answer_id: str = ""
    heard: list[tuple[str, int, str]] = field(default_factory=list)
    """(request id, status, arm) of every response, those the SDK tried again after included."""
    arm: str = ""
    version: str = ""
    fallback: str = ""
    attempts: int = 0
    """How often it was sent."""
    problem: str = ""


@dataclass(frozen=True, slots=True)
class RouteSeen:
    """What a gateway said about the route it serves."""

    at: float
    pod: str
    generation: int
    weight_basis_points: int


def png(seed: int, edge: int) -> bytes:
    """Noise, which no format makes smaller: `edge` 224 is 150 KB, which is 200 KB in a data URL."""
    buffer = io.BytesIO()
    pixels = random.Random(seed).randbytes(edge * edge * 3)
    Image.frombytes("RGB", (edge, edge), pixels).save(buffer, "PNG", compress_level=0)
    return buffer.getvalue()


def messages(picture: bytes) -> list[dict[str, Any]]:
    url = "data:image/png;base64," + base64.b64encode(picture).decode()
    return [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "Assess the photo."},
                {"type": "image_url", "image_url": {"url": url}},
            ],
        }
    ]


class Load:
    """The applications. `requests_per_second` and `phase` may be changed at any time."""

    def __init__(self, gateway: str, ops: list[str], api_key: str = "none") -> None:
        self.requests_per_second = 0.0
        self.phase = "before"
        self.asked: list[Asked] = []
        """Those that have ended, in that order."""
        self.routes: list[RouteSeen] = []
        self.sent = 0
        self.stalls: list[tuple[float, float]] = []
        """When this process stood still, and noticed nothing: until, for how many seconds."""
        self.skipped = 0
        """Not sent because too many were open."""
        self.prefix = f"soak-{secrets.token_hex(4)}"
        self._gateway = gateway
        self._ops = ops
        self._api_key = api_key
        self._open: dict[str, Asked] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._small = [messages(png(number, 8)) for number in range(PICTURES)]
        self._large = [messages(png(1000 + number, 224)) for number in range(PICTURES)]

    @property
    def open(self) -> int:
        return len(self._open)

    @asynccontextmanager
    async def running(self) -> Any:
        hooks: dict[str, list[Any]] = {"request": [self._sdk_sends], "response": [self._sdk_hears]}
        async with (
            aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=RAW_SECONDS),
                connector=aiohttp.TCPConnector(limit=MOST_OPEN),
            ) as self._raw,
            openai.AsyncOpenAI(
                base_url=f"{self._gateway}/v1",
                api_key=self._api_key,
                http_client=openai.DefaultAsyncHttpxClient(event_hooks=hooks),
            ) as self._sdk,
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2.0)) as self._poll,
        ):
            works = (self._ask_on(), self._poll_on(), self._watch_on())
            loops = [asyncio.create_task(work) for work in works]
            try:
                yield self
            finally:
                for task in [*loops, *self._tasks]:
                    task.cancel()
                await asyncio.gather(*loops, *self._tasks, return_exceptions=True)

    # ------------------------------------------------------------------ asking

    async def _ask_on(self) -> None:
        due = time.monotonic()
        while True:
            if self.requests_per_second <= 0:
                await asyncio.sleep(0.05)
                due = time.monotonic()
                continue
            if len(self._open) >= MOST_OPEN:
                self.skipped += 1
            else:
                self._send_one()
            # What is late is made up for; a machine that stood still for long is not.
            due = max(due + 1.0 / self.requests_per_second, time.monotonic() - 1.0)
            await asyncio.sleep(max(0.0, due - time.monotonic()))

    def _send_one(self) -> None:
        number = self.sent
        self.sent += 1
        one = Asked(
            key=f"{self.prefix}-{number}",
            client=CLIENTS[number % 2],
            kind=KINDS[number // 2 % 3],
            phase=self.phase,
            sent_at=time.time(),
        )
        self._open[one.key] = one
        task = asyncio.create_task(self._ask(one, number))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _ask(self, one: Asked, number: int) -> None:
        told = (self._large if one.kind == "picture" else self._small)[number % PICTURES]
        try:
            if one.client == "sdk":
                await self._ask_sdk(one, told)
            else:
                await self._ask_raw(one, told)
        finally:
            one.ended_at = time.time()
            self.asked.append(one)
            del self._open[one.key]

    def _hear(self, one: Asked, status: int, headers: Any) -> None:
        """The head of a response. The last one is what the application goes by."""
        one.status = status
        one.arm = headers.get(contract.HEADER_ARM, "")
        one.heard.append((headers.get(contract.HEADER_REQUEST_ID, ""), status, one.arm))
        one.version = headers.get(contract.HEADER_VERSION, "")
        one.fallback = headers.get(contract.HEADER_FALLBACK, "")
        if status == 200 and headers.get(contract.HEADER_ASSESSMENT_ID) != one.key:
            one.problem = f"this is the answer to {headers.get(contract.HEADER_ASSESSMENT_ID)}"

    @staticmethod
    def _end(one: Asked, answer_id: str, content: str, finish: str | None) -> None:
        """An answer that has come whole."""
        one.answer_id = answer_id
        try:
            valid = isinstance(json.loads(content), dict) and finish == "stop" and bool(answer_id)
        except ValueError:
            valid = False
        one.result = "answered" if valid and not one.problem else "invalid"
        if not valid:
            one.problem = one.problem or f"no answer: finish {finish}, {content[:80]!r}"

    # ------------------------------------------------------------------ the SDK

    async def _sdk_sends(self, request: Any) -> None:
        if (one := self._open.get(request.headers.get(contract.HEADER_ASSESSMENT_ID, ""))) is not None:
            one.attempts += 1

    async def _sdk_hears(self, response: Any) -> None:
        key = response.request.headers.get(contract.HEADER_ASSESSMENT_ID, "")
        if (one := self._open.get(key)) is not None:
            self._hear(one, response.status_code, response.headers)

    async def _ask_sdk(self, one: Asked, told: list[dict[str, Any]]) -> None:
        more: Any = {
            "model": "assessor",
            "messages": told,
            "extra_headers": {contract.HEADER_ASSESSMENT_ID: one.key},
        }
        begun = False
        try:
            if one.kind != "stream":
                whole = await self._sdk.chat.completions.create(**more)
                choice = whole.choices[0]
                self._end(one, whole.id, choice.message.content or "", choice.finish_reason)
                return
            content, finish, answer_id = "", None, ""
            stream = await self._sdk.chat.completions.create(stream=True, **more)
            async for chunk in stream:
                begun = True
                answer_id = chunk.id
                if chunk.choices:
                    content += chunk.choices[0].delta.content or ""
                    finish = chunk.choices[0].finish_reason or finish
            if finish is None:
                one.result, one.problem = "cut", "the stream ended without a finish reason"
            else:
                self._end(one, answer_id, content, finish)
        except openai.APIStatusError as error:
            one.result, one.problem = "refused", str(error)[:300]
        except Exception as error:  # whatever the SDK lets through is what an application sees
            one.result = "cut" if begun else ("unreached" if _unreached(error) else "broken")
            one.problem = f"{type(error).__name__}: {error}; {error.__cause__!r}"[:300]

    # ------------------------------------------------------------------ the client without retries

    async def _ask_raw(self, one: Asked, told: list[dict[str, Any]]) -> None:
        body = json.dumps({"model": "assessor", "messages": told, "stream": one.kind == "stream"}).encode()
        headers = {"content-type": "application/json", contract.HEADER_ASSESSMENT_ID: one.key}
        one.attempts = 1
        received = b""
        try:
            async with self._raw.post(
                f"{self._gateway}/v1/chat/completions", data=body, headers=headers
            ) as response:
                self._hear(one, response.status, response.headers)
                async for piece in response.content.iter_any():
                    received += piece
        except aiohttp.ClientConnectorError as error:
            one.result, one.problem = "unreached", f"{type(error).__name__}: {error}"[:300]
            return
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            one.result = "cut" if received and one.kind == "stream" else "broken"
            one.problem = f"{type(error).__name__}: {error}; {received[-200:]!r}"[:400]
            return
        if one.status != 200:
            one.result, one.problem = "refused", received[:300].decode(errors="replace")
        elif one.kind == "stream":
            self._end_stream(one, received)
        else:
            document = json.loads(received)
            choice = document["choices"][0]
            self._end(one, document["id"], choice["message"]["content"], choice["finish_reason"])

    def _end_stream(self, one: Asked, received: bytes) -> None:
        lines = [line[6:] for line in received.decode().split("\n") if line.startswith("data: ")]
        if not lines or lines[-1] != "[DONE]":
            one.result, one.problem = "cut", f"the stream ends with {received[-200:]!r}"
            return
        content, finish, answer_id = "", None, ""
        for line in lines[:-1]:
            chunk = json.loads(line)
            answer_id = chunk.get("id", "")
            for choice in chunk.get("choices", []):
                content += choice["delta"].get("content") or ""
                finish = choice.get("finish_reason") or finish
        self._end(one, answer_id, content, finish)

    # ------------------------------------------------------------------ beside the requests

    async def _watch_on(self) -> None:
        while True:
            due = time.monotonic() + TICK_SECONDS
            await asyncio.sleep(TICK_SECONDS)
            late = time.monotonic() - due
            if late > TICK_SECONDS:
                self.stalls.append((time.time(), late))

    async def _poll_on(self) -> None:
        while True:
            # One that does not answer says nothing; the others' reports are kept.
            await asyncio.gather(*(self._read_routes(base) for base in self._ops), return_exceptions=True)
            await asyncio.sleep(POLL_SECONDS)

    async def _read_routes(self, base: str) -> None:
        parts = urlsplit(base)
        found = await asyncio.get_running_loop().getaddrinfo(
            parts.hostname, parts.port, family=socket.AF_INET, type=socket.SOCK_STREAM
        )
        await asyncio.gather(
            *(self._read_route(f"http://{address[0]!s}:{parts.port}") for *_, address in found),
            return_exceptions=True,
        )

    async def _read_route(self, base: str) -> None:
        at = time.time()
        async with self._poll.get(base + contract.PATH_ROUTE_REPORT) as response:
            report = await response.json()
        self.routes.append(RouteSeen(at, report["pod"], report["generation"], report["weightBasisPoints"]))

    def state(self) -> dict[str, Any]:
        return {
            "prefix": self.prefix,
            "phase": self.phase,
            "sent": self.sent,
            "skipped": self.skipped,
            "stalls": self.stalls,
            "open": self.open,
            "ended": len(self.asked),
            "answered": sum(one.result == "answered" for one in self.asked),
            "routes": len(self.routes),
        }


def _unreached(error: BaseException) -> bool:
    """Whether no connection came about, so that nothing was sent."""
    cause: BaseException | None = error
    while cause is not None:
        if type(cause).__name__ in ("ConnectError", "ConnectTimeout"):
            return True
        cause = cause.__cause__
    return False


def build(load: Load) -> Starlette:
    async def post_load(request: Request) -> JSONResponse:
        body = await request.json()
        load.phase = str(body.get("phase", load.phase))
        load.requests_per_second = float(body.get("requestsPerSecond", load.requests_per_second))
        return JSONResponse(load.state())

    async def get_state(_: Request) -> JSONResponse:
        return JSONResponse(load.state())

    def page(rows: list[Any]) -> Any:
        async def get(request: Request) -> JSONResponse:
            start = int(request.query_params.get("from", "0"))
            return JSONResponse([dataclasses.asdict(row) for row in rows[start : start + PAGE]])

        return get

    @asynccontextmanager
    async def lifespan(_: Starlette) -> Any:
        async with load.running():
            yield

    return Starlette(
        routes=[
            Route("/load", post_load, methods=["POST"]),
            Route("/state", get_state),
            Route("/asked", page(load.asked)),
            Route("/routes", page(load.routes)),
            Route("/healthz", get_state),
        ],
        lifespan=lifespan,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Applications that remember every request")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--gateway", required=True, help="base URL without /v1")
    parser.add_argument("--ops", required=True, help="base URL whose addresses are the gateways one by one")
    args = parser.parse_args()
    load = Load(args.gateway, [args.ops])
    with suppress(KeyboardInterrupt):
        uvicorn.run(build(load), host="0.0.0.0", port=args.port, log_level="warning")


if __name__ == "__main__":
    main()
