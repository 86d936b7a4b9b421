"""HTTP/1.1 as the gateway speaks it to arms and to the assessments service: a body that is there whole, a bounded reply.

A general client does much that no arm needs, on every request (docs/decisions/0014). This one follows no redirects,
knows no cookies, proxies or compression, and never sends a request twice, but for one case: a kept connection that fails
at once looks like one the server had closed, so the request goes once more on a new connection. The server may have
read the first all the same, and died of it: a completion changes nothing, but it then costs twice.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import socket
import ssl
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from urllib.parse import unquote, urlsplit

from aiohappyeyeballs import start_connection

from cutover_server.gateway.http_connection import Connection, Reply, ReplyBroken

CONNECT_SECONDS = 3.0
_IDLE_SECONDS = 4.0
"""Idle connections are given up before the servers' own five seconds."""
_STALE_SECONDS = 0.25
"""A kept connection the server had closed fails within this time. One that fails later, or a new one, carried the
request, and somebody may have begun with it."""
_SECOND_ADDRESS_SECONDS = 0.25


class NotConnected(OSError):
    """Nobody was reached: the request has certainly not been sent."""


class ConnectTimeout(NotConnected):
    """No connection within CONNECT_SECONDS."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a URL leads, parsed once."""

    host: str
    port: int
    tls: bool
    target: bytes
    """Path and query."""
    headers: bytes
    """Host; and the user and password of the URL, if it holds any."""

    def below(self, path: str) -> Endpoint:
        """The endpoint with a path behind its own."""
        return replace(self, target=self.target.rstrip(b"/") + path.encode("ascii"))


@lru_cache(maxsize=256)
def endpoint(url: str) -> Endpoint:
    """Raises ValueError for anything but an http or https URL."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("an http or https URL is needed")
    tls = parts.scheme == "https"
    host = parts.hostname
    with contextlib.suppress(UnicodeError):
        host = host.encode("idna").decode("ascii") if not host.isascii() else host
    shown = f"[{host}]" if ":" in host else host
    shown += f":{parts.port}" if parts.port not in (None, 443 if tls else 80) else ""
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if any(character <= " " or character > "~" for character in target + shown):
        raise ValueError("the URL holds a character that must be percent-encoded")
    headers = f"Host: {shown}\r\n"
    if parts.username is not None:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        headers += f"Authorization: Basic {base64.b64encode(pair.encode()).decode()}\r\n"
    port = parts.port or (443 if tls else 80)
    return Endpoint(host, port, tls, target.encode("ascii"), headers.encode("ascii"))


class HttpPool:
    """At most so many requests at once over all hosts; the others wait their turn within their own time."""

    def __init__(self, connections: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._free = connections
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._idle: dict[tuple[str, int, bool], deque[Connection]] = {}
        self._open: set[Connection] = set()
        self._ssl: ssl.SSLContext | None = None
        self._sweep: asyncio.TimerHandle | None = None

    async def send(
        self,
        method: bytes,
        where: Endpoint,
        headers: bytes,
        body: Sequence[bytes | memoryview],
        limit_at: float,
        silence_seconds: float,
    ) -> Reply:
        """The reply, its head read; to be closed. Raises TimeoutError, NotConnected, ReplyBroken, ReplyTooLarge.

        `limit_at` is loop time; `silence_seconds` bounds a pause within a reply that has begun. On a kept connection that
        fails at once the request may have been read, and is sent a second time.
        """
        size = sum(map(len, body))
        head = b"%b %b HTTP/1.1\r\n%b%bContent-Length: %d\r\n\r\n" % (
            method,
            where.target,
            where.headers,
            headers,
            size,
        )
        data = (head, *body)
        reply = await self._send(where, data, limit_at, silence_seconds, fresh=False)
        try:
            try:
                await reply.head()
            except ReplyBroken:
                stale = self._loop.time() - reply.sent_at <= _STALE_SECONDS
                if not (stale and reply.on_kept_connection and reply.last_byte_at == reply.sent_at):
                    raise
                reply.close()
                reply = await self._send(where, data, limit_at, silence_seconds, fresh=True)
                await reply.head()
        except BaseException:
            reply.close()
            raise
        return reply

    def close(self) -> None:
        for connection in list(self._open):
            connection.cut()
        if self._sweep is not None:
            self._sweep.cancel()

    # ------------------------------------------------------------------ connections

    async def _send(
        self,
        where: Endpoint,
        data: Sequence[bytes | memoryview],
        limit_at: float,
        silence_seconds: float,
        fresh: bool,
    ) -> Reply:
        await self._turn(limit_at)
        try:
            connection = None if fresh else self._kept(where)
            kept = connection is not None
            if connection is None:
                connection = await self._connect(where, limit_at)
            return connection.ask(data, kept, limit_at, silence_seconds)
        except BaseException:
            self._next_turn()
            raise

    def _kept(self, where: Endpoint) -> Connection | None:
        kept = self._idle.get((where.host, where.port, where.tls))
        oldest = self._loop.time() - _IDLE_SECONDS
        while kept:
            connection = kept.pop()
            if connection.usable and connection.idle_since > oldest:
                return connection
            connection.cut()
        return None

    async def _connect(self, where: Endpoint, limit_at: float) -> Connection:
        now = self._loop.time()
        key = (where.host, where.port, where.tls)

        def left(connection: Connection, usable: bool) -> None:
            if usable:
                self._idle.setdefault(key, deque()).append(connection)
                if self._sweep is None:
                    self._sweep = self._loop.call_later(_IDLE_SECONDS, self._close_idle)
            self._next_turn()

        def lost(connection: Connection) -> None:
            self._open.discard(connection)
            with contextlib.suppress(KeyError, ValueError):
                self._idle[key].remove(connection)

        try:
            async with asyncio.timeout_at(min(limit_at, now + CONNECT_SECONDS)):
                addresses = await self._loop.getaddrinfo(where.host, where.port, type=socket.SOCK_STREAM)
                connected = await start_connection(
                    addresses, happy_eyeballs_delay=_SECOND_ADDRESS_SECONDS, loop=self._loop
                )
                connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if where.tls and self._ssl is None:
                    self._ssl = ssl.create_default_context()
                _, connection = await self._loop.create_connection(
                    lambda: Connection(self._loop, left, lost),
                    sock=connected,
                    ssl=self._ssl if where.tls else None,
                    server_hostname=where.host if where.tls else None,
                )
        except TimeoutError:
            if limit_at <= now + CONNECT_SECONDS:
                raise
            raise ConnectTimeout from None
        except (OSError, RuntimeError, ValueError) as error:
            raise NotConnected(type(error).__name__) from error
        self._open.add(connection)
        return connection

    def _close_idle(self) -> None:
        self._sweep = None
        oldest = self._loop.time() - _IDLE_SECONDS
        left = False
        for kept in self._idle.values():
            while kept and kept[0].idle_since <= oldest:
                kept.popleft().cut()
            left = left or bool(kept)
        if left:
            self._sweep = self._loop.call_later(_IDLE_SECONDS / 2, self._close_idle)

    # ------------------------------------------------------------------ turns

    async def _turn(self, limit_at: float) -> None:
        if self._free > 0 and not self._waiting:
            self._free -= 1
            return
        turn: asyncio.Future[None] = self._loop.create_future()
        self._waiting.append(turn)
        try:
            async with asyncio.timeout_at(limit_at):
                await turn
        except BaseException:
            if turn.done() and not turn.cancelled():
                self._next_turn()
            raise

    def _next_turn(self) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1
