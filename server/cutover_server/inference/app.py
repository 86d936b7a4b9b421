"""The engine's HTTP side: OpenAI's chat completions and models, health and metrics."""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from cutover.contract import HEADER_BUSY_SECONDS, PATH_LIVE, PATH_METRICS, PATH_READY
from cutover_server.inference.answers import DONE_EVENT, Answer, Envelope, event
from cutover_server.inference.batching import Job, QueueFull
from cutover_server.inference.engine import Engine, Prepared
from cutover_server.inference.generation import RowRun, Step
from cutover_server.inference.lines import log
from cutover_server.inference.refusal import Refusal

CLIENT_GONE = 499
_SAFE_ID = re.compile(r"[-._A-Za-z0-9]{1,128}")


def build_app(engine: Engine) -> Starlette:
    routes = Routes(engine)
    return Starlette(
        routes=[
            Route("/v1/chat/completions", routes.guarded(routes.chat), methods=["POST"]),
            Route("/v1/models", routes.models),
            Route("/health", routes.ready),
            Route(PATH_READY, routes.ready),
            Route(PATH_LIVE, routes.live),
            Route(PATH_METRICS, routes.metrics),
        ],
        exception_handlers={404: _no_such_path, 405: _no_such_path},
    )


@dataclass(slots=True)
class Waiting:
    """One request between its job and its client."""

    job: Job
    prepared: Prepared
    events: asyncio.Queue[Step | RowRun | BaseException]
    gone: asyncio.Task[None]
    started: float


