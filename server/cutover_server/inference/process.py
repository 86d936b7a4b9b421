"""The engine as a process: listens at once, becomes ready when the model is proven, drains on SIGTERM.

Exit codes: 0 after a drain, 65 when model or adapter must not be served (starting again cannot help), 1 otherwise.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable

from transformers.utils import logging as transformers_logging

from cutover.contract import ExitCode
from cutover_server.inference.app import build_app
from cutover_server.inference.engine import Engine
from cutover_server.inference.failure import report_failure
from cutover_server.inference.http_server import Server, config
from cutover_server.inference.lines import capture_library_logs, log
from cutover_server.inference.settings import ServeSettings

LAST_BYTES_SECONDS = 10
"""What is left for sending answers once the model has given them all."""


def serve(settings: ServeSettings) -> int:
    capture_library_logs()
    transformers_logging.disable_progress_bar()
    code = asyncio.run(run(settings))
    log("stopped", exit_code=code)
    sys.stdout.flush()
    # The worker may be inside native code; an orderly interpreter end would wait for it or crash under it.
    os._exit(code)


async def run(settings: ServeSettings) -> int:
    """Serve until a signal or a failure; returns the exit code."""
    engine = Engine(settings)
    server = Server(
        config(
            build_app(engine),
            settings.host,
            settings.port,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=LAST_BYTES_SECONDS,
        )
    )
    loop = asyncio.get_running_loop()
    codes: list[int] = []

    def stop(code: int) -> None:
        codes.append(code)
        server.should_exit = True

    draining: set[asyncio.Task[None]] = set()

    def on_signal() -> None:
        if draining or engine.state == "loading":
            stop(ExitCode.DONE)
            return
        engine.drain()
        draining.add(asyncio.create_task(_drain(engine, settings.drain_seconds, stop)))

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)

    def on_failed(error: BaseException) -> None:
        loop.call_soon_threadsafe(stop, report_failure(error))

    engine.start(on_failed)
    log("listening", port=settings.port, served_name=settings.served_name)
    await server.serve()
    return codes[0] if codes else ExitCode.FAILED


async def _drain(engine: Engine, seconds: float, stop: Callable[[int], None]) -> None:
    log("draining", queued=engine.batcher.queued, running=engine.batcher.running)
    finished = await asyncio.to_thread(engine.batcher.wait_idle, seconds)
    if not finished:
        log("drain_cut_short", level="warning", queued=engine.batcher.queued, running=engine.batcher.running)
    stop(ExitCode.DONE)
