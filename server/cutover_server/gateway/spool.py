"""The spool: what happened is on disk before the caller gets the answer, and in the database after.

Own append-only segments rather than SQLite: the only operations are "append and sync many at once", "read the oldest
whole" and "delete whole". A record and the pictures it names are one write, so that neither is ever without the other. A segment file does these with one fdatasync per group and one unlink, needs no vacuum, no
checkpoint that stalls a commit, and its damage is confined to single lines that carry a checksum.

One thread writes. Whatever is waiting when it gets its turn is written and synced together (group commit): a lone
request pays one sync, a crowd waits two milliseconds to share it. The spool is bounded, on disk and in what waits for the disk: when it is full, or the disk refuses, the caller of `append` is told with `SpoolFull`
and nothing is left half-written.
"""

from __future__ import annotations

import asyncio
import logging
import os
import queue
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cutover_server.gateway.segments import frame, frame_picture
from cutover_server.gateway.spool_folder import SpoolFolder

log = logging.getLogger(__name__)
SEGMENT_BYTES = 8_000_000
MAX_WAITING_BYTES = 64_000_000
"""What may wait for a slow disk; a single entry that is larger may wait alone."""
_GROUP = 512
_VECTOR = 512
"""Parts of one write; the kernel takes 1,024."""
_GATHER_SECONDS = 0.002
_CROWD_SECONDS = 0.005
"""Who comes within this time of the last sync is one of a crowd."""


class SpoolFull(Exception):
    """The record is not on disk: the spool has reached its limit, or the disk refused."""


@dataclass(frozen=True, slots=True)
class _Entry:
    payload: bytes
    pictures: Sequence[tuple[str, bytes]]

    @property
    def size(self) -> int:
        return len(self.payload) + sum(len(body) for _, body in self.pictures)


@dataclass(frozen=True, slots=True)
class _Seal:
    final: bool = False


_Job = tuple[_Entry | _Seal, asyncio.Future[None]]


def claim_own_folder(root: Path, instance: str) -> SpoolFolder:
    """The folder of this instance; with a number behind its name while another process of that name still lives."""
    for number in range(100):
        folder = SpoolFolder.claim(root / (instance if number == 0 else f"{instance}-{number}"))
        if folder is not None:
            return folder
    raise RuntimeError(f"spool {root}: a hundred processes named {instance} hold folders here")


