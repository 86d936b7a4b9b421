"""An arm's answer while it is generated, opened only once the first generated characters are there.

Until then a failure is an ordinary failed attempt and another arm may answer. Afterwards the pieces are the caller's,
and what goes wrong is told by `finish`. An arm that answers a stream request in one piece is taken at its word.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

from cutover.route import Arm
from cutover.task import Task
from cutover_server.gateway.arms import ArmCaller, attempt_of, failure_of
from cutover_server.gateway.attempt import Attempt
from cutover_server.gateway.http_connection import Reply
from cutover_server.gateway.reading import Reading, read_completion, read_reply
from cutover_server.gateway.stream_reading import EventLines, Generation, StreamBroken

_EVENTS = "text/event-stream"
_GATHER_SECONDS = 0.016
"""What comes within one picture of a display is taken together where pieces follow each other fast: each read and each
write has its price, and nobody sees the difference."""
_FAST_SECONDS = 0.01
"""Pieces that follow each other faster than this are fast."""


class ArmStream:
    """One call; `begin`, then `choices` until none comes, then `finish`; `close` in every case."""

    def __init__(
        self, caller: ArmCaller, arm: Arm, task: Task, is_valid: Callable[[object], bool], until: float
    ) -> None:
        self.arm = arm
        self.generation = Generation()
        self._caller = caller
        self._task = task
        self._is_valid = is_valid
        self._until = until
        """Loop time by which the whole answer must be there."""
        self._lines = EventLines()
        self._ready: list[dict[str, Any]] = []
        self._started = time.monotonic()
        self._reply: Reply | None = None
        self._failure: Reading | None = None
        self._given_at = 0.0
        self._fast = False

    async def begin(self, body: Sequence[bytes | memoryview], first_token_seconds: float) -> Attempt | None:
        """None when the gate is open; the failed attempt, or the whole answer of an arm that does not stream."""
        reading: Reading | None = None
        now = asyncio.get_running_loop().time()
        limit = min(first_token_seconds, self._until - now)
        try:
            self._reply = reply = await self._caller.post(self.arm, body, now + limit)
            if reply.status != 200 or not reply.headers.get("content-type", "").startswith(_EVENTS):
                reading = read_reply(reply.status, await reply.body(), self._task, self._is_valid)
            else:
                while not self.generation.begun and self.generation.finish is None:
                    if not await self._more(reply):
                        break
                reply.extend(self._until)
        except StreamBroken as broken:
            reading = broken.reading
        except Exception as problem:
            reading = failure_of(problem, limit)
        if reading is None and not self.generation.begun:
            reading = Reading("invalid", "the stream ended before anything was generated")
        return None if reading is None else self._attempt(reading)

    async def choices(self) -> list[dict[str, Any]]:
        """What has come since the last call, at least one choice; none at the stream's end, good or bad."""
        assert self._reply is not None
        if self._fast and not self._ready and self._failure is None and not self.generation.ended:
            await self._reply.gather(_GATHER_SECONDS)
        while not self._ready and self._failure is None and not self.generation.ended:
            try:
                if not await self._more(self._reply):
                    break
            except StreamBroken as broken:
                self._failure = broken.reading
            except Exception as problem:
                self._failure = failure_of(problem, time.monotonic() - self._started)
        now = time.monotonic()
        self._fast = now - self._given_at < _FAST_SECONDS * len(self._ready)
        self._given_at = now
        ready, self._ready = self._ready, []
        return ready

    def finish(self) -> Attempt:
        """What came of it, once `choices` has given none."""
        completion = self.generation.completion()
        failure = self._failure
        if failure is None and self.generation.finish is None:
            failure = Reading("error", "the stream ended without a finish reason")
        if failure is not None:
            # What was generated so far is paid for and kept for the record.
            text = "".join(self.generation.text)
            return self._attempt(
                Reading(failure.kind, failure.problem, completion if self.generation.usage else None, text)
            )
        return self._attempt(read_completion(completion, self._task, self._is_valid))

    def close(self) -> None:
        """Drops the connection unless the reply was read to its end."""
        if self._reply is not None:
            self._reply.close()

    async def _more(self, reply: Reply) -> bool:
        part = await reply.piece()
        if not part:
            return False
        for payload in self._lines.feed(part):
            choice = self.generation.take(payload)
            if choice is not None:
                self._ready.append(choice)
            if self.generation.ended:
                break
        return True

    def _attempt(self, reading: Reading) -> Attempt:
        headers = self._reply.headers if self._reply is not None else {}
        return attempt_of(self.arm, reading, time.monotonic() - self._started, self._task, headers)
