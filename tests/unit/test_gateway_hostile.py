"""Hostile inputs, byte by byte over a socket: refused with the right status, nothing fetched, no secret told.

Every case meets the same gateway, which asks for a key, may fetch from one origin only, and logs at the lowest level.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response, StreamingResponse
from starlette.routing import Route as Path_

from cutover_server.gateway.callers import Callers, read_keys
from fakes.free_ports import free_port
from fakes.gateway_rig import Rig, chat_body, data_url, picture, running

KEY, ADMIN_KEY = "ck-the-callers-own-key", "ck-the-admins-own-key"
SIGNATURE = "c2lnbmF0dXJl-of-a-private-link"
SECRETS = (KEY, ADMIN_KEY, "sk-control", SIGNATURE, "hunter2", "ck-guessed")
MAX_BODY = 3_000_000
OWN, INSIDE = "OWN", "INSIDE"
"""Stand for the origin that may be asked for pictures, and for a server on loopback that may not."""


@dataclass
class Inside:
    """A service of the cluster that nobody outside may reach."""

    asked: list[str] = field(default_factory=list)

    async def __call__(self, request: Request) -> Response:
        self.asked.append(request.url.path)
        return Response(picture(1), media_type="image/png")


async def _redirects(request: Request) -> Response:
    return RedirectResponse(request.query_params["to"])


async def _page(request: Request) -> Response:
    return Response("<html>", media_type="text/html")


async def _huge(request: Request) -> Response:
    async def parts() -> AsyncIterator[bytes]:
        for _ in range(30):
            yield b"x" * 1_000_000
            await asyncio.sleep(0.001)

    return StreamingResponse(parts(), media_type="image/png")


def http(
    body: bytes = b"",
    headers: str = "",
    line: str = "POST /v1/chat/completions HTTP/1.1",
    key: str | None = KEY,
    length: bool = True,
) -> bytes:
    head = [line, "host: gateway", "content-type: application/json"]
    if key is not None:
        head.append(f"authorization: Bearer {key}")
    if length:
        head.append(f"content-length: {len(body)}")
    return ("\r\n".join(head) + "\r\n" + headers).encode("latin-1") + b"\r\n" + body


def chat(**changes: Any) -> bytes:
    return json.dumps({**chat_body(data_url(picture(1))), **changes}).encode()


def link(url: str) -> bytes:
    return http(json.dumps(chat_body(url)).encode())


GOOD = chat()
URLS = {
    "metadata service": "http://169.254.169.254/latest/meta-data/iam",
    "loopback": f"http://127.0.0.1:{INSIDE}/x.png",
    "loopback by name": f"http://localhost:{INSIDE}/x.png",
    "loopback, rooted name": f"http://localhost.:{INSIDE}/x.png",
    "loopback, short": f"http://127.1:{INSIDE}/x.png",
    "loopback, decimal": f"http://2130706433:{INSIDE}/x.png",
    "loopback, hexadecimal": f"http://0x7f000001:{INSIDE}/x.png",
    "loopback, octal": f"http://0177.0.0.1:{INSIDE}/x.png",
    "loopback, full-width digits": f"http://１２７.０.０.１:{INSIDE}/x.png",
    "loopback, IPv6": f"http://[::1]:{INSIDE}/x.png",
    "loopback, mapped": f"http://[::ffff:127.0.0.1]:{INSIDE}/x.png",
    "loopback, NAT64": f"http://[64:ff9b::7f00:1]:{INSIDE}/x.png",
    "any address": f"http://0.0.0.0:{INSIDE}/x.png",
    "private network": "http://10.0.0.1/x.png",
    "carrier-grade NAT": "http://100.100.100.200/x.png",
    "link-local with a zone": "http://[fe80::1%25lo]/x.png",
    "redirect to the inside": f"http://{OWN}/redirect?to=http://127.0.0.1:{INSIDE}/x.png&sig={SIGNATURE}",
    "redirect to a file": f"http://{OWN}/redirect?to=file:///etc/passwd",
    "not a picture": f"http://{OWN}/page",
    "endless picture": f"http://{OWN}/huge",
    "password in the URL": f"http://user:hunter2@{OWN}/page",
    "signed and refused": f"http://10.0.0.1/x.png?X-Amz-Signature={SIGNATURE}",
    "file": "file:///var/run/secrets/kubernetes.io/serviceaccount/token",
    "gopher": f"gopher://127.0.0.1:{INSIDE}/_x",
    "script": "javascript:fetch('/')",
    "no scheme": f"//127.0.0.1:{INSIDE}/x.png",
    "line break": f"http://{OWN}/page\r\nx-evil: 1",
    "too long": f"http://{OWN}/" + "a" * 9000,
    "data, not a picture": "data:text/html;base64,PGh0bWw+",
    "data, not base64": "data:image/png;base64,@@@@",
    "data, empty": "data:image/png;base64,",
}
METADATA = "http://169.254.169.254/latest/meta-data/iam"
PARTS: dict[str, Any] = {
    "a picture without a type": {"image_url": {"url": METADATA}},
    "a video": {"type": "video_url", "video_url": {"url": METADATA}},
    "a picture of another API": {"type": "input_image", "image_url": METADATA},
    "a text with a picture beside it": {"type": "text", "text": "a", "image_url": {"url": METADATA}},
    "a type that is a list": {"type": ["image_url"], "image_url": {"url": METADATA}},
    "a part that is text": METADATA,
}
WELL_FORMED = {
    **{name: (link(url), 400) for name, url in URLS.items()},
    **{
        name: (http(chat(messages=[{"role": "user", "content": [part]}])), 400)
        for name, part in PARTS.items()
    },
    "content that is a part": (
        http(chat(messages=[{"role": "user", "content": {"type": "image_url", "image_url": METADATA}}])),
        400,
    ),
    "content that is a number": (http(chat(messages=[{"role": "user", "content": 7}])), 400),
    "huge picture": (link(data_url(b"x" * 2_500_000)), 413),
    "seventeen pictures": (
        http(
            chat(
                messages=[
                    {
                        "role": "user",
                        "content": [{"type": "image_url", "image_url": {"url": data_url(picture(1))}}] * 17,
                    }
                ]
            )
        ),
        400,
    ),
    "a picture that is a number": (
        http(chat(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": 7}]}])),
        400,
    ),
    "much text": (http(chat(messages=[{"role": "user", "content": "a" * 1_500_000}])), 413),
    "nested lists": (http(b"[" * 500_000 + b"]" * 500_000), 400),
    "nested objects in metadata": (
        http(GOOD[:-1] + b', "metadata": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_001),
        400,
    ),
    "a number of a million digits": (http(GOOD[:-1] + b', "seed": ' + b"9" * 1_000_000 + b"}"), 400),
    "not a number": (http(GOOD[:-1] + b', "temperature": NaN}'), 400),
    "not UTF-8": (http(GOOD.replace(b"Assess", b"\xff\xfe", 1)), 400),
    "lone surrogate": (http(GOOD.replace(b"Assess", b"\\ud800", 1)), 400),
    "half a body": (http(GOOD[: len(GOOD) // 2]), 400),
    "no body": (http(b""), 400),
    "a compressed body": (http(gzip.compress(GOOD), "content-encoding: gzip\r\n"), 400),
    "messages that are text": (http(chat(messages="hello")), 400),
    "messages that are lists": (http(chat(messages=[[]])), 400),
    "a thousand choices": (http(chat(n=1000)), 400),
    "an id with a line break": (http(chat(metadata={"assessment_id": "a\r\nx-evil: 1"})), 400),
    "an id that is an object": (http(chat(metadata={"assessment_id": {"$gt": ""}})), 400),
    "an id of a kilobyte": (http(GOOD, "x-cutover-assessment-id: " + "a" * 1024 + "\r\n"), 400),
    "no key": (http(GOOD, key=None), 401),
    "a guessed key": (http(GOOD, key="ck-guessed"), 401),
    "the provider's key": (http(GOOD, key="sk-control"), 401),
    "a key outside ASCII": (http(GOOD, key="ck-guessed\xff"), 401),
    "a key of another scheme": (http(GOOD, f"authorization: Basic {KEY}\r\n", key=None), 401),
    "an arm chosen by an application": (http(GOOD, "x-cutover-arm: candidate\r\n"), 403),
    "an arm that does not exist": (http(GOOD, "x-cutover-arm: evil\r\n", key=ADMIN_KEY), 400),
    "another method": (http(line="DELETE /v1/chat/completions HTTP/1.1"), 405),
    "another path": (http(line="GET /internal/route HTTP/1.1"), 404),
    "a path out of the root": (http(line="GET /v1/models/../../internal/route HTTP/1.1"), 404),
    "a path of a megabyte": (http(line=f"GET /{'a' * 1_000_000} HTTP/1.1"), 431),
    "headers of two megabytes": (http(GOOD, f"x-a: {'a' * 2_000_000}\r\n"), 431),
    "ten thousand headers": (http(GOOD, "".join(f"x-{n}: y\r\n" for n in range(10_000))), 431),
    "an announced gigabyte": (http(headers="content-length: 1000000000\r\n", length=False), 413),
}
MALFORMED = {
    "chunks beyond the limit": (
        http(headers="transfer-encoding: chunked\r\n", length=False)
        + (b"100000\r\n" + b" " * 0x100000 + b"\r\n") * 5
        + b"0\r\n\r\n",
        413,
    ),
    "a body that never comes": (http(headers="content-length: 1000\r\n", length=False) + b"{", 408),
    "two lengths": (http(GOOD, "content-length: 3\r\n"), 400),
    "a length below zero": (http(headers="content-length: -1\r\n", length=False), 400),
    "a length and chunks": (http(GOOD, "transfer-encoding: chunked\r\n"), 400),
    "a header with a line break inside": (http(GOOD, "x-a: b\r\n c: d\x00\r\n"), 400),
    "no HTTP at all": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 20, 400),
}


@asynccontextmanager
async def hostile_ground(folder: Path) -> AsyncIterator[tuple[Rig, Inside, dict[str, int]]]:
    ports = {OWN: free_port(), INSIDE: free_port()}
    inside = Inside()
    own = Starlette(routes=[Path_("/redirect", _redirects), Path_("/page", _page), Path_("/huge", _huge)])
    keys = folder / "callers"
    keys.write_text(
        f"assessor {hashlib.sha256(KEY.encode()).hexdigest()}\n"
        f"operations {hashlib.sha256(ADMIN_KEY.encode()).hexdigest()} admin # the people on call\n"
    )
    async with aiohttp.ClientSession() as session:
        rig = Rig(folder, session)
        rig.settings |= {
            "client_keys_file": keys,
            "max_body_bytes": MAX_BODY,
            "body_seconds": 0.5,
            "allowed_image_origins": (f"http://127.0.0.1:{ports[OWN]}",),
        }
        async with (
            running(own, ports[OWN]),
            running(Starlette(routes=[Path_("/{path:path}", inside)]), ports[INSIDE]),
            rig.all(rig.route(weight_basis_points=5000)),
        ):
            yield rig, inside, ports


async def send(port: int, request: bytes) -> tuple[int, bytes]:
    """Status and body of what comes back. The server may stop reading before everything is sent."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**24)

    async def write() -> None:
        try:
            writer.write(request)
            await writer.drain()
        except OSError:
            pass

    writing = asyncio.create_task(write())
    try:
        async with asyncio.timeout(20):
            head = await reader.readuntil(b"\r\n\r\n")
            length = next(
                (
                    int(line.partition(b":")[2])
                    for line in head.split(b"\r\n")
                    if line.lower().startswith(b"content-length:")
                ),
                -1,
            )
            return int(head.split()[1]), await reader.readexactly(
                length
            ) if length >= 0 else await reader.read()
    finally:
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
        writer.transport.abort()


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level(logging.DEBUG):
        yield caplog


