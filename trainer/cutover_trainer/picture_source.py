"""Gets the pictures the rows point to: data URLs, guarded http(s), and objects beside the training data.

The one place of the trainer that opens a URL out of a row. The export's own origin gets the bearer token; nobody else.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import fsspec
from yarl import URL

from cutover.fetch import (
    FetchFailed,
    FetchPolicy,
    FetchRefused,
    fetch_bytes,
    guarded_session,
    open_stream,
    read_data_url,
)
from cutover.stages import StageConfig
from cutover_trainer.export import authorization, source_token

MAX_PICTURE_BYTES = 10_000_000
ATTEMPTS = 3
FIRST_PAUSE_SECONDS = 0.5


class PictureMissing(Exception):
    """The picture of a row cannot be had. `passing` says that another time it might."""

    def __init__(self, reason: str, passing: bool) -> None:
        super().__init__(reason)
        self.reason = reason
        self.passing = passing


class PictureSource:
    def __init__(self, config: StageConfig, policy: FetchPolicy, session: aiohttp.ClientSession) -> None:
        self._policy = policy
        self._session = session
        http = config.spec.dataset.source.http
        self._source_origin = None if http is None else URL(http.url).origin()
        self._headers = authorization(source_token(config))
        made = config.spec.dataset.synthetic
        uris = (config.spec.dataset.source.uri, None if made is None else made.uri)
        self._buckets = tuple("/".join(uri.split("/")[:3]) + "/" for uri in uris if uri is not None)

    async def get(self, url: str) -> bytes:
        """Bytes of the picture. Raises PictureMissing."""
        pause_seconds = FIRST_PAUSE_SECONDS
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return await self._once(url)
            except FetchRefused as error:
                raise PictureMissing(f"picture refused: {error.reason}", passing=False) from None
            except FetchFailed as error:
                if attempt == ATTEMPTS:
                    raise PictureMissing(f"picture not available: {error.reason}", passing=True) from None
            await asyncio.sleep(pause_seconds)
            pause_seconds *= 4
        raise AssertionError("unreachable")

    async def _once(self, url: str) -> bytes:
        scheme = url.partition(":")[0].lower()
        if scheme == "data":
            return read_data_url(url, MAX_PICTURE_BYTES).body
        if scheme in ("s3", "gs"):
            return await asyncio.to_thread(self._object, url)
        if scheme in ("http", "https") and self._headers and _origin(url) == self._source_origin:
            try:
                async with asyncio.timeout(self._policy.timeout_seconds):
                    return await self._from_export(url)
            except TimeoutError:
                raise FetchFailed(url, "no complete answer in time") from None
        return (await fetch_bytes(url, self._policy, self._session)).body

    async def _from_export(self, url: str) -> bytes:
        async with open_stream(url, self._policy, self._session, self._headers) as response:
            if response.status >= 500 or response.status in (408, 425, 429):
                raise FetchFailed(url, f"the server answered {response.status}")
            if response.status != 200:
                raise FetchRefused(url, f"the server answered {response.status}")
            body = bytearray()
            async for chunk in response.content.iter_chunked(1 << 16):
                body += chunk
                if len(body) > MAX_PICTURE_BYTES:
                    raise FetchRefused(url, f"more than {MAX_PICTURE_BYTES} bytes")
            return bytes(body)

    def _object(self, url: str) -> bytes:
        """Only from the bucket the training data comes from: the pod's credentials may reach others."""
        if not url.startswith(self._buckets):
            raise FetchRefused(url, "an object outside the bucket of dataset.source.uri")
        try:
            files, path = fsspec.core.url_to_fs(url)
            if files.size(path) > MAX_PICTURE_BYTES:
                raise FetchRefused(url, f"more than {MAX_PICTURE_BYTES} bytes")
            data: bytes = files.cat_file(path)
            return data
        except FileNotFoundError:
            raise FetchRefused(url, "no such object") from None
        except OSError as error:
            raise FetchFailed(url, str(error)[:200]) from None


@asynccontextmanager
async def open_picture_source(config: StageConfig) -> AsyncIterator[PictureSource]:
    policy = FetchPolicy(allowed_origins=config.allowed_origins, max_bytes=MAX_PICTURE_BYTES)
    async with guarded_session(policy) as session:
        yield PictureSource(config, policy, session)


def _origin(url: str) -> URL | None:
    try:
        return URL(url).origin()
    except ValueError:
        return None
