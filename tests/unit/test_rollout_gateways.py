"""Asking gateway pods for their route: answers, refusals, silence."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
from aiohttp import web

from cutover.contract import PATH_ROUTE_REPORT
from cutover_operator.rollout.gateways import GatewayReports


def pod(name: str, port: int, ready: bool = True, **status: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": name},
        "spec": {"containers": [{"ports": [{"name": "ops", "containerPort": port}]}]},
        "status": {
            "podIP": "127.0.0.1",
            "conditions": [{"type": "Ready", "status": "True" if ready else "False"}],
            **status,
        },
    }


async def listen(handler: Any) -> tuple[web.AppRunner, int]:
    app = web.Application()
    app.router.add_get(PATH_ROUTE_REPORT, handler)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    return runner, site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]


async def test_every_ready_pod_is_asked_and_a_failing_one_is_named() -> None:
    async def good(request: web.Request) -> web.Response:
        return web.json_response({"gateway": "assessor", "generation": 7})

    async def refusing(request: web.Request) -> web.Response:
        return web.Response(status=503)

    async def strange(request: web.Request) -> web.Response:
        return web.Response(text="hello")

    async def silent(request: web.Request) -> web.Response:
        await asyncio.sleep(5)
        return web.Response()

    servers = [await listen(h) for h in (good, refusing, strange, silent)]
    pods = [pod(name, port) for name, (_, port) in zip("abcd", servers, strict=True)]
    pods += [pod("e", 1), pod("f", 1, ready=False), pod("g", 1, podIP="")]
    async with aiohttp.ClientSession() as session:
        found = {p.name: p for p in await GatewayReports(session).ask(pods)}
    for runner, _ in servers:
        await runner.cleanup()
    assert sorted(found) == ["a", "b", "c", "d", "e", "g"]
    assert found["a"].report is not None
    assert found["a"].report.generation == 7
    assert "503" in found["b"].error
    assert "something else" in found["c"].error
    assert "no answer" in found["d"].error
    assert "cannot be reached" in found["e"].error
    assert "no address" in found["g"].error
