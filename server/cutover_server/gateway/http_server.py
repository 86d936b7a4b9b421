"""HTTP/1.1 as the gateway serves it: a request with its whole body becomes a visit, and its answer leaves in one write.

A general server and framework do much that two paths do not need (docs/decisions/0014). Requests of a connection are
answered in turn. Heads are bounded, and bodies by what the visit says to each piece; what is no HTTP is refused in
OpenAI's shape. Whoever is refused while still sending is listened to for a moment: reset, it would never read why. A
stream that must not end cleanly ends by a cut connection. Whoever does not read its answers gets no others, and is cut
off in the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import httptools

from cutover_server.gateway.http_visit import Answer, Head, Visit, response_head
from cutover_server.gateway.openai_shape import ApiError
from cutover_server.listener import BACKLOG

log = logging.getLogger(__name__)
MAX_HEAD_BYTES = 65_536
"""Of the request line and the headers together."""
_FRAMING = ("content-length", "transfer-encoding")
_KEEP_ALIVE_SECONDS = 75.0
_DISCARD_SECONDS = 1.0
_READ_BYTES = 262_144
"""Of one read: a photograph arrives in one or two."""
_SMALL_BYTES = 4096
"""Smaller pieces of a body are gathered: a caller may send a chunk for each byte, and an object of its own is forty."""


@dataclass(frozen=True, slots=True)
class Limits:
    body_seconds: float = 30.0
    """How long a caller may take to send a body."""
    send_seconds: float = 15.0
    """How long a caller may leave an answer unread without taking any of it."""
    discard_bytes: int = 1_000_000
    """How much of a refused body is read on."""


class Server:
    """Listens, and lets requests in flight finish before it ends."""

    def __init__(
        self,
        visit: Callable[[Head], Visit],
        host: str,
        port: int,
        drain_seconds: float,
        limits: Limits | None = None,
    ) -> None:
        self.visit = visit
        self.limits = limits or Limits()
        self.connections: set[Connection] = set()
        self.buffer = memoryview(bytearray(_READ_BYTES))
        """What a connection reads goes here and is taken from here at once, so all share it."""
        self.leaving = False
        """Set some time before `stopping`: still answers, but closes each connection with its answer, so that the
        caller's next request does not meet a connection that is just being closed."""
        self.stopping = asyncio.Event()
        self._host, self._port, self._drain_seconds = host, port, drain_seconds
        self._listener: asyncio.Server | None = None
        self._empty = asyncio.Event()

    async def listen(self, made: socket.socket | None = None) -> None:
        """On a socket that listens already, else on one of its own. Raises OSError when the port is taken."""
        loop = asyncio.get_running_loop()
        if made is None:
            self._listener = await loop.create_server(
                lambda: Connection(self), self._host, self._port, backlog=BACKLOG
            )
        else:
            self._listener = await loop.create_server(lambda: Connection(self), sock=made, backlog=BACKLOG)

    async def serve(self) -> None:
        """Until `stopping` is set, and then until nobody is served any more or the drain's time is over."""
        assert self._listener is not None
        await self.stopping.wait()
        self._listener.close()
        for connection in list(self.connections):
            connection.finish()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._drain_seconds):
                while self.connections:
                    self._empty.clear()
                    await self._empty.wait()
        for connection in list(self.connections):
            connection.cut()

    def gone(self, connection: Connection) -> None:
        self.connections.discard(connection)
        self._empty.set()


class _Incoming:
    """A request while it arrives."""

    __slots__ = ("body", "complete", "head", "keeps", "refused", "visit")

    def __init__(self) -> None:
        self.head = Head()
        self.body: list[bytes | bytearray] = []
        self.visit: Visit | None = None
        self.refused: Answer | None = None
        self.complete = False
        self.keeps = False


class _BodyOnly:
    """Takes the body of a request whose head has been read."""

    def __init__(self, connection: Connection) -> None:
        self.on_body = connection.on_body
        self.on_message_complete = connection.body_is_complete


