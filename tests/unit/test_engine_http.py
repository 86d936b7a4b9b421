"""The engine as its callers see it: over HTTP on loopback, with the openai SDK and by hand."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import aiohttp
import pytest
import torch
from openai import BadRequestError, NotFoundError, OpenAI
from PIL import Image

from cutover.contract import HEADER_BUSY_SECONDS
from cutover_server.inference.chat import Sampling
from cutover_server.inference.generation import OnStep, Row, RowRun, Step
from cutover_server.inference.loading import Served, load
from cutover_server.inference.settings import ServeSettings
from fakes import sample_models
from fakes.sample_engines import RunningEngine, running_engine, until

NAME = "damage-7"
TOKENS = 8


def settings(**more: Any) -> ServeSettings:
    base = sample_models.tiny_llava()
    adapter = str(sample_models.lora_adapter(base))
    return ServeSettings(base=str(base), adapter=adapter, served_name=NAME, **more)


@pytest.fixture(scope="module")
def running() -> Iterator[RunningEngine]:
    torch.set_num_threads(1)
    with running_engine(settings(max_body_bytes=400_000, max_new_tokens=24)) as engine:
        yield engine


@pytest.fixture(scope="module")
def client(running: RunningEngine) -> OpenAI:
    return OpenAI(base_url=f"{running.origin}/v1", api_key="unused", max_retries=0)


class Gate:
    """A loaded model whose batches wait until they are let through, and their steps too if `steps` is set."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.steps: threading.Semaphore | None = None
        self.batches: list[int] = []
        self.cut: list[str | None] = []

    def load(self, wanted: ServeSettings) -> Served:
        served = load(wanted)
        gate, run = self, served.run

        class Gated(Served):
            def run(self, rows: Sequence[Row], sampling: Sampling, on_step: OnStep) -> list[RowRun]:
                gate.batches.append(len(rows))
                assert gate.open.wait(30)

                def paced(index: int, step: Step) -> bool:
                    assert gate.steps is None or gate.steps.acquire(timeout=30)
                    return on_step(index, step)

                runs = run(rows, sampling, paced)
                gate.cut += [one.finish for one in runs]
                return runs

        fields = {name: getattr(served, name) for name in Served.__dataclass_fields__}
        return Gated(**fields)


async def post(origin: str, body: Any) -> tuple[int, dict[str, str], Any]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{origin}/v1/chat/completions", data=data) as answer,
    ):
        text = await answer.text()
        return answer.status, {k.lower(): v for k, v in answer.headers.items()}, json.loads(text)


def ask(seed: int = 1, **more: Any) -> dict[str, Any]:
    return {"model": NAME, "messages": sample_models.question(seed), "max_tokens": TOKENS, **more}


# ---------------------------------------------------------------- answers
async def test_an_answer_has_usage_reason_and_the_seconds_it_took(running: RunningEngine) -> None:
    status, headers, body = await post(running.origin, ask())
    assert status == 200
    choice, usage = body["choices"][0], body["usage"]
    assert choice["finish_reason"] == "length"
    assert usage["completion_tokens"] == TOKENS
    assert usage["total_tokens"] == usage["prompt_tokens"] + TOKENS
    assert usage["prompt_tokens"] > 16
    assert 0 < float(headers[HEADER_BUSY_SECONDS]) < 30
    assert choice["logprobs"] is None
    assert body["id"].startswith("chatcmpl-")


def test_token_pieces_add_up_to_the_text(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model=NAME, messages=sample_models.question(2), max_tokens=20, logprobs=True, top_logprobs=2
    )
    choice = answer.choices[0]
    assert choice.logprobs is not None
    tokens = choice.logprobs.content
    assert tokens is not None
    assert "".join(token.token for token in tokens) == choice.message.content
    assert all(bytes(token.bytes or []).decode() == token.token for token in tokens)
    assert all(len(token.top_logprobs) == 2 for token in tokens)
    assert all(token.top_logprobs[0].logprob == pytest.approx(token.logprob) for token in tokens)


