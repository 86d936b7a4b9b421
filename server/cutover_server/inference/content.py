"""Model folders as content: whole or not there, verified, and fetched once for all pods that share a claim.

A fetched folder is kept under `.content/<key>` beside its destination, where the key stands for the bytes; the
destination is a link to it. Content appears by rename, so a pod that dies half way leaves nothing that looks like a
model, and two pods fetching at once end with one copy.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec

from cutover_server.inference.lines import log
from cutover_server.inference.refusal import Unservable

MANIFEST_FILE = "MANIFEST.json"
CONTENT_FOLDER = ".content"
SCHEMES = ("s3", "gs", "file")
COPY_ATTEMPTS = 4
FIRST_PAUSE_SECONDS = 0.5
_LEGACY_WEIGHTS = (".bin", ".pth", ".pt", ".msgpack", ".h5")


@dataclass(frozen=True, slots=True)
class Entry:
    size: int
    sha256: str | None


@dataclass(frozen=True, slots=True)
class Source:
    """A remote folder: what it holds, and the key of exactly these bytes."""

    files: Any
    root: str
    entries: Mapping[str, Entry]
    key: str

    @property
    def size(self) -> int:
        return sum(entry.size for entry in self.entries.values())


def fetch(uri: str, destination: Path) -> Path:
    """Make `destination` a link to the verified content of `uri`; returns the content folder. Idempotent."""
    if destination.is_dir() and not destination.is_symlink() and any(destination.iterdir()):
        raise Unservable(
            "DestinationInUse",
            f"{destination} is a folder with other files; name a path inside the cache that does not exist yet",
        )
    source = open_source(uri)
    store = destination.parent / CONTENT_FOLDER
    store.mkdir(parents=True, exist_ok=True)
    content = store / source.key
    with _lock(store / f"{source.key}.lock") as alone:
        if content.is_dir():
            log("fetch_cached", uri=uri, key=source.key)
        else:
            _copy(source, store, content, alone=alone)
    _link(destination, PurePosixPath(CONTENT_FOLDER, source.key))
    return content


def open_source(uri: str) -> Source:
    scheme, found, root = uri.partition("://")
    if not found:
        scheme, root = "file", str(Path(uri).resolve())
    if scheme not in SCHEMES:
        raise Unservable("UnknownStorage", f"{uri!r} must start with {', '.join(s + '://' for s in SCHEMES)}")
    root = root.rstrip("/")
    try:
        files: Any = fsspec.filesystem(scheme, use_listings_cache=False, skip_instance_cache=True)
        listing = {
            str(path).removeprefix(str(files._strip_protocol(root))).lstrip("/"): info
            for path, info in files.find(root, detail=True).items()
        }
    except ImportError as error:
        raise Unservable("UnknownStorage", f"{uri!r}: this image has no client for it: {error}") from error
    except FileNotFoundError:
        listing = {}
    listing = {name: info for name, info in listing.items() if not _hidden(name)}
    if not listing:
        raise Unservable("ModelNotFound", f"{uri} holds no files")
    if MANIFEST_FILE in listing:
        return _by_manifest(uri, files, root, listing)
    if any(name.endswith(".safetensors") for name in listing):
        listing = {name: info for name, info in listing.items() if not name.endswith(_LEGACY_WEIGHTS)}
    entries = {name: Entry(int(info["size"]), None) for name, info in sorted(listing.items())}
    marks = {name: [info["size"], _mark(info)] for name, info in listing.items()}
    return Source(files, root, entries, _digest(marks))


def _by_manifest(uri: str, files: Any, root: str, listing: Mapping[str, Any]) -> Source:
    """Only what the manifest names is the model; its bytes are its key."""
    raw: bytes = files.cat_file(f"{root}/{MANIFEST_FILE}")
    entries = read_manifest(raw, uri)
    absent = sorted(name for name in entries if name not in listing)
    if absent:
        raise Unservable(
            "ModelIncomplete", f"{uri} lacks {len(absent)} files of its manifest, first {absent[0]}"
        )
    key = hashlib.sha256(raw).hexdigest()
    entries = {**entries, MANIFEST_FILE: Entry(len(raw), key)}
    return Source(files, root, entries, key[:40])


def read_manifest(raw: bytes, where: str) -> dict[str, Entry]:
    try:
        files = json.loads(raw)["files"]
        entries = {str(name): Entry(int(item["size"]), str(item["sha256"])) for name, item in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Unservable("ManifestUnreadable", f"{MANIFEST_FILE} of {where}: {error!r}"[:500]) from error
    if any(PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts for name in entries):
        raise Unservable("ManifestUnreadable", f"{MANIFEST_FILE} of {where} names a file outside its folder")
    return entries


def verify(folder: Path) -> str | None:
    """Check a local folder against its manifest; returns the manifest's SHA-256, none without one."""
    path = folder / MANIFEST_FILE
    if not path.is_file():
        return None
    raw = path.read_bytes()
    for name, entry in read_manifest(raw, folder.name).items():
        if not _same(folder / name, entry):
            raise Unservable(
                "FilesDamaged", f"{folder.name}/{name} is not what {MANIFEST_FILE} says; fetch it again"
            )
    return hashlib.sha256(raw).hexdigest()


