"""The gateway's own HTTP/1.1 on the wire: towards arms, with servers that do odd things, and towards callers."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest
import uvloop

from cluster.pki import Authority
from cutover_server.gateway import http_pool
from cutover_server.gateway.http_connection import (
    MAX_REPLY_HEAD_BYTES,
    Connection,
    Reply,
    ReplyBroken,
    ReplyTooLarge,
)
from cutover_server.gateway.http_pool import HttpPool, NotConnected, endpoint
from cutover_server.gateway.http_server import Limits, Server
from cutover_server.gateway.http_visit import Answer, Head, Send
from fakes.free_ports import free_port
from fakes.gateway_rig import until

Play = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\ndone"


async def read_request(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0] or 0)
    return head + await reader.readexactly(length)


@asynccontextmanager
async def arm(play: Play, tls: ssl.SSLContext | None = None) -> AsyncIterator[tuple[str, list[int]]]:
    """A server that plays this on each connection, its URL, and a list with an entry for each connection."""
    made: list[int] = []

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        made.append(len(made))
        try:
            await play(reader, writer)
        except (asyncio.IncompleteReadError, OSError):
            pass
        finally:
            writer.close()

    port = free_port()
    server = await asyncio.start_server(connected, "127.0.0.1", port, ssl=tls)
    try:
        yield f"{'https' if tls else 'http'}://127.0.0.1:{port}/v1", made
    finally:
        server.close()


async def ask(
    pool: HttpPool, url: str, body: bytes = b"{}", seconds: float = 5.0, silence: float = 5.0
) -> Reply:
    limit_at = asyncio.get_running_loop().time() + seconds
    return await pool.send(b"POST", endpoint(url), b"X-Key: a\r\n", (body,), limit_at, silence)


async def whole(pool: HttpPool, url: str, **limits: float) -> tuple[int, bytes]:
    reply = await ask(pool, url, **limits)  # type: ignore[arg-type]
    try:
        return reply.status, await reply.body()
    finally:
        reply.close()


def answering(*replies: bytes, pause: float = 0.0, size: int = 0) -> Play:
    """Answers each request with the next reply, in pieces of so many bytes."""

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for reply in replies:
            await read_request(reader)
            for at in range(0, len(reply), size or len(reply)):
                writer.write(reply[at : at + (size or len(reply))])
                await writer.drain()
                await asyncio.sleep(pause)

    return play


# ------------------------------------------------------------------ towards arms


async def test_a_connection_is_kept_for_the_next_request_and_not_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http_pool, "_IDLE_SECONDS", 0.1)
    with closing(HttpPool(4)) as pool:
        async with arm(answering(*[OK] * 9)) as (url, made):
            for _ in range(3):
                assert await whole(pool, url) == (200, b"done")
            assert len(made) == 1
            await until(lambda: not pool._open)
            assert await whole(pool, url) == (200, b"done")
            assert len(made) == 2


@pytest.mark.parametrize(
    ("raw", "body"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", b"hi"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nh\r\n1\r\ni\r\n0\r\n\r\n", b"hi"),
        (b"HTTP/1.1 200 OK\r\n\r\nhi", b"hi"),
        (b"HTTP/1.0 200 OK\r\n\r\nhi", b"hi"),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi", b"hi"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", b""),
    ],
)
@pytest.mark.parametrize("size", [0, 1])
async def test_a_reply_means_the_same_however_it_arrives(raw: bytes, body: bytes, size: int) -> None:
    with closing(HttpPool(4)) as pool:
        async with arm(answering(raw, size=size)) as (url, _):
            assert await whole(pool, url) == (200, body)


@pytest.mark.parametrize(
    "raw",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhi",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-le",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nhi!",
        b"HTTP/1.1 101 Switching\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 200 OK\r\nx: " + b"a" * (MAX_REPLY_HEAD_BYTES + 1),
        b"",
    ],
)
async def test_half_a_reply_is_none(raw: bytes) -> None:
    with closing(HttpPool(4)) as pool:
        async with arm(answering(raw)) as (url, made):
            with pytest.raises(ReplyBroken):
                await whole(pool, url)
            assert len(made) == 1, "on a new connection it may have been heard: never sent again"
        assert pool._free == 4


async def test_a_reply_to_nothing_ends_the_connection() -> None:
    with closing(HttpPool(4)) as pool:
        async with arm(answering(OK + b"HTTP/1.1 500 No\r\nx: y\r\ncontent-length: 3\r\n\r\nbad", OK)) as (
            url,
            made,
        ):
            assert await whole(pool, url) == (200, b"done")
            assert await whole(pool, url) == (200, b"done")
            assert len(made) == 2


async def test_a_reply_has_a_largest_size_and_longest_pause_and_an_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    with closing(HttpPool(4)) as pool:
        async with arm(answering(head + b"100000\r\n" + bytes(0x100000) + b"\r\n", *[b""] * 3)) as (url, _):
            monkeypatch.setattr("cutover_server.gateway.http_connection.MAX_REPLY_BYTES", 500_000)
            with pytest.raises(ReplyTooLarge):
                await whole(pool, url)
        loop = asyncio.get_running_loop()
        for raw, limits in ((head + b"1\r\na\r\n", {"silence": 0.1}), (b"HTTP/1.1", {"seconds": 0.1})):
            async with arm(answering(raw, pause=3.0)) as (url, _):
                begun = loop.time()
                with pytest.raises(TimeoutError):
                    await whole(pool, url, **limits)
                assert loop.time() - begun < 2.0
        slow = head + b"".join(b"1\r\n%d\r\n" % digit for digit in range(8)) + b"0\r\n\r\n"
        async with arm(answering(slow, pause=0.05, size=len(slow) // 8)) as (url, _):
            assert await whole(pool, url, silence=0.3) == (200, b"01234567"), "pauses do not add up"
        assert pool._free == 4


async def test_a_reply_that_is_too_large_is_none_although_it_came_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("cutover_server.gateway.http_connection.MAX_REPLY_BYTES", 1000)
    raw = b"HTTP/1.1 200 OK\r\ncontent-length: 1500\r\n\r\n" + bytes(1500)
    with closing(HttpPool(4)) as pool:
        async with arm(answering(raw)) as (url, _):
            with pytest.raises(ReplyTooLarge):
                await whole(pool, url)
        assert pool._free == 4


async def test_a_reply_in_tiny_chunks_is_held_in_few_pieces() -> None:
    tiny = b"1\r\na\r\n" * 3000
    large = b"1770\r\n" + b"b" * 6000 + b"\r\n"
    raw = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + tiny + large + tiny + b"0\r\n\r\n"
    with closing(HttpPool(4)) as pool:
        async with arm(answering(raw)) as (url, _):
            reply = await ask(pool, url)
            await until(lambda: reply.complete)
            assert len(reply._pieces) < 50, "an object for each chunk would be 6001"
            assert await reply.body() == b"a" * 3000 + b"b" * 6000 + b"a" * 3000
            reply.close()


async def test_pieces_of_a_long_reply_are_all_there_although_they_wait() -> None:
    part = bytes(range(256)) * 1024
    raw = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % (16 * len(part)) + 16 * part
    with closing(HttpPool(4)) as pool:
        async with arm(answering(raw)) as (url, _):
            reply = await ask(pool, url, silence=1.0)
            await asyncio.sleep(0.2)
            assert reply.many_wait, "the sender is held back"
            got = b""
            while piece := await reply.piece():
                got += piece
            reply.close()
            assert got == 16 * part


async def test_nobody_waits_for_a_turn_longer_than_he_has() -> None:
    with closing(HttpPool(1)) as pool:
        async with arm(answering(OK, OK, pause=0.0)) as (url, _):
            first = await ask(pool, url)
            with pytest.raises(TimeoutError):
                await ask(pool, url, seconds=0.1)
            waiting = asyncio.create_task(whole(pool, url))
            await asyncio.sleep(0)
            first.close()
            assert await waiting == (200, b"done")
        assert pool._free == 1


async def test_who_is_cancelled_leaves_nothing_behind() -> None:
    with closing(HttpPool(1)) as pool:
        async with arm(answering(b"HTTP/1.1", pause=9.0)) as (url, _):
            asking = asyncio.create_task(whole(pool, url))
            await until(lambda: pool._open)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            await until(lambda: not pool._open)
        assert pool._free == 1
        with pytest.raises(NotConnected):
            await whole(pool, f"http://127.0.0.1:{free_port()}/")
        assert pool._free == 1


async def test_only_a_server_with_a_known_certificate_gets_a_request(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    pair = authority.sign("arm", "arm", addresses=["IP:127.0.0.1"])
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(pair.certificate, pair.key)
    async with arm(answering(OK), serving) as (url, _):
        with closing(HttpPool(1)) as pool, pytest.raises(NotConnected):
            await whole(pool, url)
        with closing(HttpPool(1)) as pool:
            pool._ssl = ssl.create_default_context(cafile=authority.ca.certificate)
            assert await whole(pool, url) == (200, b"done")


@pytest.mark.parametrize("encrypted", [False, True])
def test_a_reply_that_ends_with_its_connection_while_it_is_gathered_is_whole(
    tmp_path: Path, encrypted: bool
) -> None:
    """By hand: the stream servers of asyncio end TLS with more politeness than others."""
    authority = Authority(tmp_path)
    pair = authority.sign("arm", "arm", addresses=["IP:127.0.0.1"])
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(pair.certificate, pair.key)
    gathering = threading.Event()

    def serve(listener: socket.socket) -> None:
        made, _ = listener.accept()
        with serving.wrap_socket(made, server_side=True) if encrypted else made as peer:
            peer.recv(4096)
            peer.sendall(
                b"HTTP/1.1 200 OK\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n"
            )
            gathering.wait(10)
            peer.sendall(b"1\r\nb\r\n0\r\n\r\n")
            peer.shutdown(socket.SHUT_RDWR)

    async def pieces(port: int) -> list[bytes]:
        found: list[bytes] = []
        with closing(HttpPool(1)) as pool:
            pool._ssl = ssl.create_default_context(cafile=authority.ca.certificate)
            reply = await ask(pool, f"{'https' if encrypted else 'http'}://127.0.0.1:{port}/")
            while piece := await reply.piece():
                found.append(piece)
                asyncio.get_running_loop().call_later(0.01, gathering.set)
                await reply.gather(0.2)
            reply.close()
        return found

    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = threading.Thread(target=serve, args=(listener,))
        server.start()
        try:
            assert uvloop.run(pieces(listener.getsockname()[1])) == [b"a", b"b"]
        finally:
            gathering.set()
            server.join()


@pytest.mark.parametrize(
    ("url", "target", "host"),
    [
        ("http://arm/v1", b"/v1", b"Host: arm\r\n"),
        ("http://arm:80/v1?x=1", b"/v1?x=1", b"Host: arm\r\n"),
        ("https://arm:8443", b"/", b"Host: arm:8443\r\n"),
        ("http://[::1]:8000/v1", b"/v1", b"Host: [::1]:8000\r\n"),
        ("http://bücher.example/v1", b"/v1", b"Host: xn--bcher-kva.example\r\n"),
        ("http://me:a%3Ab@arm/", b"/", b"Host: arm\r\nAuthorization: Basic bWU6YTpi\r\n"),
    ],
)
def test_where_a_url_leads(url: str, target: bytes, host: bytes) -> None:
    where = endpoint(url)
    assert (where.target, where.headers) == (target, host)


@pytest.mark.parametrize(
    "url", ["ftp://arm/", "arm:80", "http:///x", "http://arm/a b", "http://arm/\r\nx: y"]
)
def test_what_is_no_place_to_send_to(url: str) -> None:
    with pytest.raises(ValueError, match="URL"):
        endpoint(url)


class Deaf(asyncio.Transport):
    """Sends nothing, and nothing waits to be sent."""

    def writelines(self, list_of_data: object) -> None:
        return None

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return False


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_a_timer_whose_time_is_as_good_as_over_is_a_timer(
    run: Callable[[Coroutine[Any, Any, None]], None],
) -> None:
    """uvloop's handle of such a timer is another, without `when()`; a piece that met one broke the connection."""

    async def two_pieces() -> None:
        loop = asyncio.get_running_loop()
        connection = Connection(loop, lambda _, usable: None, lambda _: None)
        connection.connection_made(Deaf())
        reply = connection.ask([b"GET / HTTP/1.1\r\n\r\n"], False, loop.time() + 5.0, silence_seconds=0.0)
        connection.data_received(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\none")
        connection.data_received(b"two")
        connection.data_received(b"six")
        assert await reply.body() == b"onetwosix"
        reply.close()

    run(two_pieces())


# ------------------------------------------------------------------ towards callers


class Echo:
    """Answers with what it was asked; `/stream` as a stream, `/wait` when it is let, `/large` with much, others badly."""

    let = asyncio.Event()

    def __init__(self, head: Head) -> None:
        self.head = head
        self.closed = 0
        told = Answer(401, b"no", {"x-id": "1"})
        self.refusal: Answer | None = told if head.headers.get("x-key") == "wrong" else None

    def arrives(self, size: int) -> Answer | None:
        return Answer(413, b"too much", {}) if size > 300_000 else None

    def is_late(self) -> Answer:
        return Answer(408, b"late", {})

    async def answer(self, body: bytes) -> Answer:
        if self.head.path == "/wait":
            await self.let.wait()
        if self.head.path == "/large":
            return Answer(200, bytes(int(self.head.headers["x-size"])), {})
        if self.head.path == "/raise":
            raise RuntimeError("told by the test")
        if self.head.path == "/unfit-header":
            return Answer(200, b"x", {"x": "a\nb"})
        if self.head.path == "/stream":
            return Answer(200, b"", {}, self.stream)
        return Answer(200, f"{self.head.method} {self.head.path} ".encode() + body, {"x-id": "1"})

    async def stream(self, send: Send) -> bool:
        for piece in (b"one", b"two"):
            await send(piece)
        if self.head.headers.get("x-end") == "raise":
            raise RuntimeError("told by the test")
        return self.head.headers.get("x-end") != "bad"

    def close(self) -> None:
        self.closed += 1


@asynccontextmanager
async def served(
    limits: Limits | None = None, kind: type[Echo] = Echo
) -> AsyncIterator[tuple[int, list[Echo], Server]]:
    visits: list[Echo] = []

    def visit(head: Head) -> Echo:
        visits.append(kind(head))
        return visits[-1]

    Echo.let = asyncio.Event()
    port = free_port()
    server = Server(visit, "127.0.0.1", port, 1.0, limits)
    await server.listen()
    serving = asyncio.create_task(server.serve())
    try:
        yield port, visits, server
    finally:
        server.stopping.set()
        await serving
    assert [visit.closed for visit in visits] == [1] * len(visits), "each visit ends once"


async def spoken(port: int, raw: bytes, size: int = 0) -> bytes:
    """Everything that comes back until the server hangs up."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for at in range(0, len(raw), size or len(raw)):
        writer.write(raw[at : at + (size or len(raw))])
        await writer.drain()
        await asyncio.sleep(0)  # the server's turn: else the pieces would arrive as one
    async with asyncio.timeout(10):
        try:
            return await reader.read()
        finally:
            writer.close()


def post(path: str, body: bytes, *headers: str, last: bool = False) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "host: x", f"content-length: {len(body)}", *headers]
    lines += ["connection: close"] if last else []
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


@pytest.mark.parametrize("size", [0, 1])
async def test_requests_of_a_connection_are_answered_in_turn(size: int) -> None:
    raw = post("/a", b"one") + post("/b?q=1", b"two") + b"GET /c HTTP/1.1\r\nconnection: close\r\n\r\n"
    async with served() as (port, visits, _):
        told = await spoken(port, raw, size)
    assert told.count(b"HTTP/1.1 200 OK\r\n") == 3
    assert told.index(b"POST /a one") < told.index(b"POST /b two") < told.index(b"GET /c ")
    assert told.count(b"connection: close") == 1
    assert [visit.head.path for visit in visits] == ["/a", "/b", "/c"]


async def test_odd_but_lawful_requests() -> None:
    async with served() as (port, visits, _):
        head = await spoken(port, b"HEAD /a HTTP/1.1\r\nconnection: close\r\n\r\n")
        assert head.endswith(b"\r\n\r\n")
        assert b"content-length: 8" in head
        old = await spoken(port, b"GET /a HTTP/1.0\r\n\r\n")
        assert b"connection: close" in old
        absolute = await spoken(port, b"GET http://x/a HTTP/1.1\r\nconnection: close\r\n\r\n")
        assert absolute.endswith(b"GET /a ")
        upgrade = await spoken(port, b"GET /a HTTP/1.1\r\nupgrade: h2c\r\nconnection: upgrade\r\n\r\n")
        assert upgrade.endswith(b"GET /a ")
        expected = await spoken(port, post("/a", b"body", "expect: 100-continue", last=True))
        assert expected.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK")
        chunked = b"POST /a HTTP/1.1\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
        assert (await spoken(port, chunked)).endswith(b"POST /a abc")
        trailed = chunked.replace(b"0\r\n\r\n", b"0\r\nx-late: a\r\n\r\n")
        assert (await spoken(port, trailed)).endswith(b"POST /a abc")
        assert "x-late" not in visits[-1].head.headers, "whoever looked at the head has not seen it"
        twice = await spoken(port, post("/a", b"", "x-key: right", "x-key: wrong", last=True))
        assert b" 200 " in twice, "the first of two headers counts"


@pytest.mark.parametrize("size", [0, 1, 90])
async def test_the_body_of_an_upgrade_that_is_not_made_is_read(size: int) -> None:
    asked = ("upgrade: h2c", "connection: upgrade, http2-settings", "http2-settings: AAMAAABk")
    chunked = "\r\n".join(("POST /b HTTP/1.1", *asked, "transfer-encoding: chunked", "", "")).encode()
    async with served() as (port, _, _):
        whole = await spoken(port, post("/a", b"the body", *asked), size)
        assert whole.endswith(b"POST /a the body")
        assert b"connection: close" in whole
        pieces = await spoken(port, chunked + b"4\r\nthe \r\n4\r\nbody\r\n0\r\n\r\n", size)
        assert pieces.endswith(b"POST /b the body")
        second = await spoken(port, post("/a", b"one") + post("/a", b"two", *asked), size)
        assert second.index(b"POST /a one") < second.index(b"POST /a two"), "answered in turn"
        third = await spoken(port, post("/a", b"one", *asked) + post("/a", b"two", last=True))
        assert third.count(b"HTTP/1.1 ") == 1, "nothing behind an upgrade is taken for a request"


async def test_a_head_is_measured_once_however_it_arrives() -> None:
    large = f"x-large: {'a' * 40_000}"
    fits, second = post("/a", b"one", large), post("/a", b"two", large, last=True)
    behind = post("/a", b"b" * 50_000)
    too_large = post("/a", b"", large, f"x-more: {'b' * 30_000}", last=True)
    async with served() as (port, _, _):
        for size in (0, 20_000, 40_060):
            told = await spoken(port, fits + second, size)
            assert told.count(b"HTTP/1.1 200 OK") == 2, size
            assert (await spoken(port, behind + second, size)).count(b"HTTP/1.1 200 OK") == 2, size
            assert (await spoken(port, too_large, size)).startswith(b"HTTP/1.1 431 "), size
        endless = b"GET /a HTTP/1.1\r\nx-large: " + b"a" * 70_000
        for size in (0, 1_000):
            assert (await spoken(port, endless, size)).startswith(b"HTTP/1.1 431 "), size


async def test_streams_end_well_or_by_a_cut() -> None:
    async with served() as (port, _, _):
        well = await spoken(port, post("/stream", b"", last=True))
        assert well.endswith(b"\r\n\r\n3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n")
        cut = await spoken(port, post("/stream", b"", "x-end: bad"))
        assert cut.endswith(b"3\r\none\r\n3\r\ntwo\r\n")


@pytest.mark.parametrize("path", ["/raise", "/unfit-header"])
async def test_an_answer_that_breaks_before_its_head_is_a_500_and_the_last(path: str) -> None:
    async with served() as (port, visits, _):
        told = await spoken(port, post(path, b"") + post("/a", b""))
        assert told.startswith(b"HTTP/1.1 500 ")
        assert b"connection: close\r\n" in told
        assert told.count(b"HTTP/1.1 ") == 1
        assert b'"server_error"' in told
        await until(lambda: all(visit.closed for visit in visits))


async def test_a_stream_that_breaks_never_ends_well_and_nothing_comes_behind_it() -> None:
    async with served() as (port, visits, _):
        told = await spoken(port, post("/stream", b"", "x-end: raise") + post("/a", b""))
        assert told.endswith(b"3\r\none\r\n3\r\ntwo\r\n")
        await until(lambda: all(visit.closed for visit in visits))


async def test_nobody_is_told_to_go_on_in_the_middle_of_another_answer() -> None:
    async with served() as (port, visits, _):
        asking = post("/wait", b"") + post("/a", b"body", "expect: 100-continue", last=True)
        speaking = asyncio.create_task(spoken(port, asking))
        await until(lambda: len(visits) == 2)
        Echo.let.set()
        told = await speaking
        assert told.endswith(b"POST /a body")
        assert b" 100 " not in told


async def test_a_body_in_tiny_chunks_is_held_in_few_pieces() -> None:
    chunks = 5000
    async with served() as (port, _, server):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST /a HTTP/1.1\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n")
        writer.write(b"2\r\nab\r\n" * chunks)

        def pieces() -> list[bytes | bytearray]:
            arriving = [one._arriving for one in server.connections if one._arriving is not None]
            return arriving[0].body if arriving else []

        await until(lambda: sum(map(len, pieces())) == 2 * chunks)
        assert len(pieces()) < 50
        writer.write(b"0\r\n\r\n")
        assert (await reader.read()).endswith(b"POST /a " + b"ab" * chunks)
        writer.close()


async def test_who_does_not_read_gets_no_further_answers_until_it_does() -> None:
    unsent: list[int] = []

    class Watching(Echo):
        async def answer(self, body: bytes) -> Answer:
            (connection,) = server.connections
            assert connection._transport is not None
            unsent.append(connection._transport.get_write_buffer_size())
            return await super().answer(body)

    count, size = 40, 500_000
    async with served(kind=Watching) as (port, _, server):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2 * size)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(post("/large", b"", f"x-size: {size}") * (count - 1))
        writer.write(post("/large", b"", f"x-size: {size}", last=True))
        await until(lambda: any(one._writable is not None for one in server.connections))
        writer.transport.resume_reading()  # type: ignore[attr-defined]
        async with asyncio.timeout(20):
            told = await reader.read()
        assert told.count(b"HTTP/1.1 200 OK\r\n") == len(unsent) == count
        assert max(unsent) < size, "an answer begins when the one before is read"
        writer.close()


@pytest.mark.parametrize("last", [True, False])
async def test_who_never_reads_is_cut_off(last: bool) -> None:
    async with served(Limits(send_seconds=0.1)) as (port, visits, server):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(post("/large", b"", "x-size: 20000000", last=last))
        await until(lambda: visits and visits[0].closed)
        await until(lambda: not server.connections, seconds=5)
        writer.transport.abort()


async def test_who_is_refused_while_sending_can_read_why() -> None:
    async with served(Limits(body_seconds=0.2)) as (port, visits, _):
        big = post("/a", bytes(3_000_000), "x-key: wrong")
        assert b" 401 " in await spoken(port, big)
        small = await spoken(port, post("/a", b"x", "x-key: wrong") + post("/b", b"", last=True))
        assert small.index(b" 401 ") < small.index(b"POST /b "), (
            "a refusal of a whole request keeps the connection"
        )
        late = await spoken(port, b"POST /a HTTP/1.1\r\ncontent-length: 10\r\n\r\nhalf")
        assert b" 408 " in late
        broken = await spoken(port, b"\x16\x03\x01\r\n\r\n")
        assert b" 400 " in broken
        await until(lambda: all(visit.closed for visit in visits))


async def test_a_server_that_is_leaving_closes_connections_with_their_answers() -> None:
    async with served() as (port, _, server):
        server.leaving = True
        told = await spoken(port, post("/a", b"one") + post("/b", b"two"))
        assert told.count(b"HTTP/1.1 200 OK\r\n") == 1
        assert b"connection: close" in told


async def test_a_server_that_stops_lets_requests_finish_and_idle_connections_go() -> None:
    async with served() as (port, visits, server):
        idle_reader, idle_writer = await asyncio.open_connection("127.0.0.1", port)
        busy = asyncio.create_task(spoken(port, post("/wait", b"x") + post("/late", b"y")))
        _, gone_writer = await asyncio.open_connection("127.0.0.1", port)
        gone_writer.write(post("/wait", b"z"))
        await until(lambda: len(visits) >= 3)
        gone_writer.close()
        server.stopping.set()
        assert await idle_reader.read() == b""
        idle_writer.close()
        assert not busy.done()
        Echo.let.set()
        assert b"POST /wait x" in await busy
        await until(lambda: not server.connections)
        with pytest.raises(OSError):
            await asyncio.open_connection("127.0.0.1", port)
