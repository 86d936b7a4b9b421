"""An OpenAI-compatible server that misbehaves on the wire: one named fault at a time, byte by byte.

It answers like `openai_server` (same model, same truth), whole or as a stream, and breaks the answer in the way its
fault says. The first sixteen faults are those on which public gateways are compared (rate limits, silence, cuts in
mid-stream...); the rest are ours. No server here accepts a request that ends with a half-written assistant message: an
answer can only be begun anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from fakes.openai_server import Model, pictures_in

PROMPT_TOKENS, COMPLETION_TOKENS = 1000, 40


@dataclass
class Call:
    """One request, and the ways to answer it."""

    server: FaultServer
    body: dict[str, Any]
    writer: asyncio.StreamWriter
    number: int
    """Counted from 1 since the fault was set."""

    @property
    def streamed(self) -> bool:
        return self.body.get("stream") is True

    @property
    def answer_text(self) -> str:
        digests = pictures_in(self.body["messages"])
        return json.dumps(self.server.model.answer(digests[0] if digests else "none")[0])

    async def raw(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def head(
        self,
        status: int = 200,
        kind: str = "application/json",
        length: int | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        lines = [f"HTTP/1.1 {status} X", f"content-type: {kind}"]
        if not self.server.keeps_connections:
            lines.append("connection: close")
        lines.append("transfer-encoding: chunked" if length is None else f"content-length: {length}")
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        await self.raw(("\r\n".join(lines) + "\r\n\r\n").encode())

    async def part(self, data: bytes) -> None:
        """A piece of a chunked body; an empty one ends it."""
        await self.raw(b"%x\r\n%b\r\n" % (len(data), data))

    async def whole(
        self,
        data: bytes,
        status: int = 200,
        kind: str = "application/json",
        headers: dict[str, str] | None = None,
    ) -> None:
        await self.head(status, kind, len(data), headers)
        await self.raw(data)

    async def error(
        self, status: int, message: str, code: str | None = None, headers: dict[str, str] | None = None
    ) -> None:
        kind = {400: "invalid_request_error", 429: "rate_limit_error"}.get(status, "server_error")
        problem = {"error": {"message": message, "type": kind, "param": None, "code": code}}
        await self.whole(json.dumps(problem).encode(), status, headers=headers)

    def completion(self, text: str | None = None, finish: str | None = "stop") -> bytes:
        text = self.answer_text if text is None else text
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": text},
            "logprobs": None,
            "finish_reason": finish,
        }
        return json.dumps(
            {
                "id": "chatcmpl-1",
                "object": "chat.completion",
                "created": 1,
                "model": self.body.get("model"),
                "choices": [choice],
                "usage": _usage(),
            }
        ).encode()

    def events(self, text: str | None = None, finish: str | None = "stop", done: bool = True) -> list[bytes]:
        """The events of a stream: role, pieces of eight characters, finish reason, usage, end marker."""
        text = self.answer_text if text is None else text

        def event(choices: list[dict[str, Any]], usage: Any = None) -> bytes:
            chunk = {
                "id": "chatcmpl-1",
                "object": "chat.completion.chunk",
                "created": 1,
                "model": self.body.get("model"),
                "choices": choices,
                "usage": usage,
            }
            return b"data: " + json.dumps(chunk).encode() + b"\n\n"

        def piece(delta: dict[str, str], end: str | None = None) -> bytes:
            return event([{"index": 0, "delta": delta, "finish_reason": end}])

        told = [piece({"role": "assistant", "content": ""})]
        told += [piece({"content": text[at : at + 8]}) for at in range(0, len(text), 8)]
        if finish is not None:
            told += [piece({}, finish), event([], _usage())]
        return [*told, b"data: [DONE]\n\n"] if done else told

    async def stream(self, events: list[bytes], end: bool = True) -> None:
        await self.head(kind="text/event-stream")
        for event in events:
            await self.part(event)
            await asyncio.sleep(0)  # pieces of their own, as from a model
        if end:
            await self.part(b"")

    async def well(self, text: str | None = None, finish: str | None = "stop") -> None:
        if self.streamed:
            await self.stream(self.events(text, finish))
        else:
            await self.whole(self.completion(text, finish))

    async def half(self) -> None:
        """The first half of a good answer."""
        if self.streamed:
            events = self.events()
            await self.stream(events[: len(events) // 2], end=False)
        else:
            data = self.completion()
            await self.head(length=len(data))
            await self.raw(data[: len(data) // 2])

    def reset(self) -> None:
        """Closes the connection so that the peer sees a reset."""
        told = self.writer.get_extra_info("socket")
        told.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def silence(self) -> None:
        await self.server.closing.wait()


def _usage() -> dict[str, int]:
    return {
        "prompt_tokens": PROMPT_TOKENS,
        "completion_tokens": COMPLETION_TOKENS,
        "total_tokens": PROMPT_TOKENS + COMPLETION_TOKENS,
    }


Fault = Callable[[Call], Awaitable[None]]
FAULTS: dict[str, Fault] = {}


def _fault(function: Fault) -> Fault:
    FAULTS[function.__name__] = function
    return function


@_fault
async def none(call: Call) -> None:
    await call.well()


@_fault
async def rate_limited_once(call: Call) -> None:
    if call.number == 1:
        await call.error(429, "Rate limit reached.", "rate_limit_exceeded", {"retry-after": "1"})
    else:
        await call.well()


@_fault
async def rate_limited_for_good(call: Call) -> None:
    await call.error(429, "Rate limit reached.", "rate_limit_exceeded", {"retry-after": "30"})


@_fault
async def one_500(call: Call) -> None:
    if call.number == 1:
        await call.error(500, "The server had an error.")
    else:
        await call.well()


@_fault
async def unavailable(call: Call) -> None:
    await call.error(503, "The engine is overloaded.")


@_fault
async def reset(call: Call) -> None:
    call.reset()


@_fault
async def no_response(call: Call) -> None:
    await call.silence()


@_fault
async def slow_first_token(call: Call) -> None:
    await call.head(kind="text/event-stream" if call.streamed else "application/json")
    if call.streamed:
        await call.part(call.events()[0])
    await call.silence()


@_fault
async def cut_stream(call: Call) -> None:
    await call.half()
    call.reset()


@_fault
async def cut_cleanly(call: Call) -> None:
    """The connection ends in good order in the middle of the answer."""
    await call.half()
    call.writer.close()


@_fault
async def stalled_stream(call: Call) -> None:
    await call.half()
    await call.silence()


@_fault
async def malformed_chunk(call: Call) -> None:
    if call.streamed:
        events = call.events()
        events[len(events) // 2] = b'data: {"choices": [{"delta": {"cont\n\n'
        await call.stream(events)
    else:
        data = call.completion()
        await call.whole(data[: len(data) // 2] + b"\x00\xff" + data[len(data) // 2 :])


@_fault
async def no_end_marker(call: Call) -> None:
    """Neither finish reason nor `[DONE]`, and half the text."""
    half = call.answer_text[: len(call.answer_text) // 2]
    if call.streamed:
        await call.stream(call.events(half, finish=None, done=False))
    else:
        await call.whole(call.completion(half, finish=None))


@_fault
async def context_length(call: Call) -> None:
    await call.error(400, "Maximum context length is 10 tokens.", "context_length_exceeded")


@_fault
async def content_filter(call: Call) -> None:
    await call.error(400, "The prompt was filtered by the content policy.", "content_filter")


@_fault
async def cut_and_prefill_refused(call: Call) -> None:
    """Cut in mid-answer; like every server here it refuses to continue an answer that somebody began."""
    await cut_stream(call)


@_fault
async def flapping(call: Call) -> None:
    if call.number % 2:
        await call.error(500, "The server had an error.")
    else:
        await call.well()


@_fault
async def useless_answer(call: Call) -> None:
    """Whole, polite, billed, and not what was asked for: both attempts have to be accounted for."""
    await call.well("I am sorry, but the photograph is rather dark.")


# ------------------------------------------------------------------ ours


@_fault
async def no_done(call: Call) -> None:
    """A finish reason, but no `[DONE]`: the answer is whole."""
    if call.streamed:
        await call.stream(call.events(done=False))
    else:
        await call.well()


@_fault
async def error_in_200(call: Call) -> None:
    problem = json.dumps({"error": {"message": "engine died", "type": "server_error"}}).encode()
    if call.streamed:
        await call.stream([b"data: " + problem + b"\n\n"])
    else:
        await call.whole(problem)


@_fault
async def error_in_mid_stream(call: Call) -> None:
    if call.streamed:
        events = call.events()
        problem = b'data: {"error": {"message": "engine died", "type": "server_error"}}\n\n'
        await call.stream([*events[: len(events) // 2], problem, b"data: [DONE]\n\n"])
    else:
        await error_in_200(call)


@_fault
async def truncated_json(call: Call) -> None:
    """A body that is complete as far as HTTP goes."""
    data = call.completion()
    await call.whole(data[: len(data) // 2])


@_fault
async def truncated_answer(call: Call) -> None:
    await call.well(call.answer_text[: len(call.answer_text) // 2], finish="length")


@_fault
async def filtered_answer(call: Call) -> None:
    await call.well(call.answer_text[: len(call.answer_text) // 2], finish="content_filter")


@_fault
async def wrong_content_type(call: Call) -> None:
    """A sign-in page with status 200."""
    await call.whole(b"<!doctype html><title>Sign in</title>", kind="text/html")


@_fault
async def slow_headers(call: Call) -> None:
    await call.raw(b"HTTP/1.1 200 OK\r\n")
    with contextlib.suppress(OSError):
        for number in range(10_000):
            await call.raw(b"x-%d: y\r\n" % number)
            await asyncio.sleep(0.05)


@_fault
async def empty_answer(call: Call) -> None:
    await call.well("")


@_fault
async def not_http(call: Call) -> None:
    await call.raw(b"SSH-2.0-OpenSSH_9.9\r\n")
    call.writer.close()


@_fault
async def redirected(call: Call) -> None:
    await call.whole(b"", 307, headers={"location": "http://169.254.169.254/latest/meta-data"})


@_fault
async def endless_reply(call: Call) -> None:
    await call.head()
    with contextlib.suppress(OSError):
        while True:
            await call.part(b" " * 1_000_000)


@dataclass
class FaultServer:
    model: Model
    fault: str = "none"
    requests: int = 0
    """Since the fault was set."""
    seen: list[dict[str, Any]] = field(default_factory=list)
    prefills: int = 0
    """Requests that wanted a half-written answer to be continued."""
    keeps_connections: bool = False
    """Otherwise every request comes on a connection of its own."""
    drops_kept_connections: bool = False
    """Every reply promises to keep the connection, which is then closed."""
    closing: asyncio.Event = field(default_factory=asyncio.Event)
    writers: set[asyncio.StreamWriter] = field(default_factory=set)

    def set(self, fault: str) -> None:
        if fault not in FAULTS:
            raise KeyError(f"fault {fault!r} is none of {sorted(FAULTS)}")
        self.fault, self.requests = fault, 0
        self.seen.clear()

    @contextlib.asynccontextmanager
    async def running(self, port: int) -> AsyncIterator[FaultServer]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", port, limit=2**24)
        try:
            yield self
        finally:
            self.closing.set()
            server.close()
            for writer in self.writers:
                writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.add(writer)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while not writer.is_closing() and (head := await reader.readuntil(b"\r\n\r\n")):
                length = next(
                    int(line.partition(b":")[2])
                    for line in head.split(b"\r\n")
                    if line.lower().startswith(b"content-length:")
                )
                body = json.loads(await reader.readexactly(length))
                self.requests += 1
                self.seen.append(body)
                call = Call(self, body, writer, self.requests)
                if body["messages"][-1].get("role") == "assistant":
                    self.prefills += 1
                    await call.error(400, "An assistant message cannot be continued.")
                else:
                    await FAULTS[self.fault](call)
                if self.drops_kept_connections or not self.keeps_connections:
                    break
        writer.close()
        self.writers.discard(writer)
