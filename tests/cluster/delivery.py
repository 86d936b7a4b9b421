"""The ways by which an image reaches a cluster: our registry, `kind load`, or a registry that the user names."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from cluster import base, buildah, containers, packages, registry
from cluster.clusters import KIND, Cluster
from cluster.shell import attempt, run

KEPT = 2


class Delivery(Protocol):
    """One such way. `has` asks the store, `arrived` the node."""

    prefix: str

    def has(self, reference: str) -> bool: ...
    def build(
        self, dockerfile: Path, context: Path, reference: str, arguments: Mapping[str, str]
    ) -> None: ...
    def store(self, reference: str) -> None: ...
    def arrived(self, reference: str) -> bool: ...
    def bring(self, reference: str) -> None: ...


class ToNode:
    """buildah, then our registry, then the node's containerd."""

    prefix = f"{registry.HOST}/cutover"

    def has(self, reference: str) -> bool:
        return registry.has(reference)

    def build(self, dockerfile: Path, context: Path, reference: str, arguments: Mapping[str, str]) -> None:
        base.ensure()
        below = arguments.get("BASE")
        if below and not buildah.has(below):
            buildah.buildah("pull", "--quiet", "--tls-verify=false", f"docker://{below}")
        buildah.build(dockerfile, context, reference, arguments)

    def store(self, reference: str) -> None:
        buildah.push(reference)

    def arrived(self, reference: str) -> bool:
        return containers.has(reference)

    def bring(self, reference: str) -> None:
        containers.pull(reference)
        self._retire(reference)

    def _retire(self, reference: str) -> None:
        """Keep this and the image before it: every change of the code makes a new one, and disks are finite.

        What a container still uses is refused by either store and goes at a later turn.
        """
        name = reference.rpartition(":")[0]
        built = [line for line in buildah.names() if line.startswith(f"{name}:")]
        for old in built[KEPT:]:
            buildah.forget(old)
        for old in run(containers.ctr("images", "list", "-q")).split():
            if old.startswith(f"{name}:") and old not in built[:KEPT]:
                attempt(containers.ctr("images", "delete", old))
        # The layers are unpacked and the registry has them: a second copy on the node would only fill the disk.
        attempt(containers.ctr("content", "prune", "references"))


class ToKind:
    """The Docker engine, then kind's own way into its node."""

    prefix = "cutover.local"

    def has(self, reference: str) -> bool:
        return attempt(["docker", "image", "inspect", reference]) is not None

    def build(self, dockerfile: Path, context: Path, reference: str, arguments: Mapping[str, str]) -> None:
        given = [f"--build-arg={name}={value}" for name, value in arguments.items()]
        run(["docker", "build", *given, f"--file={dockerfile}", f"--tag={reference}", context])

    def store(self, reference: str) -> None:
        """The engine's own storage is the store."""

    def arrived(self, reference: str) -> bool:
        held = attempt(["docker", "exec", f"{KIND}-control-plane", "crictl", "inspecti", "-q", reference])
        return held is not None

    def bring(self, reference: str) -> None:
        run(["kind", "load", "docker-image", "--name", KIND, reference])


class ToRegistry(ToKind):
    """The Docker engine, then the registry that CUTOVER_REGISTRY names, from which the cluster pulls by itself."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix

    def has(self, reference: str) -> bool:
        return attempt(["docker", "manifest", "inspect", reference]) is not None

    def store(self, reference: str) -> None:
        run(["docker", "push", reference])

    def arrived(self, reference: str) -> bool:
        return True

    def bring(self, reference: str) -> None:
        """The cluster pulls."""


def delivery(cluster: Cluster) -> Delivery:
    """The way that fits this cluster."""
    if cluster.kind == "node":
        packages.install(packages.IMAGES)
        return ToNode()
    if cluster.kind == "kind":
        return ToKind()
    prefix = os.environ.get("CUTOVER_REGISTRY")
    if not prefix:
        raise RuntimeError(
            "a cluster of your own needs CUTOVER_REGISTRY: a registry that you and its nodes reach"
        )
    return ToRegistry(prefix.rstrip("/"))