@pytest.mark.parametrize("logprobs", [False, True])
def test_a_stream_brings_the_same_text(client: OpenAI, logprobs: bool) -> None:
    arguments: dict[str, Any] = {
        "model": NAME,
        "messages": sample_models.question(3),
        "max_tokens": 16,
        "logprobs": logprobs,
    }
    whole = client.chat.completions.create(**arguments)
    pieces, finish, usage, streamed = [], None, None, 0
    for chunk in client.chat.completions.create(
        **arguments, stream=True, stream_options={"include_usage": True}
    ):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            pieces.append(choice.delta.content or "")
            finish = choice.finish_reason or finish
            streamed += len(choice.logprobs.content or []) if choice.logprobs else 0
    assert "".join(pieces) == whole.choices[0].message.content
    assert finish == whole.choices[0].finish_reason
    assert usage is not None
    assert whole.usage is not None
    assert usage.completion_tokens == whole.usage.completion_tokens > 1
    assert (usage.model_extra or {})["busy_seconds"] > 0
    assert streamed == (usage.completion_tokens - (finish == "stop") if logprobs else 0)


async def test_many_at_once_get_the_answers_they_would_get_alone(running: RunningEngine) -> None:
    alone = [await post(running.origin, ask(seed)) for seed in range(6)]
    together = await asyncio.gather(*(post(running.origin, ask(seed)) for seed in range(6)))
    texts = [[body["choices"][0]["message"]["content"] for _, _, body in part] for part in (alone, together)]
    assert texts[0] == texts[1]
    assert len(set(texts[0])) > 1


async def test_the_adapter_is_what_answers(running: RunningEngine) -> None:
    with running_engine(ServeSettings(base=str(sample_models.tiny_llava()), served_name=NAME)) as bare:
        _, _, from_base = await post(bare.origin, ask(4))
    _, _, adapted = await post(running.origin, ask(4))
    assert adapted["choices"][0]["message"]["content"] != from_base["choices"][0]["message"]["content"]


async def test_a_schema_is_taken_and_the_answer_counted_against_it(running: RunningEngine) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "damage", "schema": {"type": "object"}}}
    status, _, _ = await post(running.origin, ask(response_format=wanted))
    assert status == 200
    assert 'cutover_engine_schema_checks_total{result="invalid"}' in await get(running.origin, "/metrics")


def test_more_tokens_than_the_engine_gives_are_cut(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model=NAME, messages=sample_models.question(1), max_completion_tokens=60
    )
    assert answer.usage is not None
    assert answer.usage.completion_tokens <= 24


# ---------------------------------------------------------------- refusals
def broken(**change: Any) -> dict[str, Any]:
    return {**ask(), **change}


def picture_message(url: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]


BIG = Image.new("1", (9000, 6000))
REFUSALS: dict[str, tuple[Any, int, str | None, str]] = {
    "not JSON": (b"{", 400, None, "not JSON"),
    "not an object": (b"[]", 400, None, "JSON object"),
    "no model": (broken(model=None), 400, "model", "/v1/models"),
    "unknown model": (broken(model="gpt-4o"), 404, "model", "gpt-4o"),
    "no messages": (broken(messages=[]), 400, "messages", "non-empty"),
    "bad role": (broken(messages=[{"role": "tool", "content": "x"}]), 400, "messages[0].role", "tool"),
    "address": (
        broken(messages=picture_message("https://example.org/a.png")),
        400,
        "messages[0].content[0].image_url.url",
        "never opens addresses",
    ),
    "file": (
        broken(messages=picture_message("file:///etc/passwd")),
        400,
        "messages[0].content[0].image_url.url",
        "never opens",
    ),
    "bad base64": (
        broken(messages=picture_message("data:image/png;base64,@@@@")),
        400,
        "messages[0].content[0].image_url.url",
        "base64",
    ),
    "not a picture": (
        broken(messages=picture_message("data:image/png;base64,aGVsbG8=")),
        400,
        "messages",
        "not a readable",
    ),
    "too many pixels": (
        broken(messages=picture_message(sample_models.data_url(BIG))),
        400,
        "messages",
        "9000",
    ),
    "two pictures": (
        broken(messages=sample_models.question(1)[1:] + sample_models.question(2)[1:]),
        400,
        "messages",
        "at most 1",
    ),
    "control token": (
        broken(messages=[{"role": "user", "content": "see <image> there"}]),
        400,
        "messages[0].content",
        "<image>",
    ),
    "long prompt": (
        broken(messages=[{"role": "user", "content": "qzx " * 300}]),
        400,
        "messages",
        "this model takes 256",
    ),
    "long answer": (broken(max_tokens=250), 400, "max_tokens", "ask for at most"),
    "zero tokens": (broken(max_tokens=0), 400, "max_tokens", "from 1"),
    "temperature": (broken(temperature=3), 400, "temperature", "0 to 2"),
    "top_logprobs": (broken(logprobs=True, top_logprobs=21), 400, "top_logprobs", "20"),
    "tools": (broken(tools=[{"type": "function"}]), 400, "tools", "not supported"),
    "two answers": (broken(n=2), 400, "n", "not supported"),
    "format": (broken(response_format={"type": "xml"}), 400, "response_format", "json_schema"),
    "bad schema": (
        broken(response_format={"type": "json_schema", "json_schema": {"schema": {"type": "nonsense"}}}),
        400,
        "response_format",
        "not a JSON schema",
    ),
    "large body": (b" " * 400_001, 413, None, "400000 bytes"),
}


