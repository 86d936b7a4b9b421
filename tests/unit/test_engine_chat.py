"""Reading requests: whatever arrives becomes a request or a refusal, never something else."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutover.chat import template_messages
from cutover_server.inference.chat import ChatRequest, Sampling, read_request
from cutover_server.inference.prompt import template_form
from cutover_server.inference.refusal import Refusal

PIXEL = "data:image/png;base64," + base64.b64encode(b"anything").decode()
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=8,
)
NAMES = [
    "messages",
    "model",
    "max_tokens",
    "temperature",
    "top_p",
    "seed",
    "stream",
    "stream_options",
    "logprobs",
    "top_logprobs",
    "response_format",
    "n",
    "stop",
    "tools",
]
GOOD: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}


def outcome(body: Any) -> ChatRequest | Refusal:
    try:
        return read_request(body, max_pictures=1)
    except Refusal as refusal:
        return refusal


@given(st.dictionaries(st.sampled_from(NAMES), JSON, max_size=6))
def test_any_json_is_a_request_or_a_refusal(fields: dict[str, Any]) -> None:
    result = outcome({**GOOD, **fields})
    if isinstance(result, Refusal):
        assert result.status == 400
        assert 0 < len(result.message) < 1000
    else:
        assert result.messages[-1].role == "user"
        assert result.max_tokens is None or result.max_tokens >= 1


@given(JSON)
def test_any_body_is_a_request_or_a_refusal(body: Any) -> None:
    with pytest.raises(Refusal):
        read_request(body, max_pictures=1)


def test_pictures_are_read_in_both_spellings_and_templates_see_none_of_their_bytes() -> None:
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "Look."},
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": PIXEL},
                {"type": "image_url", "image_url": {"url": PIXEL, "detail": "low"}},
                {"type": "text", "text": "What?"},
            ],
        },
    ]
    request = read_request({"model": "m", "messages": messages}, max_pictures=2)
    assert [picture.content for picture in request.pictures] == [b"anything"] * 2
    assert template_form(request.messages) == template_messages(messages)
    assert "anything" not in repr(request)


def test_greedy_requests_share_a_batch_whatever_else_they_say() -> None:
    request = read_request({**GOOD, "temperature": 0, "top_p": 0.3, "seed": 4}, max_pictures=1)
    assert request.sampling == Sampling()


def test_the_newer_name_of_max_tokens_wins() -> None:
    fields = {"max_tokens": 7, "max_completion_tokens": 9}
    assert read_request({**GOOD, **fields}, max_pictures=1).max_tokens == 9


def test_a_json_schema_is_kept() -> None:
    schema = {"type": "object"}
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    assert read_request({**GOOD, "response_format": wanted}, max_pictures=1).schema == schema
    assert read_request({**GOOD, "response_format": {"type": "text"}}, max_pictures=1).schema is None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("continue_final_message", True),
        ("add_generation_prompt", False),
        ("chat_template", "{{ messages }}"),
        ("prompt_logprobs", 0),
        ("stop_token_ids", [7]),
    ],
)
def test_what_vllm_would_answer_otherwise_is_refused_and_not_ignored(field: str, value: Any) -> None:
    result = outcome({**GOOD, field: value})
    assert isinstance(result, Refusal)
    assert (result.param, result.code) == (field, "unsupported")
