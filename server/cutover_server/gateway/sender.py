"""Delivers the spool to the assessments service: pictures first, then the records that name them, then the disk is free.

Promises: everything is repeated until it is taken, however long the service is away; it is idempotent there, by digest
and id, so that a crash between delivery and deletion does no harm. An entry the service calls unfit is put aside as a
dead letter: the reply names it, or a refused batch (400, 413, 422) is halved until it is found. Folders of dead gateways on the same volume are taken over.
Answers to callers never wait for any of this.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import chain
from mmap import MAP_POPULATE, MAP_PRIVATE, PROT_READ, mmap
from pathlib import Path

import orjson

from cutover.contract import PATH_PICTURES, PATH_RECORDS
from cutover_server.gateway.http_connection import ReplyTooLarge
from cutover_server.gateway.http_pool import HttpPool, endpoint
from cutover_server.gateway.segments import read_segment
from cutover_server.gateway.spool import Spool
from cutover_server.gateway.spool_folder import SpoolFolder, pictures_of

log = logging.getLogger(__name__)
BATCH_RECORDS = 100
BATCH_BYTES = 1_000_000
_UNFIT = frozenset({400, 413, 415, 422})
_LINGER_SECONDS = 0.1
_CROWD_RECORDS, _CROWD_LINGER_SECONDS = 3, 2.0
"""A segment costs the same however many records it holds: where many come, more are waited for."""
_ADOPTION_SECONDS = 30.0
_BYTES, _JSON = b"application/octet-stream", b"application/json"
_CALL_SECONDS = 30.0
_RECORD, _SHADOW = b'{"record":', b'{"shadow":'
_BACK_OFF_SECONDS = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0)


class _NotTaken(Exception):
    """The service is away or refuses us for now."""


class _Unfit(Exception):
    """The service will never take this."""


@dataclass(slots=True)
class Sender:
    spool: Spool
    root: Path
    pool: HttpPool
    url: str
    token: str
    chance: Callable[[], float]
    dead_letter: Callable[[], None]
    """Told of each entry put aside."""
    _adopted: list[SpoolFolder] = field(default_factory=list)
    _delivered: dict[Path, int] = field(default_factory=dict)
    """Entries of a segment already taken, so that a failure in mid-segment does not send them again."""
    _failures: int = 0
    _last_records: int = 0
    """In the segment delivered last."""

    def waiting_records(self) -> int:
        return self.spool.folder.records + sum(folder.records for folder in self._adopted)

    async def run(self) -> None:
        """Until cancelled."""
        loop = asyncio.get_running_loop()
        adopt_at = loop.time()
        while True:
            if loop.time() >= adopt_at:
                await asyncio.to_thread(self._adopt)
                adopt_at = loop.time() + _ADOPTION_SECONDS
            try:
                worked = await self.deliver_some()
                self._failures = 0
            except _NotTaken as problem:
                pause = _BACK_OFF_SECONDS[min(self._failures, len(_BACK_OFF_SECONDS) - 1)]
                self._failures += 1
                if self._failures == 1 or self._failures % 20 == 0:
                    log.warning("assessments: %s; %d records wait", problem, self.waiting_records())
                await asyncio.sleep(pause * (0.75 + 0.5 * self.chance()))
                continue
            except Exception:
                # The sender must outlive any surprise: nobody else empties the spool.
                log.exception("spool: a segment cannot be delivered")
                await asyncio.sleep(5.0)
                continue
            if not worked:
                try:
                    async with asyncio.timeout(max(0.05, adopt_at - loop.time())):
                        await self.spool.appended.wait()
                except TimeoutError:
                    continue
                crowd = self._last_records >= _CROWD_RECORDS
                await asyncio.sleep(_CROWD_LINGER_SECONDS if crowd else _LINGER_SECONDS)

    async def drain(self, patience_seconds: float) -> None:
        """One last attempt to deliver everything; what is left stays on disk for the next process."""
        try:
            async with asyncio.timeout(patience_seconds):
                while await self.deliver_some():
                    pass
        except (TimeoutError, _NotTaken, OSError) as problem:
            log.warning("%d records stay on the spool: %s", self.waiting_records(), problem or "no time left")

    async def deliver_some(self) -> bool:
        """Delivers the oldest segment of each folder. False when nothing was waiting."""
        own = self.spool.folder
        self.spool.appended.clear()
        if own.oldest() is None:
            await self.spool.seal()
        worked = False
        for folder in [own, *self._adopted]:
            segment = folder.oldest()
            if segment is not None:
                await self._deliver(folder, segment)
                worked = True
            elif folder is not own:
                self._adopted.remove(folder)
                await asyncio.to_thread(folder.remove, own.dead)
                log.info("spool folder %s of a dead gateway is delivered", folder.path.name)
        return worked

    def _adopt(self) -> None:
        mine = {self.spool.folder.path, *(folder.path for folder in self._adopted)}
        for path in sorted(self.root.iterdir()):
            if path in mine or not (path / "lock").exists():
                continue
            try:
                folder = SpoolFolder.claim(path)
            except OSError:
                log.exception("spool folder %s cannot be taken over", path.name)
                continue
            if folder is not None:
                log.info("spool folder %s of a dead gateway: %d records", path.name, folder.records)
                self._adopted.append(folder)

    async def _deliver(self, folder: SpoolFolder, segment: Path) -> None:
        data = await asyncio.to_thread(_mapped, segment)
        content = read_segment(data)
        if segment not in self._delivered:
            for line in content.damaged:
                self._put_aside(folder, line, "damaged on disk")
        done = self._delivered.setdefault(segment, 0)
        while done < len(content.payloads):
            batch = _next_batch(content.payloads, done)
            for digest in dict.fromkeys(chain.from_iterable(map(pictures_of, batch))):
                place = content.pictures.pop(digest, None)
                if place is not None:  # else delivered with a record before
                    await self._put_picture(folder, digest, memoryview(data)[place[0] : sum(place)])
            await self._post(folder, batch)
            done += len(batch)
            self._delivered[segment] = done
        self._last_records = len(content.payloads)
        await asyncio.to_thread(folder.drop, segment, len(content.payloads))
        self._delivered.pop(segment, None)

    async def _put_picture(self, folder: SpoolFolder, digest: str, body: memoryview) -> None:
        try:
            await self._send(b"PUT", f"{PATH_PICTURES}/{digest}", body, _BYTES)
        except _Unfit as refusal:
            log.error("picture %s is put aside: %s", digest, refusal)
            await asyncio.to_thread(folder.bury_picture, digest, body)
            self.dead_letter()

    async def _post(self, folder: SpoolFolder, batch: list[bytes]) -> None:
        try:
            reply = await self._send(b"POST", PATH_RECORDS, _batch_body(batch), _JSON)
        except _Unfit as refusal:
            if len(batch) == 1:
                self._put_aside(folder, batch[0], str(refusal))
                return
            middle = len(batch) // 2
            await self._post(folder, batch[:middle])
            await self._post(folder, batch[middle:])
            return
        refused = _refused_ids(reply)
        for payload in batch if refused else ():
            reason = refused.get(_id_of(payload))
            if reason is not None:
                self._put_aside(folder, payload, reason)

    async def _send(self, method: bytes, path: str, body: bytes | memoryview, kind: bytes) -> bytes:
        headers = b"Content-Type: %b\r\nAuthorization: Bearer %b\r\n" % (kind, self.token.encode())
        shown = method.decode()
        try:
            where = endpoint(self.url).below(path)
            limit_at = asyncio.get_running_loop().time() + _CALL_SECONDS
            reply = await self.pool.send(method, where, headers, (body,), limit_at, _CALL_SECONDS)
            try:
                told = await reply.body()
            finally:
                reply.close()
        except (OSError, ReplyTooLarge) as error:
            raise _NotTaken(f"{shown} failed: {type(error).__name__}") from error
        if reply.status in _UNFIT:
            raise _Unfit(f"{shown} was answered with {reply.status}")
        if not 200 <= reply.status < 300:
            raise _NotTaken(f"{shown} was answered with {reply.status}")
        return told

    def _put_aside(self, folder: SpoolFolder, payload: bytes, reason: str) -> None:
        log.error("an entry is put aside as a dead letter in %s: %s", folder.dead, reason)
        folder.bury(payload, reason)
        self.dead_letter()


def _mapped(segment: Path) -> mmap | bytes:
    """The segment's bytes where the page cache has them, all of it read: megabytes of pictures are not copied."""
    with segment.open("rb") as file:
        if not os.fstat(file.fileno()).st_size:
            return b""
        return mmap(file.fileno(), 0, flags=MAP_PRIVATE | MAP_POPULATE, prot=PROT_READ)


