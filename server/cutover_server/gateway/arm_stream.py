"""An arm's answer while it is generated, opened only once the first generated characters are there.

Until then a failure is an ordinary failed attempt and another arm may answer. Afterwards the pieces are the caller's,
and what goes wrong is told by `finish`. An arm that answers a stream request in one piece is taken at its word.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import aiohttp

from cutover.route import Arm
from cutover.task import Task
from cutover_server.gateway.arms import MAX_REPLY_BYTES, ArmCaller, ReplyTooLarge, attempt_of, failure_of
from cutover_server.gateway.attempt import Attempt
from cutover_server.gateway.reading import Reading, read_completion, read_reply
from cutover_server.gateway.stream_reading import EventLines, Generation, StreamBroken


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
        self._ready: deque[dict[str, Any]] = deque()
        self._started = time.monotonic()
        self._response: aiohttp.ClientResponse | None = None
        self._failure: Reading | None = None
        self._bytes = 0

    async def begin(self, body: bytes, first_token_seconds: float) -> Attempt | None:
        """None when the gate is open; the failed attempt, or the whole answer of an arm that does not stream."""
        reading: Reading | None = None
        loop = asyncio.get_running_loop()
        limit = min(first_token_seconds, self._until - loop.time())
        try:
            async with asyncio.timeout(limit) as timer:
                self._response = response = await self._caller.post(self.arm, body)
                if response.status != 200 or not response.content_type.startswith("text/event-stream"):
                    whole = await self._caller.read_whole(response, timer)
                    reading = read_reply(response.status, whole, self._task, self._is_valid)
                else:
                    while not self.generation.begun and self.generation.finish is None:
                        if not await self._more():
                            break
        except StreamBroken as broken:
            reading = broken.reading
        except Exception as problem:
            reading = failure_of(problem, limit)
        if reading is None and not self.generation.begun:
            reading = Reading("invalid", "the stream ended before anything was generated")
        return None if reading is None else self._attempt(reading)

    async def choice(self) -> dict[str, Any] | None:
        """The next choice of the stream; none at its end, good or bad."""
        silence = self._caller.silence_seconds
        while not self._ready and self._failure is None and not self.generation.ended:
            loop = asyncio.get_running_loop()
            limit = min(silence, self._until - loop.time())
            try:
                async with asyncio.timeout(limit):
                    if not await self._more():
                        break
            except StreamBroken as broken:
                self._failure = broken.reading
            except Exception as problem:
                self._failure = failure_of(problem, limit)
        return self._ready.popleft() if self._ready else None

    def finish(self) -> Attempt:
        """What came of it, once `choice` has given none."""
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
        if self._response is not None:
            if self._response.content.at_eof():
                self._response.release()
            else:
                self._response.close()

    async def _more(self) -> bool:
        assert self._response is not None
        part = await self._response.content.readany()
        if not part:
            return False
        self._bytes += len(part)
        if self._bytes > MAX_REPLY_BYTES:
            raise ReplyTooLarge
        for payload in self._lines.feed(part):
            choice = self.generation.take(payload)
            if choice is not None:
                self._ready.append(choice)
            if self.generation.ended:
                break
        return True

    def _attempt(self, reading: Reading) -> Attempt:
        headers = self._response.headers if self._response is not None else {}
        return attempt_of(self.arm, reading, time.monotonic() - self._started, self._task, headers)