async def test_hostile_inputs_are_refused_and_nothing_is_fetched_or_told(
    tmp_path: Path, told: pytest.LogCaptureFixture
) -> None:
    cases = {**WELL_FORMED, **MALFORMED}
    assert len(cases) >= 40
    got: dict[str, int] = {}
    replies: list[bytes] = []
    async with hostile_ground(tmp_path) as (rig, inside, ports):
        own, port = f"127.0.0.1:{ports[OWN]}", str(ports[INSIDE])
        for name, (request, _) in cases.items():
            request = request.replace(OWN.encode(), own.encode()).replace(INSIDE.encode(), port.encode())
            if (at := request.find(b"content-length: ")) >= 0 and name in URLS:
                body = request.partition(b"\r\n\r\n")[2]
                end = request.index(b"\r\n", at)
                request = request[:at] + b"content-length: %d" % len(body) + request[end:]
            status, reply = await send(rig.ports["app"], request)
            got[name] = status
            replies.append(reply)
            if status != 200:
                assert set(json.loads(reply)["error"]) == {"message", "type", "param", "code"}, name
        assert inside.asked == []
        assert rig.control.stats["requests"] == rig.candidate.stats["requests"] == 0
        assert await rig.value("cutover_requests_refused_total", reason="token") == 5
        # It still works, for those who may.
        status, _ = await send(rig.ports["app"], http(GOOD))
        assert status == 200
    assert got == {name: status for name, (_, status) in cases.items()}
    said = "\n".join([*(record.getMessage() for record in told.records), *map(repr, replies)]) + told.text
    assert [secret for secret in SECRETS if secret in said] == []
    assert "x-evil" not in told.text


