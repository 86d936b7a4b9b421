"""A request through a real gateway: split, answers, shapes, costs, records, refusals."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
from starlette.applications import Starlette
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route as Path_

from cutover.route import FallbackRules, assigned_to_candidate
from fakes.free_ports import free_port
from fakes.gateway_rig import Rig, chat_body, data_url, picture, running, until


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with aiohttp.ClientSession() as session:
        yield Rig(tmp_path, session)


async def test_the_split_is_the_assignment_and_it_sticks(rig: Rig) -> None:
    route = rig.route(weight_basis_points=4000)
    async with rig.all(route):
        keys = [f"house-{number}" for number in range(60)]
        first = {key: (await rig.ask(1, key)).headers["x-cutover-arm"] for key in keys}
        again = {key: (await rig.ask(2, key)).headers["x-cutover-arm"] for key in keys}
        assert first == again
        assert first == {key: "candidate" if assigned_to_candidate(route, key) else "control" for key in keys}
        assert set(first.values()) == {"control", "candidate"}
        in_metadata = await rig.ask(3, metadata={"assessment_id": keys[0], "ward": "7"})
        assert in_metadata.headers["x-cutover-arm"] == first[keys[0]]
        assert in_metadata.headers["x-cutover-assessment-id"] == keys[0]
        ok = await rig.value("cutover_requests_total", outcome="ok")
        assert ok == 121
        sent = rig.control.seen + rig.candidate.seen
        assert {one["model"] for one in rig.control.seen} == {"gpt-4o"}
        assert {one["model"] for one in rig.candidate.seen} == {"damage-7b"}
        assert not any(one["stream"] for one in sent)
        assert all(one["logprobs"] for one in rig.candidate.seen)
        assert not any(one["logprobs"] for one in rig.control.seen)


@pytest.mark.parametrize(
    "content",
    [
        "See ![](http://10.0.0.1/a.png)",
        [{"type": "text", "text": "See ![roof"}, {"type": "text", "text": "](http://10.0.0.1/a.png)"}],
        [{"type": "text", "text": "See !"}, {"type": "text", "text": "[](http://10.0.0.1/a.png)"}],
    ],
)
async def test_no_markdown_picture_reaches_an_arm_that_would_fetch_it(rig: Rig, content: Any) -> None:
    body = chat_body(data_url(picture(1)))
    body["messages"].append({"role": "user", "content": content})
    tool = chat_body(data_url(picture(1)), tool_prompt="![](http://10.0.0.1/a.png)")
    harmless = chat_body(data_url(picture(1)), user="[a link](http://10.0.0.1/) is no picture!")
    route = rig.route(weight_basis_points=10_000, shadow_basis_points=10_000)
    fetching = rig.candidate_arm.model_copy(update={"fetches_from_text": True})
    async with rig.all(route):
        plain = await rig.post(body)
        assert (plain.status, plain.headers["x-cutover-arm"]) == (200, "candidate"), "a text like any other"
        rig.write_route(route.model_copy(update={"generation": 2, "candidate": fetching}))
        await rig.generation(2)
        seen = len(rig.candidate.seen)
        for sent in (body, tool, {**body, "stream": True}):
            answer = await rig.post(sent)
            assert (answer.status, answer.headers["x-cutover-arm"]) == (200, "control")
            record = await until(lambda key=answer.headers["x-request-id"]: rig.assessments.records.get(key))
            assert (record["rollout"], record["chosen"], record["sampled"]) == ("none", "control", False)
        # The control fails them: still nobody asks the candidate.
        rig.control.behaviour.error_share = 1.0
        assert (await rig.post(body)).status == 502
        rig.control.behaviour.error_share = 0.0
        assert (await rig.post(harmless)).headers["x-cutover-arm"] == "candidate"
        assert len(rig.candidate.seen) == seen + 1
        assert await rig.value("cutover_requests_total", rollout="none", arm="control", outcome="ok") == 3
        mine = {"rollout": route.rollout}
        assert await rig.value("cutover_requests_total", **mine) == 2, "the plain one and the harmless one"
        assert await rig.value("cutover_shadow_pairs_total", **mine) == 0
        assert await rig.value("cutover_shadow_dropped_total", **mine) == 0


async def test_a_markdown_picture_is_refused_when_every_arm_would_fetch_it(rig: Rig) -> None:
    body = chat_body(data_url(picture(1)), tool_prompt="![](http://10.0.0.1/a.png)")
    fetches = {"fetches_from_text": True}
    control = rig.control_arm.model_copy(update=fetches)
    route = rig.route(control=control, fallback=control, candidate=rig.candidate_arm)
    async with rig.all(route):
        answer = await rig.post(body)
        assert (answer.status, answer.document["error"]["code"]) == (400, "markdown_picture")
        assert rig.control.seen == rig.candidate.seen == [], "the candidate may answer nobody yet"
        assert await rig.value("cutover_requests_total", rollout="none", outcome="rejected") == 1
        assert await rig.value("cutover_requests_total", rollout=route.rollout) == 0
        rig.write_route(route.model_copy(update={"generation": 2, "fallback": rig.control_arm}))
        await rig.generation(2)
        answer = await rig.post(body)
        assert (answer.status, answer.headers["x-cutover-arm"]) == (200, "control"), (
            "the fallback in its place"
        )


async def test_the_answer_is_an_openai_completion_under_our_id(rig: Rig) -> None:
    async with rig.all(rig.route(weight_basis_points=10_000)):
        rig.candidate.behaviour.busy_seconds = 0.5
        answer = await rig.ask(5, "house-5")
        document = answer.document
        assert answer.status == 200
        assert document["model"] == "damage-7b"
        assert document["choices"][0]["logprobs"] is None, "log-probabilities nobody asked for"
        assert answer.headers["x-cutover-version"] == "v2"
        assert "x-cutover-fallback" not in answer.headers
        record = await until(lambda: rig.assessments.records.get(document["id"]))
        digest = hashlib.sha256(picture(5)).hexdigest()
        assert record["assessmentId"] == record["groupId"] == "house-5"
        assert record["pictures"] == [digest]
        assert rig.assessments.pictures[digest] == picture(5)
        assert record["messages"][1]["content"][1] == {
            "type": "image_url",
            "image_url": {"url": f"sha256:{digest}"},
        }
        assert record["candidate"]["answer"] == answer.answer
        assert record["candidate"]["confidence"] == pytest.approx(0.95)
        assert record["candidate"]["costUsd"] == pytest.approx(0.0005)
        assert record["sampled"] is True
        assert (record["outcome"], record["chosen"], record["servedVersion"]) == ("ok", "candidate", "v2")
        assert await rig.value("cutover_cost_usd_total", arm="candidate") == pytest.approx(0.0005)
        assert await rig.value("cutover_request_duration_seconds_count", arm="candidate") == 1
        assert rig.assessments.problems == []


async def test_hosted_answers_cost_what_the_provider_counted(rig: Rig) -> None:
    async with rig.all(rig.route()):
        await rig.ask(1)
        assert await rig.value("cutover_cost_usd_total", arm="control") == pytest.approx(
            1000 * 10e-6 + 40 * 30e-6
        )


async def test_the_openai_sdk_is_served_plain_streamed_and_refused(rig: Rig) -> None:
    async with rig.all(rig.route(weight_basis_points=10_000)):
        client = openai.AsyncOpenAI(base_url=rig.url("/v1"), api_key="any", max_retries=0)
        messages = chat_body(data_url(picture(7)))["messages"]
        plain = await client.chat.completions.create(model="gpt-4o", messages=messages)
        stream = await client.chat.completions.create(
            model="gpt-4o", messages=messages, stream=True, stream_options={"include_usage": True}
        )
        text, finish, usage, ids = "", None, None, set()
        async for chunk in stream:
            ids.add(chunk.id)
            usage = chunk.usage or usage
            for choice in chunk.choices:
                text += choice.delta.content or ""
                finish = choice.finish_reason or finish
        assert json.loads(text) == json.loads(plain.choices[0].message.content)
        assert finish == "stop"
        assert usage.completion_tokens == 40
        assert len(ids) == 1
        asked = await client.chat.completions.create(
            model="gpt-4o", messages=messages, logprobs=True, top_logprobs=1
        )
        assert asked.choices[0].logprobs.content
        with pytest.raises(openai.BadRequestError, match="messages"):
            await client.chat.completions.create(model="gpt-4o", messages=[])
        models = await client.models.list()
        assert {model.id for model in models.data} == {"gpt-4o", "damage-7b"}
        await client.close()


async def test_bad_requests_are_told_what_is_wrong(rig: Rig) -> None:
    rig.settings["max_body_bytes"] = 200_000
    cases = [
        (b"{", 400, "not JSON"),
        (b"[]", 400, "object"),
        (b'{"messages": "hello"}', 400, "messages"),
        (b'{"messages": [{"role": "user", "content": "a"}], "n": 2}', 400, "n:"),
        (b'{"messages": [{"role":"user","content":[{"type":"image_url"}]}]}', 400, "image_url"),
        (json.dumps(chat_body("data:text/plain;base64,aGVsbG8=")).encode(), 400, "media type"),
        (json.dumps(chat_body("data:image/png;base64,@@@")).encode(), 400, "base64"),
        (json.dumps(chat_body("data:image/png;base64,")).encode(), 400, "empty"),
        (json.dumps(chat_body(data_url(b"a"), metadata={"assessment_id": 7})).encode(), 400, "assessment id"),
        (json.dumps(chat_body(data_url(b"x" * 300_000))).encode(), 413, "bytes"),
    ]
    async with rig.all(rig.route()):
        for body, status, field in cases:
            answer = await rig.post(body)
            assert answer.status == status, field
            error = answer.document["error"]
            assert field in error["message"]
            assert set(error) == {"message", "type", "param", "code"}
        assert rig.control.stats["requests"] == 0


async def test_a_chunked_body_is_capped_as_well(rig: Rig) -> None:
    rig.settings["max_body_bytes"] = 100_000

    async def endless() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b"x" * 10_000

    async with (
        rig.all(rig.route()),
        rig.session.post(rig.url("/v1/chat/completions"), data=endless()) as answer,
    ):
        assert answer.status == 413


async def test_too_many_bytes_in_flight_are_a_503_with_retry_after(rig: Rig) -> None:
    rig.settings["max_in_flight_bytes"] = 5_000
    async with rig.all(rig.route()):
        answer = await rig.ask(url=data_url(b"y" * 6_000))
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        assert answer.document["error"]["code"] == "overloaded"
        assert await rig.value("cutover_requests_refused_total", reason="pressure") == 1
        assert (await rig.ask(1)).status == 200, "the bytes are given back"


async def test_a_token_is_wanted_if_one_is_set(rig: Rig) -> None:
    rig.settings["client_token"] = "secret"
    async with rig.all(rig.route()):
        assert (await rig.ask(1)).status == 401
        assert (await rig.ask(1, headers={"authorization": "Bearer wrong"})).status == 401
        assert (await rig.ask(1, headers={"authorization": "Bearer secret"})).status == 200


async def test_pictures_behind_urls_are_fetched_once_and_inlined(rig: Rig) -> None:
    async def photo(request: object) -> Response:
        return Response(picture(9), media_type="image/png")

    async def page(request: object) -> Response:
        return Response("<html>", media_type="text/html")

    async def inside(request: object) -> Response:
        return RedirectResponse("http://169.254.169.254/latest/meta-data")

    port = free_port()
    origin = f"http://127.0.0.1:{port}"
    rig.settings["allowed_image_origins"] = (origin,)
    app = Starlette(routes=[Path_("/9.png", photo), Path_("/page", page), Path_("/inside", inside)])
    async with running(app, port), rig.all(rig.route()):
        answer = await rig.ask(url=f"{origin}/9.png", key="house-9")
        assert answer.status == 200
        digest = hashlib.sha256(picture(9)).hexdigest()
        assert rig.control.seen[-1]["digests"] == [digest]
        await until(lambda: digest in rig.assessments.pictures)
        for url in (
            f"{origin}/page",
            f"{origin}/inside",
            "http://169.254.169.254/latest/meta-data",
            "http://127.0.0.1:1/x.png",
            "http://localhost/x.png",
            "http://2130706433/x.png",
            "file:///etc/passwd",
            "http://user:secret@example.org/x.png",
        ):
            refused = await rig.ask(url=url)
            assert refused.status == 400, url
            assert refused.document["error"]["code"] == "invalid_image_url"
            assert "secret" not in refused.document["error"]["message"]
        assert await rig.value("cutover_requests_total", arm="control", outcome="rejected") == 8
        assert rig.control.stats["requests"] == 1


async def test_the_callers_own_4xx_is_nobodys_error(rig: Rig) -> None:
    async with rig.all(rig.route(weight_basis_points=10_000)):
        rig.candidate.behaviour.refusal_share = 1.0
        rescued = await rig.ask(1)
        assert rescued.status == 200, "what the fallback answers was no fault of the caller's"
        assert rescued.headers["x-cutover-fallback"] == "error"
        assert await rig.value("cutover_requests_total", arm="candidate", outcome="error") == 1
        rig.control.behaviour.refusal_share = 1.0
        refused = await rig.ask(2)
        assert refused.status == 400
        assert "image" in refused.document["error"]["message"]
        assert await rig.value("cutover_requests_total", arm="candidate", outcome="rejected") == 1
        assert await rig.value("cutover_requests_total", arm="candidate", outcome="error") == 1


async def test_a_wrong_key_is_the_gateways_fault_not_the_callers(rig: Rig) -> None:
    (rig.folder / "keys" / "gpt").write_text("sk-old")
    async with rig.all(rig.route()):
        assert (await rig.ask(1)).status == 502
        assert await rig.value("cutover_requests_total", arm="control", outcome="error") == 1
        (rig.folder / "keys" / "gpt").write_text("sk-control")
        assert (await rig.ask(1)).status == 200, "a rotated key needs no restart"
        (rig.folder / "keys" / "gpt").unlink()
        missing = await rig.ask(1)
        assert missing.status == 502
        assert "sk-" not in missing.body.decode()


async def test_without_a_route_everything_goes_to_the_default_provider(rig: Rig) -> None:
    async with rig.all():
        answer = await rig.ask(1)
        assert answer.headers["x-cutover-arm"] == "control"
        assert await rig.report() == {
            "gateway": "main",
            "pod": "gateway-0",
            "generation": 0,
            "rollout": "none",
            "weightBasisPoints": 0,
        }


async def test_confidence_below_the_limit_defers_to_the_fallback(rig: Rig) -> None:
    rules = FallbackRules(deadline_seconds=2.0, confidence=0.8)
    async with rig.all(rig.route(weight_basis_points=10_000, fallback_rules=rules)):
        rig.candidate.behaviour.busy_seconds = 1.0
        assert (await rig.ask(1)).headers["x-cutover-version"] == "v2"
        rig.candidate.behaviour.confidence_right = 0.5
        deferred = await rig.ask(2)
        assert deferred.headers["x-cutover-fallback"] == "confidence"
        assert deferred.headers["x-cutover-version"] == "gpt-4o"
        assert deferred.document["model"] == "gpt-4o"
        assert await rig.value("cutover_requests_total", arm="candidate", outcome="deferred") == 1
        assert await rig.value("cutover_fallbacks_total", arm="candidate", reason="confidence") == 1
        assert await rig.value("cutover_request_duration_seconds_count", arm="candidate") == 1
        both = 2 * 0.001 + 1000 * 10e-6 + 40 * 30e-6
        assert await rig.value("cutover_cost_usd_total", arm="candidate") == pytest.approx(both)
        record = await until(lambda: rig.assessments.records.get(deferred.document["id"]))
        assert record["candidate"]["confidence"] == pytest.approx(0.5)
        assert record["fallback"]["version"] == "gpt-4o"
        rig.control.behaviour.error_share = 1.0
        kept = await rig.ask(3)
        assert kept.headers["x-cutover-version"] == "v2", "a doubtful answer is better than none"
        assert await rig.value("cutover_requests_total", arm="candidate", outcome="ok") == 2


async def test_two_pictures_and_a_bare_url_reach_the_arm_in_order(rig: Rig) -> None:
    async with rig.all(rig.route()):
        body = chat_body(data_url(picture(1)))
        body["messages"][1]["content"].append({"type": "image_url", "image_url": data_url(picture(2))})
        body["messages"][1]["content"].append({"type": "image_url", "image_url": data_url(picture(1))})
        assert (await rig.post(body)).status == 200
        digests = [hashlib.sha256(picture(number)).hexdigest() for number in (1, 2, 1)]
        assert rig.control.seen[-1]["digests"] == digests
        record = await until(lambda: next(iter(rig.assessments.records.values()), None))
        assert record["pictures"] == digests[:2]
        assert base64.b64encode(picture(1)).decode() not in json.dumps(record)