@pytest.mark.parametrize("name", REFUSALS)
async def test_refusals_have_openai_shape_and_a_remedy(running: RunningEngine, name: str) -> None:
    body, status, param, fragment = REFUSALS[name]
    got, _, answer = await post(running.origin, body)
    error = answer["error"]
    assert (got, error["param"]) == (status, param), error
    assert fragment in error["message"]
    assert error["type"] == "invalid_request_error"
    assert set(error) == {"message", "type", "param", "code"}


def test_the_sdk_knows_the_errors(client: OpenAI) -> None:
    with pytest.raises(NotFoundError) as missing:
        client.chat.completions.create(model="other", messages=sample_models.question(1))
    assert missing.value.code == "model_not_found"
    with pytest.raises(BadRequestError) as long:
        client.chat.completions.create(model=NAME, messages=[{"role": "user", "content": "qzx " * 300}])
    assert long.value.code == "context_length_exceeded"


async def test_an_unknown_path_is_refused_in_the_same_shape(running: RunningEngine) -> None:
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{running.origin}/v1/completions", json={}) as answer,
    ):
        assert answer.status == 404
        assert "error" in await answer.json()


# ---------------------------------------------------------------- state
async def get(origin: str, path: str) -> str:
    async with aiohttp.ClientSession() as session, session.get(origin + path) as answer:
        return f"{answer.status} {await answer.text()}"


async def test_models_name_the_parent_and_count_the_adapted_modules(
    running: RunningEngine, client: OpenAI
) -> None:
    [model] = client.models.list().data
    extra = model.model_extra or {}
    assert model.id == NAME
    assert extra["parent"] == str(sample_models.tiny_llava())
    assert extra["adapted_modules"] == 14
    assert extra["proof"]["distance"] < extra["proof"]["base_distance"] / 10


async def test_metrics_tell_what_was_done(running: RunningEngine) -> None:
    await post(running.origin, ask())
    text = await get(running.origin, "/metrics")
    for name in (
        'cutover_engine_requests_total{status="200"}',
        "cutover_engine_generation_seconds_bucket",
        "cutover_engine_busy_seconds_total",
        "cutover_engine_queued 0.0",
        "cutover_engine_running",
        "cutover_engine_ready 1.0",
    ):
        assert name in text


async def test_before_the_model_is_loaded_everything_waits() -> None:
    hold = threading.Event()

    def slow(wanted: ServeSettings) -> Served:
        assert hold.wait(30)
        return load(wanted)

    with running_engine(settings(), slow, wait_ready=False) as starting:
        assert (await get(starting.origin, "/health")).startswith("503")
        assert (await get(starting.origin, "/healthz")).startswith("200")
        status, headers, body = await post(starting.origin, ask())
        assert (status, body["error"]["code"], headers["retry-after"]) == (503, "engine_loading", "1")
        hold.set()
        until(lambda: starting.engine.state == "ready")
        assert (await get(starting.origin, "/health")).startswith("200")