async def test_an_admin_may_choose_the_arm_and_it_counts_for_no_rollout(tmp_path: Path) -> None:
    async with hostile_ground(tmp_path) as (rig, _, _):
        for arm in ("candidate", "control"):
            answer = await rig.ask(
                1, "house-1", headers={"authorization": f"Bearer {ADMIN_KEY}", "x-cutover-arm": arm}
            )
            assert (answer.status, answer.headers["x-cutover-arm"]) == (200, arm)
            assert answer.headers["x-request-id"] == answer.document["id"]
            assert await rig.value("cutover_requests_total", rollout="none", arm=arm, outcome="ok") == 1
        assert await rig.value("cutover_requests_total", rollout="0123456789abc") == 0


async def test_an_arm_that_an_admin_chose_is_not_exchanged_for_another(tmp_path: Path) -> None:
    text = "See ![](http://10.0.0.1/a.png)"
    async with hostile_ground(tmp_path) as (rig, _, _):
        fetching = rig.candidate_arm.model_copy(update={"fetches_from_text": True})
        rig.write_route(rig.route(generation=2, candidate=fetching))
        await rig.generation(2)
        for arm, status in (("candidate", 400), ("control", 200)):
            headers = {"authorization": f"Bearer {ADMIN_KEY}", "x-cutover-arm": arm}
            answer = await rig.ask(1, "house-1", headers=headers, tool_prompt=text)
            assert (answer.status, answer.headers["x-cutover-arm"]) == (status, arm)
        assert rig.candidate.seen == []


async def test_keys_are_followed_when_their_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr("cutover_server.gateway.callers.time.monotonic", lambda: now[0])
    keys = tmp_path / "keys"
    keys.write_text(f"one {hashlib.sha256(b'a').hexdigest()}\n")
    callers = Callers(None, keys)
    assert callers.of("Bearer a") is not None
    assert callers.of("Bearer b") is None
    keys.write_text("nonsense, and longer than what was there before " * 3)
    now[0] += 10
    assert callers.of("Bearer a") is not None, "a file that makes no sense leaves the last good one in force"
    keys.write_text(f"# moved\ntwo {hashlib.sha256(b'b').hexdigest()} admin\n")
    now[0] += 10
    assert callers.of("Bearer a") is None
    caller = callers.of("Bearer b")
    assert caller is not None
    assert (caller.name, caller.admin) == ("two", True)


@pytest.mark.parametrize("line", ["one", "one abc", "one " + "g" * 64, "one " + "0" * 64 + " root"])
def test_a_line_that_is_no_key_is_named(line: str) -> None:
    with pytest.raises(ValueError, match="line 2"):
        read_keys(f"# keys\n{line}\n")
