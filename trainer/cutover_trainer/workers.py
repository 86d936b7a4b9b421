"""Runs one stage in several processes on this machine, one a GPU, and ends as they end.

The signal a pod gets is passed on to every worker. When one fails the others are asked to leave; the exit code and the
words of the one that refused its input, else of the first that failed, are the stage's. Nothing is left running behind a
launcher that is killed.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from cutover.contract import ExitCode
from cutover_trainer.stopping import Stop

RANK, SIZE, RENDEZVOUS = "RANK", "WORLD_SIZE", "CUTOVER_RENDEZVOUS"
"""Environment of a worker: its number, how many there are, and the URL where they meet."""
GRACE_SECONDS = 50.0
"""For the others when one has failed; below the pod's own."""
POLL_SECONDS = 0.1
KILLED_BY_SIGNAL = 128
"""A shell's way to tell of a signal in an exit code."""
SHARED_SCRATCH = "CUTOVER_SHARED_SCRATCH"
"""Folder of all workers of a machine: what one has fetched, the others find."""
_DIE_WITH_PARENT = 1
"""PR_SET_PDEATHSIG"""


def is_leader() -> bool:
    """Of this process, by its environment: one worker writes what all have made."""
    return os.environ.get(RANK, "0") == "0"


def run_workers(command: Sequence[str], count: int, stop: Stop, scratch: Path, termination_log: Path) -> int:
    """Exit code of the command run `count` times as one team. `scratch` is an empty folder."""
    words = [scratch / f"worker-{rank}.json" for rank in range(count)]
    workers = [_start(command, rank, count, scratch, words[rank]) for rank in range(count)]
    try:
        decided = _watch(workers, stop)
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    # Outside a pod there may be no place for it; the worker has logged its result.
    with contextlib.suppress(OSError):
        shutil.copyfile(words[decided], termination_log)
    code = workers[decided].returncode
    return code if code >= 0 else KILLED_BY_SIGNAL - code


def _start(
    command: Sequence[str], rank: int, count: int, scratch: Path, words: Path
) -> subprocess.Popen[bytes]:
    environment = {
        **os.environ,
        RANK: str(rank),
        "LOCAL_RANK": str(rank),
        SIZE: str(count),
        RENDEZVOUS: f"file://{scratch}/rendezvous",
        "CUTOVER_TERMINATION_LOG": str(words),
        SHARED_SCRATCH: str(scratch),
        # One machine: gloo would otherwise look up the host's own name, which a pod's resolver may not know.
        "GLOO_SOCKET_IFNAME": "lo",
    }
    return subprocess.Popen(
        command,
        env=environment,
        # All say the same; the leader's log is the stage's. Their errors are shown.
        stdout=None if rank == 0 else subprocess.DEVNULL,
        preexec_fn=_die_with_launcher,
    )


def _die_with_launcher() -> None:
    ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)


def _watch(workers: Sequence[subprocess.Popen[bytes]], stop: Stop) -> int:
    """Until all have ended. The number of the worker whose end is the stage's."""
    first_failed: int | None = None
    deadline = float("inf")
    asked = False
    while any(worker.poll() is None for worker in workers):
        if first_failed is None:
            first_failed = next((rank for rank, worker in enumerate(workers) if worker.poll()), None)
            if first_failed is not None:
                deadline = time.monotonic() + GRACE_SECONDS
        if not asked and (stop.requested or first_failed is not None):
            asked = True
            for worker in workers:
                worker.terminate()
        if time.monotonic() > deadline:
            break
        time.sleep(POLL_SECONDS)
    codes = [worker.poll() for worker in workers]
    if ExitCode.BAD_INPUT in codes:
        # The others failed because this one had left.
        return codes.index(ExitCode.BAD_INPUT)
    if first_failed is None:
        first_failed = next((rank for rank, code in enumerate(codes) if code), 0)
    return first_failed