class Spool:
    def __init__(self, folder: SpoolFolder, max_bytes: int) -> None:
        self.folder = folder
        self.appended = asyncio.Event()
        """Set at each append; the sender clears it."""
        self._max_bytes = max_bytes
        self._loop = asyncio.get_running_loop()
        self._jobs: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        self._descriptor: int | None = None
        self._active: Path | None = None
        self._size = 0
        self._digests: set[str] = set()
        """Pictures in the segment being written."""
        self._waiting_bytes = 0
        self._number = folder.next_number()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="spool", daemon=True)
        self._thread.start()

    # ------------------------------------------------------------------ from the event loop

    async def append(self, payload: bytes, pictures: Sequence[tuple[str, bytes]] = ()) -> None:
        """On return the payload and its pictures, by digest, have been synced. Raises SpoolFull."""
        entry = _Entry(payload, pictures)
        size = entry.size
        if self._waiting_bytes and self._waiting_bytes + size > MAX_WAITING_BYTES:
            raise SpoolFull(f"{self._waiting_bytes} bytes wait for a slow disk")
        self._waiting_bytes += size
        await self._submit(entry)
        self.appended.set()

    async def seal(self) -> None:
        """Closes the segment being written, so that it can be sent."""
        await self._submit(_Seal())

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            await self._submit(_Seal(final=True), force=True)
            await asyncio.to_thread(self._thread.join)
            self.folder.release()

    def _submit(self, job: _Entry | _Seal, force: bool = False) -> asyncio.Future[None]:
        future: asyncio.Future[None] = self._loop.create_future()
        if self._closed and not force:
            future.set_exception(SpoolFull("the spool is closed"))
        else:
            self._jobs.put((job, future))
        return future

    def _resolve(self, outcomes: list[tuple[asyncio.Future[None], Exception | None]], size: int) -> None:
        self._waiting_bytes -= size
        for future, failure in outcomes:
            if future.cancelled():
                continue
            if failure is None:
                future.set_result(None)
            else:
                future.set_exception(failure)

    # ------------------------------------------------------------------ the writer's thread

    def _run(self) -> None:
        final, synced = False, 0.0
        while not final:
            group = [self._jobs.get()]
            if time.monotonic() - synced < _CROWD_SECONDS:
                time.sleep(_GATHER_SECONDS)
            while len(group) < _GROUP:
                try:
                    group.append(self._jobs.get_nowait())
                except queue.Empty:
                    break
            failures: dict[int, Exception] = {}
            self._write_entries(group, failures)
            for job, _ in group:
                if isinstance(job, _Seal):
                    self._seal_active()
                    final = final or job.final
            synced = time.monotonic()
            outcomes = [(future, failures.get(at)) for at, (_, future) in enumerate(group)]
            size = sum(job.size for job, _ in group if isinstance(job, _Entry))
            try:
                self._loop.call_soon_threadsafe(self._resolve, outcomes, size)
            except RuntimeError:
                return  # the loop is gone, and with it everybody who waits

    def _write_entries(self, group: list[_Job], failures: dict[int, Exception]) -> None:
        """One write and one sync for all that have room."""
        parts: list[bytes] = []
        written: list[int] = []
        digests: set[str] = set()
        size = 0
        for at, (job, _) in enumerate(group):
            if not isinstance(job, _Entry):
                continue
            own: list[bytes] = []
            fresh = {one: body for one, body in job.pictures if one not in self._digests | digests}
            for digest, body in fresh.items():
                own += frame_picture(digest, body)
            own.append(frame(job.payload))
            more = sum(map(len, own))
            if self.folder.bytes_used + size + more > self._max_bytes:
                failures[at] = SpoolFull(f"{self.folder.bytes_used} of {self._max_bytes} bytes are used")
                continue
            parts += own
            size += more
            digests.update(fresh)
            written.append(at)
        if not written:
            return
        try:
            descriptor = self._open_segment()
            _write_all(descriptor, parts)
            os.fdatasync(descriptor)
        except OSError as error:
            self._give_up_write()
            failures.update((at, SpoolFull(str(error))) for at in written)
            return
        self._size += size
        self._digests |= digests
        self.folder.added(size, len(written))
        if self._size >= SEGMENT_BYTES:
            self._seal_active()

    def _open_segment(self) -> int:
        if self._descriptor is None:
            self._active = self.folder.segments / f"{self._number:012d}.seg"
            self._descriptor = os.open(
                self._active, os.O_CREAT | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC, 0o600
            )
            self._number += 1
            self._size = 0
            _sync_folder(self.folder.segments)
        return self._descriptor

    def _give_up_write(self) -> None:
        """After a failed write or sync: cut the segment back to what was acknowledged, and start another."""
        if self._descriptor is not None:
            try:
                os.ftruncate(self._descriptor, self._size)
            except OSError:
                log.exception("spool: the segment cannot be cut back")
            self._seal_active()

    def _seal_active(self) -> None:
        if self._descriptor is None or self._active is None:
            return
        descriptor, active, size = self._descriptor, self._active, self._size
        self._descriptor = self._active = None
        self._size = 0
        self._digests.clear()
        if size:
            self.folder.sealed(active)
        try:
            os.close(descriptor)
            if not size:
                active.unlink(missing_ok=True)
        except OSError:
            log.exception("spool: segment %s cannot be closed or removed", active.name)


def _write_all(descriptor: int, parts: list[bytes]) -> None:
    for at in range(0, len(parts), _VECTOR):
        vector: list[bytes | memoryview] = list(parts[at : at + _VECTOR])
        while vector:
            written = os.writev(descriptor, vector)
            while vector and written >= len(vector[0]):
                written -= len(vector.pop(0))
            if written:
                vector[0] = memoryview(vector[0])[written:]


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
