"""One gateway process's folder on the spool volume: who owns it, what waits in it, what may be deleted.

    <root>/<instance>/lock               held (flock) by the process that owns the folder
    <root>/<instance>/segments/*.seg     records, oldest first
    <root>/<instance>/pictures/<sha256>  each picture once, until no waiting record names it
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
from collections import Counter
from collections.abc import Iterable
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
        self.pictures = path / "pictures"
        self.dead = path / "dead"
        self._lock_descriptor = lock_descriptor
        self._guard = threading.Lock()
        self._references: Counter[str] = Counter()
        self.waiting: list[Path] = []
        """Sealed segments, oldest first."""
        self.records = 0
        self.bytes_used = 0
        for folder in (self.segments, self.pictures, self.dead):
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
        """Counts what a process before this one left, and removes pictures whose request was never answered."""
        for path in sorted(self.segments.glob("*.seg")):
            data = path.read_bytes()
            content = read_segment(data)
            if content.torn:
                log.warning("segment %s ends in a torn line, which no caller was told of", path.name)
            self.waiting.append(path)
            self.records += len(content.payloads)
            self.bytes_used += len(data)
            for payload in content.payloads:
                self._references.update(pictures_of(payload))
        for path in self.pictures.iterdir():
            if path.name in self._references:
                self.bytes_used += path.stat().st_size
            else:
                path.unlink(missing_ok=True)

    # ------------------------------------------------------------------ pictures

    def hold(self, digests: Iterable[str]) -> None:
        with self._guard:
            self._references.update(digests)

    def let_go(self, digests: Iterable[str]) -> None:
        """Counterpart of `hold`; deletes pictures nobody names any more."""
        with self._guard:
            for digest in digests:
                self._references[digest] -= 1
                if self._references[digest] <= 0:
                    del self._references[digest]
                    path = self.pictures / digest
                    try:
                        size = path.stat().st_size
                        path.unlink()
                        self.bytes_used -= size
                    except FileNotFoundError:
                        pass

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

    def drop(self, segment: Path, records: int, digests: Iterable[str]) -> None:
        """A segment whose records are all delivered."""
        size = segment.stat().st_size
        segment.unlink()
        try:
            self.let_go(digests)
        finally:
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

    def bury_picture(self, digest: str) -> None:
        source = self.pictures / digest
        if source.exists():
            size = source.stat().st_size
            source.replace(self.dead / digest)
            self.added(-size)

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
