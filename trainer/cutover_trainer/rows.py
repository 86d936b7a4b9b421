"""Reads one line of the training data and says either what it teaches or what is wrong with it.

Pure: bytes in, `Row` or `BadRow` out. The assistant's answer is the one people agreed on; a row nobody has looked at
says `"validated": false`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from cutover.chat import picture_urls, template_messages
from cutover.task import Task, Unreadable, read_answer

CONTROL_TEXT = re.compile(
    r"<image>|</?s>|<pad>|<unk>|<\|[^|>\s]{1,40}\|>|<im_(?:start|end)>|\[/?INST\]|<</?SYS>>"
)
"""Text that tokenizers of the supported families read as a control token."""


class AnswerValidator(Protocol):
    """What is used of a jsonschema_rs validator."""

    def iter_errors(self, instance: Any) -> Any: ...


@dataclass(frozen=True, slots=True)
class Row:
    """A well-formed example; the picture is still only a URL."""

    line: int
    id: str
    assessment: str
    """Rows of one assessment belong together even when no group is given."""
    group: str | None
    """Value of the field the split groups by, when the row has it."""
    question: Sequence[Mapping[str, Any]]
    """System and user messages."""
    picture_url: str
    answer: Mapping[str, Any]
    """What the model shall say."""
    truth: Mapping[str, str]
    """The scored fields."""
    control: Mapping[str, Any] | None
    """What today's model said; an unreadable answer is an empty mapping, hence wrong."""
    validated: bool


@dataclass(frozen=True, slots=True)
class BadRow:
    """A line nothing is learnt from. `reason` is a short name, `detail` is fit for a report."""

    line: int
    id: str
    reason: str
    detail: str


class _Wrong(Exception):
    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


def read_row(line: int, raw: bytes, task: Task, validator: AnswerValidator, group_by: str) -> Row | BadRow:
    """Check one line of the export, numbered from 1."""
    row_id = ""
    try:
        document = _document(raw)
        row_id = str(document.get("id") or f"line-{line}")
        question, answer_text = _question_and_answer(document)
        answer = _answer(answer_text, task, validator)
        group = document.get(group_by)
        return Row(
            line=line,
            id=row_id,
            assessment=str(document.get("assessment_id") or row_id),
            group=None if group is None else str(group),
            question=question,
            picture_url=_picture_url(question),
            answer=answer,
            truth={name: str(answer[name]) for name in task.scored_fields},
            control=_control(document.get("control_answer")),
            validated=bool(document.get("validated", True)),
        )
    except _Wrong as wrong:
        return BadRow(line, row_id, wrong.reason, wrong.detail)


def _document(raw: bytes) -> dict[str, Any]:
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise _Wrong("UnreadableLine", f"not JSON: {error}"[:200]) from None
    if not isinstance(document, dict):
        raise _Wrong("UnreadableLine", f"a JSON {type(document).__name__}, not an object")
    return document


def _question_and_answer(document: Mapping[str, Any]) -> tuple[list[dict[str, Any]], str]:
    messages = document.get("messages")
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise _Wrong("NoMessages", "messages must be a list of objects with role and content")
    roles = [message.get("role") for message in messages]
    if roles[-1:] != ["assistant"]:
        raise _Wrong(
            "NoAssistantAnswer", f"messages have the roles {roles}; the last must be the assistant's answer"
        )
    asked = roles[:-1]
    if not asked or "user" not in asked or any(role != "user" for role in asked[asked[0] == "system" :]):
        raise _Wrong(
            "UnknownLayout", f"messages have the roles {roles}; wanted system (optional), user, assistant"
        )
    answer = messages[-1].get("content")
    if isinstance(answer, list) and all(
        isinstance(part, dict) and part.get("type") == "text" for part in answer
    ):
        answer = "".join(str(part.get("text", "")) for part in answer)
    if not isinstance(answer, str) or not answer.strip():
        raise _Wrong("NoAssistantAnswer", "the assistant message has no text")
    question = messages[:-1]
    try:
        rendered = template_messages(question)
    except ValueError as error:
        raise _Wrong("UnknownLayout", str(error)) from None
    for part in (part for message in rendered for part in message["content"] if part["type"] == "text"):
        _refuse_control_text(part["text"], "the prompt")
    return question, answer


def _refuse_control_text(text: str, where: str) -> None:
    found = CONTROL_TEXT.search(text)
    if found:
        raise _Wrong("ControlToken", f"{where} contains the control text {found.group()!r}")


def _picture_url(question: Sequence[Mapping[str, Any]]) -> str:
    urls = picture_urls(question)
    if len(urls) != 1:
        reason = "NoPicture" if not urls else "SeveralPictures"
        raise _Wrong(reason, f"the row has {len(urls)} pictures; exactly one image_url is supported")
    return urls[0]


def _answer(text: str, task: Task, validator: AnswerValidator) -> dict[str, Any]:
    answer = read_answer(text)
    if isinstance(answer, Unreadable):
        raise _Wrong("UnreadableAnswer", f"the assistant's answer is {answer.reason}")
    for name in task.scored_fields:
        if name not in answer:
            raise _Wrong("InvalidAnswer", f"the answer has no {name}")
        if str(answer[name]) not in task.classes(name):
            known = ", ".join(task.classes(name))
            raise _Wrong("UnknownClass", f"{name} is {str(answer[name])[:64]!r}; the task knows {known}")
    error = next(iter(validator.iter_errors(answer)), None)
    if error is not None:
        raise _Wrong("InvalidAnswer", f"the answer does not fit answerSchema: {error.message}"[:200])
    _refuse_control_text(json.dumps(answer, ensure_ascii=False), "the answer")
    return answer


def _control(stored: Any) -> Mapping[str, Any] | None:
    if stored is None:
        return None
    if isinstance(stored, str):
        read = read_answer(stored)
        return {} if isinstance(read, Unreadable) else read
    return stored if isinstance(stored, dict) else {}


def answer_text(answer: Mapping[str, Any]) -> str:
    """The one spelling of an answer that is trained."""
    return json.dumps(answer, ensure_ascii=False)
