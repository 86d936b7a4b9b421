"""SIGKILL for a pod's process on the node itself: no signal before it, no drain, no goodbye."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

from cluster.daemons import start_time
from cluster.steps import wait_until
from demo.stack import Stack


def kill_hard(stack: Stack, pod: str) -> tuple[float, float]:
    """Kill and wait until the kubelet has seen it; on a node elsewhere, the hardest deletion there is.

    The moments just before the kill and when the processes were gone, in Unix seconds: on a busy machine even a killed
    process keeps its connections until it gets its turn to end.
    """
    pids = _processes(f"POD_NAME={pod}", f"POD_NAMESPACE={stack.namespace}")
    restarts, _ = _restarts(stack, pod)
    at = time.time()
    if not pids:
        stack.kube.run("delete", "pod", pod, "--grace-period=0", "--force", "--wait=false")
        return at, time.time()
    _kill(pids)
    wait_until(f"{pod} to be gone", lambda: all(start_time(pid) is None for pid in pids), 30, every=0.02)
    gone_at = time.time()

    def restarted() -> bool:
        count, exit_code = _restarts(stack, pod)
        return count > restarts and exit_code == 137

    stack.kube.wait("the container to be started again", restarted, 60)
    return at, gone_at


def kill_for_good(stack: Stack, deployment: str) -> None:
    """Kill a Deployment's pods while it is told to have none, and wait until they are gone.

    Only a pod that is on its way out already is killed: kubelet does not start that one again, so nothing of it is left
    that might share its claim with a successor.
    """
    selector = f"app={deployment}"
    stack.kube.run("scale", f"deployment/{deployment}", "--replicas=0")

    def leaving() -> list[str] | None:
        pods = stack.kube.items("pods", selector)
        if any("deletionTimestamp" not in pod["metadata"] for pod in pods):
            return None
        return [str(pod["metadata"]["name"]) for pod in pods]

    for pod in stack.kube.wait(f"the pods of {deployment} to be told to go", leaving, 60, 0.1):
        pids = _processes(f"HOSTNAME={pod}")
        _kill(pids)
        if not pids:  # a node elsewhere: PostgreSQL at least takes this for a crash
            stack.kube.run("exec", pod, "--", "sh", "-c", "kill -QUIT 1", check=False)
    stack.kube.wait(f"{deployment} to be gone", lambda: not stack.kube.items("pods", selector), 90)


def _processes(*wanted: str) -> list[int]:
    """Those of this machine that were started with these variables; a pod's own name is in HOSTNAME."""
    words = {word.encode() for word in wanted}
    return [int(entry.name) for entry in Path("/proc").glob("[0-9]*") if words <= environment_of(entry)]


def _kill(pids: list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _restarts(stack: Stack, pod: str) -> tuple[int, int | None]:
    """How often the pod's container was started again, and the last exit code."""
    (container,) = (stack.kube.get("pod", pod) or {})["status"]["containerStatuses"]
    ended = container.get("lastState", {}).get("terminated") or {}
    return int(container["restartCount"]), ended.get("exitCode")


def environment_of(process: Path) -> set[bytes]:
    try:
        return set((process / "environ").read_bytes().split(b"\0"))
    except OSError:
        return set()
