"""The spool: what happened is on disk before the caller gets the answer, and in the database after.

Own append-only segments rather than SQLite: the only operations are "append and sync many at once", "read the oldest
whole" and "delete whole". A segment file does these with one fdatasync per group and one unlink, needs no vacuum, no
checkpoint that stalls a commit, and its damage is confined to single lines that carry a checksum.

One thread writes. Whatever is waiting when it gets its turn is written and synced together (group commit): a lone
request pays one sync, a crowd waits two milliseconds to share it. Pictures go to their own files, named by digest, while the arm is still
thinking. The spool is bounded: when it is full, or the disk refuses, the caller of `append` is told with `SpoolFull`
and nothing is left half-written.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import queue
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from cutover_server.gateway.segments import frame
from cutover_server.gateway.spool_folder import SpoolFolder

log = logging.getLogger(__name__)
SEGMENT_BYTES = 4_000_000
_GROUP = 512
_GATHER_SECONDS = 0.002
_CROWD_SECONDS = 0.005
"""Who comes within this time of the last sync is one of a crowd."""


class SpoolFull(Exception):
    """The record is not on disk: the spool has reached its limit, or the disk refused."""


@dataclass(frozen=True, slots=True)
class _Picture:
    digest: str
    body: bytes


@dataclass(frozen=True, slots=True)
class _Line:
    payload: bytes


@dataclass(frozen=True, slots=True)
class _Seal:
    final: bool = False


_Job = tuple[_Picture | _Line | _Seal, asyncio.Future[None]]


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
        self._number = folder.next_number()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="spool", daemon=True)
        self._thread.start()

    # ------------------------------------------------------------------ from the event loop

    def keep_pictures(self, pictures: Sequence[tuple[str, bytes]]) -> list[asyncio.Future[None]]:
        """Starts writing pictures; await the futures before `append`. Undo with `folder.let_go` if no record follows."""
        self.folder.hold(digest for digest, _ in pictures)
        return [self._submit(_Picture(digest, body)) for digest, body in pictures]

    async def append(self, payload: bytes) -> None:
        """On return the payload has been synced. Raises SpoolFull."""
        await self._submit(_Line(payload))
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

    def _submit(self, job: _Picture | _Line | _Seal, force: bool = False) -> asyncio.Future[None]:
        future: asyncio.Future[None] = self._loop.create_future()
        if self._closed and not force:
            future.set_exception(SpoolFull("the spool is closed"))
        else:
            self._jobs.put((job, future))
        return future

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
            self._write_pictures(group, failures)
            self._write_lines(group, failures)
            for job, _ in group:
                if isinstance(job, _Seal):
                    self._seal_active()
                    final = final or job.final
            synced = time.monotonic()
            outcomes = [(future, failures.get(at)) for at, (_, future) in enumerate(group)]
            try:
                self._loop.call_soon_threadsafe(_resolve, outcomes)
            except RuntimeError:
                return  # the loop is gone, and with it everybody who waits

    def _write_pictures(self, group: list[_Job], failures: dict[int, Exception]) -> None:
        """Writes all first and syncs then: the journal commit of the first sync carries most of the others."""
        parts: dict[str, BinaryIO] = {}
        failed: dict[str, str] = {}
        for job, _ in group:
            if (
                isinstance(job, _Picture)
                and job.digest not in parts
                and not self._picture(job.digest).exists()
            ):
                try:
                    self._check_room(len(job.body))
                    parts[job.digest] = file = cast(BinaryIO, self._part(job.digest).open("wb"))
                    file.write(job.body)
                    file.flush()
                except (OSError, SpoolFull) as error:
                    failed[job.digest] = str(error)
        for digest, file in parts.items():
            try:
                if digest not in failed:
                    os.fsync(file.fileno())
                    self._part(digest).replace(self._picture(digest))
                    self.folder.added(os.fstat(file.fileno()).st_size)
            except OSError as error:
                failed[digest] = str(error)
            with contextlib.suppress(OSError):
                file.close()
        try:
            if parts:
                _sync_folder(self.folder.pictures)
        except OSError as error:
            failed.update(dict.fromkeys(parts, str(error)))
        for at, (job, _) in enumerate(group):
            if isinstance(job, _Picture) and job.digest in failed:
                failures[at] = SpoolFull(failed[job.digest])
                self._part(job.digest).unlink(missing_ok=True)

    def _picture(self, digest: str) -> Path:
        return self.folder.pictures / digest

    def _part(self, digest: str) -> Path:
        return self.folder.pictures / f".{digest}.part"

    def _write_lines(self, group: list[_Job], failures: dict[int, Exception]) -> None:
        lines = [(at, job.payload) for at, (job, _) in enumerate(group) if isinstance(job, _Line)]
        if not lines:
            return
        data = b"".join(frame(payload) for _, payload in lines)
        try:
            self._check_room(len(data))
            descriptor = self._open_segment()
            _write_all(descriptor, data)
            os.fdatasync(descriptor)
        except (OSError, SpoolFull) as error:
            self._give_up_write()
            failures.update((at, SpoolFull(str(error))) for at, _ in lines)
            return
        self._size += len(data)
        self.folder.added(len(data), len(lines))
        if self._size >= SEGMENT_BYTES:
            self._seal_active()

    def _check_room(self, size: int) -> None:
        if self.folder.bytes_used + size > self._max_bytes:
            raise SpoolFull(f"{self.folder.bytes_used} of {self._max_bytes} bytes are used")

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
        os.close(self._descriptor)
        if self._size:
            self.folder.sealed(self._active)
        else:
            self._active.unlink(missing_ok=True)
        self._descriptor = self._active = None
        self._size = 0


def _resolve(outcomes: list[tuple[asyncio.Future[None], Exception | None]]) -> None:
    for future, failure in outcomes:
        if future.cancelled():
            continue
        if failure is None:
            future.set_result(None)
        else:
            future.set_exception(failure)
            future.exception()  # a picture's future may have lost its reader; this is no news for the log


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
