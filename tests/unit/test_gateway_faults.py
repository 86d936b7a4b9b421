"""Everything an arm can do wrong, through a real gateway and the OpenAI SDK: a valid answer or an honest error.

The first sixteen rows are the faults on which public gateways are compared; the others are ours. A row says how the
request ends when the candidate misbehaves and the control is well, and how when the control is alone and misbehaves,
for an answer in one piece (a stream from a buffering gateway ends alike) and for a stream that is passed through.

`answer X`: a valid answer of the other arm, with the fallback reason X; `answer`: of the arm itself; `broken X`: part of
a stream, then an in-band error with the code X and no end; a number: an error response with that status and code.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import aiohttp
import openai
import pytest

from cutover.route import Arm, FallbackRules, Price, Route
from cutover_server.gateway import route_watch
from fakes.fault_server import COMPLETION_TOKENS, FAULTS, PROMPT_TOKENS, FaultServer
from fakes.gateway_rig import TASK, Rig, chat_body, data_url, picture, running, sample_sum, until

Mode = Literal["whole", "buffered", "passthrough"]
CANDIDATE_PRICE = Price(usd_per_million_input_tokens=1.0, usd_per_million_output_tokens=2.0)
CONTROL_USD = (PROMPT_TOKENS * 10 + COMPLETION_TOKENS * 30) / 1e6
CANDIDATE_USD = (PROMPT_TOKENS * 1 + COMPLETION_TOKENS * 2) / 1e6
REQUEST_SECONDS = 4.0


@dataclass(frozen=True)
class Row:
    rescued: str
    """The candidate misbehaves, the control is well."""
    alone: str
    """The control misbehaves and has nobody."""
    alone_outcome: str = "error"
    rescued_stream: str = ""
    """Passed through, where it differs."""
    alone_stream: str = ""
    tries_alone: int = 1
    usd: float = 0.0
    """What the candidate's own attempt costs in one piece."""


ROWS = {
    "rate_limited_once": Row("answer overload", "answer", tries_alone=2),
    "rate_limited_for_good": Row("answer overload", "503 overloaded, retry after 30"),
    "one_500": Row("answer error", "answer", tries_alone=2),
    "unavailable": Row("answer overload", "503 overloaded, retry after 1", tries_alone=2),
    "reset": Row("answer error", "502 bad_gateway"),
    "no_response": Row("answer timeout", "504 timeout"),
    "slow_first_token": Row("answer timeout", "504 timeout"),
    "cut_stream": Row("answer error", "502 bad_gateway", "error", "broken bad_gateway", "broken bad_gateway"),
    "stalled_stream": Row("answer timeout", "504 timeout", "error", "broken timeout", "broken timeout"),
    "malformed_chunk": Row(
        "answer invalid", "502 invalid_answer", "error", "broken invalid_answer", "broken invalid_answer"
    ),
    "no_end_marker": Row(
        "answer invalid",
        "502 invalid_answer",
        "error",
        "broken bad_gateway",
        "broken bad_gateway",
        1,
        CANDIDATE_USD,
    ),
    "context_length": Row("answer error", "400 context_length_exceeded", "rejected"),
    "content_filter": Row("answer error", "400 content_filter", "rejected"),
    "cut_and_prefill_refused": Row(
        "answer error", "502 bad_gateway", "error", "broken bad_gateway", "broken bad_gateway"
    ),
    "flapping": Row("answer error", "answer", tries_alone=2),
    "useless_answer": Row(
        "answer invalid",
        "502 invalid_answer",
        "error",
        "broken invalid_answer",
        "broken invalid_answer",
        1,
        CANDIDATE_USD,
    ),
    # Ours.
    "none": Row("answer", "answer", "ok", usd=CANDIDATE_USD),
    "no_done": Row("answer", "answer", "ok", usd=CANDIDATE_USD),
    "error_in_200": Row("answer error", "502 bad_gateway"),
    "error_in_mid_stream": Row(
        "answer error", "502 bad_gateway", "error", "broken bad_gateway", "broken bad_gateway"
    ),
    "truncated_json": Row("answer invalid", "502 invalid_answer"),
    "truncated_answer": Row(
        "answer invalid",
        "502 invalid_answer",
        "error",
        "broken invalid_answer",
        "broken invalid_answer",
        1,
        CANDIDATE_USD,
    ),
    "filtered_answer": Row(
        "answer invalid",
        "502 invalid_answer",
        "error",
        "broken invalid_answer",
        "broken invalid_answer",
        1,
        CANDIDATE_USD,
    ),
    "wrong_content_type": Row("answer invalid", "502 invalid_answer"),
    "slow_headers": Row("answer timeout", "504 timeout"),
    "cut_cleanly": Row(
        "answer error", "502 bad_gateway", "error", "broken bad_gateway", "broken bad_gateway"
    ),
    "empty_answer": Row("answer invalid", "502 invalid_answer", usd=CANDIDATE_USD),
    "not_http": Row("answer error", "502 bad_gateway"),
    "redirected": Row("answer error", "502 bad_gateway"),
    "endless_reply": Row("answer invalid", "502 invalid_answer"),
}


