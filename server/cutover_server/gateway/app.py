"""The gateway's two HTTP faces: the OpenAI-compatible one for applications, and the one for the operator and probes."""

from __future__ import annotations

import logging
import os
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import orjson
from prometheus_client import CONTENT_TYPE_LATEST

from cutover import contract
from cutover_server.gateway.callers import Callers
from cutover_server.gateway.chat_request import ChatRequest, read_request
from cutover_server.gateway.exchange import Exchange
from cutover_server.gateway.http_visit import Answer, Head, Send
from cutover_server.gateway.identity import uuid7
from cutover_server.gateway.metrics import arms_of
from cutover_server.gateway.openai_shape import ApiError, as_stream
from cutover_server.gateway.passthrough import Relay, may_pass_through
from cutover_server.gateway.pressure import InFlight, Reservation

log = logging.getLogger(__name__)
_CHAT = "/v1/chat/completions"
_PATHS = {_CHAT: "POST", "/v1/models": "GET"}
_JSON = {"content-type": "application/json"}
_PLAIN = {"content-type": "text/plain; charset=utf-8"}
_EVENTS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    "x-accel-buffering": "no",
}
_ids = random.Random(os.urandom(32))  # noqa: S311 - ids have to differ, not to be secret


@dataclass(slots=True)
class Applications:
    """Answers to applications."""

    exchange: Exchange
    in_flight: InFlight
    callers: Callers
    max_body_bytes: int
    body_seconds: float
    """How long a caller may take to send a body; for the error that says so."""
    first_token_seconds: float | None
    """Streams are passed through, and their first characters come within this time; none: they are answered whole."""

    def visit(self, head: Head) -> ApplicationVisit:
        return ApplicationVisit(self, head)


class ApplicationVisit:
    """One request of an application: who asks, how many bytes it may send, and the answer, under the request's id."""

    __slots__ = ("_admin", "_announced", "_faces", "_head", "_request_id", "_reservation", "_size", "refusal")

    def __init__(self, faces: Applications, head: Head) -> None:
        self._faces = faces
        self._head = head
        self._request_id = uuid7(int(time.time() * 1000), _ids.randbytes(10))
        self._reservation = Reservation(faces.in_flight)
        self._size = 0
        self._admin = False
        self.refusal: Answer | None = None
        try:
            self._admit()
        except ApiError as error:
            self.refusal = self._error(error)

    def _admit(self) -> None:
        faces, head = self._faces, self._head
        wanted = _PATHS.get(head.path)
        if wanted != head.method:
            raise ApiError(
                405 if wanted else 404,
                f"Unknown request URL: {head.method} {head.path[:200]}.",
                code="unknown_url",
            )
        caller = faces.callers.of(head.headers.get("authorization", ""))
        if caller is None:
            faces.exchange.metrics.refused("token")
            raise ApiError(401, "Incorrect API key provided.", "authentication_error", code="invalid_api_key")
        self._admin = caller.admin
        announced = head.headers.get("content-length", "")
        if announced.isdigit():
            self._bounded(int(announced), self._reservation.expect)

    def _bounded(self, size: int, reserve: Callable[[int], None], more: int | None = None) -> None:
        """Within the limit of a body and of all bodies in flight. Raises ApiError."""
        faces = self._faces
        try:
            if size > faces.max_body_bytes:
                raise ApiError(
                    413,
                    f"The request body exceeds {faces.max_body_bytes} bytes; send smaller pictures.",
                    code="too_large",
                )
            reserve(size if more is None else more)
        except ApiError as error:
            faces.exchange.metrics.refused("size" if error.status == 413 else "pressure")
            raise

    def arrives(self, size: int) -> Answer | None:
        self._size += size
        try:
            self._bounded(self._size, self._reservation.add, size)
        except ApiError as error:
            return self._error(error)
        return None

    def is_late(self) -> Answer:
        self._faces.exchange.metrics.refused("format")
        message = f"The request body did not arrive within {self._faces.body_seconds:g} s."
        return self._error(ApiError(408, message, code="body_timeout"))

    async def answer(self, body: bytes) -> Answer:
        """Whatever goes wrong becomes an error of OpenAI's shape."""
        try:
            if self._head.path != _CHAT:
                return self._models()
            try:
                chat = read_request(body, self._head.headers, self._admin)
            except ApiError as error:
                self._faces.exchange.metrics.refused("size" if error.status == 413 else "format")
                raise
            del body
            return await self._chat(chat)
        except ApiError as error:
            return self._error(error)
        except Exception:
            log.exception("request %s failed for a reason nobody foresaw", self._request_id)
            return self._error(
                ApiError(500, "The gateway failed; the request may be sent again.", "server_error")
            )

    def close(self) -> None:
        self._reservation.release()

    async def _chat(self, chat: ChatRequest) -> Answer:
        exchange, patience = self._faces.exchange, self._faces.first_token_seconds
        case = await exchange.admit(chat, self._request_id, self._reservation)
        if chat.stream and patience is not None and may_pass_through(case):
            relay = Relay(exchange, case, patience)
            answered = await relay.open()
            if answered is None:
                return Answer(200, b"", self._headers({**relay.headers, **_EVENTS}), _patient(relay))
        else:
            answered = await exchange.answer(case)
        if chat.stream:
            events = b"".join(as_stream(answered.completion, chat.include_usage))
            return Answer(200, events, self._headers({**answered.headers, **_EVENTS}))
        return Answer(200, orjson.dumps(answered.completion), self._headers({**answered.headers, **_JSON}))

    def _models(self) -> Answer:
        route = self._faces.exchange.board.current.route
        models = dict.fromkeys(arm.model for _, arm in arms_of(route))
        data = [{"id": model, "object": "model", "created": 0, "owned_by": "cutover"} for model in models]
        return Answer(200, orjson.dumps({"object": "list", "data": data}), self._headers(dict(_JSON)))

    def _error(self, error: ApiError) -> Answer:
        return Answer(error.status, error.body(), self._headers({**error.headers(), **_JSON}))

    def _headers(self, headers: dict[str, str]) -> dict[str, str]:
        headers[contract.HEADER_REQUEST_ID] = self._request_id
        return headers


