"""The client on a scripted API server: deadlines, what is tried again, what is not, and the token."""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from cutover_operator import access, main
from cutover_operator.access import Access
from cutover_operator.kube import KubeClient
from cutover_operator.loop import Loop
from cutover_operator.plan import Key, Plan
from cutover_operator.port import CONFIG_MAPS, MODEL_ROLLOUTS, PODS, Conflict, Invalid, KubeError
from cutover_operator.settings import Settings
from cutover_operator.workqueue import WorkQueue

Handler = Callable[[web.Request], Awaitable[web.Response]]


class Script:
    """Answers in order; the last one stays."""

    def __init__(self) -> None:
        self.answers: list[web.Response | Handler] = []
        self.requests: list[tuple[str, str, str, dict[str, str]]] = []

    async def answer(self, request: web.Request) -> web.Response:
        self.requests.append((request.method, request.path_qs, (await request.text()), dict(request.headers)))
        index = min(len(self.requests), len(self.answers)) - 1
        answer = self.answers[index]
        return await answer(request) if callable(answer) else _copy(answer)


def _copy(answer: web.Response) -> web.Response:
    return web.Response(status=answer.status, text=answer.text, headers={**answer.headers})


def said(status: int, message: str = "", **headers: str) -> web.Response:
    body = {"kind": "Status", "message": message}
    return web.Response(status=status, text=json.dumps(body), headers=headers)


def found(**obj: object) -> web.Response:
    return web.Response(text=json.dumps(obj))


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
async def kube(script: Script) -> AsyncIterator[KubeClient]:
    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", script.answer)
    async with (
        TestServer(app) as server,
        KubeClient(Access(str(server.make_url("")).rstrip("/"), None), request_seconds=3.0) as client,
    ):
        yield client


NOTE = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "note", "namespace": "ns"}}


async def test_apply_is_tried_again_and_create_is_not(kube: KubeClient, script: Script) -> None:
    script.answers = [said(503, "busy"), said(429, "slow", **{"Retry-After": "0"}), found(**NOTE)]
    assert await kube.apply(NOTE) == NOTE
    method, path, _, headers = script.requests[-1]
    assert (method, path) == (
        "PATCH",
        "/api/v1/namespaces/ns/configmaps/note?fieldManager=cutover-operator&force=true",
    )
    assert headers["Content-Type"] == "application/apply-patch+yaml"
    script.requests.clear()
    script.answers = [said(503, "busy"), found(**NOTE)]
    with pytest.raises(KubeError, match="503"):
        await kube.create(NOTE)
    assert len(script.requests) == 1


async def test_a_server_that_stays_away_is_given_up_within_the_deadline(
    kube: KubeClient, script: Script
) -> None:
    script.answers = [said(500, "etcdserver: request timed out")]
    started = time.monotonic()
    with pytest.raises(KubeError, match="etcdserver"):
        await kube.get(CONFIG_MAPS, "ns", "note")
    assert time.monotonic() - started < 3.5


async def test_refusals_have_their_own_kinds(kube: KubeClient, script: Script) -> None:
    for status, kind in ((409, Conflict), (422, Invalid), (400, Invalid), (403, KubeError)):
        script.answers = [said(status, "no")]
        with pytest.raises(kind) as raised:
            await kube.apply(NOTE)
        assert raised.value.status == status
    script.answers = [said(404, "gone")]
    assert await kube.get(CONFIG_MAPS, "ns", "note") is None
    await kube.delete(CONFIG_MAPS, "ns", "note")
    with pytest.raises(ValueError, match="resourceVersion"):
        await kube.replace(NOTE)
    with pytest.raises(ValueError, match="resourceVersion"):
        await kube.apply_status(NOTE)


@pytest.mark.parametrize("text", ["<html>the proxy says hello</html>", "", "[]"])
async def test_an_answer_that_is_not_of_an_api_server_is_an_error_like_others(
    kube: KubeClient, script: Script, text: str
) -> None:
    script.answers = [web.Response(text=text)]
    for asked in (kube.get(CONFIG_MAPS, "ns", "note"), kube.list(CONFIG_MAPS, "ns"), kube.apply(NOTE)):
        with pytest.raises(KubeError, match="no JSON object"):
            await asked