class Routes:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._started = int(time.time())

    # ---------------------------------------------------------- small ones
    async def ready(self, _request: Request) -> Response:
        state = self._engine.state
        return JSONResponse({"status": state}, 200 if state == "ready" else 503)

    async def live(self, _request: Request) -> Response:
        state = self._engine.state
        return JSONResponse({"status": state}, 500 if state == "failed" else 200)

    async def metrics(self, _request: Request) -> Response:
        return Response(self._engine.telemetry.exposition(), media_type="text/plain; version=0.0.4")

    async def models(self, _request: Request) -> Response:
        settings, served = self._engine.settings, self._engine.served
        adapted = settings.adapter is not None
        card: dict[str, Any] = {
            "id": settings.served_name,
            "object": "model",
            "created": self._started,
            "owned_by": "cutover",
            "root": settings.adapter if adapted else settings.base,
            "parent": settings.base if adapted else None,
        }
        if served is not None:
            card["max_model_len"] = served.base.max_positions
            card["adapted_modules"] = served.adapted_modules
            card["adapter_digest"] = served.adapter_digest
            if served.proof is not None:
                card["proof"] = {
                    "distance": served.proof.distance,
                    "base_distance": served.proof.base_distance,
                }
        return JSONResponse({"object": "list", "data": [card]})

    def guarded(
        self, handler: Callable[[Request], Awaitable[Response]]
    ) -> Callable[[Request], Awaitable[Response]]:
        """Every way out is counted, and every error has OpenAI's shape."""

        async def guarded_handler(request: Request) -> Response:
            try:
                response = await handler(request)
            except Refusal as refusal:
                log("refused", status=refusal.status, param=refusal.param, code=refusal.code)
                response = JSONResponse(refusal.body(), refusal.status, refusal.headers())
            except (ClientDisconnect, ClientGone):
                log("client_gone")
                response = Response(status_code=CLIENT_GONE)
            except Exception as error:
                log("failed", level="error", error=type(error).__name__, message=str(error)[:500])
                failure = Refusal(
                    500, "the model failed; try again", kind="server_error", code="model_failed"
                )
                response = JSONResponse(failure.body(), 500)
            self._engine.telemetry.requests.labels(str(response.status_code)).inc()
            return response

        return guarded_handler

    # ---------------------------------------------------------- chat
    async def chat(self, request: Request) -> Response:
        engine = self._engine
        engine.check_open()
        body = await _body(request, engine.settings.max_body_bytes)
        waiting = await self._enqueue(request, body)
        wanted = waiting.prepared.request
        envelope = Envelope(f"chatcmpl-{uuid.uuid4().hex}", int(time.time()), wanted.model)
        assert engine.served is not None
        answer = Answer(engine.served.detokenizer.start(), wanted.top_logprobs is not None)
        try:
            # The status line waits for the first token: a failure before it is still an honest 500.
            first = await self._next(waiting)
            if wanted.stream:
                stream = self._stream(waiting, envelope, answer, first)
                return StreamingResponse(stream, media_type="text/event-stream")
            steps, run = await self._collect(waiting, first)
        except BaseException:
            self._abandon(waiting)
            raise
        waiting.gone.cancel()
        await asyncio.get_running_loop().run_in_executor(
            engine.preparer, lambda: [answer.add(step) for step in steps]
        )
        self._account(waiting, run, request_id=envelope.id, header=request.headers.get("x-request-id"))
        engine.check_schema(waiting.prepared.validator, answer.text.text)
        document = envelope.completion(answer, run.finish or "length", waiting.prepared.prompt_tokens)
        return JSONResponse(document, headers={HEADER_BUSY_SECONDS: f"{run.busy_seconds:.6f}"})

    async def _enqueue(self, request: Request, body: bytes) -> Waiting:
        engine, loop = self._engine, asyncio.get_running_loop()
        try:
            engine.batcher.admit()
        except QueueFull as full:
            raise Refusal(
                429,
                f"{full}; come back in {full.retry_after_seconds} s",
                kind="rate_limit_error",
                code="queue_full",
                retry_after_seconds=full.retry_after_seconds,
            ) from None
        try:
            prepared = await loop.run_in_executor(engine.preparer, engine.prepare, body)
        except BaseException:
            engine.batcher.release()
            raise
        events: asyncio.Queue[Step | RowRun | BaseException] = asyncio.Queue()

        def post(item: Step | RowRun | BaseException) -> None:
            loop.call_soon_threadsafe(events.put_nowait, item)

        job = Job(prepared.row, prepared.request.sampling, step=post, done=post, failed=post)
        gone = asyncio.create_task(_until_disconnect(request))
        engine.batcher.submit(job)
        return Waiting(job, prepared, events, gone, time.monotonic())

    async def _next(self, waiting: Waiting) -> Step | RowRun:
        """The next event of the job. Raises ClientGone, or what the model raised."""
        getter = asyncio.ensure_future(waiting.events.get())
        try:
            await asyncio.wait({getter, waiting.gone}, return_when=asyncio.FIRST_COMPLETED)
            if not getter.done():
                raise ClientGone
            item = getter.result()
        finally:
            getter.cancel()
        if isinstance(item, BaseException):
            raise item
        return item

    async def _collect(self, waiting: Waiting, first: Step | RowRun) -> tuple[list[Step], RowRun]:
        steps: list[Step] = []
        item = first
        while isinstance(item, Step):
            steps.append(item)
            item = await self._next(waiting)
        return steps, item

    async def _stream(
        self, waiting: Waiting, envelope: Envelope, answer: Answer, first: Step | RowRun
    ) -> AsyncIterator[bytes]:
        """Server-sent events. A failure on the way ends in an error event, never in a clean end."""
        try:
            yield envelope.chunk({"role": "assistant", "content": ""})
            item = first
            while isinstance(item, Step):
                piece, entries = answer.add(item)
                if piece or entries:
                    yield envelope.chunk({"content": piece}, entries=entries or None)
                item = await self._next(waiting)
            yield envelope.chunk({}, finish=item.finish or "length")
            if waiting.prepared.request.stream_usage:
                yield envelope.usage_chunk(
                    waiting.prepared.prompt_tokens, answer.completion_tokens, item.busy_seconds
                )
            yield DONE_EVENT
            self._account(waiting, item, request_id=envelope.id, header=None)
            self._engine.check_schema(waiting.prepared.validator, answer.text.text)
        except ClientGone:
            log("client_gone", id=envelope.id)
        except Exception as error:
            log("failed", level="error", id=envelope.id, error=type(error).__name__, message=str(error)[:500])
            yield event(
                Refusal(
                    500, "the model failed in mid-answer", kind="server_error", code="model_failed"
                ).body()
            )
        finally:
            self._abandon(waiting)

    def _abandon(self, waiting: Waiting) -> None:
        waiting.gone.cancel()
        self._engine.batcher.cancel(waiting.job)

    def _account(self, waiting: Waiting, run: RowRun, *, request_id: str, header: str | None) -> None:
        telemetry, seconds = self._engine.telemetry, time.monotonic() - waiting.started
        telemetry.generation_seconds.observe(run.busy_seconds if run.busy_seconds > seconds else seconds)
        telemetry.busy_seconds.inc(run.busy_seconds)
        telemetry.tokens.labels("prompt").inc(waiting.prepared.prompt_tokens)
        telemetry.tokens.labels("completion").inc(run.tokens)
        log(
            "answered",
            id=request_id,
            request_id=header if header is not None and _SAFE_ID.fullmatch(header) else None,
            prompt_tokens=waiting.prepared.prompt_tokens,
            completion_tokens=run.tokens,
            finish=run.finish,
            seconds=round(seconds, 4),
            busy_seconds=round(run.busy_seconds, 4),
        )


class ClientGone(Exception):
    """The connection is closed; nobody waits for the answer."""


async def _until_disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _body(request: Request, limit: int) -> bytes:
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            raise Refusal(
                413, f"the body is larger than {limit} bytes; send a smaller picture", code="too_large"
            )
        parts.append(part)
    return b"".join(parts)


async def _no_such_path(request: Request, error: Exception) -> Response:
    status = getattr(error, "status_code", 404)
    refusal = Refusal(
        status, f"{request.method} {request.url.path[:200]} is not served; POST /v1/chat/completions is"
    )
    return JSONResponse(refusal.body(), status)
