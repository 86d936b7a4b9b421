"""uvicorn as the gateway runs it: request heads are bounded, and what is no HTTP is refused in OpenAI's shape.

Two servers share the process, so signals are left to it. A stream that must not end cleanly is an answer without its
last part; uvicorn cuts such a connection, and what it would log about it is no news.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Iterator

import httptools
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from cutover_server.gateway.openai_shape import ApiError

MAX_HEAD_BYTES = 65_536
"""Of the request line and the headers together."""
_CUT = "ASGI callable returned without completing response."


class BoundedHttp(HttpToolsProtocol):
    """Counts a request's head while it arrives; the parser itself would keep any amount of it."""

    _in_head = False
    _head_bytes = 0

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._in_head and not self.transport.is_closing():
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self.send_400_response("")

    def on_message_begin(self) -> None:
        self._in_head, self._head_bytes = True, 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value) + 4)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head, self._head_bytes = False, 0
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        if self._head_bytes > MAX_HEAD_BYTES:
            problem = ApiError(431, f"The request's head exceeds {MAX_HEAD_BYTES} bytes.")
            line = b"HTTP/1.1 431 Request Header Fields Too Large\r\n"
        else:
            problem = ApiError(400, "The request is not valid HTTP.")
            line = b"HTTP/1.1 400 Bad Request\r\n"
        body = problem.body()
        self.transport.write(
            line
            + b"content-type: application/json\r\nconnection: close\r\n"
            + b"content-length: %d\r\n\r\n" % len(body)
            + body
        )
        self.transport.close()

    def _count(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > MAX_HEAD_BYTES:
            raise httptools.HttpParserError("the head is too large")


class Server(uvicorn.Server):
    """Leaves signals to the process and tells when it listens."""

    def __init__(self, app: ASGIApp, host: str, port: int, drain_seconds: float) -> None:
        logging.getLogger("uvicorn.error").addFilter(_is_news)
        super().__init__(
            uvicorn.Config(
                app,
                host=host,
                port=port,
                http=BoundedHttp,
                loop="uvloop",
                lifespan="off",
                access_log=False,
                log_config=None,
                server_header=False,
                proxy_headers=False,
                backlog=2048,
                timeout_keep_alive=75,
                timeout_graceful_shutdown=int(drain_seconds) or 1,
            )
        )
        self.listening = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _is_news(record: logging.LogRecord) -> bool:
    return record.msg != _CUT
