"""Asks one arm once, within a time, and says what came of it. Never asks again what an arm may still be working on.

Three times bound a call: to connect, between two bytes of the reply once it has begun, and for the whole. A key's file
is looked at whenever the key is used, so that a rotated Secret needs no restart; keys reach the arm's own origin only,
since redirects are not followed, and no message here holds one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from cutover.confidence import decisive_confidence
from cutover.contract import HEADER_BUSY_SECONDS
from cutover.route import Arm
from cutover.task import Task
from cutover_server.gateway.attempt import Attempt
from cutover_server.gateway.cost import cost_usd
from cutover_server.gateway.http_connection import MAX_REPLY_BYTES, Reply, ReplyTooLarge
from cutover_server.gateway.http_pool import CONNECT_SECONDS, ConnectTimeout, HttpPool, NotConnected, endpoint
from cutover_server.gateway.reading import Reading, read_reply

_HEADERS = b"Content-Type: application/json\r\nAccept-Encoding: identity\r\nUser-Agent: cutover-gateway\r\n"
_BUSY = HEADER_BUSY_SECONDS.lower()


class KeyMissing(Exception):
    """The arm names a key file that cannot be read."""


class ArmCaller:
    def __init__(self, pool: HttpPool, keys_folder: Path, silence_seconds: float = 15.0) -> None:
        self._pool = pool
        self._keys_folder = keys_folder
        self._silence_seconds = silence_seconds
        """Longest pause within a reply that has begun."""
        self._keys: dict[str, tuple[tuple[int, int, int], bytes]] = {}
        """By file, with what the file looked like when it was read."""

    async def ask(
        self,
        arm: Arm,
        body: Sequence[bytes | memoryview],
        limit_seconds: float,
        task: Task,
        is_valid: Callable[[object], bool],
    ) -> Attempt:
        """The body is in parts, so that a picture need not be copied into one piece."""
        started = time.monotonic()
        reply_headers: Mapping[str, str] = {}
        try:
            reply = await self.post(arm, body, asyncio.get_running_loop().time() + limit_seconds)
            try:
                told = await reply.body()
            finally:
                reply.close()
            reply_headers = reply.headers
            reading = read_reply(reply.status, told, task, is_valid)
        except Exception as problem:
            reading = failure_of(problem, limit_seconds)
        return attempt_of(arm, reading, time.monotonic() - started, task, reply_headers)

    async def post(self, arm: Arm, body: Sequence[bytes | memoryview], limit_at: float) -> Reply:
        """The arm's reply, its head read and its body not; to be closed. Raises what `failure_of` explains."""
        headers = _HEADERS
        if arm.key is not None:
            headers += b"Authorization: Bearer %b\r\n" % self._key(arm.key)
        where = endpoint(arm.base_url.rstrip("/") + "/chat/completions")
        return await self._pool.send(b"POST", where, headers, body, limit_at, self._silence_seconds)

    def _key(self, name: str) -> bytes:
        if not name or "/" in name or name.startswith("."):
            raise KeyMissing(f"key {name!r} is not the name of a file")
        path = self._keys_folder / name
        try:
            told = path.stat()
            stamp = (told.st_ino, told.st_mtime_ns, told.st_size)
            kept = self._keys.get(name)
            if kept is not None and kept[0] == stamp:
                return kept[1]
            key = path.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise KeyMissing(f"key file {name} cannot be read: {type(error).__name__}") from None
        if not key.isprintable():
            raise KeyMissing(f"key file {name} holds more than one line")
        self._keys[name] = (stamp, key.encode("ascii"))
        return self._keys[name][1]


def failure_of(problem: Exception, limit_seconds: float) -> Reading:
    """What an exception of a call means. An exception that is nobody's failure is raised again."""
    if isinstance(problem, ConnectTimeout):
        return Reading("error", f"no connection within {CONNECT_SECONDS:g} s", may_ask_again=True)
    if isinstance(problem, TimeoutError):
        return Reading("timeout", f"no complete answer in time (limit {limit_seconds:.3g} s)")
    if isinstance(problem, KeyMissing):
        return Reading("error", str(problem))
    if isinstance(problem, ReplyTooLarge):
        return Reading("invalid", f"the reply exceeds {MAX_REPLY_BYTES} bytes")
    if isinstance(problem, NotConnected):
        return Reading("error", f"no connection: {problem}", may_ask_again=True)
    if isinstance(problem, OSError | ValueError):
        return Reading("error", f"call failed: {type(problem).__name__}")
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
        confidence = decisive_confidence(content, task.decisive_field, reading.text)
    busy_seconds = _number(reply_headers.get(_BUSY))
    cost = cost_usd(
        arm.price, completion.get("usage"), busy_seconds, seconds, answered=reading.completion is not None
    )
    return Attempt(arm, reading, seconds, cost, confidence, _number(reply_headers.get("retry-after")))


def _number(text: str | None) -> float | None:
    """A finite, not negative number in a header, else none (Retry-After may be a date: the breaker's pause serves)."""
    try:
        value = float(text) if text is not None else None
    except ValueError:
        return None
    return value if value is not None and 0 <= value < 1e6 else None
