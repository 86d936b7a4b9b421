"""The shapes OpenAI clients expect: errors, completions under our id, and a finished answer told as a stream. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import orjson

_PIECE_CHARACTERS = 64
_PLAIN = re.compile(r"[A-Za-z0-9._-]*").fullmatch
_HEADER_SAFE = "!#$%&'()*+,/:;=?@[]~|^`{}<> \""


def header_text(text: str) -> str:
    """The text as the value of a header: what is not ASCII is percent-encoded."""
    return text if _PLAIN(text) is not None else quote(text, safe=_HEADER_SAFE)


class ApiError(Exception):
    """An answer that is an error, in OpenAI's shape."""

    def __init__(
        self,
        status: int,
        message: str,
        kind: str = "invalid_request_error",
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.param = param
        self.code = code
        self.retry_after_seconds = retry_after_seconds
        self.extra_headers: dict[str, str] = {}

    def body(self) -> bytes:
        error = {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}
        return orjson.dumps({"error": error})

    def headers(self) -> dict[str, str]:
        if self.retry_after_seconds is None:
            return dict(self.extra_headers)
        return {**self.extra_headers, "retry-after": str(max(1, round(self.retry_after_seconds)))}


def rewritten(
    completion: dict[str, Any], request_id: str, model: str, created: int, keep_logprobs: bool
) -> dict[str, Any]:
    """The completion as the caller gets it: our id, the model that served, and no log-probabilities unless asked for."""
    choices = completion.get("choices") or []
    if not keep_logprobs:
        choices = [{**choice, "logprobs": None} for choice in choices if isinstance(choice, dict)]
    return {
        **completion,
        "id": request_id,
        "object": "chat.completion",
        "created": created,
        "model": model,
        "choices": choices,
    }


def chunk_event(
    head: dict[str, Any],
    delta: dict[str, Any],
    include_usage: bool,
    finish: str | None = None,
    logprobs: Any = None,
) -> bytes:
    """One event of a stream. `head` has the chunk's id, object, created and model."""
    one = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
    blank: dict[str, Any] = {"usage": None} if include_usage else {}
    return b"data: " + orjson.dumps({**head, "choices": [one], **blank}) + b"\n\n"


class PieceEvents:
    """Makes the events of a stream's text, the same as `chunk_event` does: only the text differs from one to the next."""

    def __init__(self, head: dict[str, Any], include_usage: bool) -> None:
        self._before = b"data: " + orjson.dumps(head)[:-1] + b',"choices":[{"index":0,"delta":{"content":'
        blank = b',"usage":null' if include_usage else b""
        self._after = b'},"logprobs":null,"finish_reason":null}]' + blank + b"}\n\n"

    def event(self, piece: str) -> bytes:
        return self._before + orjson.dumps(piece) + self._after


def end_events(
    head: dict[str, Any], finish: str, completion: dict[str, Any], include_usage: bool
) -> Iterator[bytes]:
    """The good end of a stream: finish reason, usage if asked for, [DONE]."""
    yield chunk_event(head, {}, include_usage, finish)
    if include_usage:
        yield b"data: " + orjson.dumps({**head, "choices": [], "usage": completion.get("usage")}) + b"\n\n"
    yield b"data: [DONE]\n\n"


def as_stream(completion: dict[str, Any], include_usage: bool) -> Iterator[bytes]:
    """The server-sent events of a finished completion: role, text in pieces, finish reason, usage if asked, [DONE]."""
    head = {key: completion[key] for key in ("id", "created", "model")} | {"object": "chat.completion.chunk"}
    choice = completion["choices"][0]
    text = choice["message"].get("content") or ""
    yield chunk_event(head, {"role": "assistant", "content": ""}, include_usage)
    for at in range(0, len(text), _PIECE_CHARACTERS):
        # Log-probabilities go with the first piece: pieces are ours and do not follow the model's tokens.
        yield chunk_event(
            head,
            {"content": text[at : at + _PIECE_CHARACTERS]},
            include_usage,
            logprobs=choice.get("logprobs") if at == 0 else None,
        )
    yield from end_events(head, choice.get("finish_reason") or "stop", completion, include_usage)
