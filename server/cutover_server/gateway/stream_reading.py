"""A generation that arrives in pieces: server-sent events put together, chunk by chunk, into one completion. Pure.

Nothing is believed before the first generated character, and a stream has ended well only with a finish reason: the
end marker `[DONE]` alone proves nothing, and a stream that stops without a finish reason is half an answer.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import orjson

from cutover_server.gateway.reading import Reading

MAX_EVENT_BYTES = 1_000_000


class StreamBroken(Exception):
    """What came is not a generation; says what it is instead."""

    def __init__(self, reading: Reading) -> None:
        super().__init__(reading.problem)
        self.reading = reading


@dataclass(slots=True)
class EventLines:
    """Bytes in, payloads of `data:` lines out. Comments and other fields are dropped."""

    _rest: bytes = b""

    def feed(self, part: bytes) -> list[bytes]:
        lines = (self._rest + part).split(b"\n")
        self._rest = lines.pop()
        if len(self._rest) > MAX_EVENT_BYTES:
            raise StreamBroken(Reading("invalid", f"an event exceeds {MAX_EVENT_BYTES} bytes"))
        return [line[5:].strip() for line in lines if line.startswith(b"data:")]


@dataclass(slots=True)
class Generation:
    """What the chunks so far add up to."""

    text: list[str] = field(default_factory=list)
    logprobs: list[Any] = field(default_factory=list)
    finish: str | None = None
    usage: Any = None
    ended: bool = False
    """The end marker was seen."""

    def take(self, payload: bytes) -> dict[str, Any] | None:
        """The first choice of a chunk, or none when it has none. Raises StreamBroken."""
        if payload == b"[DONE]":
            self.ended = True
            return None
        try:
            chunk = orjson.loads(payload)
        except orjson.JSONDecodeError:
            raise StreamBroken(Reading("invalid", "a chunk of the stream is not JSON")) from None
        if not isinstance(chunk, dict):
            raise StreamBroken(Reading("invalid", "a chunk of the stream is not an object"))
        if chunk.get("error"):
            raise StreamBroken(Reading("error", "an error in the stream"))
        if chunk.get("usage"):
            self.usage = chunk["usage"]
        choices = chunk.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices else None
        if not isinstance(choice, dict):
            return None
        delta = choice.get("delta")
        piece = delta.get("content") if isinstance(delta, dict) else None
        if isinstance(piece, str) and piece:
            self.text.append(piece)
        told = choice.get("logprobs")
        if isinstance(told, dict) and isinstance(told.get("content"), list):
            self.logprobs.extend(told["content"])
        if isinstance(choice.get("finish_reason"), str):
            self.finish = choice["finish_reason"]
        return choice

    @property
    def begun(self) -> bool:
        return bool(self.text)

    def completion(self) -> dict[str, Any]:
        """As if it had arrived in one piece."""
        message = {"role": "assistant", "content": "".join(self.text)}
        logprobs = {"content": self.logprobs} if self.logprobs else None
        choice = {"index": 0, "message": message, "logprobs": logprobs, "finish_reason": self.finish}
        return {"choices": [choice], "usage": self.usage}
