"""The local node's API server goes away and comes back, while kubelet, containerd and kube-proxy go on."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from cluster.api import Api
from cluster.daemons import Daemon
from cluster.node import LOGS
from cluster.paths import KUBECONFIG, RUN
from cluster.steps import wait_until

BACK_SECONDS = 90.0


@contextlib.contextmanager
def apiserver_away() -> Iterator[None]:
    """Killed as a crash does it; started anew, with what etcd has kept, and ready at the end of the block.

    Stay below 40 seconds: after that Kubernetes itself calls the node lost and takes its pods out of every Service.
    """
    daemon = Daemon("apiserver", RUN, LOGS)
    pid = daemon.pid()
    if pid is None:
        raise RuntimeError("the local node has no running API server; start it with `make cluster`")
    argv = [word for word in Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0") if word]
    daemon.kill()
    try:
        yield
    finally:
        daemon.start(argv)
        api = Api(KUBECONFIG)

        def ready() -> bool:
            if daemon.pid() is None:
                raise RuntimeError(f"the API server ended at its start:\n{daemon.tail()}")
            return api.ready()

        wait_until("the API server is ready again", ready, BACK_SECONDS)
