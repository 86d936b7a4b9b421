"""Runs a built-in engine on a loopback port inside the test process."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from cutover_server.inference.app import build_app
from cutover_server.inference.engine import Engine
from cutover_server.inference.loading import Served, load
from cutover_server.inference.settings import ServeSettings

DEADLINE_SECONDS = 30.0


def until(condition: Callable[[], Any], deadline_seconds: float = DEADLINE_SECONDS) -> None:
    """Wait for a condition; fails loudly when it never comes."""
    end = time.monotonic() + deadline_seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"not within {deadline_seconds} s: {condition}")
        time.sleep(0.005)


class RunningEngine:
    def __init__(self, engine: Engine, port: int) -> None:
        self.engine = engine
        self.origin = f"http://127.0.0.1:{port}"
        self.port = port


@contextmanager
def running_engine(
    settings: ServeSettings, loader: Callable[[ServeSettings], Served] = load, *, wait_ready: bool = True
) -> Iterator[RunningEngine]:
    engine = Engine(settings, loader=loader)
    failures: list[BaseException] = []
    config = uvicorn.Config(
        build_app(engine), host="127.0.0.1", port=0, lifespan="off", log_config=None, access_log=False
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()), daemon=True)
    thread.start()
    until(lambda: server.started)
    engine.start(failures.append)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        if wait_ready:
            until(lambda: engine.state == "ready" or failures)
            if failures:
                raise failures[0]
        yield RunningEngine(engine, port)
    finally:
        engine.batcher.close()
        server.should_exit = True
        thread.join(DEADLINE_SECONDS)