class Connection(asyncio.BufferedProtocol):
    def __init__(self, server: Server) -> None:
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._url = b""
        self._head_bytes = 0
        """Of the head's complete headers."""
        self._raw_head_bytes = 0
        """Of the head so far, complete headers or not; less what came together with the end of the request before."""
        self._in_head = True
        self._begun = 0
        """Requests that had begun by the end of the last read, counted from the one under way at its start."""
        self._bodiless = False
        """The parser ends the request at its head, for an upgrade that is not made; its body comes none the less."""
        self._arriving: _Incoming | None = None
        self._waiting: deque[_Incoming] = deque()
        self._serving: asyncio.Task[None] | None = None
        self._last = False
        """No request is taken any more: the connection ends with the answer under way."""
        self._deaf = False
        """What still comes is thrown away."""
        self._discarded = 0
        self._paused = False
        self._quiet_since = self._loop.time()
        self._idle_timer: asyncio.TimerHandle | None = None
        self._body_timer: asyncio.TimerHandle | None = None
        self._writable: asyncio.Future[None] | None = None
        """Set while the caller does not read."""

    # ------------------------------------------------------------------ from the server

    def finish(self) -> None:
        """Nothing new: ends now, or with the answer under way."""
        self._last = True
        if self._serving is None and self._arriving is None:
            self._close()

    def cut(self) -> None:
        if self._serving is not None:
            self._serving.cancel()
        if self._transport is not None:
            self._transport.abort()

    # ------------------------------------------------------------------ asyncio.BufferedProtocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._server.connections.add(self)
        self._idle_timer = self._loop.call_later(_KEEP_ALIVE_SECONDS, self._look_whether_idle)

    def connection_lost(self, error: Exception | None) -> None:
        for timer in (self._idle_timer, self._body_timer):
            if timer is not None:
                timer.cancel()
        self._deaf = True
        self.resume_writing()
        for incoming in (self._arriving, *self._waiting):
            if incoming is not None and incoming.visit is not None:
                incoming.visit.close()
        self._arriving = None
        self._waiting.clear()
        if self._serving is None:  # an answer under way is written down although nobody will read it
            self._server.gone(self)

    def pause_writing(self) -> None:
        self._writable = self._loop.create_future()

    def resume_writing(self) -> None:
        writable, self._writable = self._writable, None
        if writable is not None and not writable.done():
            writable.set_result(None)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._server.buffer

    def buffer_updated(self, nbytes: int) -> None:
        if self._deaf:
            self._discarded += nbytes
            if self._discarded > self._server.limits.discard_bytes and self._transport is not None:
                self._transport.abort()
            return
        self._begun = 0 if self._arriving is None else 1
        try:
            self._feed(self._server.buffer[:nbytes])
        except httptools.HttpParserError:
            self._refuse_malformed()
            return
        if self._in_head and self._begun < 2:
            self._raw_head_bytes += nbytes
            if self._head_is_too_large():
                self._refuse_malformed()
                return
        arriving = self._arriving
        if arriving is None:
            return
        if arriving.refused is not None:
            self._refuse(arriving.refused)
        elif arriving.visit is not None and self._body_timer is None:
            self._body_timer = self._loop.call_later(self._server.limits.body_seconds, self._body_is_late)

    def _feed(self, data: memoryview) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            # No other protocol is spoken here: the request itself is answered, and nothing behind it is read.
            if self._bodiless and self._arriving is not None:
                headers = self._arriving.head.headers
                framing = [f"{name}: {headers[name]}\r\n" for name in _FRAMING if name in headers]
                self._parser = httptools.HttpRequestParser(_BodyOnly(self))
                self._parser.feed_data(f"POST / HTTP/1.1\r\n{''.join(framing)}\r\n".encode("latin-1"))
                self._parser.feed_data(data[upgrade.args[0] :])

    def _head_is_too_large(self) -> bool:
        return max(self._head_bytes + len(self._url), self._raw_head_bytes) > MAX_HEAD_BYTES

    # ------------------------------------------------------------------ httptools

    def on_message_begin(self) -> None:
        self._arriving = _Incoming()
        self._url = b""
        self._in_head, self._head_bytes, self._raw_head_bytes = True, 0, 0
        self._begun += 1

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        assert self._arriving is not None
        self._head_bytes += len(name) + len(value) + 4
        if self._head_bytes > MAX_HEAD_BYTES:
            raise httptools.HttpParserError("the head is too large")
        if not self._in_head:
            return  # behind the body: whoever looked at the head has not seen it
        self._arriving.head.headers.setdefault(name.decode("latin-1").lower(), value.decode("latin-1"))

    def on_headers_complete(self) -> None:
        arriving = self._arriving
        assert arriving is not None
        self._in_head = False
        if self._head_is_too_large():
            raise httptools.HttpParserError("the head is too large")
        head = arriving.head
        head.method = self._parser.get_method().decode("ascii")
        url = self._url if self._url.startswith(b"/") else httptools.parse_url(self._url).path or b"/"
        head.path = url.partition(b"?")[0].decode("latin-1")
        upgrades = self._parser.should_upgrade()
        self._bodiless = upgrades and any(name in head.headers for name in _FRAMING)
        kept = self._parser.should_keep_alive() and not upgrades
        arriving.keeps = kept and self._parser.get_http_version() == "1.1"
        arriving.visit = self._server.visit(head)
        arriving.refused = arriving.visit.refusal
        expects = head.headers.get("expect", "").lower() == "100-continue"
        if expects and arriving.refused is None and self._serving is None:
            self._write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        arriving = self._arriving
        if arriving is None or arriving.visit is None or arriving.refused is not None:
            return
        arriving.refused = arriving.visit.arrives(len(body))
        pieces = arriving.body
        if arriving.refused is not None:
            pieces.clear()
        elif len(body) >= _SMALL_BYTES:
            pieces.append(body)
        elif pieces and isinstance(pieces[-1], bytearray):
            pieces[-1] += body
        else:
            pieces.append(bytearray(body))

    def on_message_complete(self) -> None:
        if not self._bodiless:
            self.body_is_complete()

    def body_is_complete(self) -> None:
        arriving, self._arriving = self._arriving, None
        if self._body_timer is not None:
            self._body_timer.cancel()
            self._body_timer = None
        if arriving is None or arriving.visit is None:
            return
        if self._last and self._serving is not None:
            arriving.visit.close()
            return
        self._waiting.append(arriving)
        if self._serving is None:
            self._serve_next()
        elif self._transport is not None and not self._paused:
            self._paused = True
            self._transport.pause_reading()

    # ------------------------------------------------------------------ refusing

    def _refuse_malformed(self) -> None:
        problem = (
            ApiError(431, f"The request's head exceeds {MAX_HEAD_BYTES} bytes.")
            if self._head_is_too_large()
            else ApiError(400, "The request is not valid HTTP.")
        )
        self._refuse(Answer(problem.status, problem.body(), {"content-type": "application/json"}))

    def _refuse(self, answer: Answer) -> None:
        """Answers a request that has not wholly arrived, and takes no other."""
        arriving, self._arriving = self._arriving, None
        if self._body_timer is not None:
            self._body_timer.cancel()
            self._body_timer = None
        if arriving is not None and arriving.visit is not None:
            arriving.visit.close()
        self._last = self._deaf = True
        if self._serving is None:  # else the answer under way is the last one
            self._write(response_head(answer, keeps=False), answer.body)
            self._end_soon()

    def _body_is_late(self) -> None:
        self._body_timer = None
        if self._arriving is not None and self._arriving.visit is not None:
            self._refuse(self._arriving.visit.is_late())

    def _end_soon(self) -> None:
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        if self._transport is not None:
            with contextlib.suppress(OSError, RuntimeError, NotImplementedError):
                self._transport.write_eof()
            self._idle_timer = self._loop.call_later(_DISCARD_SECONDS, self._close)

    def _close(self) -> None:
        """Sends what is written; a caller who does not take it is cut off."""
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        if self._transport is not None:
            self._transport.close()
            self._watch(self._transport, self._transport.get_write_buffer_size())

    def _watch(self, transport: asyncio.Transport, unread: int) -> None:
        def look() -> None:
            left = transport.get_write_buffer_size()
            if left < unread:
                self._watch(transport, left)
            else:
                transport.abort()

        self._idle_timer = self._loop.call_later(self._server.limits.send_seconds, look)

    # ------------------------------------------------------------------ answering

    def _serve_next(self) -> None:
        incoming = self._waiting.popleft()
        self._serving = self._loop.create_task(self._serve(incoming))

    async def _serve(self, incoming: _Incoming) -> None:
        keeps = False
        try:
            keeps = await self._answer(incoming) and await self._is_read()
        finally:
            self._serving = None
            self._quiet_since = self._loop.time()
            self._go_on(keeps)

    async def _answer(self, incoming: _Incoming) -> bool:
        """Writes the answer. False when the connection must end with it."""
        visit = incoming.visit
        assert visit is not None
        told = False
        try:
            answer = incoming.refused
            if answer is None:
                pieces, incoming.body = incoming.body, []
                body = pieces.pop() if len(pieces) == 1 else b"".join(pieces)
                answer = await visit.answer(bytes(body))  # of bytes, bytes() makes no copy
            keeps = incoming.keeps and not self._last and not self._server.leaving
            head = response_head(answer, keeps)
            told = True
            if answer.stream is None:
                self._write(head, b"" if incoming.head.method == "HEAD" else answer.body)
                return keeps
            self._write(head)
            if not await answer.stream(self._send):
                return False
            self._write(b"0\r\n\r\n")
            return keeps
        except Exception:
            log.exception("an answer failed for a reason nobody foresaw")
            if not told:
                problem = ApiError(500, "The gateway failed; the request may be sent again.", "server_error")
                failed = Answer(500, problem.body(), {"content-type": "application/json"})
                self._write(response_head(failed, keeps=False), failed.body)
            return False
        finally:
            visit.close()

    def _go_on(self, keeps: bool) -> None:
        transport = self._transport
        if transport is None or transport.is_closing():
            self._server.gone(self)
            return
        if not keeps or self._last:
            if self._deaf:
                self._end_soon()
            else:
                self._close()
        elif self._waiting:
            self._serve_next()
        elif self._paused:
            self._paused = False
            transport.resume_reading()

    async def _is_read(self) -> bool:
        """Waits until the caller has taken most of what was written; false when it takes nothing any more."""
        while (writable := self._writable) is not None and self._transport is not None:
            size = self._transport.get_write_buffer_size()
            await asyncio.wait((writable,), timeout=self._server.limits.send_seconds)
            if not writable.done() and self._transport.get_write_buffer_size() >= size:
                return False
        return True

    async def _send(self, piece: bytes) -> None:
        if self._writable is not None:
            async with asyncio.timeout(self._server.limits.send_seconds):
                await asyncio.shield(self._writable)
        if self._transport is None or self._transport.is_closing():
            raise ConnectionResetError
        self._transport.writelines((b"%x\r\n" % len(piece), piece, b"\r\n"))

    def _write(self, *data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.writelines(data)

    def _look_whether_idle(self) -> None:
        now = self._loop.time()
        until = self._quiet_since + _KEEP_ALIVE_SECONDS
        if self._serving is not None or (self._arriving is not None and not self._in_head):
            until = now + _KEEP_ALIVE_SECONDS
        if now >= until:
            self._close()
        else:
            self._idle_timer = self._loop.call_at(until, self._look_whether_idle)
