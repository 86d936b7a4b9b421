"""A real PostgreSQL on loopback for tests: one server per test process, a fresh database per caller."""

from __future__ import annotations

import atexit
import functools
import os
import pwd
import secrets
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from cluster import packages
from fakes.free_ports import free_port


@dataclass(frozen=True)
class Server:
    binaries: Path
    data: Path
    port: int
    owner: str | None
    """User the server runs as; PostgreSQL refuses to run as root."""

    def url(self, database: str) -> str:
        return f"postgresql://tester@127.0.0.1:{self.port}/{database}"

    def sql(self, statement: str) -> None:
        command = [
            str(self.binaries / "psql"),
            "-qXv",
            "ON_ERROR_STOP=1",
            "-d",
            self.url("postgres"),
            "-c",
            statement,
        ]
        subprocess.run(command, check=True, capture_output=True)

    def start(self) -> None:
        self._control("start", "-l", str(self.data / "log"))

    def stop(self) -> None:
        self._control("stop", "-m", "immediate")

    def _control(self, *arguments: str) -> None:
        command = [str(self.binaries / "pg_ctl"), "-w", "-t", "60", "-D", str(self.data), *arguments]
        subprocess.run(
            command,
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            user=self.owner,
            cwd="/",
        )


def new_database() -> tuple[Server, str]:
    """The shared server and the URL of an empty database on it."""
    server = _shared()
    name = f"t{secrets.token_hex(6)}"
    server.sql(f"CREATE DATABASE {name}")
    return server, server.url(name)


def new_server() -> Server:
    """A server of one's own, to stop and start."""
    binaries = _binaries()
    owner = None
    if os.geteuid() == 0:
        owner = next(
            name for name in ("postgres", "nobody") if name in {entry.pw_name for entry in pwd.getpwall()}
        )
    home = Path(tempfile.mkdtemp(prefix="cutover-postgres-"))
    if owner is not None:
        os.chown(home, pwd.getpwnam(owner).pw_uid, -1)
    data = home / "data"
    subprocess.run(
        [
            str(binaries / "initdb"),
            "-D",
            str(data),
            "-U",
            "tester",
            "-A",
            "trust",
            "-N",
            "-E",
            "UTF8",
            "--locale=C",
        ],
        check=True,
        capture_output=True,
        user=owner,
        cwd="/",
    )
    port = free_port()
    with (data / "postgresql.conf").open("a") as configuration:
        configuration.write(
            f"port={port}\nlisten_addresses='127.0.0.1'\nunix_socket_directories='{home}'\nfsync=off\n"
            "max_connections=100\nshared_buffers=32MB\n"
        )
    server = Server(binaries, data, port, owner)
    server.start()

    def remove() -> None:
        if (data / "postmaster.pid").exists():
            server.stop()
        shutil.rmtree(home, ignore_errors=True)

    atexit.register(remove)
    return server


@functools.cache
def _shared() -> Server:
    return new_server()


def _binaries() -> Path:
    """Where initdb, pg_ctl and postgres are; on a new machine they are installed first."""
    if (found := _installed()) is None:
        packages.install({"initdb": "postgresql"})
        found = _installed()
    if found is None:
        raise RuntimeError("these tests need a PostgreSQL server: install the package postgresql")
    return found


def _installed() -> Path | None:
    for folder in sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True):
        if (folder / "postgres").exists():
            return folder
    found = shutil.which("postgres")
    return Path(found).resolve().parent if found else None


def wait_until_answering(server: Server, seconds: float = 30) -> None:
    until = time.monotonic() + seconds
    while True:
        try:
            server.sql("SELECT 1")
            return
        except subprocess.CalledProcessError:
            if time.monotonic() > until:
                raise
            time.sleep(0.1)
