"""`cutover-assessments`: both ports in one process, until SIGTERM."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from cutover_server.assessments.app import build_app, build_ops_app
from cutover_server.assessments.service import Service
from cutover_server.assessments.settings import Settings, SettingsError, read_settings

EXIT_BAD_SETTINGS = 64


class _Server(uvicorn.Server):
    """One of two servers in the process: the signals are the program's."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def serve(settings: Settings, service: Service) -> None:
    servers = [
        _Server(
            uvicorn.Config(
                app,
                host="0.0.0.0",  # noqa: S104  (a pod's own address is not known before)
                port=port,
                proxy_headers=False,
                server_header=False,
                access_log=False,
                lifespan="off",
                log_config=None,
                timeout_graceful_shutdown=20,
            )
        )
        for app, port in (
            (build_app(service), settings.port_app),
            (build_ops_app(service), settings.port_ops),
        )
    ]

    def leave() -> None:
        for server in servers:
            server.should_exit = True

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, leave)
    await service.start()
    try:
        await asyncio.gather(*(server.serve() for server in servers))
    finally:
        await service.stop()


def main() -> None:
    logging.basicConfig(
        level=os.environ.get("CUTOVER_LOG_LEVEL", "INFO").upper(),
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
    )
    logging.getLogger("alembic").setLevel(logging.WARNING)
    try:
        settings = read_settings(os.environ)
        service = Service(settings)
    except (SettingsError, ValueError) as error:
        sys.stderr.write(f"cutover-assessments: {error}\n")
        raise SystemExit(EXIT_BAD_SETTINGS) from None
    with asyncio.Runner(loop_factory=_loop) as runner:
        runner.run(serve(settings, service))


def _loop() -> asyncio.AbstractEventLoop:
    import uvloop

    return uvloop.new_event_loop()
