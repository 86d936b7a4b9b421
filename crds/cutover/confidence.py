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


def decisive_confidence(content: object, field: str, text: str | None = None) -> float | None:
    """`content` is `choices[0].logprobs.content` of an answer, or whatever stands there.

    `text` is the answer's text: where the tokens spell exactly that in ASCII, their bytes need not be looked at.
    """
    if not isinstance(content, list) or not content:
        return None
    told = _plain(content, text) or _tokens(content)
    return _probability(*told, field) if told is not None else None


def value_probability(pieces: Sequence[bytes], logprobs: Sequence[float], field: str) -> float | None:
    """The same from the tokens' bytes, which add up to the answer, and the natural logarithm of each one's probability."""
    return _probability([piece.decode("latin-1") for piece in pieces], logprobs, field)


def _probability(pieces: Sequence[str], logprobs: Sequence[float], field: str) -> float | None:
    # Latin-1 gives every byte one character, so positions in the text are positions in the bytes.
    span = value_span("".join(pieces), field.encode().decode("latin-1"))
    if span is None:
        return None
    start, end = span
    total, at = 0.0, 0
    for piece, logprob in zip(pieces, logprobs, strict=True):
        if at >= end:
            break
        at += len(piece)
        if at > start:
            total += logprob
    return math.exp(min(total, 0.0))


def _plain(content: list[Any], text: str | None) -> tuple[list[str], list[float]] | None:
    try:
        pieces = [entry["token"] for entry in content]
        logprobs = [entry["logprob"] for entry in content]
        if text is None or not text.isascii() or "".join(pieces) != text:
            return None
    except (KeyError, TypeError, IndexError):
        return None
    if set(map(type, logprobs)) - {float, int} or any(map(math.isnan, logprobs)):
        return None
    return pieces, logprobs


def _tokens(content: list[Any]) -> tuple[list[str], list[float]] | None:
    pieces: list[str] = []
    logprobs: list[float] = []
    for entry in content:
        piece, logprob = _token(entry)
        if piece is None or logprob is None:
            return None
        pieces.append(piece.decode("latin-1"))
        logprobs.append(logprob)
    return pieces, logprobs


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
