"""The guarded fetcher against the tricks that open a cluster's inside: only loopback servers are ever contacted."""

from __future__ import annotations

import asyncio
import base64
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace

import pytest
from aiohttp import web

from cutover.fetch import (
    Fetched,
    FetchFailed,
    FetchPolicy,
    FetchRefused,
    fetch_bytes,
    guarded_session,
    is_public,
    read_data_url,
)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Serve = Callable[[Handler], Awaitable[str]]


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    runners: list[web.ServerRunner] = []

    async def start(handler: Handler) -> str:
        runner = web.ServerRunner(web.Server(handler), shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        runners.append(runner)
        return f"http://127.0.0.1:{runner.addresses[0][1]}"

    yield start
    for runner in runners:
        await runner.cleanup()


def answers(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> list[str]:
    """Every name resolves to these addresses; returns the list of names asked for."""
    asked: list[str] = []

    async def getaddrinfo(host: str, port: int, **_: object) -> list[tuple[object, ...]]:
        asked.append(host)
        kinds = [(socket.AF_INET6 if ":" in a else socket.AF_INET, a) for a in addresses]
        return [(kind, socket.SOCK_STREAM, 6, "", (a, port)) for kind, a in kinds]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
    return asked


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.255.255.254",
        "0.0.0.0",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "100.64.0.1",
        "100.100.100.200",
        "169.254.169.254",
        "168.63.129.16",
        "192.0.0.192",
        "198.18.0.1",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::127.0.0.1",
        "::ffff:127.0.0.1",
        "::ffff:8.8.8.8",
        "64:ff9b::7f00:1",
        "64:ff9b:1::a00:1",
        "2002:7f00:1::",
        "2001:0:4136:e378:8000:63bf:3fff:fdd2",
        "2001:db8::1",
        "fe80::1",
        "fc00::1",
        "fd00:ec2::254",
        "ff02::1",
        "3fff::1",
        "not an address",
    ],
)
def test_address_inside_or_special_is_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "93.184.216.34", "2606:4700:4700::1111", "2a00:1450:4001::1"])
def test_address_of_the_internet_is_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "picture.png",
        "/etc/passwd",
        "//example.org/a",
        "file:///etc/passwd",
        "FiLe:///etc/passwd",
        "ftp://example.org/a",
        "gopher://example.org/",
        "data:image/png;base64,AAAA",
        "javascript:alert(1)",
        "http://",
        "http:///path",
        "http://user@example.org/",
        "http://user:pw@example.org/",
        "http://@example.org/",
        "http://8.8.8.8@127.0.0.1/",
        "http://exa mple.org/",
        "http://example.org\\@127.0.0.1/",
        "http://example.org/\r\nHost: inside",
        " http://example.org/",
        "http://example.org:0/",
        "http://example.org:99999/",
        "http://example.org:port/",
        "http://127.0.0.1/",
        "HTTP://127.0.0.1/",
        "http://127.0.0.1./",
        "http://127.1/",
        "http://2130706433/",
        "http://0x7f000001/",
        "http://0x7f.0.0.1/",
        "http://0177.0.0.1/",
        "http://0/",
        "http://%31%32%37.0.0.1/",
        "http://127.0.0.1%2f@example.org/",
        "http://１２７.0.0.1/",  # full-width digits
        "http://①②⑦.⓪.⓪.①/",
        "http://[::1]/",
        "http://[::ffff:127.0.0.1]/",
        "http://[::ffff:7f00:1]/",
        "http://[fe80::1%25eth0]/",
        "http://[2606:4700::1%25eth0]/",
        "http://[64:ff9b::7f00:1]/",
        "http://169.254.169.254/latest/meta-data/",
        "http://localhost/",
        "http://LOCALHOST./",
        "http://example.org/" + "a" * 9000,
    ],
)
async def test_trick_is_refused_before_any_connection(url: str) -> None:
    with pytest.raises(FetchRefused):
        await fetch_bytes(url, FetchPolicy(timeout_seconds=5))


