"""Bodies: pictures taken out before parsing and put back as they stood, and records in their wire form."""

from __future__ import annotations

import base64
import hashlib
import json
import random
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cutover.confidence import decisive_confidence
from cutover.fetch import FetchRefused
from cutover.records import AssessmentRecord, ShadowUpdate
from cutover.route import Arm, LabelSampling, Route
from cutover_server.gateway.attempt import Attempt
from cutover_server.gateway.chat_request import body_for_arm, messages_as_kept, read_request
from cutover_server.gateway.embedded import cut_out, marker
from cutover_server.gateway.openai_shape import ApiError
from cutover_server.gateway.pictures import _decode
from cutover_server.gateway.reading import Reading
from cutover_server.gateway.record import record_line, shadow_line
from cutover_server.gateway.settlement import settle
from fakes.gateway_rig import TASK

ARM = Arm(name="gpt-4", version="gpt-4o", base_url="https://api.example.org/v1", model="gpt-4o")
LARGE, SMALL = 3500, 60


def picture(number: int, size: int) -> bytes:
    return random.Random(number).randbytes(size)


def data_url(number: int, size: int) -> str:
    return "data:image/png;base64," + base64.b64encode(picture(number, size)).decode()


TEXTS = st.one_of(
    st.text(max_size=30),
    st.sampled_from(
        [
            '"data:image/png;base64,' + "A" * 5000 + '"',
            "data:image/png;base64," + "A" * 5000,
            marker(0),
            f'"{marker(1)}"',
            f"sha256:{hashlib.sha256(picture(1, LARGE)).hexdigest()}",
            '\\"url":"sha256:',
        ]
    ),
)
PARTS = st.one_of(
    TEXTS.map(lambda text: {"type": "text", "text": text}),
    st.tuples(st.integers(0, 3), st.sampled_from([LARGE, SMALL])).map(
        lambda of: {"type": "image_url", "image_url": {"url": data_url(*of), "detail": "high"}}
    ),
    st.integers(0, 3).map(lambda number: {"type": "image_url", "image_url": data_url(number, LARGE)}),
)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.just("user"), "content": st.one_of(TEXTS, st.lists(PARTS, max_size=4))},
        # A caller may write anything beside the content, a digest of its own picture too.
        optional={"name": TEXTS, "extra": TEXTS.map(lambda text: {"url": text})},
    ),
    min_size=1,
    max_size=3,
)


def with_urls(messages: list[dict[str, Any]], change: Any) -> list[dict[str, Any]]:
    """The messages as they are to come out, each picture's URL changed."""
    told: list[dict[str, Any]] = json.loads(json.dumps(messages))
    for message in told:
        for part in message["content"] if isinstance(message["content"], list) else []:
            if part["type"] == "image_url":
                image = (
                    part["image_url"] if isinstance(part["image_url"], dict) else {"url": part["image_url"]}
                )
                part["image_url"] = {**image, "url": change(image["url"])}
    return told


def digest_of(url: str) -> str:
    return hashlib.sha256(base64.b64decode(url.partition(",")[2])).hexdigest()


@settings(max_examples=60, deadline=None)
@given(MESSAGES, st.booleans())
def test_an_arm_gets_what_the_caller_sent_and_the_record_digests(
    messages: list[dict[str, Any]], ascii_only: bool
) -> None:
    body = json.dumps({"model": "x", "messages": messages, "seed": 7}, ensure_ascii=ascii_only).encode()
    chat = read_request(body, {})
    pictures = [_decode(url, 10_000_000) for url in chat.pictures]
    kept = messages_as_kept(chat, [one.digest for one in pictures])
    assert json.loads(kept) == with_urls(messages, lambda url: f"sha256:{digest_of(url)}")
    sent = body_for_arm(chat, kept, [(one.digest, one.url) for one in pictures], ARM, TASK, False)
    assert json.loads(b"".join(sent)) == {
        "model": "gpt-4o",
        "seed": 7,
        "messages": with_urls(messages, lambda url: url),
    }


def test_a_large_picture_is_never_parsed() -> None:
    url = data_url(1, LARGE)
    message = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}
    body = orjson.dumps({"messages": [message, message]})
    rest, urls = cut_out(body)
    assert urls == [url.encode(), url.encode()]
    assert len(rest) < 300
    escaped = body.replace(b"/png", b"\\/png")
    assert cut_out(escaped) == (escaped, [])
    assert read_request(escaped, {}).pictures == (url, url)


