"""Programs built from their Go modules, each in a folder named by the digest of what went into it."""

import hashlib
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from cluster.packages import find
from cluster.paths import BIN, LOGS, SOURCE
from cluster.shell import run
from cluster.steps import step

KUBERNETES = "v1.35.4"
HELM = "helm.sh/helm/v3/cmd/helm@v3.22.0"
PROMETHEUS_3 = "github.com/prometheus/prometheus/cmd/prometheus@v0.316.0"
"""Prometheus 3.16: its Go module has no version 3."""
# Without this Kubernetes calls itself v0.0.0, and clients that ask for its version go astray.
VERSION = f"-X k8s.io/component-base/version.gitVersion={KUBERNETES}"
# Programs that become images with nothing else in them, so not even a C library.
STATIC = {"dns", "pause"}


def digest(files: Iterable[Path], *more: str, root: Path = SOURCE) -> str:
    """Twelve digits that change when a file's content or its name below `root` changes, or one of the other words."""
    whole = hashlib.sha256("\0".join(more).encode())
    for file in sorted(files):
        content = file.read_bytes()
        whole.update(f"\0{file.relative_to(root)}\0{len(content)}\0{file.stat().st_mode & 0o111}\0".encode())
        whole.update(content)
    return whole.hexdigest()[:12]


def _program(name: str) -> Path:
    files = [file for file in (SOURCE / "node" / name).iterdir() if file.suffix in {".go", ".mod", ".sum"}]
    return BIN / f"{name}-{digest(files, VERSION)}" / name


def is_built(name: str) -> bool:
    """Whether `module` would answer at once."""
    return _program(name).exists()


def module(name: str) -> Path:
    """The program of the Go module `node/NAME`, built unless this very source was built before."""
    source, program = SOURCE / "node" / name, _program(name)
    if not program.exists():
        with step(f"building {name} from Go modules"):
            program.parent.mkdir(parents=True, exist_ok=True)
            partial = program.parent / f".{os.getpid()}"
            argv: list[str | Path] = [
                "go",
                "build",
                "-C",
                source,
                "-buildvcs=false",
                "-trimpath",
                "-mod=readonly",
            ]
            argv += ["-ldflags", f"-s -w {VERSION if name == 'kube' else ''}", "-o", partial, "."]
            _go(argv, LOGS / f"build-{name}.log", {"CGO_ENABLED": "0"} if name in STATIC else {})
            partial.rename(program)  # whole or not at all, when the build is cut off
            _forget_others(name, program.parent)
    return program


def helm() -> Path:
    """Helm, built from its module at a fixed version."""
    return _installed("helm", HELM)


def prometheus_3() -> Path:
    """Prometheus 3, without its pages and its ways to find targets; Debian's is a 2."""
    return _installed("prometheus", PROMETHEUS_3, "-tags=remove_all_sd")


def _installed(name: str, package: str, *flags: str) -> Path:
    program = BIN / f"{name}-{package.rpartition('@')[2]}" / name
    if not program.exists():
        with step(f"building {name} from Go modules"):
            partial = program.parent / f".{os.getpid()}"
            partial.mkdir(parents=True, exist_ok=True)
            argv: list[str | Path] = ["go", "install", "-buildvcs=false", *flags, package]
            _go(argv, LOGS / f"build-{name}.log", {"GOBIN": str(partial)})
            (partial / name).rename(program)
            partial.rmdir()
    return program


def _go(argv: list[str | Path], log: Path, env: dict[str, str]) -> None:
    if not find("go"):
        raise RuntimeError("building the node needs Go 1.25 or newer (https://go.dev/dl)")
    run(argv, env={"GOWORK": "off", **env}, log=log)


def _forget_others(name: str, keep: Path) -> None:
    """A program weighs over 100 MB: of each, only the newest build stays."""
    for folder in BIN.glob(f"{name}-*"):
        if folder != keep:
            shutil.rmtree(folder, ignore_errors=True)