async def test_a_full_queue_says_when_to_come_back() -> None:
    gate = Gate()
    with running_engine(settings(max_queue=2, max_batch=2), gate.load) as engine:
        first = asyncio.create_task(post(engine.origin, ask(1)))
        await asyncio.to_thread(until, lambda: gate.batches)
        waiting = [asyncio.create_task(post(engine.origin, ask(seed))) for seed in (2, 3)]
        await asyncio.to_thread(until, lambda: engine.engine.batcher.queued == 2)
        status, headers, body = await post(engine.origin, ask(4))
        assert (status, body["error"]["code"], body["error"]["type"]) == (
            429,
            "queue_full",
            "rate_limit_error",
        )
        assert int(headers["retry-after"]) >= 1
        gate.open.set()
        assert [(await one)[0] for one in (first, *waiting)] == [200, 200, 200]
        assert gate.batches == [1, 2]


async def test_a_client_that_leaves_takes_its_work_along() -> None:
    gate = Gate()
    with running_engine(settings(max_batch=1), gate.load) as engine:
        running_one = send_raw(engine, ask(1, max_tokens=100))
        await asyncio.to_thread(until, lambda: gate.batches)
        waiting_one = send_raw(engine, ask(2))
        await asyncio.to_thread(until, lambda: engine.engine.batcher.queued == 1)
        waiting_one.close()
        await asyncio.to_thread(until, lambda: engine.engine.batcher.queued == 0)
        running_one.close()
        metric = engine.engine.telemetry.requests.labels("499")
        await asyncio.to_thread(until, lambda: metric._value.get() == 2)
        gate.open.set()
        await asyncio.to_thread(until, lambda: gate.cut)
        assert (gate.batches, gate.cut) == ([1], ["cancelled"])
        assert (await post(engine.origin, ask(3)))[0] == 200


async def test_a_client_that_leaves_its_stream_ends_the_generation() -> None:
    gate = Gate()
    gate.open.set()
    gate.steps = threading.Semaphore(2)
    with running_engine(settings(), gate.load) as engine:
        connection = send_raw(engine, ask(1, max_tokens=100, stream=True))
        connection.settimeout(30)
        received = b""
        while b"data: " not in received:
            received += await asyncio.to_thread(connection.recv, 4096)
        connection.close()

        def one_more_step() -> bool:
            gate.steps.release()
            return bool(gate.cut)

        await asyncio.to_thread(until, one_more_step)
        assert gate.cut == ["cancelled"]


async def test_a_question_without_a_picture_is_answered(running: RunningEngine) -> None:
    status, _, body = await post(running.origin, ask(messages=[{"role": "user", "content": "What is it?"}]))
    assert (status, body["usage"]["prompt_tokens"] < 40) == (200, True)


async def test_a_model_that_raises_answers_500_and_goes_on() -> None:
    failing = {"times": 1}

    def load_flaky(wanted: ServeSettings) -> Served:
        served = load(wanted)
        run = served.run

        class Flaky(Served):
            def run(self, rows: Sequence[Row], sampling: Sampling, on_step: OnStep) -> list[RowRun]:
                if failing["times"] > 0:
                    failing["times"] -= 1
                    raise RuntimeError("out of memory")
                return run(rows, sampling, on_step)

        return Flaky(**{name: getattr(served, name) for name in Served.__dataclass_fields__})

    with running_engine(settings(), load_flaky) as engine:
        status, _, body = await post(engine.origin, ask())
        assert (status, body["error"]["type"]) == (500, "server_error")
        assert (await post(engine.origin, ask()))[0] == 200
        failing["times"] = 3
        assert [(await post(engine.origin, ask()))[0] for _ in range(3)] == [500, 500, 500]
        assert (await get(engine.origin, "/healthz")).startswith("500")


def send_raw(engine: RunningEngine, body: dict[str, Any]) -> socket.socket:
    """A request whose connection the test can close at will."""
    data = json.dumps(body).encode()
    connection = socket.create_connection(("127.0.0.1", engine.port))
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: engine\r\nContent-Length: {len(data)}\r\n\r\n"
    connection.sendall(head.encode() + data)
    return connection


def test_many_threads_of_the_sdk(client: OpenAI) -> None:
    def one(seed: int) -> str:
        answer = client.chat.completions.create(
            model=NAME, messages=sample_models.question(seed), max_tokens=4
        )
        return answer.choices[0].message.content or ""

    with ThreadPoolExecutor(8) as pool:
        texts = list(pool.map(one, [seed % 4 for seed in range(24)]))
    assert all(texts[index] == texts[index % 4] for index in range(24))
