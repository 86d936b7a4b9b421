"""One real Kubernetes node on this machine, made of plain processes: its start, and whether it is well.

A start is always a fresh one (new certificates, empty etcd), so no test meets what an earlier run left. Only
images and programs are kept from run to run. `sweep` has the end of it.
"""

import http.client
import json
import socket
from pathlib import Path
from typing import Any

import yaml

from cluster import builds, containers, packages, plane, registry, sweep
from cluster.api import Api, ApiError
from cluster.containers import fill
from cluster.daemons import Daemon
from cluster.paths import CGROUP, CONTAINERD, KUBECONFIG, NODE, RUN, SOURCE
from cluster.pki import Authority
from cluster.steps import say, step, together, wait_until

NAME = "cutover"
PORT = 6443
GPUS = 8
GPU_PRODUCT = "NVIDIA-A100-SXM4-80GB"
DNS = "10.96.0.10"
ETCD, ETCD_PEER = "http://127.0.0.1:2379", "http://127.0.0.1:2380"
LOGS = NODE / "logs"
STATE = NODE / "state.json"
# The files that decide what a running node is: one of them changed means another node.
SHAPE = ("containers.py", "node.py", "pki.py", "plane.py", "registry.py")
DAEMONS = tuple(
    Daemon(name, RUN, LOGS)
    for name in ("etcd", "apiserver", "controller-manager", "scheduler", "kubelet", "proxy", "provisioner")
)


def content() -> str:
    """The digest of everything that shapes the node."""
    files = [SOURCE / name for name in SHAPE]
    files += [file for file in (SOURCE / "node").rglob("*") if file.is_file()]
    return builds.digest(files)


def healthy() -> bool:
    """Whether a node of this very content runs and serves, all its programs included."""
    try:
        state = json.loads(STATE.read_text())
    except (OSError, ValueError):
        return False
    if state != {"content": content(), "address": address()}:
        return False
    alive = all(daemon.pid() for daemon in (*DAEMONS, containers.DAEMON, registry.DAEMON))
    try:
        return alive and _ready(Api(KUBECONFIG))
    except OSError:
        return False


def start() -> None:
    """Leave exactly one healthy node: the running one if it is right, else a new one in place of whatever is there."""
    if healthy():
        return
    kube = prepare()
    if sweep.anything_left():
        with step("clearing away what was left of another node"):
            sweep.everything()
    with step("starting the node"):
        NODE.mkdir(parents=True, exist_ok=True, mode=0o755)
        CONTAINERD.mkdir(parents=True, exist_ok=True)
        try:
            together(containers.start, registry.start, lambda: _start_plane(kube))
            _start_workers(kube)
            api = Api(KUBECONFIG)
            _apply_manifests(api)
            wait_until("the node is registered", lambda: _node(api) is not None, 60)
            dress(api)
            wait_until("the node and its DNS are ready", lambda: _ready(api), 120)
        except BaseException:
            for daemon in (containers.DAEMON, *DAEMONS):
                if daemon.log.exists() and daemon.pid() is None:
                    say(f"{daemon.name} is not running; the end of its log:\n{daemon.tail()}")
            raise
        STATE.write_text(json.dumps({"content": content(), "address": address()}))


def prepare() -> Path:
    """Install and build what the node is made of; the answer is the program with the Kubernetes components."""
    packages.install(packages.CONTROL_PLANE, packages.NODE, packages.IMAGES)
    for name in ("pause", "dns"):
        builds.module(name)
    return builds.module("kube")