def test_every_fault_has_a_row() -> None:
    assert set(ROWS) == set(FAULTS)


@dataclass
class Town:
    rig: Rig
    candidate: FaultServer
    control: FaultServer
    client: openai.AsyncOpenAI
    generation: int = 1

    def next_generation(self) -> int:
        self.generation += 1
        return self.generation

    async def take(self, route: Route) -> None:
        self.rig.write_route(route)
        await self.rig.generation(route.generation)

    async def ask(self, mode: Mode, number: int) -> tuple[str, dict[str, str]]:
        """How a request ended, as in the rows, and the headers of its answer."""
        messages: Any = chat_body(data_url(picture(number)))["messages"]
        try:
            if mode == "whole":
                told = await self.client.chat.completions.with_raw_response.create(
                    model="gpt-4o", messages=messages
                )
                choice = told.parse().choices[0]
                text, finish, headers = choice.message.content, choice.finish_reason, dict(told.headers)
            else:
                text, finish, headers = await self._stream(messages)
        except openai.APIStatusError as error:
            wait = error.response.headers.get("retry-after")
            return (
                f"{error.status_code} {error.code}" + (f", retry after {wait}" if wait else ""),
                dict(error.response.headers),
            )
        except openai.APIConnectionError as error:
            return f"connection lost: {error}", {}
        except openai.APIError as error:
            return f"broken {error.code}", {}
        assert finish == "stop"
        assert TASK.answer_schema["required"] == list(json.loads(text or ""))
        reason = headers.get("x-cutover-fallback")
        return f"answer {reason}" if reason else "answer", headers

    async def _stream(self, messages: Any) -> tuple[str, str | None, dict[str, str]]:
        stream = await self.client.chat.completions.create(
            model="gpt-4o", messages=messages, stream=True, stream_options={"include_usage": True}
        )
        text, finish, usage = "", None, None
        async for chunk in stream:
            usage = chunk.usage or usage
            for choice in chunk.choices:
                text += choice.delta.content or ""
                finish = choice.finish_reason or finish
        assert usage is not None
        assert usage.completion_tokens == COMPLETION_TOKENS
        return text, finish, dict(stream.response.headers)


@pytest.fixture(autouse=True)
def routes_are_looked_at_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(route_watch, "POLL_SECONDS", 0.02)


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as one:
        yield one


@asynccontextmanager
async def town(folder: Path, session: aiohttp.ClientSession, mode: Mode) -> AsyncIterator[Town]:
    rig = Rig(folder, session)
    rig.settings |= {
        "request_seconds": REQUEST_SECONDS,
        "last_arm_seconds": 0.8,
        "silence_seconds": 0.3,
        "first_token_seconds": 0.4,
        "streaming": "passthrough" if mode == "passthrough" else "buffered",
    }
    rig.write_route(rig.route())
    client = openai.AsyncOpenAI(base_url=rig.url("/v1"), api_key="any", max_retries=0, timeout=20)
    async with (
        client,
        FaultServer(rig.candidate).running(rig.ports["candidate"]) as candidate,
        FaultServer(rig.control).running(rig.ports["control"]) as control,
        running(rig.assessments.app(), rig.ports["assessments"]),
        rig.gateway(),
    ):
        yield Town(rig, candidate, control, client)


def candidate_arm(rig: Rig, version: str) -> Arm:
    return rig.candidate_arm.model_copy(update={"version": version, "price": CANDIDATE_PRICE})


