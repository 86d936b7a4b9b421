"""Reads one line of the training data and says either what it teaches or what is wrong with it.

Pure: bytes in, `Row` or `BadRow` out. The assistant's answer is the one people agreed on; a row nobody has looked at
says `"validated": false`. What can be read in two ways is refused, not guessed.
"""

from __future__ import annotations

import difflib
import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

import orjson

from cutover.chat import picture_urls, template_messages
from cutover.task import Task, Unreadable, read_answer
from cutover_trainer.people import Labels, people_in
from cutover_trainer.refused import BadRow, Reason, RowWrong

CONTROL_TEXT = re.compile(
    r"<image>|</?s>|<pad>|<unk>|<\|[^|>\s]{1,40}\|>|<im_(?:start|end)>|\[/?INST\]|<</?SYS>>"
)
"""Text that tokenizers of the supported families read as a control token."""
MAX_ID_CHARACTERS = 256
MAX_DETAIL_CHARACTERS = 300
_LONE_SURROGATE = re.compile(r"[\ud800-\udfff]")
_FENCE = re.compile(r"^```[^\n]*\n|\n?```$")


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
    """Value of the field the split groups by, when the row has it: one spelling for one building."""
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
    people: Labels = ()
    """What each person said who labelled it, without their names; of a synthetic row nobody did."""
    synthetic: bool = False
    """Made up: for training only, and counted for nothing else."""


def read_row(
    line: int, raw: bytes, task: Task, validator: AnswerValidator, group_by: str, made_up: bool = False
) -> Row | BadRow:
    """Check one line of the export, numbered from 1. `made_up`: it comes from a source of synthetic rows."""
    row_id = ""
    try:
        document = _document(raw)
        row_id = _id(document, line)
        question, answer_text, answer_at = _question_and_answer(document)
        answer = _answer(answer_text, answer_at, task, validator)
        truth = {name: str(answer[name]) for name in task.scored_fields}
        control = _control(document.get("control_answer"))
        _check_labels(document.get("labels"), truth, task)
        _check_writable(answer=answer, control_answer=control)
        said_synthetic = _flag(document, "synthetic", "InvalidSynthetic", default=False)
        synthetic = made_up or said_synthetic
        return Row(
            line=line,
            id=row_id,
            assessment=_key(document.get("assessment_id"), "assessment_id") or _key(row_id, "id") or row_id,
            group=_key(document.get(group_by), group_by),
            question=question,
            picture_url=_picture_url(question),
            answer=answer,
            truth=truth,
            control=control,
            validated=_flag(document, "validated", "InvalidValidated", default=True),
            people=[] if synthetic else people_in(document.get("labels"), task.scored_fields),
            synthetic=synthetic,
        )
    except RowWrong as wrong:
        return wrong.at(line, row_id)


# ------------------------------------------------------------------ the line and its keys
def _document(raw: bytes) -> dict[str, Any]:
    try:
        document = _json(raw)
    except _Repeated as repeated:
        raise RowWrong("UnreadableLine", repeated.key, f"the key {repeated.key!r} occurs twice") from None
    except (ValueError, RecursionError) as error:
        raise RowWrong("UnreadableLine", "", f"not JSON: {error}"[:200]) from None
    if not isinstance(document, dict):
        raise RowWrong("UnreadableLine", "", f"a JSON {type(document).__name__}, not an object")
    if b"\\u" in raw and _has_lone_surrogate(document):
        raise RowWrong("UnreadableLine", "", "a \\u escape names half a character (a lone surrogate)")
    return document


def _check_writable(**values: Any) -> None:
    """Python reads what no later stage could write again: half a character inside an answer's own text, integers
    beyond 64 bits."""
    for name, value in values.items():
        try:
            orjson.dumps(value)
        except orjson.JSONEncodeError as error:
            raise RowWrong("UnreadableLine", name, f"{name} cannot be kept: {error}"[:200]) from None


class _Repeated(Exception):
    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key[:64]


def _json(text: bytes | str) -> Any:
    """JSON as the standard has it: no NaN, and no key twice in an object."""
    return json.loads(text, object_pairs_hook=_once, parse_constant=_no_constant)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise _Repeated(key)
        found[key] = value
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON value")


def _has_lone_surrogate(value: Any) -> bool:
    if isinstance(value, str):
        return _LONE_SURROGATE.search(value) is not None
    if isinstance(value, dict):
        return any(_has_lone_surrogate(part) for pair in value.items() for part in pair)
    return isinstance(value, list) and any(_has_lone_surrogate(part) for part in value)


def _id(document: Mapping[str, Any], line: int) -> str:
    given = document.get("id")
    if given is None or given == "":
        return f"line-{line}"
    if isinstance(given, bool) or not isinstance(given, str | int):
        raise RowWrong("InvalidId", "id", f"id is a JSON {type(given).__name__}")
    text = str(given)
    if len(text) > MAX_ID_CHARACTERS or not text.isprintable():
        raise RowWrong(
            "InvalidId", "id", f"id has {len(text)} characters, or some that cannot be shown: {text[:40]!r}"
        )
    return text


def _key(value: Any, field: str) -> str | None:
    """What rows are grouped by, in one spelling: `Unit 4 ` and `unit 4` are one building."""
    if value is None:
        return None
    if isinstance(value, dict | list | float):
        raise RowWrong("InvalidGroup", field, f"{field} is a JSON {type(value).__name__}")
    text = " ".join(unicodedata.normalize("NFKC", str(value)).casefold().split())
    if not text:
        raise RowWrong("InvalidGroup", field, f"{field} is empty: all such rows would be one building")
    return text


