"""What the gateway's bench runs on loopback: an upstream, a closed-loop load, and the proxies that are compared.

The upstream is one process on uvloop that answers at once, or 300 ms later when the request says so, whole or as a
stream of twenty pieces; it takes records and pictures too. CPU is read from the scheduler's own books (nanoseconds),
so other work on the machine costs precision, not truth.

    python -m bench.gateway_town PORT     # the upstream alone
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop
import yaml

from cutover.route import Arm, GatewayConfig, Provider, Route
from fakes.free_ports import free_port
from fakes.gateway_rig import TASK

TESTS = Path(__file__).resolve().parents[1]
SLOW = "slow-300ms"
"""As the request's `user`: the upstream waits that long."""
SLOW_SECONDS = 0.3
_PIECES = 20
_PIECE_SECONDS = 0.002
_TEXT = json.dumps({"damage": "major", "usable": "yes", "reason": "The roof is open to the sky. " * 6})


def _completion(logprobs: bool) -> bytes:
    tokens = [
        {"token": _TEXT[at : at + 4], "logprob": -0.01, "bytes": list(_TEXT[at : at + 4].encode())}
        for at in range(0, len(_TEXT), 4)
    ]
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": _TEXT},
        "logprobs": {"content": tokens} if logprobs else None,
        "finish_reason": "stop",
    }
    document = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "gpt-4o",
        "choices": [choice],
        "usage": {"prompt_tokens": 900, "completion_tokens": 60, "total_tokens": 960},
    }
    body = json.dumps(document).encode()
    return (
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body) + body
    )


