"""The pictures: content-addressed files behind any fsspec URI, and the table that says which of them are needed.

A picture is written under its own digest and never changed. The row comes before the file and is locked while the file
is deleted, so that a picture that is sent again while it is being deleted is there afterwards.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import fsspec
from sqlalchemy import delete, select

from cutover_server.assessments.database import Database
from cutover_server.assessments.schema import assessment_pictures, assessments, pictures

log = logging.getLogger(__name__)
T = TypeVar("T")

_MAGIC = (
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"GIF8", "image/gif"),
    (b"II*\x00", "image/tiff"),
    (b"MM\x00*", "image/tiff"),
    (b"BM", "image/bmp"),
)
DAY_SECONDS = 86400.0
ORPHAN_DAYS = 7.0
"""How long a picture waits for the record that names it; a gateway's spool empties within that."""


class DigestMismatch(ValueError):
    """The body is not what its name says."""


class StoreFailed(RuntimeError):
    """The picture store cannot be reached or is full."""


def content_type_of(body: bytes) -> str:
    """What the bytes are, whatever the sender says; a browser is told nothing but this."""
    if body[:4] == b"RIFF" and body[8:12] == b"WEBP":
        return "image/webp"
    return next((kind for magic, kind in _MAGIC if body.startswith(magic)), "application/octet-stream")


class PictureStore:
    """Files by digest."""

    def __init__(self, uri: str) -> None:
        self._fs, root = fsspec.core.url_to_fs(uri)
        self._root = str(root).rstrip("/")
        self._local = "file" in (
            [self._fs.protocol] if isinstance(self._fs.protocol, str) else self._fs.protocol
        )

    async def put(self, digest: str, body: bytes) -> None:
        await self._call(self._put, digest, body)

    async def get(self, digest: str) -> bytes | None:
        """The picture, or none when it is not there or not intact."""
        body = await self._call(self._get, digest)
        if body is not None and hashlib.sha256(body).hexdigest() != digest:
            log.error("picture %s is damaged in the store", digest)
            return None
        return body

    async def delete(self, digest: str) -> None:
        await self._call(self._delete, digest)

    async def _call(self, function: Callable[..., T], *arguments: object) -> T:
        try:
            return await asyncio.to_thread(function, *arguments)
        except Exception as error:  # every fsspec backend has errors of its own
            raise StoreFailed(f"picture store: {type(error).__name__}") from error

    def _path(self, digest: str) -> str:
        return f"{self._root}/{digest[:2]}/{digest}"

    def _put(self, digest: str, body: bytes) -> None:
        path = self._path(digest)
        if not self._local:
            self._fs.pipe_file(path, body)  # object stores write whole or not at all
            return
        folder = Path(path).parent
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".part-", delete=False) as part:
            try:
                part.write(body)
                part.flush()
                os.fsync(part.fileno())
                Path(part.name).replace(path)
            except BaseException:
                Path(part.name).unlink(missing_ok=True)
                raise

    def _get(self, digest: str) -> bytes | None:
        try:
            return bytes(self._fs.cat_file(self._path(digest)))
        except FileNotFoundError:
            return None

    def _delete(self, digest: str) -> None:
        try:
            self._fs.rm_file(self._path(digest))
        except FileNotFoundError:
            return


async def put_picture(database: Database, store: PictureStore, digest: str, body: bytes, now: float) -> None:
    """Keeps a picture; repeating it is harmless. When this returns, file and row are there."""
    if hashlib.sha256(body).hexdigest() != digest:
        raise DigestMismatch(f"the body's SHA-256 is {hashlib.sha256(body).hexdigest()}, not {digest}")
    statement = database.insert(pictures).values(
        sha256=digest, size_bytes=len(body), content_type=content_type_of(body), last_put_at=now
    )
    async with database.write() as connection:
        await connection.execute(
            statement.on_conflict_do_update(index_elements=["sha256"], set_={"last_put_at": now})
        )
    await store.put(digest, body)


async def purge(
    database: Database,
    store: PictureStore,
    now: float,
    retention_days: float,
    only: Sequence[str] | None = None,
    limit: int = 500,
) -> int:
    """Deletes pictures nobody needs, of all or of `only` these; returns how many.

    Needed is a picture of a validated assessment (it trains models) or of one younger than the retention. A picture that
    no record names is kept for a week. Pictures of deleted assessments are named by no record and dated back to 0.
    """
    needed = (
        select(assessments.c.id)
        .join(assessment_pictures, assessment_pictures.c.request_id == assessments.c.id)
        .where(assessment_pictures.c.sha256 == pictures.c.sha256)
        .where(assessments.c.validated | (assessments.c.received_at > now - retention_days * DAY_SECONDS))
        .exists()
    )
    named = select(1).where(assessment_pictures.c.sha256 == pictures.c.sha256).exists()
    cutoff = now - min(retention_days, ORPHAN_DAYS) * DAY_SECONDS
    orphaned = ~named & (pictures.c.last_put_at < now - ORPHAN_DAYS * DAY_SECONDS)
    old = named & (pictures.c.last_put_at < now - retention_days * DAY_SECONDS)
    unneeded = (pictures.c.last_put_at < cutoff) & (orphaned | old) & ~needed
    digests = list(only or ())
    if only is None:
        due = select(pictures.c.sha256).where(unneeded).order_by(pictures.c.last_put_at).limit(limit)
        async with database.read() as connection:
            digests = list((await connection.execute(due)).scalars())
    deleted = 0
    for digest in digests:
        async with database.write() as connection:
            still = select(pictures.c.sha256).where(unneeded, pictures.c.sha256 == digest).with_for_update()
            if (await connection.execute(still)).first() is None:
                continue
            await store.delete(digest)
            await connection.execute(delete(pictures).where(pictures.c.sha256 == digest))
            await connection.execute(
                delete(assessment_pictures).where(assessment_pictures.c.sha256 == digest)
            )
        deleted += 1
    return deleted
