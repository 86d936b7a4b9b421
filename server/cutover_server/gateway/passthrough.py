"""A stream handed on while it is generated, for gateways that are configured so.

Before the first generated characters everything is as in one piece: other arms may answer, errors have a status. After
them the caller has part of an answer, so what goes wrong can only be said in the stream: an `error` event, then the
connection is cut, never a clean end. The finish reason is held back until the whole answer is valid and written down.
A caller who leaves changes no count: the arm's answer is read to its end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import orjson

from cutover import contract
from cutover.route import Arm
from cutover_server.gateway.arm_stream import ArmStream
from cutover_server.gateway.attempt import Attempt
from cutover_server.gateway.case import Case
from cutover_server.gateway.exchange import Answered, Exchange, nobody_answered
from cutover_server.gateway.openai_shape import PieceEvents, chunk_event, end_events, header_text
from cutover_server.gateway.reading import Reading

Send = Callable[[bytes], Awaitable[None]]


def may_pass_through(case: Case) -> bool:
    """Whether the chosen arm's answer may be handed on unjudged: not where a low confidence would give it up."""
    return case.chosen == "control" or case.route.fallback_rules.confidence is None


class Relay:
    """The stream of one request, from its gate to its end."""

    def __init__(self, exchange: Exchange, case: Case, first_token_seconds: float) -> None:
        self._exchange = exchange
        self._case = case
        self._first_token_seconds = first_token_seconds
        self._stream: ArmStream | None = None
        self._attempts: list[Attempt] = []
        self.headers: dict[str, str] = {}

    async def open(self) -> Answered | None:
        """None when a stream is open; an answer that came in one piece otherwise. Raises ApiError."""
        exchange, case = self._exchange, self._case
        try:
            self._attempts = await exchange.asking.until_answered(case, self._begin)
        except BaseException:
            self._close()
            raise
        if self._stream is None:
            await exchange.conclude(case, self._attempts)
            return exchange.reply(case, self._attempts)
        self.headers = {**case.headers, contract.HEADER_VERSION: header_text(self._stream.arm.version)}
        first = self._attempts[0].reading.kind
        if len(self._attempts) > 1:
            self.headers[contract.HEADER_FALLBACK] = "error" if first == "refused" else str(first)
        return None

    async def _begin(self, arm: Arm, limit_seconds: float) -> Attempt:
        case = self._case
        until = asyncio.get_running_loop().time() + case.seconds_left
        stream = ArmStream(self._exchange.caller, arm, case.route.task, case.in_force.is_valid, until)
        try:
            over = await stream.begin(
                case.body_for(arm, stream=True), min(limit_seconds, self._first_token_seconds)
            )
        except BaseException:
            stream.close()
            raise
        if over is not None:
            stream.close()
            return over
        self._stream = stream
        return Attempt(arm, Reading("answered"), unfinished=True)

    async def run(self, send: Send) -> bool:
        """Sends the events of an open stream. False when it must not end cleanly."""
        stream, case = self._stream, self._case
        assert stream is not None
        head: dict[str, Any] = {
            "id": case.request_id,
            "object": "chat.completion.chunk",
            "created": int(case.received),
            "model": stream.arm.model,
        }
        try:
            usage = case.request.include_usage
            pieces = PieceEvents(head, usage)
            events = [chunk_event(head, {"role": "assistant", "content": ""}, usage)]
            while choices := await stream.choices():
                for choice in choices:
                    delta = choice.get("delta")
                    piece = delta.get("content") if isinstance(delta, dict) else None
                    if not isinstance(piece, str) or not piece:
                        continue
                    logprobs = choice.get("logprobs") if case.request.wants_logprobs else None
                    try:
                        if logprobs is None:
                            events.append(pieces.event(piece))
                        else:
                            events.append(chunk_event(head, {"content": piece}, usage, logprobs=logprobs))
                    except orjson.JSONEncodeError:  # nested so deeply that it can be read, but not written
                        events.append(pieces.event(piece))
                if events:
                    await send(b"".join(events))
                    events = []
            last = stream.finish()
        except BaseException:
            self._exchange.asking.breakers.abandoned(stream.arm)
            raise
        finally:
            self._close()
        last = replace(last, stumbled=self._attempts[-1].stumbled)
        self._exchange.asking.report(case, last)
        await self._exchange.conclude(case, [*self._attempts[:-1], last])
        if last.reading.kind == "answered":
            await send(b"".join(end_events(head, "stop", last.reading.completion or {}, usage)))
            return True
        await send(b"data: " + nobody_answered([last]).body() + b"\n\n")
        return False

    def _close(self) -> None:
        if self._stream is not None:
            self._stream.close()
