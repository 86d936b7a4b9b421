"""Runs one stage in several processes on this machine, one a GPU, and ends as they end.

The signal a pod gets is passed on to every worker. When one fails the others are asked to leave; the exit code and the
words of the one that refused its input, else of the first that failed, are the stage's. Where other nodes train with this
one, their troubles are this one's too, and all end alike. Nothing is left running behind a launcher that is killed.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from cutover.contract import ExitCode
from cutover_trainer.ends import End
from cutover_trainer.node_link import Alone, Others
from cutover_trainer.place import Place
from cutover_trainer.stopping import Stop

RANK, SIZE, RENDEZVOUS = "RANK", "WORLD_SIZE", "CUTOVER_RENDEZVOUS"
"""Environment of a worker: its number, how many there are, and the URL where they meet."""
LOCAL_RANK = "LOCAL_RANK"
"""Its number on its own machine."""
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


def run_workers(
    command: Sequence[str],
    place: Place,
    stop: Stop,
    scratch: Path,
    termination_log: Path,
    others: Others | None = None,
) -> int:
    """Exit code of the command run once for every worker of this node. `scratch` is an empty folder."""
    others = others or Alone()
    words = [scratch / f"worker-{local}.json" for local in range(place.workers)]
    workers = [_start(command, place, local, scratch, words[local]) for local in range(place.workers)]
    try:
        decided, asked = _watch(workers, stop, others)
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    code = workers[decided].returncode
    said = words[decided].read_text() if words[decided].exists() else ""
    if asked and code not in (ExitCode.DONE, ExitCode.BAD_INPUT, ExitCode.INTERRUPTED):
        # It was not listening yet, was deaf, or another had left it alone. What follows from a request to leave is no
        # failure of the training; where the request came from a failure on another node, that one was first and counts.
        # One that failed has left words of a failure.
        code, said = ExitCode.INTERRUPTED, said if code < 0 else ""
    end = others.settle(End(code if code >= 0 else KILLED_BY_SIGNAL - code, said))
    # Outside a pod there may be no place for it; the worker has logged its result.
    with contextlib.suppress(OSError):
        if end.words:
            termination_log.write_text(end.words)
    return end.code


def _start(
    command: Sequence[str], place: Place, local: int, scratch: Path, words: Path
) -> subprocess.Popen[bytes]:
    environment = {
        **os.environ,
        RANK: str(place.first_rank + local),
        LOCAL_RANK: str(local),
        SIZE: str(place.size),
        RENDEZVOUS: _rendezvous(place, scratch),
        "CUTOVER_TERMINATION_LOG": str(words),
        SHARED_SCRATCH: str(scratch),
    }
    if place.nodes == 1:
        # gloo would otherwise look up the host's own name, which a pod's resolver may not know. A pod that others are to
        # find has a name of its own, which stands in its hosts file.
        environment["GLOO_SOCKET_IFNAME"] = "lo"
    return subprocess.Popen(
        command,
        env=environment,
        # All say the same; the first one's log is the pod's. Their errors are shown.
        stdout=None if local == 0 else subprocess.DEVNULL,
        preexec_fn=_die_with_launcher,
    )


def _rendezvous(place: Place, scratch: Path) -> str:
    if place.nodes == 1:
        return f"file://{scratch}/rendezvous"
    # The first node's own name may not lead back into its pod, where a Service stands between.
    host = "localhost" if place.leads else place.host
    return f"tcp://{f'[{host}]' if ':' in host else host}:{place.port + 1}"


def _die_with_launcher() -> None:
    ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)


def _watch(workers: Sequence[subprocess.Popen[bytes]], stop: Stop, others: Others) -> tuple[int, bool]:
    """Until all have ended. The number of the worker whose end is the node's, and whether they were asked to leave before
    any had failed."""
    first_failed: int | None = None
    deadline = float("inf")
    asked = told = over_failure = False
    while any(worker.poll() is None for worker in workers):
        others.turn()
        if first_failed is None:
            first_failed = next((rank for rank, worker in enumerate(workers) if worker.poll()), None)
            if first_failed is not None:
                others.in_trouble()
        if deadline == float("inf") and (first_failed is not None or others.broken):
            deadline = time.monotonic() + GRACE_SECONDS
        if stop.requested and not told:
            told = True
            others.asked_to_stop()
        if not asked and (stop.requested or first_failed is not None or others.leaving):
            asked = True
            over_failure = first_failed is not None
            for worker in workers:
                worker.terminate()
        if time.monotonic() > deadline:
            break
        time.sleep(POLL_SECONDS)
    codes = [worker.poll() for worker in workers]
    if ExitCode.BAD_INPUT in codes:
        # The others failed because this one had left.
        return codes.index(ExitCode.BAD_INPUT), asked
    if first_failed is None:
        first_failed = next((rank for rank, code in enumerate(codes) if code), 0)
    return first_failed, asked and not over_failure
