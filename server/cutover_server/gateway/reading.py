"""What an arm's reply means: answered, invalid, overload, refused or error. Pure: bytes in, a reading out.

A reply counts as an answer only if it is a complete generation whose text is the task's JSON. A 200 that carries an
error, an answer cut at the token limit or by a filter, and a 200 without choices are failures, however healthy they look.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from cutover.task import Task, Unreadable, read_answer

Kind = Literal["answered", "invalid", "error", "timeout", "overload", "refused", "breaker"]
"""`refused` is a 4xx that blames the request; `breaker` means that the arm was not asked."""

_BLAMES_REQUEST = frozenset({400, 413, 415, 422})
"""Other 4xx (401, 403, 404...) blame the gateway's own configuration and are errors of the arm."""
_OVERLOADED = frozenset({429, 503})
_DID_NOTHING = frozenset({429, 500, 502, 503})
"""The arm has given up the request: asking again doubles no work. A 504 leaves it to somebody who may still be at it."""
_FILTERED = frozenset({"content_filter", "content_policy_violation"})
_COMPLETE = frozenset({"stop", "eos", "eos_token", "stop_sequence"})


@dataclass(frozen=True, slots=True)
class Reading:
    kind: Kind
    problem: str = ""
    """Fit for a log line: never holds the answer's text, a picture or a key."""
    completion: dict[str, Any] | None = None
    """The whole reply when it is a generation, valid or not."""
    text: str = ""
    answer: dict[str, Any] | None = None
    """The parsed answer when valid."""
    error: dict[str, Any] | None = None
    """The `error` object of a refusal, to hand on to the caller."""
    status: int = 200
    may_ask_again: bool = False
    """The arm is certainly not working on the request any more."""
    filtered: bool = False
    """A provider's content filter refused the request."""


def read_reply(status: int, body: bytes, task: Task, is_valid: Callable[[object], bool]) -> Reading:
    if status != 200:
        return _read_failure(status, body)
    document = _object(body)
    if document is None:
        return Reading("invalid", "the reply is not a JSON object")
    return read_completion(document, task, is_valid)


def read_completion(document: dict[str, Any], task: Task, is_valid: Callable[[object], bool]) -> Reading:
    """What a parsed reply of status 200 means."""
    if document.get("error"):
        return Reading("error", "a 200 with an error in its body")
    choices = document.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(choice, dict) or not isinstance(message, dict):
        return Reading("invalid", "the reply has no choices")
    text = message.get("content")
    if not isinstance(text, str):
        return Reading(
            "invalid", "the reply has no text" + (" but a refusal" if message.get("refusal") else "")
        )
    finish = choice.get("finish_reason")
    if finish not in _COMPLETE:
        shown = finish if isinstance(finish, str) and len(finish) < 40 else "missing"
        return Reading("invalid", f"finish_reason is {shown}, not stop", document, text)
    answer = read_answer(text)
    if isinstance(answer, Unreadable):
        return Reading("invalid", answer.reason, document, text)
    if not _fits(answer, is_valid):
        return Reading(
            "invalid", f"the answer does not fit the answerSchema of task {task.name}", document, text
        )
    return Reading("answered", "", document, text, answer)


def _read_failure(status: int, body: bytes) -> Reading:
    if status in _BLAMES_REQUEST:
        error = (_object(body) or {}).get("error")
        told = error if isinstance(error, dict) else None
        return Reading(
            "refused",
            f"status {status}",
            error=told,
            status=status,
            filtered=told is not None and told.get("code") in _FILTERED,
        )
    kind: Kind = "overload" if status in _OVERLOADED else "error"
    return Reading(kind, f"status {status}", may_ask_again=status in _DID_NOTHING)


def _object(body: bytes) -> dict[str, Any] | None:
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None


def _fits(answer: dict[str, Any], is_valid: Callable[[object], bool]) -> bool:
    """Valid for the schema, and a value that can be written down again (no lone surrogate, no endless number)."""
    try:
        orjson.dumps(answer)
        return is_valid(answer)
    except (orjson.JSONEncodeError, ValueError, OverflowError, RecursionError):
        return False