@pytest.mark.parametrize(
    "addresses",
    [("10.0.0.7",), ("93.184.216.34", "127.0.0.1"), ("::ffff:169.254.169.254",), ("fd00::1", "8.8.8.8")],
)
async def test_name_with_any_private_address_is_refused(
    addresses: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers(monkeypatch, *addresses)
    with pytest.raises(FetchRefused, match="not a public address"):
        await fetch_bytes("https://pictures.example.org/a.png", FetchPolicy())


async def test_name_is_resolved_once_and_the_connection_goes_to_the_checked_address(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    async def handler(request: web.BaseRequest) -> web.Response:
        seen.append(request.headers["Host"])
        return web.Response(body=b"picture", content_type="image/PNG")

    port = (await serve(handler)).rpartition(":")[2]
    asked = answers(monkeypatch, "127.0.0.1")
    origin = f"http://pinned.test:{port}"
    fetched = await fetch_bytes(f"{origin}/a?sig=%2Fx~%7E", FetchPolicy(allowed_origins=(origin,)))
    assert fetched == Fetched(b"picture", "image/png", f"{origin}/a?sig=%2Fx~%7E")
    assert asked == ["pinned.test"]
    assert seen == [f"pinned.test:{port}"]


async def test_failed_resolution_may_be_tried_again() -> None:
    with pytest.raises(FetchFailed):
        await fetch_bytes("http://no-such-name.invalid/", FetchPolicy(timeout_seconds=10))


async def test_private_origin_needs_an_allowance_of_that_very_port(serve: Serve) -> None:
    async def handler(_: web.BaseRequest) -> web.Response:
        return web.Response(text="inside")

    one, other = await serve(handler), await serve(handler)
    policy = FetchPolicy(allowed_origins=(one,))
    assert (await fetch_bytes(f"{one}/x", policy)).body == b"inside"
    with pytest.raises(FetchRefused, match="not a public address"):
        await fetch_bytes(f"{other}/x", policy)


async def test_redirect_to_the_inside_is_refused(serve: Serve) -> None:
    reached: list[str] = []

    async def inside(request: web.BaseRequest) -> web.Response:
        reached.append(request.path)
        return web.Response(text="secret")

    target = await serve(inside)

    async def outside(request: web.BaseRequest) -> web.Response:
        where = request.query["to"]
        return web.Response(status=302, headers={"Location": where})

    origin = await serve(outside)
    policy = FetchPolicy(allowed_origins=(origin,))
    host = target.removeprefix("http:")
    for location in (
        target,
        host,
        target.replace("127.0.0.1", "localhost"),
        "file:///etc/passwd",
        "http://[::1]/",
    ):
        with pytest.raises(FetchRefused):
            await fetch_bytes(f"{origin}/?to={location}", policy)
    assert reached == []


async def test_headers_reach_the_named_origin_only_and_not_past_a_redirect(serve: Serve) -> None:
    seen: dict[str, str | None] = {}

    def recorder(name: str, location: str | None = None) -> Handler:
        async def handler(request: web.Request) -> web.Response:
            seen[name + request.path] = request.headers.get("Authorization")
            if location and request.path == "/":
                return web.Response(status=307, headers={"Location": location})
            return web.Response(text=name)

        return handler

    second = await serve(recorder("second"))
    first = await serve(recorder("first", f"{second}/end"))
    same = await serve(recorder("same", "/end"))
    policy = FetchPolicy(allowed_origins=(first, second, same), headers={"Authorization": "Bearer k"})
    assert (await fetch_bytes(f"{first}/", policy)).body == b"second"
    assert (await fetch_bytes(f"{same}/", policy)).url == f"{same}/end"
    assert seen == {"first/": "Bearer k", "second/end": None, "same/": "Bearer k", "same/end": "Bearer k"}


async def test_endless_redirects_are_refused(serve: Serve) -> None:
    hops = 0

    async def handler(_: web.BaseRequest) -> web.Response:
        nonlocal hops
        hops += 1
        return web.Response(status=301, headers={"Location": f"/{hops}"})

    origin = await serve(handler)
    with pytest.raises(FetchRefused, match="more than 3 redirects"):
        await fetch_bytes(origin, FetchPolicy(allowed_origins=(origin,)))
    assert hops == 4


@pytest.mark.parametrize("announced", [True, False])
async def test_oversized_body_is_refused_while_it_streams(serve: Serve, announced: bool) -> None:
    sent = 0

    async def handler(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse()
        if announced:
            response.content_length = 50_000_000
        await response.prepare(request)
        for _ in range(500):
            await response.write(b"x" * 100_000)
            sent += 100_000
        return response

    origin = await serve(handler)
    with pytest.raises(FetchRefused, match="more than 200000 bytes"):
        await fetch_bytes(origin, FetchPolicy(allowed_origins=(origin,), max_bytes=200_000))
    assert sent < 20_000_000


async def test_body_of_exactly_the_limit_is_taken(serve: Serve) -> None:
    async def handler(_: web.BaseRequest) -> web.Response:
        return web.Response(body=b"x" * 1000)

    origin = await serve(handler)
    policy = FetchPolicy(allowed_origins=(origin,), max_bytes=1000)
    assert len((await fetch_bytes(origin, policy)).body) == 1000


@pytest.mark.parametrize("slow_part", ["head", "body"])
async def test_slow_server_fails_within_the_total_time(serve: Serve, slow_part: str) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        if slow_part == "head":
            await asyncio.sleep(30)
        await response.prepare(request)
        while True:
            await response.write(b".")
            await asyncio.sleep(0.05)

    origin = await serve(handler)
    with pytest.raises(FetchFailed, match=r"within 0\.3 s"):
        await fetch_bytes(origin, FetchPolicy(allowed_origins=(origin,), timeout_seconds=0.3))


@pytest.mark.parametrize(
    ("status", "error"),
    [(500, FetchFailed), (503, FetchFailed), (429, FetchFailed), (403, FetchRefused), (404, FetchRefused)],
)
async def test_status_decides_whether_another_try_helps(
    serve: Serve, status: int, error: type[Exception]
) -> None:
    async def handler(_: web.BaseRequest) -> web.Response:
        return web.Response(status=status)

    origin = await serve(handler)
    with pytest.raises(error, match=str(status)):
        await fetch_bytes(origin, FetchPolicy(allowed_origins=(origin,)))


async def test_broken_connection_may_be_tried_again(serve: Serve) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        response.content_length = 100
        await response.prepare(request)
        assert request.transport is not None
        request.transport.abort()
        return response

    origin = await serve(handler)
    with pytest.raises(FetchFailed):
        await fetch_bytes(origin, FetchPolicy(allowed_origins=(origin,)))


async def test_allowed_hosts_are_the_only_public_ones() -> None:
    policy = FetchPolicy(allowed_hosts=("pictures.example.org", "*.cdn.example.org"))
    for host in (
        "example.org",
        "evilpictures.example.org",
        "cdn.example.org",
        "pictures.example.org.evil.test",
    ):
        with pytest.raises(FetchRefused, match="allowed hosts"):
            await fetch_bytes(f"https://{host}/", policy)


async def test_an_empty_list_of_hosts_allows_none() -> None:
    with pytest.raises(FetchRefused, match="allowed hosts"):
        await fetch_bytes("https://example.org/a.png", FetchPolicy(allowed_hosts=()))


@pytest.mark.parametrize("host", ["PICTURES.example.org.", "a.b.cdn.example.org"])
async def test_allowed_host_still_has_to_be_public(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, "10.0.0.1")
    policy = FetchPolicy(allowed_hosts=("pictures.example.org", "*.cdn.example.org"))
    with pytest.raises(FetchRefused, match="not a public address"):
        await fetch_bytes(f"https://{host}/", policy)


async def test_shared_session_serves_its_own_policy_only(serve: Serve) -> None:
    async def handler(_: web.BaseRequest) -> web.Response:
        return web.Response(text="ok")

    origin = await serve(handler)
    policy = FetchPolicy(allowed_origins=(origin,))
    async with guarded_session(policy) as session:
        for _ in range(3):
            assert (await fetch_bytes(origin, policy, session)).body == b"ok"
        with pytest.raises(TypeError, match="same policy"):
            await fetch_bytes(origin, replace(policy, allowed_origins=()), session)


async def test_message_holds_no_signature_and_no_password() -> None:
    for url in ("http://127.0.0.1/a.png?X-Signature=hunter2", "http://me:hunter2@127.0.0.1/"):
        with pytest.raises(FetchRefused) as caught:
            await fetch_bytes(url, FetchPolicy())
        assert "hunter2" not in str(caught.value) + caught.value.url


def test_allowed_origin_must_be_an_origin() -> None:
    for wrong in ("assessments", "ftp://a", "//a"):
        with pytest.raises(ValueError, match="allowed_origins"):
            asyncio.run(fetch_bytes("http://example.org/", FetchPolicy(allowed_origins=(wrong,))))


# ------------------------------------------------------------------ data: URLs

PIXEL = base64.b64encode(b"\x89PNG picture").decode()


@pytest.mark.parametrize(
    ("url", "body", "kind"),
    [
        (f"data:image/png;base64,{PIXEL}", b"\x89PNG picture", "image/png"),
        (f"DATA:Image/PNG;charset=x;BASE64,{PIXEL}", b"\x89PNG picture", "image/png"),
        ("data:,plain%20text", b"plain text", "text/plain"),
        ("data:image/png;base64,", b"", "image/png"),
        ("data:image/png;base64,QUI%3D", b"AB", "image/png"),
    ],
)
def test_data_url_is_read(url: str, body: bytes, kind: str) -> None:
    fetched = read_data_url(url)
    assert (fetched.body, fetched.content_type) == (body, kind)
    assert len(fetched.url) < 60


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://example.org/", "not a data: URL"),
        ("data:image/png;base64", "comma"),
        ("data:image/png;base64,@@@", "not base64"),
        ("data:image/png;base64,QUI", "not base64"),
        ("data:image/png;base64,QU\nI=", "not base64"),
        ("data:text/plain,é", "ASCII"),
        ("data:" + "x" * 300 + ",a", "comma"),
        ("data:,12345678901", "more than 10 bytes"),
        ("data:;base64," + "A" * 1000, "more than 10 bytes"),
        ("data:;base64," + base64.b64encode(b"12345678901").decode(), "more than 10 bytes"),
    ],
)
def test_data_url_is_refused_with_the_reason(url: str, reason: str) -> None:
    with pytest.raises(FetchRefused, match=reason):
        read_data_url(url, max_bytes=10)
