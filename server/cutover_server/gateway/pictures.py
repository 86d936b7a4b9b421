"""Pictures of a request: opened, fetched if they stand elsewhere, and named by their digest.

A `data:` URL is decoded, an http(s) URL is fetched by the guarded fetcher and inlined, so that no arm opens a URL a
caller gave and every arm sees the same bytes. Large work happens in a thread. A picture that cannot be had is the
caller's 400 when the URL is refused, and a 502 when the server behind it fails.
"""

from __future__ import annotations

import asyncio
import binascii
import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import aiohttp
import orjson
import pybase64

from cutover.fetch import FetchFailed, FetchPolicy, FetchRefused, fetch_bytes, read_data_url
from cutover_server.gateway.openai_shape import ApiError

_INLINE_BYTES = 1_000_000
"""Below this, decoding on the loop is cheaper than a thread and takes less than a millisecond."""
_HEAD_BYTES = 128
"""Of a data URL that was cut out of a body: its comma is among them."""


@dataclass(frozen=True, slots=True)
class Picture:
    digest: str
    """SHA-256 in hex."""
    body: bytes
    url: bytes | memoryview
    """Its data URL as JSON, without the quotes."""


async def open_pictures(
    urls: tuple[str | memoryview, ...],
    policy: FetchPolicy,
    session: aiohttp.ClientSession,
    reserve: Callable[[int], None],
) -> list[Picture]:
    """The pictures in order. `reserve` is told of bytes that were not part of the request; it may raise ApiError."""
    if len(urls) == 1:
        return [await _open(urls[0], policy, session, reserve)]
    tasks = [asyncio.ensure_future(_open(url, policy, session, reserve)) for url in urls]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()


async def _open(
    url: str | memoryview, policy: FetchPolicy, session: aiohttp.ClientSession, reserve: Callable[[int], None]
) -> Picture:
    try:
        if isinstance(url, memoryview) or url[:5].lower() == "data:":
            if len(url) <= _INLINE_BYTES:
                return _decode(url, policy.max_bytes)
            return await asyncio.to_thread(_decode, url, policy.max_bytes)
        fetched = await fetch_bytes(url, policy, session)
    except FetchRefused as refused:
        raise ApiError(400, f"image_url: {refused}", param="messages", code="invalid_image_url") from None
    except FetchFailed as failed:
        raise ApiError(
            502, f"image_url: {failed}", "api_error", param="messages", code="image_not_available"
        ) from None
    if not fetched.content_type.startswith("image/"):
        shown = fetched.content_type[:60] or "no media type"
        raise ApiError(
            400,
            f"image_url: the server answered with {shown}, not a picture.",
            param="messages",
            code="invalid_image_url",
        )
    reserve(3 * len(fetched.body))
    return await asyncio.to_thread(_inline, fetched.body, fetched.content_type)


def _decode(url: str | memoryview, max_bytes: int) -> Picture:
    if isinstance(url, memoryview):
        return _decode_base64(url, max_bytes)
    read = read_data_url(url, max_bytes)
    if not read.content_type.startswith("image/"):
        raise FetchRefused(url[:40], "the media type is not image/...")
    if not read.body:
        raise FetchRefused(url[:40], "the picture is empty")
    return Picture(hashlib.sha256(read.body).hexdigest(), read.body, orjson.dumps(url)[1:-1])


def _decode_base64(url: memoryview, max_bytes: int) -> Picture:
    """A data URL cut out of the request (see `embedded`): an image in base64 by its head, many bytes by its length."""
    head = bytes(url[:_HEAD_BYTES])
    shown = head[:40].decode("ascii", "replace")
    try:
        body = pybase64.b64decode(url[head.index(b",") + 1 :], validate=True)
    except binascii.Error as error:
        raise FetchRefused(shown, f"the data is not base64: {error}") from None
    if len(body) > max_bytes:
        raise FetchRefused(shown, f"more than {max_bytes} bytes")
    return Picture(hashlib.sha256(body).hexdigest(), body, url)


def _inline(body: bytes, content_type: str) -> Picture:
    url = orjson.dumps(f"data:{content_type};base64,{pybase64.b64encode_as_string(body)}")
    return Picture(hashlib.sha256(body).hexdigest(), body, url[1:-1])