async def test_a_list_that_outlives_its_snapshot_starts_again(kube: KubeClient, script: Script) -> None:
    first = found(metadata={"continue": "abc"}, items=[{"metadata": {"name": "a"}}])
    last = found(metadata={}, items=[{"metadata": {"name": "b"}}])
    script.answers = [first, said(410, "expired"), first, last]
    names = [one["metadata"]["name"] for one in await kube.list(CONFIG_MAPS, None, "x=y")]
    assert names == ["a", "b"]
    assert "labelSelector=x%3Dy" in script.requests[0][1]
    assert "continue=abc" in script.requests[3][1]


async def test_names_that_outlive_their_snapshot_begin_again(kube: KubeClient, script: Script) -> None:
    first = found(metadata={"continue": "abc"}, items=[{"metadata": {"namespace": "n", "name": "a"}}])
    last = found(metadata={}, items=[{"metadata": {"namespace": "m", "name": "b"}}])
    script.answers = [first, said(410, "expired"), first, last]
    assert [place async for place in kube.names(CONFIG_MAPS, None)] == [("n", "a"), ("n", "a"), ("m", "b")]
    assert "continue" not in script.requests[2][1]
    script.answers = [said(410, "expired")] * 9
    with pytest.raises(KubeError):
        [place async for place in kube.names(CONFIG_MAPS, None)]


async def test_delete_says_whom_it_means(kube: KubeClient, script: Script) -> None:
    script.answers = [found()]
    await kube.delete(PODS, "ns", "pod", uid="u-1")
    body = json.loads(script.requests[0][2])
    assert body["preconditions"] == {"uid": "u-1"}
    assert body["propagationPolicy"] == "Background"


async def test_a_token_is_read_again_when_it_was_refused(script: Script, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("old\n")

    async def refuse(_: web.Request) -> web.Response:
        token.write_text("new\n")
        return said(401, "Unauthorized")

    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", script.answer)
    script.answers = [refuse, found(**NOTE)]
    async with TestServer(app) as server:
        target = Access(str(server.make_url("")).rstrip("/"), None, token_file=token)
        async with KubeClient(target) as client:
            assert await client.get(CONFIG_MAPS, "ns", "note") == NOTE
    assert [headers["Authorization"] for *_, headers in script.requests] == ["Bearer old", "Bearer new"]


def test_a_kubeconfig_with_a_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "config"
    config.write_text(
        json.dumps(
            {
                "current-context": "c",
                "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
                "clusters": [
                    {
                        "name": "k",
                        "cluster": {"server": "https://127.0.0.1:6443/", "insecure-skip-tls-verify": True},
                    }
                ],
                "users": [{"name": "u", "user": {"token": "secret"}}],
            }
        )
    )
    monkeypatch.setenv("KUBECONFIG", str(config))
    target = access.access(access.credentials())
    assert target.server == "https://127.0.0.1:6443"
    assert target.headers() == {"Authorization": "Bearer secret"}
    assert target.tls is not None
    assert target.tls.verify_mode == ssl.CERT_NONE
    assert "secret" not in repr(target)


@pytest.mark.parametrize(
    "odd", ["<html>the proxy says hello</html>", '{"kind": "Status"}', '{"items": [{}]}']
)
async def test_a_resync_goes_on_after_an_answer_that_nobody_foresaw(
    kube: KubeClient, script: Script, monkeypatch: pytest.MonkeyPatch, odd: str
) -> None:
    monkeypatch.setattr(main, "RESYNC_SECONDS", 0.01)
    page = found(metadata={}, items=[{"metadata": {"namespace": "ns", "name": "cut"}}])
    script.answers = [page, web.Response(text=odd), page]
    passed: asyncio.Queue[Key] = asyncio.Queue()
    queue = WorkQueue(passed.put, 1)
    queue.start()
    loop = Loop(kube, [RolloutOnly()], lambda: datetime.now(UTC))
    resync = asyncio.create_task(main._resync(kube, loop, queue, Settings()))
    try:
        for _ in range(2):
            key = await asyncio.wait_for(passed.get(), 10)
            assert key == Key(MODEL_ROLLOUTS, "ns", "cut")
        assert len(script.requests) >= 3
    finally:
        resync.cancel()
        await asyncio.gather(resync, return_exceptions=True)
        await queue.stop()


class RolloutOnly:
    resource = MODEL_ROLLOUTS

    async def gather(self, key: Key, now: datetime) -> None: ...

    def decide(self, world: None, now: datetime) -> Plan:
        raise AssertionError("nobody runs a pass")
