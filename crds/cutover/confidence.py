"""How sure a model was of the decisive field: the probability of the value it wrote there. Pure.

The log-probabilities of the tokens that spell the value are summed; brackets, field names and the other fields, which
are nearly certain, would drown it. None when the answer carries no usable log-probabilities. Shared by the gateway,
which routes by it, and by the trainer, whose curve says what a threshold would keep.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from json.decoder import scanstring  # type: ignore[attr-defined]
from typing import Any

_DECODER = json.JSONDecoder()


def decisive_confidence(content: object, field: str) -> float | None:
    """`content` is `choices[0].logprobs.content` of an answer, or whatever stands there."""
    if not isinstance(content, list) or not content:
        return None
    pieces: list[bytes] = []
    logprobs: list[float] = []
    for entry in content:
        piece, logprob = _token(entry)
        if piece is None or logprob is None:
            return None
        pieces.append(piece)
        logprobs.append(logprob)
    return value_probability(pieces, logprobs, field)


def value_probability(pieces: Sequence[bytes], logprobs: Sequence[float], field: str) -> float | None:
    """The same from the tokens' bytes, which add up to the answer, and the natural logarithm of each one's probability."""
    # Latin-1 gives every byte one character, so positions in the text are positions in the bytes.
    span = value_span(b"".join(pieces).decode("latin-1"), field.encode().decode("latin-1"))
    if span is None:
        return None
    start, end = span
    total, at = 0.0, 0
    for piece, logprob in zip(pieces, logprobs, strict=True):
        if at < end and at + len(piece) > start:
            total += logprob
        at += len(piece)
    return math.exp(min(total, 0.0))


def value_span(text: str, field: str) -> tuple[int, int] | None:
    """Where the value of a top-level field stands in a text that holds one JSON object; without a string's quotes."""
    at = text.find("{") + 1
    if at == 0:
        return None
    try:
        while True:
            at = _skip(text, at)
            if text[at] == ",":
                at = _skip(text, at + 1)
            if text[at] != '"':
                return None
            name, at = scanstring(text, at + 1, True)
            at = _skip(text, at)
            if text[at] != ":":
                return None
            start = _skip(text, at + 1)
            _, at = _DECODER.raw_decode(text, start)
            if name == field:
                return (start + 1, at - 1) if text[start] == '"' else (start, at)
    except (ValueError, IndexError, RecursionError):
        return None


def _skip(text: str, at: int) -> int:
    while text[at] in " \t\n\r":
        at += 1
    return at


def _token(entry: Any) -> tuple[bytes | None, float | None]:
    if not isinstance(entry, dict):
        return None, None
    logprob = entry.get("logprob")
    if isinstance(logprob, bool) or not isinstance(logprob, int | float) or math.isnan(logprob):
        return None, None
    raw = entry.get("bytes")
    if isinstance(raw, list):
        try:
            return bytes(raw), float(logprob)
        except (ValueError, TypeError):
            return None, None
    token = entry.get("token")
    return (token.encode("utf-8", "replace") if isinstance(token, str) else None), float(logprob)