def _patient(relay: Relay) -> Callable[[Send], Awaitable[bool]]:
    """The relay's stream. A caller who has left, or does not read, is not waited for: the arm is heard to its end."""

    async def stream(send: Send) -> bool:
        listening = True

        async def send_on(piece: bytes) -> None:
            nonlocal listening
            if listening:
                try:
                    await send(piece)
                except OSError:
                    listening = False

        return await relay.run(send_on) and listening

    return stream


@dataclass(slots=True)
class Operations:
    """Answers to the operator, to probes and to Prometheus."""

    exchange: Exchange
    pod: str
    refresh_gauges: Callable[[], None]
    ready: bool = False

    def visit(self, head: Head) -> OperationsVisit:
        return OperationsVisit(self, head)

    def answer(self, head: Head) -> Answer:
        if head.method != "GET":
            return Answer(405, b"GET only\n", _PLAIN)
        if head.path == contract.PATH_LIVE:
            return Answer(200, b"alive\n", _PLAIN)
        if head.path == contract.PATH_READY:
            return Answer(200, b"ready\n", _PLAIN) if self.ready else Answer(503, b"not ready\n", _PLAIN)
        if head.path == contract.PATH_METRICS:
            self.refresh_gauges()
            return Answer(200, self.exchange.metrics.render(), {"content-type": CONTENT_TYPE_LATEST})
        if head.path == contract.PATH_ROUTE_REPORT:
            report = self.exchange.board.report(self.pod, self.exchange.gateway)
            return Answer(200, orjson.dumps(report.to_wire()), _JSON)
        return Answer(404, b"not found\n", _PLAIN)


class OperationsVisit:
    """No body is read here."""

    def __init__(self, operations: Operations, head: Head) -> None:
        self.refusal: Answer | None = None
        self._operations = operations
        self._head = head

    def arrives(self, size: int) -> Answer | None:
        return Answer(413, b"no body is read here\n", _PLAIN)

    def is_late(self) -> Answer:
        return Answer(408, b"too slow\n", _PLAIN)

    async def answer(self, body: bytes) -> Answer:
        return self._operations.answer(self._head)

    def close(self) -> None:
        return None
