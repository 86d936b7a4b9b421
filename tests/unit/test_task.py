"""Reading a model's answer: whatever the text is, there is an object or a reason, never an exception."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutover.task import Unreadable, read_answer


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    assert isinstance(read_answer(text), dict | Unreadable)


@pytest.mark.parametrize("fence", ["{}", "```\n{}\n```", "```json\n{}\n```", "  {}  "])
def test_a_fence_is_tolerated(fence: str) -> None:
    answer = {"damageType": "crack"}
    assert read_answer(fence.replace("{}", json.dumps(answer))) == answer


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("no idea", "not JSON"),
        ("[1]", "JSON list"),
        ('{"n": ' + "9" * 5000 + "}", "too many digits"),
        ("[" * 100_000, "nested too deeply"),
        ('Here: {"damageType": "crack"}', "not JSON"),
    ],
)
def test_what_is_no_answer_says_why(text: str, said: str) -> None:
    read = read_answer(text)
    assert isinstance(read, Unreadable)
    assert said in read.reason
    assert "damageType" not in read.reason
