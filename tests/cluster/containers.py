"""The node's own containerd: its configuration, its images, and the end of what runs in it."""

import shutil
from pathlib import Path
from string import Template

from cluster import builds, single
from cluster.daemons import Daemon
from cluster.packages import CNI_PLUGINS, find
from cluster.paths import CONTAINERD, NODE, RUN, SOURCE
from cluster.shell import attempt, run
from cluster.steps import wait_until

SOCKET = RUN / "containerd.sock"
BRIDGE = "cutover0"
PODS = "10.244.0.0/16"
REGISTRY_PORT = 5001
DAEMON = Daemon("containerd", RUN, NODE / "logs")


def fill(name: str, **values: object) -> str:
    """A file of `node/` with its $words filled in; a word without a value is an error."""
    return Template((SOURCE / "node" / name).read_text()).substitute(node=NODE, run=RUN, **values)


def ctr(*words: str) -> list[str]:
    """A command to our containerd, in the namespace that kubelet uses."""
    return [find("ctr") or "ctr", f"--address={SOCKET}", "--namespace=k8s.io", *words]


def local_image(name: str) -> str:
    """The name of the image that holds one of our own programs, by the program's digest."""
    return f"cutover.local/{builds.module(name).parent.name.replace('-', ':')}"


def start() -> None:
    """Start containerd with our images in it and no containers from an earlier run."""
    (NODE / "cni").mkdir(parents=True, exist_ok=True)
    (NODE / "cni" / "cutover.conflist").write_text(fill("cni.json", bridge=BRIDGE, pods=PODS))
    hosts = NODE / "registries" / f"localhost:{REGISTRY_PORT}"
    hosts.mkdir(parents=True, exist_ok=True)
    (hosts / "hosts.toml").write_text(f'server = "http://127.0.0.1:{REGISTRY_PORT}"\n')
    config = NODE / "containerd.toml"
    config.write_text(fill("containerd.toml", images=CONTAINERD, pause=local_image("pause"), cni=CNI_PLUGINS))
    _launch(config)
    if clear():
        # It read the dead containers at its start and would go on reporting them to kubelet.
        DAEMON.stop()
        _launch(config)
    for name in ("pause", "dns"):
        if not has(local_image(name)):
            archive = single.archive(builds.module(name), local_image(name), NODE / f"{name}.tar")
            run(ctr("images", "import", str(archive)))
            archive.unlink()


def _launch(config: Path) -> None:
    DAEMON.start([find("containerd") or "containerd", f"--config={config}"])
    wait_until("containerd answers", lambda: attempt(ctr("version")) is not None, 60)


def has(image: str) -> bool:
    """Whether the node holds this image."""
    return image in run(ctr("images", "list", "-q")).split()


def pull(image: str) -> None:
    """Bring an image from our registry to the node, so that a pod's start need not wait for it."""
    run(ctr("images", "pull", "--plain-http", image))


def clear() -> bool:
    """Remove every container; whether there was any."""
    containers = (attempt(ctr("containers", "list", "-q")) or "").split()
    for task in (attempt(ctr("tasks", "list", "-q")) or "").split():
        attempt(ctr("tasks", "delete", "--force", task))
    for container in containers:
        attempt(ctr("containers", "delete", container))
    return bool(containers)


def forget_images() -> None:
    """Give the disk back."""
    shutil.rmtree(CONTAINERD, ignore_errors=True)
