"""Folders that are either whole or not there: MANIFEST.json names every file with its SHA-256 and is written last."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cutover_trainer.storage import ArtifactStore

MANIFEST_FILE = "MANIFEST.json"
SYNTHETIC_ROWS = "syntheticRows"
"""Fact of a folder of rows: how many of them are made up. The fact `rows` does not count them."""


class FileEntry(BaseModel):
    model_config = ConfigDict(frozen=True)

    sha256: str
    size: int


class Manifest(BaseModel):
    """`digest` is the SHA-256 of the entries: two folders with one digest hold the same bytes."""

    model_config = ConfigDict(frozen=True)

    schema_version: int = 1
    digest: str
    files: dict[str, FileEntry]
    facts: dict[str, Any] = Field(default_factory=dict)

    def to_bytes(self) -> bytes:
        return json.dumps(self.model_dump(), indent=1, sort_keys=True).encode()


def synthetic_rows(manifest: Manifest) -> int:
    """0 where the folder is older than the fact."""
    return int(manifest.facts.get(SYNTHETIC_ROWS, 0))


def sha256_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def sha256_of_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of(document: Any) -> str:
    """SHA-256 of a JSON document in canonical form."""
    return sha256_of(json.dumps(document, sort_keys=True, separators=(",", ":")).encode())


def build_manifest(files: Mapping[str, FileEntry], facts: Mapping[str, Any]) -> Manifest:
    digest = digest_of({name: entry.sha256 for name, entry in files.items()})
    return Manifest(digest=digest, files=dict(sorted(files.items())), facts=dict(facts))


def entry_of(data: bytes) -> FileEntry:
    return FileEntry(sha256=sha256_of(data), size=len(data))


def commit_folder(
    store: ArtifactStore, name: str, files: Mapping[str, bytes], facts: Mapping[str, Any]
) -> Manifest:
    """Write the files, then the manifest."""
    for file, data in files.items():
        store.put(f"{name}/{file}", data)
    manifest = build_manifest({file: entry_of(data) for file, data in files.items()}, facts)
    store.put(f"{name}/{MANIFEST_FILE}", manifest.to_bytes())
    return manifest


def commit_once(
    store: ArtifactStore, name: str, writer: str, files: Mapping[str, bytes], facts: Mapping[str, Any]
) -> Manifest | None:
    """The same for a folder that several may want to write: the first manifest stands, the others' writers get None.

    Files lie below the writer's own name, so that whoever loses has changed nothing that the manifest speaks of.
    """
    entries = {f"{writer}/{file}": entry_of(data) for file, data in files.items()}
    for file, data in files.items():
        store.put(f"{name}/{writer}/{file}", data)
    manifest = build_manifest(entries, facts)
    if store.put_if_absent(f"{name}/{MANIFEST_FILE}", manifest.to_bytes()):
        return manifest
    # A client that repeats a request whose answer was lost is told that the name is taken: by itself.
    return manifest if read_manifest(store, name) == manifest else None


def read_manifest(store: ArtifactStore, name: str) -> Manifest | None:
    """None when the folder was never committed."""
    try:
        return Manifest.model_validate_json(store.get(f"{name}/{MANIFEST_FILE}"))
    except (FileNotFoundError, ValidationError):
        return None


def damaged_files(folder: Path, manifest: Manifest) -> list[str]:
    """Names whose content is missing or is not what the manifest says."""
    return [
        name
        for name, entry in manifest.files.items()
        if not (folder / name).is_file()
        or (folder / name).stat().st_size != entry.size
        or sha256_of_file(folder / name) != entry.sha256
    ]


def fetch_folder(store: ArtifactStore, name: str, scratch: Path) -> tuple[Path, Manifest] | None:
    """A committed folder on this machine, verified. None when it was not committed or does not verify."""
    manifest = read_manifest(store, name)
    if manifest is None:
        return None
    folder = store.local_path(name)
    if folder is None:
        folder = scratch / name
        if not damaged_files(folder, manifest):
            return folder, manifest  # another worker of this machine has fetched it
        store.download(name, folder)
    return None if damaged_files(folder, manifest) else (folder, manifest)
