"""The gateway's two HTTP faces: the OpenAI-compatible one for applications, and the one for the operator and probes."""

from __future__ import annotations

import hmac
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import orjson
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route as Path_

from cutover import contract
from cutover_server.gateway.chat_request import read_request
from cutover_server.gateway.exchange import Exchange
from cutover_server.gateway.metrics import arms_of
from cutover_server.gateway.openai_shape import ApiError, as_stream
from cutover_server.gateway.pressure import InFlight, Reservation

log = logging.getLogger(__name__)
_JSON = "application/json"


@dataclass(slots=True)
class Applications:
    """Answers to applications and to the cluster."""

    exchange: Exchange
    in_flight: InFlight
    max_body_bytes: int
    client_token: str | None
    pod: str
    refresh_gauges: Callable[[], None]
    ready: bool = False

    def for_callers(self) -> Starlette:
        return Starlette(
            routes=[
                Path_("/v1/chat/completions", self._guarded(self._chat), methods=["POST"]),
                Path_("/v1/models", self._guarded(self._models), methods=["GET"]),
            ],
            exception_handlers={404: _not_found, 405: _not_found},
        )

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
        self, handler: Callable[[Request], Awaitable[Response]]
    ) -> Callable[[Request], Awaitable[Response]]:
        """Checks the caller's token, and turns whatever goes wrong into an error of OpenAI's shape."""

        async def handle(request: Request) -> Response:
            try:
                self._check_token(request)
                return await handler(request)
            except ApiError as error:
                return Response(error.body(), error.status, error.headers(), _JSON)
            except ClientDisconnect:
                return Response(status_code=499)
            except Exception:
                log.exception("a request failed for a reason nobody foresaw")
                surprise = ApiError(500, "The gateway failed; the request may be sent again.", "server_error")
                return Response(surprise.body(), 500, media_type=_JSON)

        return handle

    def _check_token(self, request: Request) -> None:
        if self.client_token is None:
            return
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(token.encode(), self.client_token.encode()):
            self.exchange.metrics.refused("token")
            raise ApiError(401, "Incorrect API key provided.", "authentication_error", code="invalid_api_key")

    async def _chat(self, request: Request) -> Response:
        with self.in_flight.reservation() as reservation:
            body = await self._body(request, reservation)
            try:
                chat = read_request(body, request.headers)
            except ApiError as error:
                self.exchange.metrics.refused("size" if error.status == 413 else "format")
                raise
            del body
            answered = await self.exchange.answer(chat, reservation)
        if chat.stream:
            events = b"".join(as_stream(answered.completion, chat.include_usage))
            headers = {**answered.headers, "cache-control": "no-cache"}
            return Response(events, 200, headers, "text/event-stream")
        return Response(orjson.dumps(answered.completion), 200, answered.headers, _JSON)

    async def _body(self, request: Request, reservation: Reservation) -> bytes:
        """The body within both limits; nothing of a request that announces too much is read."""
        too_large = ApiError(
            413,
            f"The request body exceeds {self.max_body_bytes} bytes; send smaller pictures.",
            code="too_large",
        )
        announced = request.headers.get("content-length", "")
        expected = int(announced) if announced.isdigit() else 0
        try:
            if expected > self.max_body_bytes:
                raise too_large
            reservation.add(expected)
            chunks: list[bytes] = []
            size = 0
            async for chunk in request.stream():
                size += len(chunk)
                if size > self.max_body_bytes:
                    raise too_large
                if size > expected and expected == 0:
                    reservation.add(len(chunk))
                chunks.append(chunk)
        except ApiError as error:
            self.exchange.metrics.refused("size" if error.status == 413 else "pressure")
            raise
        return b"".join(chunks)

    async def _models(self, request: Request) -> Response:
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


async def _not_found(request: Request, error: Exception) -> Response:
    status = getattr(error, "status_code", 404)
    problem = ApiError(
        status, f"Unknown request URL: {request.method} {request.url.path}.", code="unknown_url"
    )
    return Response(problem.body(), status, media_type=_JSON)