@pytest.mark.parametrize("modes", [("whole", "buffered"), ("passthrough",)], ids="-".join)
async def test_every_fault_ends_in_a_valid_answer_or_an_honest_error(
    tmp_path_factory: pytest.TempPathFactory, session: aiohttp.ClientSession, modes: tuple[Mode, ...]
) -> None:
    """The tables side by side, each with a gateway of its own: most of a fault's time is waiting."""

    async def rescued(mode: Mode) -> None:
        async with town(tmp_path_factory.mktemp(mode), session, mode) as there:
            await _a_misbehaving_candidate_is_made_good_by_the_control(there, mode)
            assert await there.rig.value("cutover_requests_total", arm="control") == 0

    async def alone(mode: Mode) -> None:
        async with town(tmp_path_factory.mktemp("alone"), session, mode) as there:
            await _a_misbehaving_control_without_an_alternative_is_told_honestly(there, mode)

    async with asyncio.TaskGroup() as tables:
        for mode in modes:
            tables.create_task(rescued(mode))
        tables.create_task(alone(modes[0]))


async def _a_misbehaving_candidate_is_made_good_by_the_control(there: Town, mode: Mode) -> None:
    rig, wanted, got = there.rig, {}, {}
    before = set(rig.assessments.records)
    for fault, row in ROWS.items():
        version = f"{mode}-{fault}"
        await there.take(
            rig.route(
                generation=there.next_generation(),
                candidate=candidate_arm(rig, version),
                weight_basis_points=10_000,
                fallback_rules=FallbackRules(deadline_seconds=0.5),
            )
        )
        there.candidate.set(fault)
        there.control.set("none")
        ends = (mode == "passthrough" and row.rescued_stream) or row.rescued
        started = time.monotonic()
        end, headers = await there.ask(mode, there.generation)
        assert time.monotonic() - started < REQUEST_SECONDS
        outcome = "ok" if row.rescued == "answer" else "error"
        scraped = await rig.scrape()
        assert sample_sum(scraped, "cutover_requests_total", version=version, outcome=outcome) == 1, fault
        assert sample_sum(scraped, "cutover_requests_total", version=version) == 1, fault
        assert there.candidate.requests == 1, f"{fault}: an arm with an alternative is asked once"
        rescued = ends.startswith("answer ")
        assert there.control.requests == int(rescued), fault
        if not ends.startswith("broken"):
            assert headers["x-cutover-arm"] == "candidate"
            assert headers["x-cutover-version"] == ("gpt-4o" if rescued else version)
        if mode != "passthrough":
            cost = sample_sum(scraped, "cutover_cost_usd_total", version=version)
            assert cost == pytest.approx(row.usd + CONTROL_USD * rescued), fault
        wanted[fault], got[fault] = ends, end
    assert got == wanted
    assert there.candidate.prefills == there.control.prefills == 0
    await until(lambda: len(rig.assessments.records) == len(before) + len(ROWS))
    assert rig.assessments.problems == []
    ends_of = [told["outcome"] for one, told in rig.assessments.records.items() if one not in before]
    assert ends_of.count("error") == sum(row.rescued != "answer" for row in ROWS.values())


async def _a_misbehaving_control_without_an_alternative_is_told_honestly(there: Town, mode: Mode) -> None:
    rig, wanted, got = there.rig, {}, {}
    there.candidate.set("none")
    for fault, row in ROWS.items():
        version = f"alone-{fault}"
        control = rig.control_arm.model_copy(update={"version": version})
        await there.take(rig.route(generation=there.next_generation(), control=control, fallback=None))
        there.control.set(fault)
        started = time.monotonic()
        end, _ = await there.ask(mode, there.generation)
        assert time.monotonic() - started < REQUEST_SECONDS
        wanted[fault] = (mode == "passthrough" and row.alone_stream) or row.alone, row.tries_alone
        got[fault] = end, there.control.requests
        scraped = await rig.scrape()
        assert sample_sum(scraped, "cutover_requests_total", version=version) == 1
        outcome = row.alone_outcome
        assert sample_sum(scraped, "cutover_requests_total", version=version, outcome=outcome) == 1, fault
    assert got == wanted
    assert there.candidate.requests == 0, "a candidate on probation does not answer for the control"
    assert await rig.value("cutover_fallbacks_total", arm="control") == 0


async def test_a_kept_connection_that_the_arm_had_closed_is_no_failure(
    tmp_path: Path, session: aiohttp.ClientSession
) -> None:
    async with town(tmp_path, session, "whole") as there:
        there.control.keeps_connections = there.control.drops_kept_connections = True
        for number in range(6):
            assert (await there.ask("whole", number))[0] == "answer"
        assert await there.rig.value("cutover_requests_total", arm="control", outcome="ok") == 6
        assert there.control.requests == 6
