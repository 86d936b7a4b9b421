"""The Debian packages that the local cluster stands on, installed when their program is missing."""

import os
import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from cluster.paths import LOGS
from cluster.shell import run
from cluster.steps import step

# Program -> package. A program that is there already, from wherever, is used as it is.
CONTROL_PLANE = {"etcd": "etcd-server", "openssl": "openssl"}
NODE = {
    "containerd": "containerd",
    "runc": "runc",
    "iptables": "iptables",
    "conntrack": "conntrack",
    "ethtool": "ethtool",
    "socat": "socat",
    "ip": "iproute2",
    "mount": "mount",
}
IMAGES = {"buildah": "buildah", "debootstrap": "debootstrap", "docker-registry": "docker-registry"}
PROMETHEUS = {"promtool": "prometheus"}
CNI_PLUGINS = Path("/usr/lib/cni")
# Debian keeps system programs where an unprivileged shell does not look.
SYSTEM = ":/usr/local/sbin:/usr/sbin:/sbin"

_lock = threading.Lock()  # apt has a lock too, but gives up instead of waiting


def find(program: str) -> str | None:
    """The program's path, or None."""
    return shutil.which(program, path=os.environ.get("PATH", "") + SYSTEM)


def install(*groups: dict[str, str]) -> None:
    """Install what is missing of these groups; without anything missing, ask nobody."""
    with _lock:
        missing = sorted({package for group in groups for name, package in group.items() if not find(name)})
        if NODE in groups and not (CNI_PLUGINS / "bridge").exists():
            missing.append("containernetworking-plugins")
        if missing:
            with step(f"installing {' '.join(missing)}"):
                _apt(missing)


def _apt(packages: Sequence[str]) -> None:
    if not find("apt-get") or os.geteuid() != 0:
        raise RuntimeError(f"please install: {' '.join(packages)} (this needs root and apt-get)")
    quiet = {"DEBIAN_FRONTEND": "noninteractive"}
    run(["apt-get", "update"], env=quiet, log=LOGS / "apt-update.log")
    with _no_services():
        argv = ["apt-get", "install", "-y", "--no-install-recommends", *packages]
        run(argv, env=quiet, log=LOGS / "apt-install.log")


@contextmanager
def _no_services() -> Iterator[None]:
    """Several of these packages would start a service of the host; we only want their programs."""
    policy = Path("/usr/sbin/policy-rc.d")
    if policy.exists():
        yield
        return
    policy.write_text("#!/bin/sh\nexit 101\n")
    policy.chmod(0o755)
    try:
        yield
    finally:
        policy.unlink(missing_ok=True)
