"""The run's artifacts behind one small interface: local files, S3 and Google Cloud Storage through fsspec.

A name that is visible is complete: local files appear by rename, objects by one put. Commits that must happen once
use `put_if_absent`. What consists of several files is committed by its manifest (see `manifest`), written last.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import uuid
from pathlib import Path
from typing import Any

import fsspec

from cutover_trainer.outcome import BadInput

NO_HARD_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})
"""How file systems over SMB or an object store answer to a hard link."""
SCHEMES = ("file", "s3", "gs")
CONFLICT = "ConditionalRequestConflict"
"""S3's answer when two conditional puts of one name meet: neither is decided yet, and the loser has to ask again."""
CONFLICT_TRIES = 5


class ArtifactStore:
    """Files under one URI, addressed by relative names with `/`."""

    def __init__(self, uri: str) -> None:
        scheme, found, root = uri.partition("://")
        if not found or scheme not in SCHEMES:
            raise BadInput("UnknownStorage", f"artifacts: {uri!r} must start with file://, s3:// or gs://")
        self.uri = uri.rstrip("/")
        self._local = Path(root) if scheme == "file" else None
        self._root = root.rstrip("/")
        try:
            self._files: Any = fsspec.filesystem(scheme, skip_instance_cache=True, use_listings_cache=False)
        except ImportError as error:
            raise BadInput(
                "UnknownStorage", f"artifacts: {uri!r}: this image has no client for it: {error}"
            ) from error

    def local_path(self, name: str) -> Path | None:
        """Where the name lies on this machine, when it does."""
        return None if self._local is None else self._local / name

    def get(self, name: str) -> bytes:
        """Raises FileNotFoundError."""
        data: bytes = self._files.cat_file(self._path(name))
        return data

    def exists(self, name: str) -> bool:
        return bool(self._files.exists(self._path(name)))

    def list(self, prefix: str = "") -> list[str]:
        """Names of all files under a folder, sorted; an absent folder is empty."""
        try:
            found = self._files.find(self._path(prefix))
        except FileNotFoundError:
            return []
        cut = len(self._root) + 1
        return sorted(str(path)[cut:] for path in found)

    def put(self, name: str, data: bytes) -> None:
        if self._local is None:
            self._files.pipe_file(self._path(name), data)
            return
        part = self._written_part(name, data)
        part.replace(self._local / name)

    def put_unsettled(self, name: str, data: bytes) -> None:
        """The same without waiting for the disk. Until `settle` a machine that loses power may leave an empty file."""
        if self._local is None:
            self.put(name, data)
            return
        part = self._part_of(name)
        part.write_bytes(data)
        part.replace(self._local / name)

    def settle(self) -> None:
        """Waits once for everything that was put unsettled: ten thousand files cost one wait, not ten thousand."""
        if self._local is None or not self._local.is_dir():
            return
        folder = os.open(self._local, os.O_RDONLY)
        try:
            if ctypes.CDLL(None, use_errno=True).syncfs(folder) != 0:
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number), str(self._local))
        finally:
            os.close(folder)

    def put_file(self, name: str, source: Path) -> None:
        """The same for a file, however large: it is never held in memory."""
        if self._local is None:
            self._files.put_file(str(source), self._path(name))
            return
        part = self._part_of(name)
        with source.open("rb") as read, part.open("wb") as written:
            shutil.copyfileobj(read, written, 1 << 20)
            written.flush()
            os.fsync(written.fileno())
        part.replace(self._local / name)

    def put_if_absent(self, name: str, data: bytes) -> bool:
        """False when the name was there already; the older content stays."""
        if self._local is None:
            return self._created_object(self._path(name), data)
        part = self._written_part(name, data)
        try:
            os.link(part, self._local / name)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in NO_HARD_LINKS:
                raise
            return self._created_file(name, data)
        finally:
            part.unlink()
        return True

    def _created_file(self, name: str, data: bytes) -> bool:
        """Exclusive, but not whole at once: a manifest cut short does not parse, and its folder is passed over."""
        assert self._local is not None
        try:
            with (self._local / name).open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except FileExistsError:
            return False
        return True

    def _created_object(self, path: str, data: bytes) -> bool:
        """S3: If-None-Match: *, Google: ifGenerationMatch=0; the server decides between two writers."""
        for number in range(CONFLICT_TRIES):
            try:
                self._files.pipe_file(path, data, mode="create")
            except FileExistsError:
                return False
            except OSError as error:
                if CONFLICT in str(error) and number + 1 < CONFLICT_TRIES:
                    continue
                if error.errno == errno.EEXIST or "PreconditionFailed" in str(error):
                    return False
                raise
            else:
                return True
        raise AssertionError("unreachable")

    def delete(self, name: str) -> None:
        """Remove a file or a folder; absent is fine."""
        if self._local is not None:
            target = self._local / name
            if target.is_dir():
                shutil.rmtree(target, ignore_errors=True)
            else:
                target.unlink(missing_ok=True)
        elif self._files.exists(self._path(name)):
            self._files.rm(self._path(name), recursive=True)

    def upload(self, folder: Path, name: str) -> None:
        """Put every file of a local folder under the name. Not atomic: commit with a manifest."""
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                self.put_file(f"{name}/{path.relative_to(folder).as_posix()}", path)

    def download(self, name: str, folder: Path) -> None:
        """Copy every file under the name into a local folder."""
        folder.mkdir(parents=True, exist_ok=True)
        self._files.get(self._path(name) + "/", f"{folder}/", recursive=True)

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def _part_of(self, name: str) -> Path:
        """Where a file is written before it is renamed to its name."""
        assert self._local is not None
        target = self._local / name
        target.parent.mkdir(parents=True, exist_ok=True)
        return target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.part")

    def _written_part(self, name: str, data: bytes) -> Path:
        part = self._part_of(name)
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        return part
