"""Programs that outlive the command that started them, known again by pid and start time.

A pid alone is no proof: numbers are given out again. Nothing is ever signalled whose start time is not the one that
was written down.
"""

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.steps import wait_until


def start_time(pid: int) -> str | None:
    """When this process started, in ticks since boot; None when there is none, or only its remains."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


def signal_process(pid: int, number: int) -> None:
    """Signal it, if it is still there."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


@dataclass(frozen=True)
class Daemon:
    """One such program: its pid file lies in `run`, its log in `logs`."""

    name: str
    run: Path
    logs: Path

    @property
    def log(self) -> Path:
        return self.logs / f"{self.name}.log"

    @property
    def pid_file(self) -> Path:
        return self.run / f"{self.name}.pid"

    def start(self, argv: Sequence[str | Path], env: Mapping[str, str] | None = None) -> None:
        """Start it in a session of its own, so that neither a closed terminal nor Ctrl-C reaches it."""
        self.run.mkdir(parents=True, exist_ok=True)
        self.logs.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                [str(word) for word in argv],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(env or {})},
                cwd=self.run,
                start_new_session=True,
            )
        process.returncode = 0  # it is not ours to wait for: no warning when this object goes
        self.pid_file.write_text(f"{process.pid} {start_time(process.pid)}\n")

    def pid(self) -> int | None:
        """Its pid while it runs, else None."""
        try:
            pid, started = self.pid_file.read_text().split()
        except (OSError, ValueError):
            return None
        with contextlib.suppress(ChildProcessError):
            os.waitpid(int(pid), os.WNOHANG)  # when it is this process's child, take in its remains
        return int(pid) if start_time(int(pid)) == started else None

    def stop(self, grace: float = 10.0) -> None:
        """Ask it to end, then end it. Nothing happens when it does not run."""
        pid = self.pid()
        if pid is not None:
            signal_process(pid, signal.SIGTERM)
            try:
                wait_until(f"{self.name} ends", lambda: self.pid() is None, grace, every=0.02)
            except TimeoutError:
                self.kill()
        self.pid_file.unlink(missing_ok=True)

    def kill(self) -> None:
        """End it at once, as a crash would."""
        pid = self.pid()
        if pid is not None:
            signal_process(pid, signal.SIGKILL)
            wait_until(f"{self.name} is gone", lambda: self.pid() is None, 10.0, every=0.02)

    def tail(self, lines: int = 30) -> str:
        """The end of its log, for a report of what went wrong."""
        try:
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
        except OSError:
            return "(no log)"