def _next_batch(payloads: tuple[bytes, ...], start: int) -> list[bytes]:
    batch: list[bytes] = []
    size = 0
    for payload in payloads[start : start + BATCH_RECORDS]:
        if batch and size + len(payload) > BATCH_BYTES:
            break
        batch.append(payload)
        size += len(payload)
    return batch


def _batch_body(batch: list[bytes]) -> bytes:
    """A `RecordBatch` from spooled entries, `{"record": {...}}` or `{"shadow": {...}}` each, as they stand."""
    records = b",".join(payload[len(_RECORD) : -1] for payload in batch if payload.startswith(_RECORD))
    shadows = b",".join(payload[len(_SHADOW) : -1] for payload in batch if payload.startswith(_SHADOW))
    return b'{"records":[%b],"shadows":[%b]}' % (records, shadows)


def _refused_ids(reply: bytes) -> dict[str, str]:
    """Entries the service took the batch without: `{"refused": [{"id", "reason"}]}` in its reply."""
    try:
        refused = orjson.loads(reply).get("refused", [])
        return {str(entry["id"]): str(entry.get("reason", "refused"))[:500] for entry in refused}
    except (orjson.JSONDecodeError, AttributeError, TypeError, KeyError):
        return {}


def _id_of(payload: bytes) -> str:
    entry = orjson.loads(payload)
    return str((entry.get("record") or entry.get("shadow") or {}).get("id", ""))
