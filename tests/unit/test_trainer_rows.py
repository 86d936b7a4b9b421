"""Lines of training data: what is accepted, and what each kind of mistake is called."""

from __future__ import annotations

import copy
import json
from typing import Any

import jsonschema_rs
import pytest

from cutover_trainer.rows import BadRow, Row, answer_text, read_row
from fakes import training_example

TASK = training_example.task()
VALIDATOR = jsonschema_rs.validator_for(TASK.answer_schema)


def read(document: Any) -> Row | BadRow:
    raw = document if isinstance(document, bytes) else json.dumps(document).encode()
    return read_row(7, raw, TASK, VALIDATOR, "group_id")


def good() -> dict[str, Any]:
    return copy.deepcopy(training_example.rows(1)[0])


def with_answer(text: Any) -> dict[str, Any]:
    row = good()
    row["messages"][-1]["content"] = text
    del row["labels"]
    return row


def with_user(content: Any) -> dict[str, Any]:
    row = good()
    row["messages"][1]["content"] = content
    return row


IMAGE = {"type": "image_url", "image_url": "https://example.org/a.jpg"}


def test_a_row_as_the_export_writes_it() -> None:
    row = read(good())
    assert isinstance(row, Row)
    assert row.truth == {"damageType": "water_damage", "severity": row.answer["severity"]}
    assert row.group == "building-1-000000"
    assert row.validated
    assert row.picture_url.startswith("data:image/jpeg;base64,")
    assert json.loads(answer_text(row.answer)) == dict(row.answer)


def test_shapes_of_other_exports_are_read_as_well() -> None:
    plain = good()
    del plain["messages"][0], plain["id"], plain["group_id"], plain["validated"], plain["labels"]
    plain["messages"][0]["content"] = [{"type": "text", "text": "What is it?"}, IMAGE]
    plain["control_answer"] = '```json\n{"damageType": "crack", "severity": "minor"}\n```'
    row = read(plain)
    assert isinstance(row, Row)
    assert (row.id, row.group, row.validated) == ("line-7", None, True)
    assert row.picture_url == "https://example.org/a.jpg"
    assert row.control == {"damageType": "crack", "severity": "minor"}
    parts = read(with_answer([{"type": "text", "text": '{"damageType": "crack", "severity": "minor"}'}]))
    assert isinstance(parts, Row)


def test_an_unreadable_answer_of_todays_model_is_a_wrong_one() -> None:
    row = read({**good(), "control_answer": "I cannot help with that"})
    assert isinstance(row, Row)
    assert row.control == {}


@pytest.mark.parametrize(
    ("document", "reason", "said"),
    [
        (b"{not json", "UnreadableLine", "not JSON"),
        (b"\xff\xfe", "UnreadableLine", "not JSON"),
        ([1], "UnreadableLine", "JSON list"),
        ({**good(), "control_answer": {"area": 10**30}}, "UnreadableLine", "control_answer cannot be kept"),
        (
            with_answer('{"damageType": "crack", "severity": "minor", "notes": "\\ud800"}'),
            "UnreadableLine",
            "answer cannot be kept",
        ),
        ({"id": "a"}, "NoMessages", "messages must be a list"),
        ({**good(), "messages": good()["messages"][:-1]}, "NoAssistantAnswer", "['system', 'user']"),
        ({**good(), "messages": good()["messages"][::-1]}, "NoAssistantAnswer", "the last must be"),
        ({**good(), "messages": good()["messages"][2:]}, "UnknownLayout", "wanted system"),
        (with_answer(""), "NoAssistantAnswer", "no text"),
        (with_answer(None), "NoAssistantAnswer", "no text"),
        (with_answer("water damage"), "UnreadableAnswer", "not JSON"),
        (with_answer('{"severity": "minor"}'), "InvalidAnswer", "no damageType"),
        (with_answer('{"damageType": "flood", "severity": "minor"}'), "UnknownClass", "water_damage"),
        (
            with_answer('{"damageType": "crack", "severity": "minor", "x": 1}'),
            "InvalidAnswer",
            "answerSchema",
        ),
        (
            with_answer('{"damageType": "crack", "severity": "minor", "notes": "end</s>"}'),
            "ControlToken",
            "the answer contains the control text '</s>'",
        ),
        (with_user("no picture"), "NoPicture", "0 pictures"),
        (with_user([{"type": "text", "text": "two"}, IMAGE, IMAGE]), "SeveralPictures", "2 pictures"),
        (with_user([{"type": "text", "text": "a <image> b"}, IMAGE]), "ControlToken", "'<image>'"),
        (with_user([{"type": "text", "text": "<|im_start|>"}, IMAGE]), "ControlToken", "the prompt"),
        (with_user([{"type": "image_url", "image_url": {}}]), "UnknownLayout", "image_url"),
        (with_user([{"type": "audio"}]), "UnknownLayout", "audio"),
    ],
)
def test_a_bad_row_says_its_line_and_what_is_wrong(document: Any, reason: str, said: str) -> None:
    bad = read(document)
    assert isinstance(bad, BadRow)
    assert (bad.line, bad.reason) == (7, reason)
    assert said in bad.detail
