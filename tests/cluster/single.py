"""An image of one static program, written as an archive that containerd imports: no builder needed."""

import hashlib
import io
import json
import platform
import tarfile
from pathlib import Path

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def archive(program: Path, name: str, target: Path) -> Path:
    """A file in the format of `docker save` whose image NAME starts PROGRAM."""
    layer = _tar({program.name: (program.read_bytes(), 0o755)})
    config = {
        "architecture": ARCHITECTURES[platform.machine()],
        "os": "linux",
        "config": {"Entrypoint": [f"/{program.name}"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
    }
    manifest = [{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]
    files = {
        "manifest.json": (json.dumps(manifest).encode(), 0o644),
        "config.json": (json.dumps(config).encode(), 0o644),
        "layer.tar": (layer, 0o644),
    }
    target.write_bytes(_tar(files))
    return target


def _tar(files: dict[str, tuple[bytes, int]]) -> bytes:
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w") as tar:
        for name, (content, mode) in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), mode
            tar.addfile(entry, io.BytesIO(content))
    return whole.getvalue()
