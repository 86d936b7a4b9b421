"""The gateway's two HTTP faces: the OpenAI-compatible one for applications, and the one for the operator and probes."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass

import orjson
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route as Path_
from starlette.types import ASGIApp, Receive, Scope, Send

from cutover import contract
from cutover_server.gateway.callers import Caller, Callers
from cutover_server.gateway.chat_request import ChatRequest, read_request
from cutover_server.gateway.exchange import Answered, Exchange
from cutover_server.gateway.identity import uuid7
from cutover_server.gateway.metrics import arms_of
from cutover_server.gateway.openai_shape import ApiError, as_stream
from cutover_server.gateway.passthrough import Relay, may_pass_through
from cutover_server.gateway.pressure import InFlight, Reservation

log = logging.getLogger(__name__)
_JSON = "application/json"
_DISCARD_SECONDS = 1.0
_ids = random.Random(os.urandom(32))  # noqa: S311 - ids have to differ, not to be secret
_STREAM_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}


@dataclass(slots=True)
class Applications:
    """Answers to applications and to the cluster."""

    exchange: Exchange
    in_flight: InFlight
    callers: Callers
    max_body_bytes: int
    body_seconds: float
    """How long a caller may take to send a body."""
    first_token_seconds: float | None
    """Streams are passed through, and their first characters come within this time; none: they are answered whole."""
    send_seconds: float
    """How long a caller may leave part of a stream unread."""
    pod: str
    refresh_gauges: Callable[[], None]
    ready: bool = False

    def for_callers(self) -> ASGIApp:
        """Two paths need no router; what one costs per request is a tenth of the gateway's whole work."""
        handlers = {
            ("POST", "/v1/chat/completions"): self._guarded(self._chat),
            ("GET", "/v1/models"): self._guarded(self._models),
        }
        paths = {path for _, path in handlers}

        async def answer(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":
                return
            handler = handlers.get((scope["method"], scope["path"]))
            request = Request(scope, receive)
            if handler is not None:
                response = await handler(request)
            else:
                response = _not_found(request, 405 if scope["path"] in paths else 404)
            await response(scope, receive, send)

        return answer

    def for_operations(self) -> Starlette:
        return Starlette(
            routes=[
                Path_(contract.PATH_METRICS, self._metrics),
                Path_(contract.PATH_LIVE, self._live),
                Path_(contract.PATH_READY, self._ready),
                Path_(contract.PATH_ROUTE_REPORT, self._route_report),
            ]
        )

    # ------------------------------------------------------------------ applications

    def _guarded(
        self, handler: Callable[[Request, Caller, str], Awaitable[Response]]
    ) -> Callable[[Request], Awaitable[Response]]:
        """Checks who asks, and turns whatever goes wrong into an error of OpenAI's shape, under the request's id."""

        async def handle(request: Request) -> Response:
            request_id = uuid7(int(time.time() * 1000), _ids.randbytes(10))
            try:
                caller = self.callers.of(request.headers.get("authorization", ""))
                if caller is None:
                    self.exchange.metrics.refused("token")
                    raise ApiError(
                        401, "Incorrect API key provided.", "authentication_error", code="invalid_api_key"
                    )
                response = await handler(request, caller, request_id)
            except ApiError as error:
                response = Response(error.body(), error.status, error.headers(), _JSON)
                if error.close:
                    await self._discard(request)
                    response.headers["connection"] = "close"
            except ClientDisconnect:
                response = Response(status_code=499)
            except Exception:
                log.exception("request %s failed for a reason nobody foresaw", request_id)
                surprise = ApiError(500, "The gateway failed; the request may be sent again.", "server_error")
                response = Response(surprise.body(), 500, media_type=_JSON)
            response.headers[contract.HEADER_REQUEST_ID] = request_id
            if not self.ready:
                # On its way out: the caller's next request shall not meet a connection that is just being closed.
                response.headers["connection"] = "close"
            return response

        return handle

    async def _chat(self, request: Request, caller: Caller, request_id: str) -> Response:
        with ExitStack() as held:
            reservation = held.enter_context(self.in_flight.reservation())
            body = await self._body(request, reservation)
            try:
                chat = read_request(body, request.headers, caller.admin)
            except ApiError as error:
                self.exchange.metrics.refused("size" if error.status == 413 else "format")
                raise
            del body
            case = await self.exchange.admit(chat, request_id, reservation)
            if chat.stream and self.first_token_seconds is not None and may_pass_through(case):
                relay = Relay(self.exchange, case, self.first_token_seconds)
                answered = await relay.open()
                if answered is None:
                    return _Relayed(relay, self.send_seconds, held.pop_all())
            else:
                answered = await self.exchange.answer(case)
        return _whole(chat, answered)

    async def _body(self, request: Request, reservation: Reservation) -> bytes:
        """The body within its limits; nothing of a request that announces too much is kept."""
        too_large = ApiError(
            413,
            f"The request body exceeds {self.max_body_bytes} bytes; send smaller pictures.",
            code="too_large",
            close=True,
        )
        announced = request.headers.get("content-length", "")
        expected = int(announced) if announced.isdigit() else 0
        try:
            if expected > self.max_body_bytes:
                raise too_large
            reservation.expect(expected)
            chunks: list[bytes] = []
            size = 0
            async with asyncio.timeout(self.body_seconds):
                async for chunk in request.stream():
                    size += len(chunk)
                    if size > self.max_body_bytes:
                        raise too_large
                    reservation.add(len(chunk))
                    chunks.append(chunk)
        except TimeoutError:
            self.exchange.metrics.refused("format")
            raise ApiError(
                408,
                f"The request body did not arrive within {self.body_seconds:g} s.",
                code="body_timeout",
                close=True,
            ) from None
        except ApiError as error:
            self.exchange.metrics.refused("size" if error.status == 413 else "pressure")
            raise
        return b"".join(chunks)

    async def _discard(self, request: Request) -> None:
        """Reads on for a moment: a caller that is still sending would be reset before it has read its answer."""
        size = 0
        with suppress(TimeoutError, ClientDisconnect, RuntimeError):
            async with asyncio.timeout(_DISCARD_SECONDS):
                async for chunk in request.stream():
                    size += len(chunk)
                    if size > 4 * self.max_body_bytes:
                        return

    async def _models(self, request: Request, caller: Caller, request_id: str) -> Response:
        route = self.exchange.board.current.route
        models = dict.fromkeys(arm.model for _, arm in arms_of(route))
        data = [{"id": model, "object": "model", "created": 0, "owned_by": "cutover"} for model in models]
        return Response(orjson.dumps({"object": "list", "data": data}), media_type=_JSON)

    # ------------------------------------------------------------------ operations

    async def _metrics(self, request: Request) -> Response:
        self.refresh_gauges()
        return Response(self.exchange.metrics.render(), headers={"content-type": CONTENT_TYPE_LATEST})

    async def _live(self, request: Request) -> Response:
        return Response("alive\n", media_type="text/plain")

    async def _ready(self, request: Request) -> Response:
        if self.ready:
            return Response("ready\n", media_type="text/plain")
        return Response("starting or draining\n", 503, media_type="text/plain")

    async def _route_report(self, request: Request) -> Response:
        report = self.exchange.board.report(self.pod, self.exchange.gateway)
        return Response(orjson.dumps(report.to_wire()), media_type=_JSON)


def _not_found(request: Request, status: int) -> Response:
    problem = ApiError(
        status, f"Unknown request URL: {request.method} {request.url.path[:200]}.", code="unknown_url"
    )
    return Response(problem.body(), status, media_type=_JSON)


def _whole(chat: ChatRequest, answered: Answered) -> Response:
    """A finished answer, in the form the caller asked for."""
    if chat.stream:
        events = b"".join(as_stream(answered.completion, chat.include_usage))
        return Response(events, 200, {**answered.headers, **_STREAM_HEADERS}, "text/event-stream")
    return Response(orjson.dumps(answered.completion), 200, answered.headers, _JSON)


class _Relayed(Response):
    """A stream that is passed through. It ends by a cut connection unless the relay says that it ended well."""

    def __init__(self, relay: Relay, send_seconds: float, held: ExitStack) -> None:
        super().__init__(headers={**relay.headers, **_STREAM_HEADERS}, media_type="text/event-stream")
        del self.headers["content-length"]
        self._relay = relay
        self._send_seconds = send_seconds
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        listening = True

        async def send_on(body: bytes) -> None:
            nonlocal listening
            if not listening:
                return
            try:
                async with asyncio.timeout(self._send_seconds):
                    await send({"type": "http.response.body", "body": body, "more_body": True})
            except (TimeoutError, OSError):
                listening = False

        with self._held:
            await send(
                {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
            )
            if await self._relay.run(send_on) and listening:
                await send({"type": "http.response.body", "body": b"", "more_body": False})
