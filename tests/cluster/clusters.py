"""Which cluster the tests use: one that was given, kind where a Docker engine runs, else our own node."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cluster import base, builds, node, packages, sweep, tools
from cluster.api import Api
from cluster.daemons import Daemon
from cluster.locks import exclusive
from cluster.paths import CACHE, KUBECONFIG, RUN
from cluster.shell import attempt, run
from cluster.steps import say, step, together

KIND = "cutover"


@dataclass(frozen=True)
class Cluster:
    """A cluster that answers, and an administrator's way into it."""

    kind: Literal["given", "kind", "node"]
    kubeconfig: Path


def up() -> Cluster:
    """A cluster that is ready, started if need be. Quick when it runs already."""
    given = _given()
    if given:
        return given
    with exclusive("cluster"):
        if shutil.which("kind") and attempt(["docker", "info"]) is not None:
            return _kind()
        if not node.healthy():
            _prepare()
            node.start()
        return Cluster("node", KUBECONFIG)


def down(purge: bool = False) -> None:
    """Take our cluster away; with `purge` also programs, images and downloads. A given cluster is left alone."""
    with exclusive("images"), exclusive("cluster"):
        if shutil.which("kind") and attempt(["docker", "info"]) is not None:
            run(["kind", "delete", "cluster", "--name", KIND])
        if sweep.anything_left():
            with step("taking the node away"):
                sweep.everything()
        if purge:
            with step(f"removing {CACHE}"):
                sweep.remove(CACHE)


def status() -> str:
    """What runs, in a few lines."""
    given = _given()
    if given:
        return f"using the cluster of KUBECONFIG={given.kubeconfig}"
    if not RUN.exists():
        return "no node is running"
    lines = [f"node: {'healthy' if node.healthy() else 'NOT healthy'}", f"kubeconfig: {KUBECONFIG}"]
    for file in sorted(RUN.glob("*.pid")):
        pid = Daemon(file.stem, RUN, node.LOGS).pid()
        lines.append(f"{file.stem}: {f'pid {pid}' if pid else 'ENDED'}")
    return "\n".join(lines)


def _given() -> Cluster | None:
    path = os.environ.get("KUBECONFIG", "")
    if not path or Path(path) == KUBECONFIG:
        return None
    if attempt([tools.kubectl(), f"--kubeconfig={path}", "get", "--raw", "/readyz", "--request-timeout=5s"]):
        return Cluster("given", Path(path))
    say(f"the cluster of KUBECONFIG={path} does not answer: using one of our own")
    return None


def _prepare() -> None:
    """On a new machine: packages and the base image come from the network while Go keeps the processor busy."""

    def network() -> None:
        packages.install(packages.CONTROL_PLANE, packages.NODE, packages.IMAGES)
        base.ensure()

    if not builds.is_built("kube"):
        together(lambda: builds.module("kube"), network)


def _kind() -> Cluster:
    kubeconfig = CACHE / "kind.kubeconfig"
    if KIND not in run(["kind", "get", "clusters"]).split():
        with step("making a cluster with kind"):
            run(["kind", "create", "cluster", "--name", KIND, "--wait", "120s"])
    kubeconfig.parent.mkdir(parents=True, exist_ok=True)
    kubeconfig.write_text(run(["kind", "get", "kubeconfig", "--name", KIND]))
    node.dress(Api(kubeconfig), f"{KIND}-control-plane")
    return Cluster("kind", kubeconfig)
