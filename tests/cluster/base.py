"""A stand-in for `docker.io/library/python:3.11-slim` on machines that reach no image registry.

Made from Debian's own packages by debootstrap and given the manners of the official image: `python` and `pip` work
on the system's Python without objections, and bytes are UTF-8. A Dockerfile cannot tell the difference by what it
usually does; the patch release of Python and the place of site-packages differ.
"""

import inspect
import shutil
from pathlib import Path

from cluster import buildah, builds
from cluster.packages import find
from cluster.paths import CACHE, LOGS
from cluster.shell import run
from cluster.steps import step

NAME = "docker.io/library/python:3.11-slim"
MIRROR = "http://deb.debian.org/debian"
SUITE = "bookworm"
PACKAGES = ("ca-certificates", "netbase", "tzdata", "python3", "python3-pip", "python3-venv")
# What only a person at a terminal would read.
NEEDLESS = (
    "var/cache/apt/archives",
    "var/lib/apt/lists",
    "usr/share/doc",
    "usr/share/man",
    "usr/share/locale",
    "usr/share/info",
)


def digest() -> str:
    """Changes when the stand-in's recipe does."""
    recipe = repr((MIRROR, SUITE, PACKAGES, NEEDLESS)) + inspect.getsource(_adapt)
    return builds.digest([], recipe)


def ensure() -> None:
    """Have the stand-in in our image storage."""
    own = f"localhost/cutover-python:{digest()}"
    if buildah.has(own):
        return
    root = CACHE / "python-base"
    with step("making the stand-in for python:3.11-slim"):
        shutil.rmtree(root, ignore_errors=True)
        include = f"--include={','.join(PACKAGES)}"
        argv: list[str | Path] = [
            find("debootstrap") or "debootstrap",
            "--variant=minbase",
            include,
            SUITE,
            root,
            MIRROR,
        ]
        run(argv, log=LOGS / "debootstrap.log")
        _adapt(root)
        container = buildah.buildah("from", "scratch").strip()
        try:
            buildah.buildah("add", "--quiet", container, root, "/")
            settings = ["--env=LANG=C.UTF-8", "--cmd=python3"]
            settings += ["--env=PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"]
            buildah.buildah("config", *settings, container)
            buildah.buildah("commit", "--quiet", "--format=oci", container, own)
            buildah.buildah("tag", own, NAME)
        finally:
            buildah.buildah("rm", container)
        shutil.rmtree(root)


def _adapt(root: Path) -> None:
    for name in NEEDLESS:
        for entry in (root / name).glob("*"):
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    (root / "var/cache/apt/archives/partial").mkdir()  # apt in a Dockerfile wants it there
    for marker in root.glob("usr/lib/python3*/EXTERNALLY-MANAGED"):
        marker.unlink()
    (root / "usr/local/bin/python").symlink_to("/usr/bin/python3")
    (root / "usr/local/bin/python3").symlink_to("/usr/bin/python3")
    sources = root / "etc/apt/sources.list"
    lines = [f"deb {MIRROR} {suite} main\n" for suite in (SUITE, f"{SUITE}-updates")]
    sources.write_text("".join([*lines, f"deb {MIRROR}-security {SUITE}-security main\n"]))
