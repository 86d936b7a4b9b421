"""Asks one arm once, within a time, and says what came of it. Never asks again what an arm may still be working on.

Three times bound a call: to connect, between two bytes of the reply once it has begun, and for the whole. Keys are read
from files at the moment of use, so that a rotated Secret needs no restart; they reach the arm's own origin only, since
redirects are not followed, and no message here holds one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import aiohttp

from cutover.confidence import decisive_confidence
from cutover.contract import HEADER_BUSY_SECONDS
from cutover.route import Arm
from cutover.task import Task
from cutover_server.gateway.attempt import Attempt
from cutover_server.gateway.cost import cost_usd
from cutover_server.gateway.reading import Reading, read_reply

MAX_REPLY_BYTES = 8_000_000
CONNECT_SECONDS = 3.0
_STALE_CONNECTION_SECONDS = 0.25
"""A kept connection the server had closed fails at once; that request never reached the arm and is sent again. A new
connection that is reset carried the request, and an arm may have begun with it."""
_made: ContextVar[list[bool] | None] = ContextVar("made", default=None)
"""Filled when the call of this context opens a connection instead of using a kept one."""


class KeyMissing(Exception):
    """The arm names a key file that cannot be read."""


class ReplyTooLarge(Exception):
    """The reply exceeds MAX_REPLY_BYTES."""


class _Connector(aiohttp.TCPConnector):
    async def _create_connection(self, *args: Any, **kwargs: Any) -> Any:
        if (made := _made.get()) is not None:
            made.append(True)
        return await super()._create_connection(*args, **kwargs)


def outbound_session(connections: int) -> aiohttp.ClientSession:
    """One session for all arms. Idle connections are given up before the servers' own five seconds."""
    return aiohttp.ClientSession(
        connector=_Connector(limit=connections, limit_per_host=connections, keepalive_timeout=4.0),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS),
        auto_decompress=False,
        headers={"Accept-Encoding": "identity", "User-Agent": "cutover-gateway"},
        trust_env=False,
    )


class ArmCaller:
    def __init__(
        self, session: aiohttp.ClientSession, keys_folder: Path, silence_seconds: float = 15.0
    ) -> None:
        self._session = session
        self._keys_folder = keys_folder
        self.silence_seconds = silence_seconds
        """Longest pause within a reply that has begun."""

    async def ask(
        self, arm: Arm, body: bytes, limit_seconds: float, task: Task, is_valid: Callable[[object], bool]
    ) -> Attempt:
        started = time.monotonic()
        reply_headers: Mapping[str, str] = {}
        try:
            async with asyncio.timeout(limit_seconds) as timer:
                response = await self.post(arm, body)
                reply_headers = response.headers
                try:
                    reply = await self.read_whole(response, timer)
                finally:
                    response.release()
            reading = read_reply(response.status, reply, task, is_valid)
        except Exception as problem:
            reading = failure_of(problem, limit_seconds)
        return attempt_of(arm, reading, time.monotonic() - started, task, reply_headers)

    async def post(self, arm: Arm, body: bytes) -> aiohttp.ClientResponse:
        """The arm's response, its headers read and its body not; to be released. Raises what `failure_of` explains."""
        headers = {"Content-Type": "application/json"}
        if arm.key is not None:
            headers["Authorization"] = f"Bearer {self._key(arm.key)}"
        url = arm.base_url.rstrip("/") + "/chat/completions"
        started = time.monotonic()
        made: list[bool] = []
        _made.set(made)
        try:
            return await self._session.post(url, data=body, headers=headers, allow_redirects=False)
        except (aiohttp.ServerDisconnectedError, ConnectionResetError, aiohttp.ClientOSError) as error:
            if made or isinstance(error, aiohttp.ClientConnectorError):
                raise
            if time.monotonic() - started > _STALE_CONNECTION_SECONDS:
                raise
            return await self._session.post(url, data=body, headers=headers, allow_redirects=False)

    async def read_whole(self, response: aiohttp.ClientResponse, timer: asyncio.Timeout) -> bytes:
        """The body, within the timer and without long pauses. Raises ReplyTooLarge."""
        limit = timer.when() or 0.0
        now = asyncio.get_running_loop().time
        parts: list[bytes] = []
        size = 0
        timer.reschedule(min(limit, now() + self.silence_seconds))
        async for part in response.content.iter_any():
            parts.append(part)
            size += len(part)
            if size > MAX_REPLY_BYTES:
                response.close()
                raise ReplyTooLarge
            timer.reschedule(min(limit, now() + self.silence_seconds))
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _key(self, name: str) -> str:
        if not name or "/" in name or name.startswith("."):
            raise KeyMissing(f"key {name!r} is not the name of a file")
        try:
            return (self._keys_folder / name).read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise KeyMissing(f"key file {name} cannot be read: {type(error).__name__}") from None


def failure_of(problem: Exception, limit_seconds: float) -> Reading:
    """What an exception of a call means. An exception that is nobody's failure is raised again."""
    if isinstance(problem, aiohttp.ConnectionTimeoutError):
        return Reading("error", f"no connection within {CONNECT_SECONDS:g} s", may_ask_again=True)
    if isinstance(problem, TimeoutError):
        return Reading("timeout", f"no complete answer in time (limit {limit_seconds:.3g} s)")
    if isinstance(problem, KeyMissing):
        return Reading("error", str(problem))
    if isinstance(problem, ReplyTooLarge):
        return Reading("invalid", f"the reply exceeds {MAX_REPLY_BYTES} bytes")
    if isinstance(problem, aiohttp.ClientError | OSError | ValueError):
        return Reading(
            "error",
            f"call failed: {type(problem).__name__}",
            may_ask_again=isinstance(problem, aiohttp.ClientConnectorError),
        )
    raise problem


def attempt_of(
    arm: Arm, reading: Reading, seconds: float, task: Task, reply_headers: Mapping[str, str]
) -> Attempt:
    """The attempt with its price and, of a valid answer, its confidence."""
    completion = reading.completion or {}
    confidence = None
    if reading.kind == "answered":
        logprobs = completion["choices"][0].get("logprobs")
        content = logprobs.get("content") if isinstance(logprobs, dict) else None
        confidence = decisive_confidence(content, task.decisive_field)
    busy_seconds = _number(reply_headers.get(HEADER_BUSY_SECONDS))
    cost = cost_usd(
        arm.price, completion.get("usage"), busy_seconds, seconds, answered=reading.completion is not None
    )
    return Attempt(arm, reading, seconds, cost, confidence, _number(reply_headers.get("Retry-After")))


def _number(text: str | None) -> float | None:
    """A finite, not negative number in a header, else none (Retry-After may be a date: the breaker's pause serves)."""
    try:
        value = float(text) if text is not None else None
    except ValueError:
        return None
    return value if value is not None and 0 <= value < 1e6 else None
