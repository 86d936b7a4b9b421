"""A real API server with its own etcd and nothing else, for tests of the API that need no pods.

    with ControlPlane(tmp_path) as plane:
        ... plane.kubeconfig ...

It listens on free ports of 127.0.0.1, so several run side by side. Nothing in it schedules, runs or collects: a Job
stays as it was written. Its programs end with the `with` block.
"""

import contextlib
import socket
from pathlib import Path
from types import TracebackType

from cluster import builds, packages, plane
from cluster.api import Api, ApiError
from cluster.daemons import Daemon
from cluster.pki import Authority
from cluster.steps import wait_until

ADDRESS = "127.0.0.1"


class ControlPlane:
    """See the module. `kubeconfig` is an administrator's."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.kubeconfig = directory / "kubeconfig"
        self._etcd = Daemon("etcd", directory, directory)
        self._apiserver = Daemon("apiserver", directory, directory)
        self._argv: list[str | Path] = []

    def __enter__(self) -> "ControlPlane":
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start(self) -> None:
        packages.install(packages.CONTROL_PLANE)
        kube = builds.module("kube")
        client, peer, secure = _free_ports(3)
        etcd_url = f"http://{ADDRESS}:{client}"
        self._etcd.start(plane.etcd(self.directory / "etcd", etcd_url, f"http://{ADDRESS}:{peer}"))
        authority = Authority(self.directory / "pki")
        serving = plane.api_certificate(authority, [ADDRESS, plane.FIRST_SERVICE])
        admin = authority.sign("admin", "admin", "system:masters")
        authority.kubeconfig(self.kubeconfig, f"https://{ADDRESS}:{secure}", admin)
        self._argv = plane.apiserver(kube, authority, serving, etcd_url, ADDRESS, secure)
        # The loopback address is refused as an endpoint of the service `kubernetes`, which nobody needs here.
        self._argv += [f"--bind-address={ADDRESS}", "--endpoint-reconciler-type=none"]
        self.start_apiserver()

    def start_apiserver(self, seconds: float = 60.0) -> None:
        """Start it (again), with what etcd has kept, and return when it is ready."""
        self._apiserver.start(self._argv)
        api = Api(self.kubeconfig)

        def ready() -> bool:
            if self._apiserver.pid() is None:
                raise RuntimeError(f"the API server ended at its start:\n{self._apiserver.tail()}")
            return api.ready() and _has_default_namespace(api)

        wait_until("the API server is ready", ready, seconds, every=0.05)

    def kill_apiserver(self) -> None:
        """End it as a crash does: connections break, nothing is said to the clients."""
        self._apiserver.kill()

    def close(self) -> None:
        """End both programs; their logs stay in the directory."""
        with contextlib.suppress(TimeoutError):
            self._apiserver.kill()
        self._etcd.stop()


def _has_default_namespace(api: Api) -> bool:
    """It is made after the server calls itself ready, and a test's first object usually goes there."""
    try:
        return bool(api.get("api/v1/namespaces/default"))
    except ApiError:
        return False


def _free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago, all of them different."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind((ADDRESS, 0))
        return [int(one.getsockname()[1]) for one in sockets]
    finally:
        for one in sockets:
            one.close()
