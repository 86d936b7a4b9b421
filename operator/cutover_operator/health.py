"""/healthz, /readyz and /metrics of the operator, the same on both replicas."""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import web

from cutover.contract import PATH_LIVE, PATH_METRICS, PATH_READY
from cutover_operator.telemetry import Telemetry


async def serve(
    telemetry: Telemetry,
    port: int,
    live: Callable[[], bool] = lambda: True,
    ready: Callable[[], bool] = lambda: True,
    host: str | None = None,
) -> tuple[web.AppRunner, int]:
    """Start; answers the runner to clean up and the port in use."""

    async def answer_live(_: web.Request) -> web.Response:
        return _said(live())

    async def answer_ready(_: web.Request) -> web.Response:
        return _said(ready())

    async def answer_metrics(_: web.Request) -> web.Response:
        return web.Response(
            body=telemetry.exposition(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
        )

    app = web.Application()
    app.router.add_get(PATH_LIVE, answer_live)
    app.router.add_get(PATH_READY, answer_ready)
    app.router.add_get(PATH_METRICS, answer_metrics)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, host, port)
    await site.start()
    return runner, int(runner.addresses[0][1])


def _said(good: bool) -> web.Response:
    return web.Response(text="ok" if good else "no", status=200 if good else 503)
