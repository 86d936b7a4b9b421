"""uvicorn without signal handlers and without a log of its own: the process decides what a signal means and what is said."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import uvicorn
from starlette.applications import Starlette


class Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def config(app: Starlette, host: str, port: int, **limits: Any) -> uvicorn.Config:
    """`limits`: further settings of uvicorn, such as `timeout_keep_alive` in seconds."""
    return uvicorn.Config(
        app,
        host=host,
        port=port,
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        **limits,
    )
