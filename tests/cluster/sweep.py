"""Takes a node away, however it ended: its processes, mounts, network and control groups, then its state.

Everything is found by what only our node has (our paths, our bridge, our control group), so neither a killed start
nor a lost pid file leaves something behind, and nothing of the host's is touched. Packages and images stay.
"""

import contextlib
import os
import re
import shutil
import signal
import socket
from pathlib import Path

from cluster import containers
from cluster.daemons import Daemon, signal_process
from cluster.packages import find
from cluster.paths import CGROUP, NODE, RUN
from cluster.shell import attempt, run
from cluster.steps import together, wait_until

# Those that would act on what the others lose go first.
ORDER = ("kubelet", "proxy", "provisioner", "controller-manager", "scheduler", "apiserver", "etcd")
PROGRAMS = {"kube", "etcd", "containerd", "containerd-shim-runc-v2", "docker-registry"}
CGROUPS = Path("/sys/fs/cgroup")
CNI_RESULTS = Path("/var/lib/cni/results")
CHAINS = re.compile(r"(^:|-A |-j |-g )(KUBE|CNI)-")


def anything_left() -> bool:
    """Whether there is something to take away."""
    return NODE.exists() or RUN.exists() or bool(_strays() or _mounts() or _cgroups()) or _bridge()


def everything() -> None:
    """Take it all away; also right when only a part of a node is there."""
    daemons = [Daemon(name, RUN, NODE / "logs") for name in ORDER]
    together(*(daemon.kill for daemon in daemons))
    _end_pods()
    if containers.DAEMON.pid():  # without it each question would only wait for an answer
        containers.clear()
    for name in ("containerd", "registry"):
        Daemon(name, RUN, NODE / "logs").stop()
    for pid in _strays():
        signal_process(pid, signal.SIGKILL)
    wait_until("all processes of the node are gone", lambda: not _strays(), 10)
    _remove_sockets()
    _unmount()
    _remove_network()
    _remove_cgroups()
    _remove_log_links()
    for folder in (NODE, RUN):
        if folder.exists():
            shutil.rmtree(folder)


def _strays() -> list[int]:
    """Programs of a node that were started with one of our paths."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        ours = any(f"{RUN}/" in word or f"{NODE}/" in word for word in words[1:])
        if ours and Path(words[0]).name in PROGRAMS:
            found.append(int(entry.name))
    return found


def _cgroups() -> list[Path]:
    """Our control group: one folder in the unified hierarchy, one per controller in the older kind."""
    roots = [CGROUPS] if (CGROUPS / "cgroup.controllers").exists() else list(CGROUPS.glob("*"))
    return [root / CGROUP for root in roots if (root / CGROUP).is_dir()]


def make_cgroup(name: str) -> None:
    """The group must be there, with everything that kubelet wants to share out, before kubelet starts."""
    if (CGROUPS / "cgroup.controllers").exists():
        group = CGROUPS / name
        group.mkdir(exist_ok=True)
        for parent in (CGROUPS, group):
            for controller in (parent / "cgroup.controllers").read_text().split():
                with contextlib.suppress(OSError):  # kubelet says what it misses better than we could
                    (parent / "cgroup.subtree_control").write_text(f"+{controller}")
        return
    for root in CGROUPS.iterdir():
        if root.is_symlink() or not (root / "cgroup.procs").exists():
            continue
        (root / name).mkdir(exist_ok=True)
        for share in ("cpuset.cpus", "cpuset.mems"):  # an empty one takes no process in
            if (root / share).exists():
                (root / name / share).write_text((root / share).read_text())


def _end_pods() -> None:
    """Kill what runs in our control group."""

    def members() -> set[int]:
        pids: set[int] = set()
        for group in _cgroups():
            for folder, _, _ in os.walk(group):  # unlike rglob it bears that groups vanish meanwhile
                with contextlib.suppress(OSError):
                    pids.update(map(int, (Path(folder) / "cgroup.procs").read_text().split()))
        return pids

    def gone() -> bool:
        left = members()
        for pid in left:
            signal_process(pid, signal.SIGKILL)
        return not left

    wait_until("all pods of the node are gone", gone, 20, every=0.05)


def _remove_cgroups() -> None:
    for group in _cgroups():
        for folder, _, _ in os.walk(group, topdown=False):
            with contextlib.suppress(FileNotFoundError):
                Path(folder).rmdir()


def _mounts(*folders: Path) -> list[str]:
    """Mount points below our folders, the deepest first."""
    starts = tuple(f"{folder}/" for folder in folders or (NODE, RUN))
    points = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        point = re.sub(r"\\([0-7]{3})", lambda digits: chr(int(digits[1], 8)), line.split()[4])
        if point.startswith(starts):
            points.append(point)
    return sorted(points, key=len, reverse=True)


def remove(folder: Path) -> None:
    """Remove a folder of ours for good; a build that was killed leaves its file systems mounted in it."""
    _unmount(folder)
    if folder.exists():
        shutil.rmtree(folder)


def _unmount(*folders: Path) -> None:
    points = _mounts(*folders)
    if points:
        run(["umount", "--lazy", *points])
    if left := _mounts(*folders):
        # Removing the folders now would remove what is mounted.
        raise RuntimeError(f"still mounted: {left}")


def _remove_sockets() -> None:
    """containerd's shims put theirs into a place of their own; a killed one does not remove it."""
    for file in RUN.glob("containerd/io.containerd.runtime.v2.task/*/*/address"):
        Path(file.read_text().removeprefix("unix://")).unlink(missing_ok=True)


def _bridge() -> bool:
    return containers.BRIDGE in {name for _, name in socket.if_nameindex()}


def _remove_network() -> None:
    if _bridge():
        run([find("ip") or "ip", "link", "delete", containers.BRIDGE])
    for result in CNI_RESULTS.glob("cutover-*"):
        sandbox = result.name.split("-")[1]
        for file in CNI_RESULTS.glob(f"*-{sandbox}-*"):
            file.unlink(missing_ok=True)
    for family in ("iptables", "ip6tables"):
        rules = attempt([find(f"{family}-save") or f"{family}-save", "--counters"]) or ""
        kept = [line for line in rules.splitlines(keepends=True) if not CHAINS.search(line)]
        if len(kept) < len(rules.splitlines()):
            run([find(f"{family}-restore") or f"{family}-restore", "--counters"], given="".join(kept))


def _remove_log_links() -> None:
    """Kubelet keeps links to its pods' logs in a place that no setting moves."""
    for link in Path("/var/log/containers").glob("*.log"):
        if link.is_symlink() and str(link.readlink()).startswith(f"{NODE}/"):
            link.unlink()
