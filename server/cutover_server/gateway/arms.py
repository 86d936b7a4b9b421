"""Asks one arm once, within a time, and says what came of it. Never retries a request that an arm may be working on.

Keys are read from files at the moment of use, so that a rotated Secret needs no restart; they reach the arm's own
origin only, since redirects are not followed, and no message here holds one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import aiohttp

from cutover.contract import HEADER_BUSY_SECONDS
from cutover.route import Arm
from cutover.task import Task
from cutover_server.gateway.attempt import Attempt
from cutover_server.gateway.confidence import decisive_confidence
from cutover_server.gateway.cost import cost_usd
from cutover_server.gateway.reading import Reading, read_reply

MAX_REPLY_BYTES = 8_000_000
CONNECT_SECONDS = 3.0
_STALE_CONNECTION_SECONDS = 0.25
"""A kept connection the server had closed fails at once; that request never reached the arm and is sent again."""


class KeyMissing(Exception):
    """The arm names a key file that cannot be read."""


class _ReplyTooLarge(Exception):
    pass


def outbound_session(connections: int) -> aiohttp.ClientSession:
    """One session for all arms. Idle connections are given up before the servers' own five seconds."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=connections, limit_per_host=connections, keepalive_timeout=4.0),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS),
        auto_decompress=False,
        headers={"Accept-Encoding": "identity", "User-Agent": "cutover-gateway"},
        trust_env=False,
    )


class ArmCaller:
    def __init__(self, session: aiohttp.ClientSession, keys_folder: Path) -> None:
        self._session = session
        self._keys_folder = keys_folder

    async def ask(
        self, arm: Arm, body: bytes, limit_seconds: float, task: Task, is_valid: Callable[[object], bool]
    ) -> Attempt:
        started = time.monotonic()
        busy_seconds: float | None = None
        retry_after: float | None = None
        try:
            async with asyncio.timeout(limit_seconds):
                status, reply, reply_headers = await self._post(arm, body, started)
            busy_seconds = _number(reply_headers.get(HEADER_BUSY_SECONDS))
            retry_after = _number(reply_headers.get("Retry-After"))
            reading = read_reply(status, reply, task, is_valid)
        except aiohttp.ConnectionTimeoutError:
            reading = Reading("error", f"no connection within {CONNECT_SECONDS:g} s")
        except TimeoutError:
            reading = Reading("timeout", f"no answer within {limit_seconds:g} s")
        except KeyMissing as problem:
            reading = Reading("error", str(problem))
        except _ReplyTooLarge:
            reading = Reading("invalid", f"the reply exceeds {MAX_REPLY_BYTES} bytes")
        except (aiohttp.ClientError, OSError, ValueError) as problem:
            reading = Reading("error", f"call failed: {type(problem).__name__}")
        seconds = time.monotonic() - started
        completion = reading.completion or {}
        confidence = None
        if reading.kind == "answered":
            logprobs = completion["choices"][0].get("logprobs")
            content = logprobs.get("content") if isinstance(logprobs, dict) else None
            confidence = decisive_confidence(content, task.decisive_field)
        cost = cost_usd(
            arm.price, completion.get("usage"), busy_seconds, seconds, answered=reading.completion is not None
        )
        return Attempt(arm, reading, seconds, cost, confidence, retry_after)

    async def _post(self, arm: Arm, body: bytes, started: float) -> tuple[int, bytes, Mapping[str, str]]:
        headers = {"Content-Type": "application/json"}
        if arm.key is not None:
            headers["Authorization"] = f"Bearer {self._key(arm.key)}"
        url = arm.base_url.rstrip("/") + "/chat/completions"
        try:
            return await self._post_once(url, headers, body)
        except (aiohttp.ServerDisconnectedError, ConnectionResetError, aiohttp.ClientOSError) as error:
            if isinstance(error, aiohttp.ClientConnectorError):
                raise
            if time.monotonic() - started > _STALE_CONNECTION_SECONDS:
                raise
            return await self._post_once(url, headers, body)

    async def _post_once(
        self, url: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, bytes, Mapping[str, str]]:
        async with self._session.post(url, data=body, headers=headers, allow_redirects=False) as response:
            reply = bytearray()
            async for chunk in response.content.iter_any():
                reply += chunk
                if len(reply) > MAX_REPLY_BYTES:
                    raise _ReplyTooLarge
            return response.status, bytes(reply), response.headers

    def _key(self, name: str) -> str:
        if not name or "/" in name or name.startswith("."):
            raise KeyMissing(f"key {name!r} is not the name of a file")
        try:
            return (self._keys_folder / name).read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise KeyMissing(f"key file {name} cannot be read: {type(error).__name__}") from None


def _number(text: str | None) -> float | None:
    """A finite, not negative number in a header, else none (Retry-After may be a date: the breaker's pause serves)."""
    try:
        value = float(text) if text is not None else None
    except ValueError:
        return None
    return value if value is not None and 0 <= value < 1e6 else None
