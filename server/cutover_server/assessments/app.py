"""Puts the two HTTP applications together: the one for people and programs, and the one for operations."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cutover.contract import PATH_LIVE, PATH_METRICS, PATH_READY
from cutover_server.assessments.api import Api, validation_problem
from cutover_server.assessments.body import BodyTooLarge, BodyUnfit
from cutover_server.assessments.database import DatabaseDown
from cutover_server.assessments.pictures import StoreFailed
from cutover_server.assessments.reply import error
from cutover_server.assessments.service import Service
from cutover_server.web.pages import Pages

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; img-src 'self'; style-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'"
)
_SECURITY_HEADERS = {
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "x-content-type-options": "nosniff",
    # Not no-referrer: with that, browsers hide the origin of our own forms too.
    "referrer-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


class Front:
    """Before every route: no answer without the security headers, none at all before the tables are there."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                present = {name.lower() for name, _ in message["headers"]}
                message["headers"] = [
                    *message["headers"],
                    *(
                        (name.encode(), value.encode())
                        for name, value in _SECURITY_HEADERS.items()
                        if name.encode() not in present
                    ),
                ]
            await send(message)

        if self._service.database.migrated or scope["type"] != "http":
            await self._app(scope, receive, with_headers)
        else:
            await error(503, "the database is not ready yet")(scope, receive, with_headers)


def build_app(service: Service) -> Starlette:
    pages = Pages(service)

    def answer(status: int) -> Callable[[Request, Exception], Awaitable[Response]]:
        async def respond(_: Request, problem: Exception) -> Response:
            return error(status, str(problem))

        return respond

    async def unfit(_: Request, problem: Exception) -> Response:
        assert isinstance(problem, ValidationError)
        return validation_problem(problem)

    async def other(_: Request, problem: Exception) -> Response:
        assert isinstance(problem, HTTPException)
        response = error(problem.status_code, problem.detail)
        response.headers.update(problem.headers or {})
        return response

    handlers: dict[Any, Any] = {
        BodyTooLarge: answer(413),
        BodyUnfit: answer(400),
        DatabaseDown: answer(503),
        StoreFailed: answer(503),
        ValidationError: unfit,
        HTTPException: other,
    }
    routes: list[Route | Mount] = [*Api(service).routes(), *pages.routes()]
    app = Starlette(routes=routes, exception_handlers=handlers)
    app.add_middleware(Front, service=service)
    return app


def build_ops_app(service: Service) -> Starlette:
    registry = CollectorRegistry()
    registry.register(service.collector)

    async def metrics(_: Request) -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    async def live(_: Request) -> Response:
        if not service.alive:
            return PlainTextResponse("the maturing loop has ended", status_code=503)
        return PlainTextResponse("ok")

    async def ready(_: Request) -> Response:
        if not service.database.migrated:
            return PlainTextResponse("the database is not migrated yet", status_code=503)
        if not await service.database.reachable():
            return PlainTextResponse("the database cannot be reached", status_code=503)
        return PlainTextResponse("ok")

    return Starlette(routes=[Route(PATH_METRICS, metrics), Route(PATH_LIVE, live), Route(PATH_READY, ready)])
