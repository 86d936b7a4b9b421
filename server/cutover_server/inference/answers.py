"""Answers in OpenAI's shape: one JSON object, or server-sent events. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cutover_server.inference.generation import Step
from cutover_server.inference.prompt import AnswerText, top_logprob_entry

DONE_EVENT = b"data: [DONE]\n\n"


@dataclass(slots=True)
class Answer:
    """An answer as it grows, token by token."""

    text: AnswerText
    logprobs_wanted: bool
    completion_tokens: int = 0
    logprobs: list[Mapping[str, Any]] = field(default_factory=list)

    def add(self, step: Step) -> tuple[str, list[Mapping[str, Any]]]:
        """The text and the log-probability entries the step adds; none for an end token."""
        self.completion_tokens += 1
        if step.ends:
            return "", []
        entries: list[Mapping[str, Any]] = []
        if self.logprobs_wanted:
            top = [top_logprob_entry(self.text.alternative(token), value) for token, value in step.top]
        piece = self.text.append(step.token_id)
        if self.logprobs_wanted:
            entries = [{**top_logprob_entry(piece, step.logprob), "top_logprobs": top}]
            self.logprobs += entries
        return piece, entries


@dataclass(frozen=True, slots=True)
class Envelope:
    """What every object of one answer repeats."""

    id: str
    created: int
    model: str

    def completion(self, answer: Answer, finish: str, prompt_tokens: int) -> dict[str, Any]:
        choice: dict[str, Any] = {
            "index": 0,
            "message": {"role": "assistant", "content": answer.text.text, "refusal": None},
            "logprobs": {"content": answer.logprobs, "refusal": None} if answer.logprobs_wanted else None,
            "finish_reason": finish,
        }
        return {
            "id": self.id,
            "object": "chat.completion",
            "created": self.created,
            "model": self.model,
            "choices": [choice],
            "usage": usage(prompt_tokens, answer.completion_tokens),
        }

    def chunk(
        self,
        delta: Mapping[str, Any],
        *,
        entries: Sequence[Mapping[str, Any]] | None = None,
        finish: str | None = None,
    ) -> bytes:
        choice = {
            "index": 0,
            "delta": delta,
            "logprobs": None if entries is None else {"content": entries, "refusal": None},
            "finish_reason": finish,
        }
        return self._event([choice])

    def usage_chunk(self, prompt_tokens: int, completion_tokens: int, busy_seconds: float) -> bytes:
        """The last chunk; a stream's headers are gone by then, so the busy seconds stand here."""
        numbers = {**usage(prompt_tokens, completion_tokens), "busy_seconds": round(busy_seconds, 6)}
        return self._event([], usage=numbers)

    def _event(self, choices: list[Any], **more: Any) -> bytes:
        return event(
            {
                "id": self.id,
                "object": "chat.completion.chunk",
                "created": self.created,
                "model": self.model,
                "choices": choices,
                **more,
            }
        )


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def event(document: Mapping[str, Any]) -> bytes:
    return b"data: " + json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"
