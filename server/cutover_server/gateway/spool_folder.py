"""One gateway process's folder on the spool volume: who owns it, what waits in it, what may be deleted.

    <root>/<instance>/lock               held (flock) by the process that owns the folder
    <root>/<instance>/segments/*.seg     records and their pictures, oldest first
    <root>/<instance>/dead/              what the assessments service will never take

The kernel releases the lock with the process, however it dies, so that its successor or any other gateway on the same
volume can take the folder over and deliver what is left.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import threading
from mmap import ACCESS_READ, mmap
from pathlib import Path

import orjson

from cutover_server.gateway.segments import read_segment

log = logging.getLogger(__name__)
DEAD_LIMIT_BYTES = 64_000_000


class SpoolFolder:
    """Thread-safe: the writer adds while the sender takes away."""

    def __init__(self, path: Path, lock_descriptor: int) -> None:
        self.path = path
        self.segments = path / "segments"
        self.dead = path / "dead"
        self._lock_descriptor = lock_descriptor
        self._guard = threading.Lock()
        self.waiting: list[Path] = []
        """Sealed segments, oldest first."""
        self.records = 0
        self.bytes_used = 0
        for folder in (self.segments, self.dead):
            folder.mkdir(exist_ok=True)
        self._recover()

    @staticmethod
    def claim(path: Path) -> SpoolFolder | None:
        """The folder, if no living process owns it."""
        path.mkdir(parents=True, exist_ok=True)
        lock = path / "lock"
        try:
            descriptor = os.open(lock, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            return None  # removed by the process that has just emptied it
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            same = os.fstat(descriptor).st_ino == lock.stat().st_ino
        except OSError:
            same = False
        if not same:
            os.close(descriptor)
            return None
        return SpoolFolder(path, descriptor)

    def _recover(self) -> None:
        """Counts what a process before this one left. Pictures are skipped, not read."""
        for path in sorted(self.segments.glob("*.seg")):
            size = path.stat().st_size
            if size:
                with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as data:
                    content = read_segment(data)
                if content.torn:
                    log.warning("segment %s ends in a torn line, which no caller was told of", path.name)
                self.records += len(content.payloads)
            self.waiting.append(path)
            self.bytes_used += size

    def added(self, size: int, records: int = 0) -> None:
        with self._guard:
            self.bytes_used += size
            self.records += records

    # ------------------------------------------------------------------ segments

    def sealed(self, segment: Path) -> None:
        with self._guard:
            self.waiting.append(segment)

    def oldest(self) -> Path | None:
        with self._guard:
            return self.waiting[0] if self.waiting else None

    def next_number(self) -> int:
        numbers = [int(path.stem) for path in self.segments.glob("*.seg") if path.stem.isdigit()]
        return max(numbers, default=0) + 1

    def drop(self, segment: Path, records: int) -> None:
        """A segment that is delivered."""
        size = segment.stat().st_size
        segment.unlink()
        with self._guard:
            self.waiting.remove(segment)
            self.records -= records
            self.bytes_used -= size

    # ------------------------------------------------------------------ dead letters

    def bury(self, payload: bytes, reason: str) -> None:
        """Keeps what cannot be delivered, for a person to look at; bounded."""
        path = self.dead / "records.ndjson"
        if path.exists() and path.stat().st_size > DEAD_LIMIT_BYTES:
            log.error("dead letters exceed %d bytes: this one is not kept", DEAD_LIMIT_BYTES)
            return
        line = orjson.dumps({"reason": reason, "entry": payload.decode("utf-8", "replace")}) + b"\n"
        with path.open("ab") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())

    def bury_picture(self, digest: str, body: bytes | memoryview) -> None:
        (self.dead / digest).write_bytes(body)

    def remove(self, dead_to: Path) -> None:
        """Removes an emptied folder of a process that is gone; its dead letters move on."""
        for path in self.dead.iterdir():
            number = 0
            while (target := dead_to / f"{self.path.name}-{number}-{path.name}").exists():
                number += 1
            path.replace(target)
        shutil.rmtree(self.path, ignore_errors=True)
        self.release()

    def release(self) -> None:
        os.close(self._lock_descriptor)


def pictures_of(payload: bytes) -> list[str]:
    """Digests a spooled entry names."""
    try:
        record = orjson.loads(payload).get("record") or {}
        return [str(digest) for digest in record.get("pictures") or ()]
    except (orjson.JSONDecodeError, AttributeError):
        return []
