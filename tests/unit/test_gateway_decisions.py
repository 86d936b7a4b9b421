"""The pure parts: settlement, reading, confidence, cost, ids, the assignment's monotony."""

from __future__ import annotations

import itertools
import json
import math
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutover.confidence import decisive_confidence, value_span
from cutover.route import Arm, Price, Route, assigned_to_candidate, mirrored
from cutover_server.gateway.cost import cost_usd
from cutover_server.gateway.identity import uuid7
from cutover_server.gateway.openai_shape import PieceEvents, as_stream, chunk_event, rewritten
from cutover_server.gateway.reading import Kind, read_reply
from cutover_server.gateway.route_board import in_force
from cutover_server.gateway.settlement import settle
from fakes.gateway_rig import TASK

CONTROL = Arm(name="gpt-4", version="gpt-4o", base_url="https://api.example.org/v1", model="gpt-4o")
CANDIDATE = Arm(name="damage", version="v2", base_url="http://damage:8000/v1", model="damage-7b")
KINDS: list[Kind] = ["answered", "invalid", "error", "timeout", "overload", "refused", "breaker"]
is_valid = in_force(Route(generation=1, task=TASK, control=CONTROL)).is_valid


def route(weight: int, shadow: int = 0) -> Route:
    return Route(
        generation=1,
        task=TASK,
        control=CONTROL,
        candidate=CANDIDATE,
        weight_basis_points=weight,
        shadow_basis_points=shadow,
        salt="s",
    )


@given(st.text(max_size=40), st.integers(0, 10_000), st.integers(0, 10_000))
def test_raising_the_weight_only_adds_keys(key: str, one: int, other: int) -> None:
    low, high = sorted((one, other))
    assert assigned_to_candidate(route(low), key) <= assigned_to_candidate(route(high), key)
    assert not assigned_to_candidate(route(0), key)
    assert assigned_to_candidate(route(10_000), key)
    assert not (mirrored(route(high, 10_000), key) and assigned_to_candidate(route(high), key))


@given(st.lists(st.sampled_from(KINDS), min_size=1, max_size=3), st.booleans())
def test_the_outcome_belongs_to_the_first_attempt(kinds: list[Kind], stumbled: bool) -> None:
    settled = settle(kinds, stumbled)
    if settled.outcome == "ok":
        assert kinds[0] == "answered"
        assert not stumbled, "a second chance does not undo the failure"
    if settled.outcome == "deferred":
        assert kinds[0] == "answered"
    if kinds[0] not in ("answered", "refused"):
        assert settled.outcome == "error", "a failed arm is a failed arm, whoever answered"
    if "answered" in kinds:
        assert settled.served is not None
        assert kinds[settled.served] == "answered", "a valid answer is always preferred"
    elif settled.served is not None:
        assert kinds[settled.served] == "refused", "an answer that breaks the schema is nobody's answer"
    assert bool(settled.reason) == bool(settled.served)


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (200, b"", "invalid"),
        (200, b"[]", "invalid"),
        (200, b'{"choices": []}', "invalid"),
        (200, b'{"error": {"message": "x"}}', "error"),
        (200, b'{"choices": [{"message": {"content": null, "refusal": "no"}}]}', "invalid"),
        (204, b"", "error"),
        (302, b"", "error"),
        (400, b'{"error": {"message": "x"}}', "refused"),
        (400, b"<html>", "refused"),
        (401, b"", "error"),
        (404, b"", "error"),
        (429, b"", "overload"),
        (500, b"", "error"),
        (503, b"", "overload"),
    ],
)
def test_replies_are_read_for_what_they_are(status: int, body: bytes, kind: str) -> None:
    assert read_reply(status, body, TASK, is_valid).kind == kind


@pytest.mark.parametrize(
    ("text", "finish", "kind"),
    [
        ('{"damage": "major", "usable": "no", "reason": "r"}', "stop", "answered"),
        ('```json\n{"damage": "major", "usable": "no", "reason": "r"}\n```', "stop", "answered"),
        ('{"damage": "major", "usable": "no", "reason": "r"}', "length", "invalid"),
        ('{"damage": "major", "usable": "no", "reason": "r"}', None, "invalid"),
        ('{"damage": "huge", "usable": "no", "reason": "r"}', "stop", "invalid"),
        ('{"damage": "major", "usable": "no"}', "stop", "invalid"),
        ('{"damage": "major", "usable": "no", "reason": "\\ud800"}', "stop", "invalid"),
        ('{"damage": "major", "usable": "no", "reason": 1e999}', "stop", "invalid"),
        ("[1]", "stop", "invalid"),
        ("[" * 100_000, "stop", "invalid"),
    ],
)
def test_answers_are_held_to_the_schema(text: str, finish: str | None, kind: str) -> None:
    body = json.dumps({"choices": [{"message": {"content": text}, "finish_reason": finish}]}).encode()
    reading = read_reply(200, body, TASK, is_valid)
    assert reading.kind == kind
    assert "major" not in reading.problem