def _flag(document: Mapping[str, Any], name: str, reason: Reason, default: bool) -> bool:
    value = document.get(name, default)
    if not isinstance(value, bool):
        raise RowWrong(reason, name, f"{name} is {json.dumps(value)[:40]}, not true or false")
    return value


# ------------------------------------------------------------------ the messages
def _question_and_answer(document: Mapping[str, Any]) -> tuple[list[dict[str, Any]], str, str]:
    """The messages before the answer, the answer's text and its place."""
    messages = document.get("messages")
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise RowWrong("NoMessages", "messages", "messages must be a list of objects with role and content")
    roles = [message.get("role") for message in messages]
    said = f"messages have the roles {str(roles)[:100]}"
    if roles[-1:] != ["assistant"]:
        raise RowWrong("NoAssistantAnswer", "messages", f"{said}; the last must be the assistant's answer")
    asked = roles[:-1]
    if not asked or "user" not in asked or any(role != "user" for role in asked[asked[0] == "system" :]):
        raise RowWrong("UnknownLayout", "messages", f"{said}; wanted system (optional), user, assistant")
    place = f"messages[{len(messages) - 1}].content"
    answer = messages[-1].get("content")
    if isinstance(answer, list) and all(
        isinstance(part, dict) and part.get("type") == "text" for part in answer
    ):
        answer = "".join(str(part.get("text", "")) for part in answer)
    if not isinstance(answer, str) or not answer.strip():
        raise RowWrong("NoAssistantAnswer", place, "the assistant message has no text")
    question = messages[:-1]
    for number, message in enumerate(question):
        _check_parts(message, f"messages[{number}].content")
    return question, answer, place


def _check_parts(message: Mapping[str, Any], place: str) -> None:
    try:
        rendered = template_messages([message])[0]["content"]
    except ValueError as error:
        raise RowWrong("UnknownLayout", place, str(error)[:MAX_DETAIL_CHARACTERS]) from None
    for part in rendered:
        if part["type"] == "text":
            _refuse_control_text(part["text"], place, "the prompt")


def _refuse_control_text(text: str, place: str, where: str) -> None:
    found = CONTROL_TEXT.search(text)
    if found:
        raise RowWrong("ControlToken", place, f"{where} contains the control text {found.group()!r}")


def _picture_url(question: Sequence[Mapping[str, Any]]) -> str:
    urls = picture_urls(question)
    if not urls:
        raise RowWrong("NoPicture", "messages", "the row has 0 pictures; exactly one image_url is supported")
    if len(urls) > 1:
        raise RowWrong(
            "SeveralPictures",
            "messages",
            f"the row has {len(urls)} pictures; exactly one image_url is supported",
        )
    return urls[0]


# ------------------------------------------------------------------ the answer
def _answer(text: str, place: str, task: Task, validator: AnswerValidator) -> dict[str, Any]:
    answer = read_answer(text)
    if isinstance(answer, Unreadable):
        raise RowWrong("UnreadableAnswer", place, f"the assistant's answer is {answer.reason}")
    _refuse_ambiguous(text, place)
    for name in task.scored_fields:
        if name not in answer:
            raise RowWrong("InvalidAnswer", f"{place}.{name}", f"the answer has no {name}")
        if answer[name] not in task.answer_schema["properties"][name]["enum"]:
            raise RowWrong(
                "UnknownClass", f"{place}.{name}", _unknown_class(name, answer[name], task.classes(name))
            )
    error = next(iter(validator.iter_errors(answer)), None)
    if error is not None:
        detail = f"the answer does not fit answerSchema: {error.message}"
        raise RowWrong("InvalidAnswer", place, detail[:MAX_DETAIL_CHARACTERS])
    _refuse_control_text(json.dumps(answer, ensure_ascii=False), place, "the answer")
    return answer


def _refuse_ambiguous(text: str, place: str) -> None:
    """`read_answer` keeps the last of two equal keys: whichever was meant, the label is not to be trusted."""
    try:
        _json(_FENCE.sub("", text.strip()))
    except _Repeated as repeated:
        raise RowWrong(
            "AmbiguousAnswer", f"{place}.{repeated.key}", f"the answer names {repeated.key!r} twice"
        ) from None
    except ValueError as error:
        raise RowWrong("UnreadableAnswer", place, f"the assistant's answer is not JSON: {error}") from None


def _unknown_class(name: str, value: Any, known: Sequence[str]) -> str:
    said = str(value)[:64]
    near = difflib.get_close_matches(said.strip().casefold(), known, n=1, cutoff=0.75)
    meant = f" (did you mean {near[0]!r}?)" if near else ""
    return f"{name} is {said!r}{meant}; the task knows {', '.join(known)}"[:MAX_DETAIL_CHARACTERS]


def _check_labels(labels: Any, truth: Mapping[str, str], task: Task) -> None:
    """When the single labels are exported beside the answer, at least one person must have said what it says."""
    if not isinstance(labels, list):
        return
    name = task.decisive_field
    said = [label.get("labels", label) for label in labels if isinstance(label, dict)]
    values = [str(label[name]) for label in said if isinstance(label, dict) and name in label]
    if values and truth[name] not in values:
        raise RowWrong(
            "LabelsDisagree",
            f"labels.{name}",
            f"the answer says {truth[name]!r}, the people {', '.join(sorted(set(values)))[:100]}",
        )


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