@pytest.mark.parametrize("inside", [b"\\n", b"\n", b"\xff", b"@", b"="])
@pytest.mark.parametrize("at", [30, 2000])
def test_what_is_no_base64_inside_a_large_picture_is_refused(inside: bytes, at: int) -> None:
    url = data_url(1, LARGE).encode()
    broken = url[:at] + inside + url[at:]
    body = (
        b'{"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"%b"}}]}]}' % broken
    )

    def opened() -> None:
        for one in read_request(body, {}).pictures:
            _decode(one, 10_000_000)

    with pytest.raises((ApiError, FetchRefused), match=r"JSON|base64"):
        opened()


def test_a_guessed_marker_is_a_url_like_any_other() -> None:
    url = data_url(1, LARGE)
    guess = b"cutover\\u002dpicture:0"  # behind an escape, so that it is not seen in the body
    body = (
        b'{"messages":[{"role":"user","content":[{"type":"text","text":"%b"},'
        b'{"type":"image_url","image_url":{"url":"%b"}}]}]}' % (url.encode(), guess)
    )
    chat = read_request(body, {})
    assert chat.pictures == ("cutover-picture:0",)
    assert chat.document["messages"][0]["content"][0]["text"] == url
    assert len(marker(0)) > len("cutover-picture:0")


def test_a_large_picture_has_a_limit() -> None:
    with pytest.raises(FetchRefused, match="more than 1000 bytes"):
        _decode(memoryview(data_url(1, LARGE).encode()), 1000)


def test_messages_nested_too_deeply_to_be_written_down_are_the_callers_fault() -> None:
    nested = b'{"messages":[{"role":"user","content":"a","x":' + b"[" * 600 + b"]" * 600 + b"}]}"
    with pytest.raises(ApiError, match="nested") as refused:
        messages_as_kept(read_request(nested, {}), [])
    assert refused.value.status == 400


ATTEMPTS = st.builds(
    Attempt,
    st.just(ARM),
    st.one_of(
        st.builds(
            Reading,
            st.just("answered"),
            completion=st.just({}),
            text=st.text(max_size=40),
            answer=st.just({"damage": "none", "usable": "yes", "reason": "é"}),
        ),
        st.builds(
            Reading,
            st.sampled_from(["invalid", "error", "timeout", "breaker", "refused"]),
            st.text(max_size=9),
        ),
    ),
    st.floats(0, 100),
    st.floats(0, 1),
    st.one_of(st.none(), st.floats(0, 1)),
)


@given(st.lists(ATTEMPTS, min_size=1, max_size=2), st.sampled_from(["control", "candidate"]), st.booleans())
def test_entries_of_the_spool_are_the_models_wire_form(
    attempts: list[Attempt], chosen: Any, drawn_later: bool
) -> None:
    route = Route(generation=1, task=TASK, control=ARM, labels=LabelSampling(probability={"all": 1.0}))
    line = record_line(
        request_id="r1",
        assessment_id="house-1",
        received_at="2026-01-01T00:00:00.000+00:00",
        gateway="main",
        route=route,
        chosen=chosen,
        settlement=settle([one.reading.kind for one in attempts]),
        attempts=attempts,
        messages=b'[{"role":"user","content":"a"}]',
        pictures=["ab" * 32],
        drawn_later=drawn_later,
    )
    wire = json.loads(line)["record"]
    assert AssessmentRecord.model_validate(wire, extra="forbid").to_wire() == {
        **AssessmentRecord.model_validate(wire).to_wire(),
        **wire,
    }
    update = json.loads(shadow_line("r1", attempts[0], True, {"pooled": True}))["shadow"]
    assert ShadowUpdate.model_validate(update, extra="forbid").pooled is True


@given(
    st.lists(
        st.tuples(st.sampled_from(['"', "damage", "mi", "nor", "ü", "\\", "x"]), st.floats(-3, 0)), max_size=8
    )
)
def test_confidence_does_not_depend_on_whether_the_text_is_known(rest: list[tuple[str, float]]) -> None:
    tokens = [('{"dam', -0.1), ('age":"', -0.2), ("min", -0.3), ("or", -0.4), ('"', -0.5), *rest, ("}", -0.1)]
    content = [{"token": token, "logprob": chance, "bytes": list(token.encode())} for token, chance in tokens]
    text = "".join(token for token, _ in tokens)
    assert decisive_confidence(content, "damage", text) == decisive_confidence(content, "damage")