@given(st.binary(max_size=300))
def test_no_bytes_break_the_reader(body: bytes) -> None:
    assert read_reply(200, body, TASK, is_valid).kind in ("invalid", "error")


# ------------------------------------------------------------------ confidence


def tokens(text: str, cuts: list[int]) -> list[tuple[str, float]]:
    edges = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    return [(text[a:b], -0.25) for a, b in itertools.pairwise(edges) if a < b]


@given(
    st.dictionaries(
        st.text(max_size=6), st.one_of(st.text(max_size=8), st.integers(), st.booleans()), max_size=4
    ),
    st.text(min_size=1, max_size=12),
    st.lists(st.integers(0, 400), max_size=30),
    st.booleans(),
)
def test_only_the_tokens_of_the_decisive_value_count(
    before: dict[str, object], value: str, cuts: list[int], escape: bool
) -> None:
    before.pop("damage", None)
    text = "```json\n" + json.dumps(
        {**before, "damage": value, "z": [1, {"damage": "x"}]}, ensure_ascii=escape
    )
    span = value_span(text, "damage")
    assert span is not None
    assert json.loads(f'"{text[span[0] : span[1]]}"') == value
    pieces = tokens(text, cuts)
    content = [{"token": piece, "logprob": logprob} for piece, logprob in pieces]
    at, overlapping = 0, 0
    for piece, _ in pieces:
        overlapping += at < span[1] and at + len(piece) > span[0]
        at += len(piece)
    assert decisive_confidence(content, "damage") == pytest.approx(math.exp(-0.25 * overlapping))


def test_confidence_needs_usable_logprobs() -> None:
    good = [
        {"token": '{"damage": "', "logprob": -5.0},
        {"token": "major", "logprob": -0.1},
        {"token": '"}', "logprob": -5},
    ]
    assert decisive_confidence(good, "damage") == pytest.approx(math.exp(-0.1))
    as_bytes = [{**one, "token": "?", "bytes": list(str(one["token"]).encode())} for one in good]
    assert decisive_confidence(as_bytes, "damage") == pytest.approx(math.exp(-0.1))
    for bad in (None, [], {}, [1], [{"token": "{"}], [{"token": "{", "logprob": math.nan}], good[:1]):
        assert decisive_confidence(bad, "damage") is None
    assert decisive_confidence(good, "other") is None


# ------------------------------------------------------------------ cost, ids, stream


def test_prices() -> None:
    tokens_price = Price(
        usd_per_million_input_tokens=10, usd_per_million_output_tokens=30, usd_per_request=0.001
    )
    usage = {"prompt_tokens": 1000, "completion_tokens": 100}
    assert cost_usd(tokens_price, usage, None, 9.0, answered=True) == pytest.approx(0.014)
    assert cost_usd(tokens_price, None, None, 9.0, answered=False) == 0
    assert cost_usd(tokens_price, {"prompt_tokens": "many"}, None, 9.0, answered=True) == 0.001
    busy = Price(kind="busySeconds", usd_per_busy_second=0.5)
    assert cost_usd(busy, usage, 2.0, 9.0, answered=True) == 1.0
    assert cost_usd(busy, None, None, 9.0, answered=False) == 4.5, "unknown work costs the whole call"


@given(st.integers(0, 2**48 - 1), st.integers(0, 2**48 - 1), st.binary(min_size=10, max_size=10))
def test_ids_are_version_seven_and_sort_by_time(one: int, other: int, chance: bytes) -> None:
    first, second = uuid7(one, chance), uuid7(other, chance)
    assert uuid.UUID(first).version == 7
    assert uuid.UUID(first).variant == uuid.RFC_4122
    assert (first < second) == (one < other)


@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=300))
def test_a_stream_tells_the_same_text(text: str) -> None:
    completion = {
        "choices": [{"message": {"content": text}, "finish_reason": "stop"}],
        "usage": {"total_tokens": 3},
    }
    told = rewritten(completion, "id", "m", 1, keep_logprobs=False)
    events = [event.removeprefix(b"data: ").strip() for event in as_stream(told, include_usage=True)]
    assert events[-1] == b"[DONE]"
    chunks = [json.loads(event) for event in events[:-1]]
    assert "".join(c["delta"].get("content", "") for chunk in chunks for c in chunk["choices"]) == text
    assert chunks[-1]["usage"] == {"total_tokens": 3}
    assert [c["finish_reason"] for chunk in chunks for c in chunk["choices"]][-1] == "stop"


@given(st.text(st.characters(exclude_categories=["Cs"])), st.booleans())
def test_the_events_of_a_stream_s_text_are_those_that_are_built_in_full(piece: str, usage: bool) -> None:
    head = {"id": "0198-é", "object": "chat.completion.chunk", "created": 1, "model": 'a "model"'}
    assert PieceEvents(head, usage).event(piece) == chunk_event(head, {"content": piece}, usage)
