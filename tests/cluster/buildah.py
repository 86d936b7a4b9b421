"""Image builds without a Docker engine: buildah with a storage of our own, and what a build needs of this machine.

How this machine reaches its package indexes (certificates, pip's settings, proxies) is mounted into a build or given
as a build argument that leaves no trace, and never becomes part of an image.
"""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from cluster.packages import find
from cluster.paths import BUILDAH, DOWNLOADS, LOGS, RUN
from cluster.shell import CommandError, attempt, run

# The cache mounts of Dockerfiles, which keep what pip and uv fetched, lie in the folder for temporary files.
ENVIRONMENT = {"BUILDAH_ISOLATION": "chroot", "STORAGE_DRIVER": "overlay", "TMPDIR": str(DOWNLOADS)}
BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")
UV_SETTINGS = "system-certs = true\n"  # the system's certificates instead of its own


def buildah(*words: str | Path, log: Path | None = None) -> str:
    """One buildah command in our storage."""
    where = (f"--root={BUILDAH}", f"--runroot={RUN / 'buildah'}")
    DOWNLOADS.mkdir(parents=True, exist_ok=True)
    return run([find("buildah") or "buildah", *where, *words], env=ENVIRONMENT, log=log)


def build(dockerfile: Path, context: Path, reference: str, arguments: Mapping[str, str]) -> None:
    """Build a Dockerfile; steps whose inputs did not change come from the storage."""
    argv: list[str | Path] = ["build", "--layers", "--pull-never", "--format=oci", *_mounts()]
    argv += [f"--build-arg={name}={value}" for name, value in arguments.items()]
    argv += [f"--file={dockerfile}", f"--tag={reference}", context]
    buildah(*argv, log=LOGS / f"image-{dockerfile.parent.name}.log")


def has(reference: str) -> bool:
    """Whether our storage holds this image."""
    return reference in names()


def forget(reference: str) -> None:
    """Drop an image, unless another one stands on it."""
    with suppress(CommandError):
        buildah("rmi", reference)


def names() -> list[str]:
    """Every image of our storage, newest first."""
    return buildah("images", "--format={{.Name}}:{{.Tag}}").split()


def push(reference: str) -> None:
    """To our registry, which skips the layers that it holds.

    buildah compresses in any case. Of a 1 GB image gzip took 25 s to push and 16 s to pull, zstd's fastest level 11 s
    and 13 s.
    """
    compression = ("--compression-format=zstd", "--compression-level=1")
    buildah("push", "--tls-verify=false", *compression, reference, f"docker://{reference}")


def _mounts() -> list[str]:
    """This machine's way to the package indexes."""
    mounts = []
    files = {"pip.conf": "/etc/pip.conf", "uv.toml": "/etc/uv/uv.toml"}
    for (name, inside), text in zip(files.items(), (_pip_settings(), UV_SETTINGS), strict=True):
        file = DOWNLOADS / name
        file.touch(mode=0o600)  # an index address may carry a password
        file.write_text(text)
        mounts.append(f"--volume={file}:{inside}:ro")
    if BUNDLE.exists():
        mounts.append(f"--volume={BUNDLE}:{BUNDLE}:ro")
    return mounts


def _pip_settings() -> str:
    """pip's settings on this machine, from its files and its environment, as one file."""
    settings = {"cert": str(BUNDLE)} if BUNDLE.exists() else {}
    for line in (attempt(["pip", "config", "list"]) or "").splitlines():
        name, _, value = line.partition("=")
        option = name.rpartition(".")[2]
        if option in {"index-url", "extra-index-url", "trusted-host", "timeout", "default-timeout", "proxy"}:
            settings[option] = value.strip("'\"").replace("\\n", " ")
    return "[global]\n" + "".join(f"{name} = {value}\n" for name, value in settings.items())