def address() -> str:
    """The address of this machine that pods can reach too: the one it would use towards other networks."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(
                ("192.0.2.1", 9)
            )  # a datagram socket sends nothing here, it only looks up the route
        except OSError as error:
            raise RuntimeError(
                "the node needs a network interface with an IPv4 address and a route"
            ) from error
        return str(probe.getsockname()[0])


def _daemon(name: str) -> Daemon:
    return next(daemon for daemon in DAEMONS if daemon.name == name)


def _start_plane(kube: Path) -> None:
    """etcd and the API server, with the certificates and kubeconfigs of everyone."""
    own = address()
    _daemon("etcd").start(plane.etcd(NODE / "etcd", ETCD, ETCD_PEER))
    authority = Authority(NODE / "pki")
    serving = plane.api_certificate(authority, ["127.0.0.1", own, plane.FIRST_SERVICE])
    server = f"https://127.0.0.1:{PORT}"
    users = {
        "controller-manager": ("system:kube-controller-manager", ""),
        "scheduler": ("system:kube-scheduler", ""),
        "proxy": ("system:kube-proxy", ""),
        "provisioner": ("cutover-provisioner", ""),
        "kubelet": (f"system:node:{NAME}", "system:nodes"),
        "admin": ("admin", "system:masters"),
    }
    for name, (user, group) in users.items():
        path = KUBECONFIG if name == "admin" else NODE / "pki" / f"{name}.kubeconfig"
        authority.kubeconfig(path, server, authority.sign(name, user, group))
    admin = NODE / "pki" / "admin"
    argv = plane.apiserver(kube, authority, serving, ETCD, own, PORT)
    argv += ["--kubelet-preferred-address-types=InternalIP"]
    argv += [f"--kubelet-client-certificate={admin}.crt", f"--kubelet-client-key={admin}.key"]
    daemon = _daemon("apiserver")
    daemon.start(argv)
    api = Api(KUBECONFIG)
    wait_until("the API server is ready", lambda: api.ready() or daemon.pid() is None, 90)
    if daemon.pid() is None:
        raise RuntimeError("the API server ended at its start")


def _start_workers(kube: Path) -> None:
    """All that stands between the API server and a running pod."""
    resolved = Path(
        "/run/systemd/resolve/resolv.conf"
    )  # where the real servers are when the usual file names a stub
    resolv = resolved if resolved.exists() else Path("/etc/resolv.conf")
    kubelet = NODE / "kubelet.yaml"
    kubelet.write_text(fill("kubelet.yaml", dns=DNS, resolv=resolv))
    sweep.make_cgroup(CGROUP)
    pki = NODE / "pki"
    loopback = "--bind-address=127.0.0.1"
    flags = {
        "controller-manager": [
            "--leader-elect=false",
            "--use-service-account-credentials",
            f"--service-account-private-key-file={pki / 'service-accounts.key'}",
            f"--root-ca-file={pki / 'ca.crt'}",
            loopback,
        ],
        "scheduler": ["--leader-elect=false", loopback],
        "kubelet": [
            f"--config={kubelet}",
            f"--root-dir={NODE / 'kubelet'}",
            f"--cert-dir={NODE / 'kubelet-pki'}",
            f"--hostname-override={NAME}",
            f"--node-ip={address()}",
        ],
        "proxy": [
            f"--hostname-override={NAME}",
            f"--cluster-cidr={containers.PODS}",
            "--proxy-mode=iptables",
            "--iptables-min-sync-period=100ms",
            "--conntrack-max-per-core=0",
            "--oom-score-adj=0",
            "--healthz-bind-address=127.0.0.1:10256",
        ],
        "provisioner": ["--name=cutover.dev/local", f"--directory={NODE / 'volumes'}"],
    }
    for name, more in flags.items():
        _daemon(name).start([kube, name, f"--kubeconfig={pki / f'{name}.kubeconfig'}", *more])


def _apply_manifests(api: Api) -> None:
    values = {"image": containers.local_image("dns"), "address": DNS, "forward": _forward()}
    for name in ("storage.yaml", "dns.yaml"):
        for document in yaml.safe_load_all(fill(f"manifests/{name}", **values)):
            api.apply(document)


def _forward() -> str:
    """Other names are the machine's own resolver's matter, if it has one that a pod can reach."""
    lines = Path("/etc/resolv.conf").read_text().splitlines() if Path("/etc/resolv.conf").exists() else []
    servers = [words[1] for words in map(str.split, lines) if len(words) > 1 and words[0] == "nameserver"]
    resolved = Path("/run/systemd/resolve/resolv.conf").exists()
    usable = [server for server in servers if not server.startswith("127.")]
    return "forward . /etc/resolv.conf" if usable or resolved else ""


def _node(api: Api) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = api.get(f"api/v1/nodes/{NAME}")
        return found
    except ApiError as error:
        if error.status == 404:
            return None
        raise


def dress(api: Api, name: str = NAME) -> None:
    """Give a node its GPUs. Kubelet keeps such a resource, but counts it as zero after its own restart."""
    merge = "application/merge-patch+json"
    labels = {"metadata": {"labels": {"nvidia.com/gpu.product": GPU_PRODUCT}}}
    api.call("PATCH", f"api/v1/nodes/{name}", labels, merge)
    capacity = {"status": {"capacity": {"nvidia.com/gpu": str(GPUS)}}}
    api.call("PATCH", f"api/v1/nodes/{name}/status", capacity, merge)


def _ready(api: Api) -> bool:
    """Whether pods can be scheduled, GPUs asked for, and names resolved."""
    try:
        node = _node(api)
        dns = api.get("apis/apps/v1/namespaces/kube-system/deployments/coredns")
    except (OSError, ApiError, http.client.HTTPException):
        return False
    if node is None:
        return False
    status = node["status"]
    if status.get("allocatable", {}).get("nvidia.com/gpu") != str(GPUS):
        return False
    well = {condition["type"] for condition in status.get("conditions", ()) if condition["status"] == "True"}
    return "Ready" in well and dns["status"].get("readyReplicas", 0) >= 1