def sha256_of_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _copy(source: Source, store: Path, content: Path, *, alone: bool) -> None:
    """Under the lock a part left by a dead pod is continued; without a lock everyone works on a part of its own."""
    part = store / (f"{source.key}.part" if alone else f"{source.key}.{uuid.uuid4().hex}.part")
    part.mkdir(exist_ok=True)
    free = shutil.disk_usage(store).free
    if free < source.size - sum(file.stat().st_size for file in part.rglob("*") if file.is_file()):
        raise OSError(f"the cache has {free / 1e9:.1f} GB free, the model takes {source.size / 1e9:.1f} GB")
    started = time.monotonic()
    for name, entry in source.entries.items():
        target = part / name
        if entry.sha256 is not None and _same(target, entry):
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        _copy_file(source, name, entry, target)
    try:
        part.rename(content)
    except OSError:
        if not content.is_dir():
            raise
        shutil.rmtree(part, ignore_errors=True)
    seconds = round(time.monotonic() - started, 3)
    log("fetched", key=source.key, files=len(source.entries), size_bytes=source.size, seconds=seconds)


def _copy_file(source: Source, name: str, entry: Entry, target: Path) -> None:
    for attempt in range(1, COPY_ATTEMPTS + 1):
        try:
            source.files.get_file(f"{source.root}/{name}", str(target))
            _flush(target)
            if not _same(target, entry):
                raise OSError(f"{name} arrived with other bytes than listed")
            return
        except Exception as error:  # every store's client has errors of its own
            if attempt == COPY_ATTEMPTS:
                raise OSError(f"{name}: {type(error).__name__}: {error}"[:500]) from error
            time.sleep(FIRST_PAUSE_SECONDS * 2 ** (attempt - 1))


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _same(path: Path, entry: Entry) -> bool:
    if not path.is_file() or path.stat().st_size != entry.size:
        return False
    return entry.sha256 is None or sha256_of_file(path) == entry.sha256


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[bool]:
    """Wait for the only copier; false when the volume knows no locks."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            yield False
        else:
            yield True


def _link(destination: Path, target: PurePosixPath) -> None:
    if destination.is_symlink() and str(destination.readlink()) == str(target):
        return
    if destination.is_dir() and not destination.is_symlink():
        destination.rmdir()
    fresh = destination.with_name(f".{destination.name}.{uuid.uuid4().hex}")
    fresh.symlink_to(target)
    fresh.replace(destination)


def _hidden(name: str) -> bool:
    return any(part.startswith(".") for part in PurePosixPath(name).parts) or name.endswith("/")


def _mark(info: Mapping[str, Any]) -> str:
    """What tells two contents of one size apart, as far as the store says."""
    for field in ("ETag", "md5Hash", "crc32c", "etag", "mtime"):
        if info.get(field) is not None:
            return str(info[field])
    return ""


def _digest(document: Any) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()[:40]
