"""A real MLflow server on the loopback address, with a SQLite database."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fakes.free_ports import free_port

START_SECONDS = 240.0
# Background jobs start several more processes, and nothing here asks for one.
SETTINGS = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}


@contextmanager
def mlflow_server(folder: Path) -> Iterator[str]:
    """Yields its URL; data and log lie in the folder."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--workers",
        "1",
    ]
    storage = [
        "--backend-store-uri",
        f"sqlite:///{folder}/mlflow.db",
        "--artifacts-destination",
        f"file://{folder}/artifacts",
    ]
    with (folder / "mlflow.log").open("wb") as log:
        # Its own session: the server starts workers that end with it.
        process = subprocess.Popen(
            [*command, *storage],
            cwd=folder,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env={**os.environ, **SETTINGS},
        )
    try:
        _wait(url, process, folder)
        yield url
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def _wait(url: str, process: subprocess.Popen[bytes], folder: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        assert process.poll() is None, (folder / "mlflow.log").read_text()[-2000:]
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=2):
                return
        except (urllib.error.URLError, OSError):
            assert time.monotonic() < deadline, (folder / "mlflow.log").read_text()[-2000:]
            time.sleep(0.1)