def _stream() -> list[bytes]:
    def chunk(delta: dict[str, str], finish: str | None = None, usage: Any = None) -> bytes:
        document = {
            "id": "chatcmpl-1",
            "object": "chat.completion.chunk",
            "created": 1,
            "model": "gpt-4o",
            "choices": [] if usage else [{"index": 0, "delta": delta, "finish_reason": finish}],
            "usage": usage,
        }
        event = b"data: " + json.dumps(document).encode() + b"\n\n"
        return b"%x\r\n%b\r\n" % (len(event), event)

    size = len(_TEXT) // _PIECES + 1
    pieces = [chunk({"role": "assistant", "content": ""})]
    pieces += [chunk({"content": _TEXT[at : at + size]}) for at in range(0, len(_TEXT), size)]
    usage = {"prompt_tokens": 900, "completion_tokens": 60, "total_tokens": 960}
    pieces += [chunk({}, "stop"), chunk({}, usage=usage) + b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"]
    pieces[0] = (
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        + pieces[0]
    )
    return pieces


_WHOLE, _MEASURED, _STREAM = _completion(False), _completion(True), _stream()
_TAKEN = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"


class _Upstream(asyncio.Protocol):
    def __init__(self) -> None:
        self._buffer = bytearray()
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = bytes(self._buffer[:end]).lower()
            at = head.find(b"content-length:")
            length = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
            if len(self._buffer) < end + 4 + length:
                return
            body = bytes(self._buffer[end + 4 : end + 4 + length])
            del self._buffer[: end + 4 + length]
            self._answer(head, body)

    def _answer(self, head: bytes, body: bytes) -> None:
        if b"/chat/completions" not in head[:200]:
            self._transport.write(_TAKEN)
            return
        loop = asyncio.get_running_loop()
        wait = SLOW_SECONDS if SLOW.encode() in body else 0.0
        if b'"stream":true' in body or b'"stream": true' in body:
            for number, piece in enumerate(_STREAM):
                loop.call_later(wait + number * _PIECE_SECONDS, self._write, piece)
            return
        whole = _MEASURED if b'"logprobs":true' in body else _WHOLE
        if wait:
            loop.call_later(wait, self._write, whole)
        else:
            self._transport.write(whole)

    def _write(self, data: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(data)


async def _serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(_Upstream, "127.0.0.1", port, backlog=2048)
    await server.serve_forever()


# ------------------------------------------------------------------ load


_NUMBER = b"0123456789abcdef0123"
"""Stands in each picture, and is replaced by the number of the request: no picture is ever sent twice."""
_numbers = itertools.count()


def request(body: bytes) -> bytes:
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\n"
        f"authorization: Bearer sk-bench\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def chat(picture_bytes: int, stream: bool, slow: bool) -> bytes:
    """A request of 1.7 KB of text and, if it has any bytes, a picture of its own."""
    parts: list[dict[str, Any]] = [
        {"type": "text", "text": "Assess the photo. " + "It was taken today. " * 30}
    ]
    if picture_bytes:
        own = base64.b64decode(_NUMBER)
        picture = base64.b64encode(b"\x89PNG\r\n\x1a\n " + own + os.urandom(picture_bytes)).decode()
        parts.append({"type": "image_url", "image_url": {"url": "data:image/png;base64," + picture}})
    document: dict[str, Any] = {
        "model": "gpt-4o",
        "messages": [
            {"role": "system", "content": "You assess damage to buildings from photographs. " * 20},
            {"role": "user", "content": parts},
        ],
    }
    if stream:
        document["stream"] = True
    if slow:
        document["user"] = SLOW
    return json.dumps(document, separators=(",", ":")).encode()


class _Client(asyncio.Protocol):
    def __init__(self) -> None:
        self.transport: Any = None
        self._buffer = bytearray()
        self._done: asyncio.Future[int] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_result(0)

    def ask(self, data: bytes) -> asyncio.Future[int]:
        """The status of the answer; 0 when the connection was lost."""
        self._done = asyncio.get_running_loop().create_future()
        self._buffer.clear()
        self.transport.write(data)
        return self._done

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0 or self._done is None or self._done.done():
            return
        head = bytes(self._buffer[:end]).lower()
        at = head.find(b"content-length:")
        if at >= 0:
            complete = len(self._buffer) >= end + 4 + int(head[at + 15 :].split(b"\r\n", 1)[0])
        else:
            complete = self._buffer.endswith(b"0\r\n\r\n")
        if complete:
            self._done.set_result(int(head.split(b" ", 2)[1]))


@dataclass(frozen=True)
class Load:
    seconds: list[float]
    failures: int


async def load(port: int, bodies: list[bytes], in_flight: int, count: int) -> Load:
    """A closed loop of so many connections; each request takes the next body, with a number of its own."""
    requests = [request(body) for body in bodies]
    seconds: list[float] = []
    failures, started = 0, 0
    loop = asyncio.get_running_loop()

    async def worker() -> None:
        nonlocal failures, started
        client: _Client | None = None
        while started < count:
            started += 1
            data = requests[started % len(requests)].replace(_NUMBER, b"%020d" % next(_numbers), 1)
            if client is None or client.transport.is_closing():
                client = (await loop.create_connection(_Client, "127.0.0.1", port))[1]
            begun = time.perf_counter()
            status = await asyncio.wait_for(client.ask(data), 120)
            seconds.append(time.perf_counter() - begun)
            failures += status != 200
        if client is not None:
            client.transport.close()

    await asyncio.gather(*(worker() for _ in range(in_flight)))
    return Load(seconds, failures)


# ------------------------------------------------------------------ proxies


@dataclass
class Proxy:
    name: str
    port: int
    process: subprocess.Popen[bytes]
    log: Path

    def cpu_seconds(self) -> float:
        """Of all threads that live, from the scheduler's books."""
        total = 0
        for task in Path(f"/proc/{self.process.pid}/task").iterdir():
            with contextlib.suppress(FileNotFoundError):
                total += int((task / "schedstat").read_text().split()[0])
        return total / 1e9

    def rss_mb(self) -> float:
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
        raise RuntimeError(f"{self.name} has no memory; it is gone")


@contextlib.contextmanager
def started(
    name: str, port: int, command: list[str], folder: Path, environment: dict[str, str] | None = None
) -> Iterator[Proxy]:
    with (folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=log,
            env={**os.environ, "PYTHONPATH": str(TESTS), **(environment or {})},
            cwd=folder,
        )
        try:
            yield Proxy(name, port, process, folder / f"{name}.log")
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


async def answers(proxy: Proxy, seconds: float = 180.0) -> None:
    """Waits until a request through the proxy succeeds."""
    body = [chat(0, stream=False, slow=False)]
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if proxy.process.poll() is not None:
            raise RuntimeError(f"{proxy.name} ended: {proxy.log.read_text()[-2000:]}")
        with contextlib.suppress(OSError, TimeoutError):
            if (await load(proxy.port, body, 1, 1)).failures == 0:
                return
        await asyncio.sleep(0.3)
    raise RuntimeError(f"{proxy.name} does not answer within {seconds:g} s")


def upstream(port: int, folder: Path) -> contextlib.AbstractContextManager[Proxy]:
    return started("upstream", port, [sys.executable, "-m", "bench.gateway_town", str(port)], folder)


def cutover(folder: Path, upstream_port: int, streaming: str) -> contextlib.AbstractContextManager[Proxy]:
    """The gateway with records, breaker, metrics, and half the traffic on a candidate whose confidence is read."""
    port, ops = free_port(), free_port()
    base_url = f"http://127.0.0.1:{upstream_port}/v1"
    config = GatewayConfig(
        name="main",
        task=TASK,
        providers={"gpt-4": Provider(base_url=base_url, model="gpt-4o")},
        default_provider="gpt-4",
    )
    control = config.provider_arm("gpt-4")
    route = Route(
        generation=1,
        rollout="bench",
        task=TASK,
        control=control,
        candidate=Arm(name="damage", version="v2", base_url=base_url, model="damage-7b"),
        fallback=control,
        weight_basis_points=5000,
        salt="bench",
    )
    own = folder / f"cutover-{streaming}"
    own.mkdir()
    (own / "gateway.yaml").write_text(yaml.safe_dump(config.to_wire()))
    (own / "route.json").write_text(json.dumps(route.to_wire()))
    environment = {
        "CUTOVER_GATEWAY_NAME": "main",
        "CUTOVER_GATEWAY_CONFIG": str(own / "gateway.yaml"),
        "CUTOVER_ROUTE_FILE": str(own / "route.json"),
        "CUTOVER_SPOOL_DIR": str(own / "spool"),
        "CUTOVER_ASSESSMENTS_URL": f"http://127.0.0.1:{upstream_port}",
        "CUTOVER_INTERNAL_TOKEN": "internal",
        "CUTOVER_PORT_APP": str(port),
        "CUTOVER_PORT_OPS": str(ops),
        "CUTOVER_HOST": "127.0.0.1",
        "CUTOVER_STREAMING": streaming,
    }
    command = [sys.executable, "-m", "cutover_server.gateway.main"]
    return started(f"cutover-{streaming}", port, command, folder, environment)


def envoy(folder: Path, binaries: Path, upstream_port: int) -> contextlib.AbstractContextManager[Proxy]:
    port = free_port()

    def address(number: int) -> dict[str, Any]:
        return {"socket_address": {"address": "127.0.0.1", "port_value": number}}

    manager = {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "bench",
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "up", "timeout": "60s"}}],
                }
            ]
        },
        "http_filters": [
            {
                "name": "envoy.filters.http.router",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"
                },
            }
        ],
    }
    config = {
        "static_resources": {
            "listeners": [
                {
                    "address": address(port),
                    "filter_chains": [
                        {
                            "filters": [
                                {
                                    "name": "envoy.filters.network.http_connection_manager",
                                    "typed_config": manager,
                                }
                            ]
                        }
                    ],
                }
            ],
            "clusters": [
                {
                    "name": "up",
                    "connect_timeout": "3s",
                    "load_assignment": {
                        "cluster_name": "up",
                        "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address(upstream_port)}}]}],
                    },
                }
            ],
        }
    }
    (folder / "envoy.yaml").write_text(yaml.safe_dump(config))
    command = [str(binaries / "envoy"), "-c", str(folder / "envoy.yaml"), "--concurrency", "1", "-l", "error"]
    return started("envoy", port, [*command, "--use-dynamic-base-id"], folder)


def litellm(folder: Path, binaries: Path, upstream_port: int) -> contextlib.AbstractContextManager[Proxy]:
    port = free_port()
    arm = {
        "model": "openai/gpt-4o",
        "api_base": f"http://127.0.0.1:{upstream_port}/v1",
        "api_key": "sk-bench",
    }
    config = {
        "model_list": [{"model_name": "gpt-4o", "litellm_params": arm}],
        "litellm_settings": {"num_retries": 0, "telemetry": False},
    }
    (folder / "litellm.yaml").write_text(yaml.safe_dump(config))
    command = [str(binaries / "litellm"), "--config", str(folder / "litellm.yaml"), "--host", "127.0.0.1"]
    environment = {
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_LOG": "ERROR",
        "LITELLM_MODE": "PRODUCTION",
        "LITELLM_MASTER_KEY": "sk-bench",
        "PYTHONPATH": "",
    }
    return started(
        "litellm", port, [*command, "--port", str(port), "--num_workers", "1"], folder, environment
    )


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1])))
