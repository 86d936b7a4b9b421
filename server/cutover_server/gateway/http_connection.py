"""One kept HTTP/1.1 connection and the reply that is arriving on it.

Times are watched by one timer per request, moved only when it rings. A reply's body is bounded; one that is read piece
by piece stops the sender while pieces wait. A connection is used again only if its reply ended as announced, nothing
of the request is still unsent, and neither side wants it closed.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from enum import Enum
from typing import cast

import httptools

MAX_REPLY_BYTES = 8_000_000
MAX_REPLY_HEAD_BYTES = 131_072
_MANY_BYTES = 262_144
"""Of pieces that wait to be read: the sender is stopped."""
_SMALL_BYTES = 4096
"""Smaller pieces are gathered: a server may send a chunk for each byte, and an object of its own is forty."""


class ReplyTooLarge(Exception):
    """The reply exceeds MAX_REPLY_BYTES."""


class ReplyBroken(OSError):
    """The connection ended before its reply, or what came is no HTTP."""


class _Until(Enum):
    HEAD = 1
    PIECE = 2
    END = 3


class Reply:
    """What has arrived of the reply to one request. Every wait raises TimeoutError, ReplyBroken or ReplyTooLarge."""

    __slots__ = (
        "_connection",
        "_failure",
        "_limit_at",
        "_loop",
        "_pieces",
        "_rings_at",
        "_silence_seconds",
        "_size",
        "_timer",
        "_until",
        "_waiter",
        "_waiting_since",
        "complete",
        "headers",
        "last_byte_at",
        "on_kept_connection",
        "sent_at",
        "status",
    )

    def __init__(self, connection: Connection, kept: bool, limit_at: float, silence_seconds: float) -> None:
        self._connection = connection
        self._loop = connection.loop
        self.on_kept_connection = kept
        self.status = 0
        """0 until the head is there."""
        self.headers: dict[str, str] = {}
        """By lower-case name; of a repeated header the last."""
        self.complete = False
        self.sent_at = self.last_byte_at = self._waiting_since = self._loop.time()
        self._pieces: deque[bytes | bytearray] = deque()
        self._size = 0
        self._failure: Exception | None = None
        self._until: _Until | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._limit_at = limit_at
        self._silence_seconds = silence_seconds
        self._timer: asyncio.TimerHandle | None = None
        self._set_timer(limit_at)

    async def head(self) -> None:
        """Waits for status and headers."""
        if not self.status:
            await self._wait(_Until.HEAD)

    async def body(self) -> bytes:
        """Waits for the end, and gives the whole body."""
        if not self.complete:
            await self._wait(_Until.END)
        return self._taken()

    async def piece(self) -> bytes:
        """What has arrived of the body since the last call; waits for something, empty at its good end."""
        if not self._pieces and not self.complete:
            await self._wait(_Until.PIECE)
        if not self._pieces:
            return b""
        return self._taken()

    async def gather(self, seconds: float) -> None:
        """Reads nothing for so long: what is sent meanwhile comes as one piece. Costs nothing where something waits."""
        if not self._pieces and not self.complete and self._failure is None:
            self._connection.pause()
            await asyncio.sleep(seconds)

    def extend(self, limit_at: float) -> None:
        """Moves the end of the reply's time to a later one."""
        self._limit_at = limit_at

    def close(self) -> None:
        """Gives the connection back, or cuts it if it cannot be used again. To be called once the reply is not needed."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._connection.leave(self)

    # ------------------------------------------------------------------ from the connection

    def head_came(self, status: int) -> None:
        self.status = status

    def body_came(self, piece: bytes) -> bool:
        """False when it is too much."""
        self._size += len(piece)
        if self._size > MAX_REPLY_BYTES:
            return False
        if len(piece) >= _SMALL_BYTES:
            self._pieces.append(piece)
        elif self._pieces and isinstance(self._pieces[-1], bytearray):
            self._pieces[-1] += piece
        else:
            self._pieces.append(bytearray(piece))
        return True

    def failed(self, failure: Exception) -> None:
        if self._failure is None and not self.complete:
            self._failure = failure
        self.wake()

    def wake(self) -> None:
        if self._timer is not None:
            if self.complete or self._failure is not None:
                self._timer.cancel()
                self._timer = None
            elif self.status and self._rings_at > self.last_byte_at + self._silence_seconds:
                self._timer.cancel()
                self._set_timer(self.last_byte_at + self._silence_seconds)
        waiter = self._waiter
        if waiter is not None and not waiter.done() and self._waited_for():
            waiter.set_result(None)

    @property
    def many_wait(self) -> bool:
        """More has come than is being read; a reply that is waited for whole is bounded by its size alone."""
        return self._until is not _Until.END and sum(map(len, self._pieces)) > _MANY_BYTES

    # ------------------------------------------------------------------ waiting

    def _taken(self) -> bytes:
        pieces, self._pieces = self._pieces, deque()
        return bytes(pieces[0]) if len(pieces) == 1 else b"".join(pieces)  # of bytes, bytes() makes no copy

    def _waited_for(self) -> bool:
        if self._failure is not None or self.complete:
            return True
        if self._until is _Until.HEAD:
            return self.status > 0
        return self._until is _Until.PIECE and bool(self._pieces)

    async def _wait(self, until: _Until) -> None:
        if self._failure is None:
            self._until = until
            self._waiting_since = self._loop.time()
            self._connection.go_on()
            if self._timer is None:
                self._set_timer(self._due())
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = self._until = None
        if self._failure is not None:
            raise self._failure

    def _set_timer(self, at: float) -> None:
        # Kept beside the handle: uvloop's has no `when()` where the time is as good as over.
        self._rings_at = at
        self._timer = self._loop.call_at(at, self._ring)

    def _due(self) -> float:
        if not self.status:
            return self._limit_at
        quiet_at = max(self.last_byte_at, self._waiting_since) + self._silence_seconds
        return min(self._limit_at, quiet_at)

    def _ring(self) -> None:
        self._timer = None
        if self._waiter is None:
            return  # nobody waits: the next one sets it anew
        due = self._due()
        if self._loop.time() < due:
            self._set_timer(due)
        else:
            self.failed(TimeoutError())


class Connection(asyncio.Protocol):
    """`left` is told once for each request that it is over, and whether the connection can be used again."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        left: Callable[[Connection, bool], None],
        lost: Callable[[Connection], None],
    ) -> None:
        self.loop = loop
        self.idle_since = 0.0
        self.lost = False
        self._on_left = left
        self._on_lost = lost
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._reply: Reply | None = None
        self._head_bytes = 0
        self._interim = False
        self._framed = False
        self._keeps = False
        self._too_large = False
        self._surplus = False
        """A reply to nothing has come behind the reply."""
        self._paused = False
        self._encrypted = False

    def ask(
        self, data: Sequence[bytes | memoryview], kept: bool, limit_at: float, silence_seconds: float
    ) -> Reply:
        """Sends a request; one at a time."""
        assert self._transport is not None
        self._head_bytes, self._interim, self._framed, self._keeps = 0, False, False, False
        self._reply = reply = Reply(self, kept, limit_at, silence_seconds)
        if self.lost:
            reply.failed(ReplyBroken("the connection is lost"))
        else:
            self._transport.writelines(data)
        return reply

    def leave(self, reply: Reply) -> None:
        if self._reply is not reply:
            return
        self._reply = None
        assert self._transport is not None
        usable = (
            reply.complete
            and self._keeps
            and not self._surplus
            and not self.lost
            and not self._transport.is_closing()
            and self._transport.get_write_buffer_size() == 0
        )
        if usable:
            self.go_on()
            self.idle_since = self.loop.time()
        else:
            self.cut()
        self._on_left(self, usable)

    def cut(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    @property
    def usable(self) -> bool:
        return not self.lost and self._transport is not None and not self._transport.is_closing()

    def pause(self) -> None:
        """Until `go_on`, which every wait calls. Not above TLS: when the other side closes meanwhile, uvloop drops what it
        has received and not handed on (SSLProtocol.eof_received). The reply's size is bounded all the same."""
        if not self._paused and not self._encrypted and self._transport is not None and not self.lost:
            self._paused = True
            self._transport.pause_reading()

    def go_on(self) -> None:
        if self._paused and self._transport is not None and not self.lost:
            self._paused = False
            self._transport.resume_reading()

    # ------------------------------------------------------------------ asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._encrypted = transport.get_extra_info("ssl_object") is not None

    def connection_lost(self, error: Exception | None) -> None:
        self.lost = True
        self._on_lost(self)
        reply = self._reply
        if reply is None:
            return
        if error is None and reply.status and not self._framed:
            reply.complete = True  # a body without a length ends with its connection
        reply.failed(ReplyBroken("the connection ended before the reply"))

    def data_received(self, data: bytes) -> None:
        reply = self._reply
        if reply is None:
            self.cut()  # nobody asked
            return
        reply.last_byte_at = self.loop.time()
        if not reply.status:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            reply.failed(ReplyBroken("not HTTP"))
            self.cut()
            return
        if self._too_large:
            reply.failed(ReplyTooLarge())
            self.cut()
        elif not reply.status and self._head_bytes > MAX_REPLY_HEAD_BYTES:
            reply.failed(ReplyBroken("the reply's head is too large"))
            self.cut()
        else:
            reply.wake()
            if reply.many_wait:
                self.pause()

    # ------------------------------------------------------------------ httptools

    def on_message_begin(self) -> None:
        if self._reply is not None and self._reply.complete:
            self._surplus = True

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._reply is not None and not self._surplus:
            self._reply.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        reply = self._reply
        if reply is None or self._surplus:
            return
        status = self._parser.get_status_code()
        if status < 200:
            self._interim = True
            reply.headers.clear()
            return
        self._framed = "content-length" in reply.headers or "transfer-encoding" in reply.headers
        self._keeps = self._parser.should_keep_alive()
        reply.head_came(status)

    def on_body(self, body: bytes) -> None:
        if self._reply is None or self._surplus or self._too_large:
            return
        if not self._reply.body_came(body):
            self._too_large = True

    def on_message_complete(self) -> None:
        if self._interim:
            self._interim = False
        elif self._reply is not None and not self._too_large:
            self._reply.complete = True
