"""What the gateway does when an arm fails: who answers instead, and whose failure it is."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from cutover.route import FallbackRules, Route
from cutover_server.assessments.maturity import Request, judged_answers
from cutover_server.gateway.http_server import Connection
from fakes.gateway_rig import Rig, until


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with aiohttp.ClientSession() as session:
        yield Rig(tmp_path, session)


def all_to_candidate(rig: Rig, **changes: Any) -> Route:
    rules = FallbackRules(deadline_seconds=0.5)
    return rig.route(**{"weight_basis_points": 10_000, "fallback_rules": rules, **changes})


async def test_each_failure_of_the_candidate_is_answered_by_the_fallback_and_counted_on_the_candidate(
    rig: Rig,
) -> None:
    faults: list[tuple[dict[str, float], str]] = [
        ({"error_share": 1}, "error"),
        ({"error_in_200_share": 1}, "error"),
        ({"reset_share": 1}, "error"),
        ({"overload_share": 1}, "overload"),
        ({"prose_share": 1}, "invalid"),
        ({"truncated_share": 1}, "invalid"),
        ({"hang_share": 1}, "timeout"),
        ({"stall_share": 1}, "timeout"),
    ]
    async with rig.all(all_to_candidate(rig)):
        for number, (fault, reason) in enumerate(faults):
            rig.candidate.behaviour = type(rig.candidate.behaviour)(**fault)  # type: ignore[arg-type]
            # A new version each time: its breaker knows nothing of the faults before.
            arm = rig.candidate_arm.model_copy(update={"version": f"v{number}"})
            rig.write_route(all_to_candidate(rig, candidate=arm, generation=number + 2))
            await rig.generation(number + 2)
            answer = await rig.ask(number, "house")
            assert answer.status == 200, fault
            assert answer.headers["x-cutover-fallback"] == reason, fault
            assert answer.headers["x-cutover-arm"] == "candidate"
            assert answer.headers["x-cutover-version"] == answer.document["model"] == "gpt-4o"
            assert answer.answer == rig.control.answer(rig.control.seen[-1]["digests"][0])[0]
            record = await until(lambda i=answer.document["id"]: rig.assessments.records.get(i))
            assert record["outcome"] == "error"
            assert record["fallbackReason"] == reason
            assert record["candidate"]["error"].startswith(reason)
            assert await rig.value("cutover_requests_total", version=f"v{number}", outcome="error") == 1
        for reason, count in {"error": 3, "overload": 1, "invalid": 2, "timeout": 2}.items():
            assert await rig.value("cutover_fallbacks_total", arm="candidate", reason=reason) == count
        assert await rig.value("cutover_requests_total", arm="control") == 0, (
            "nothing was assigned to the control"
        )


async def test_a_fenced_answer_is_valid(rig: Rig) -> None:
    async with rig.all(all_to_candidate(rig)):
        rig.candidate.behaviour.fenced_share = 1.0
        assert "x-cutover-fallback" not in (await rig.ask(1)).headers


async def test_a_dead_candidate_is_left_alone_after_a_while_and_still_counted(rig: Rig) -> None:
    async with rig.all(all_to_candidate(rig)):
        rig.candidate.behaviour.error_share = 1.0
        reasons = [(await rig.ask(number)).headers["x-cutover-fallback"] for number in range(8)]
        assert reasons == ["error"] * 5 + ["breaker"] * 3
        assert rig.candidate.stats["requests"] == 5
        assert await rig.value("cutover_breaker_open", arm="candidate") == 1
        assert await rig.value("cutover_breaker_open", arm="control") == 0
        assert await rig.value("cutover_requests_total", arm="candidate", outcome="error") == 8
        assert await rig.value("cutover_fallbacks_total", arm="candidate", reason="breaker") == 3


async def test_an_arm_that_is_back_answers_before_its_breaker_knows_when_nobody_else_does(rig: Rig) -> None:
    async with rig.all(all_to_candidate(rig)):
        rig.candidate.behaviour.error_share = 1.0
        for number in range(5):
            await rig.ask(number)
        rig.candidate.behaviour.error_share = 0.0
        rig.control.behaviour.error_share = 1.0
        for kind in ("one piece", "a stream"):
            answer = await rig.ask(6, f"house {kind}", stream=kind == "a stream")
            assert answer.status == 200, kind
            assert answer.headers["x-cutover-version"] == "v2"
            assert answer.headers["x-cutover-fallback"] == "breaker"
            (record,) = await until(lambda k=kind: rig.assessments.by_assessment(f"house {k}"))
            assert (record["outcome"], record["fallback"]["version"]) == ("error", "v2")
            stored = Request(record["chosen"], record["outcome"], None, record["candidate"])
            assert judged_answers(stored) == [], "no label says anything of an arm that was not asked"
        rig.candidate.behaviour.error_share = 1.0
        assert (await rig.ask(7)).status == 502, "it is asked once, and nobody waits for more"


async def test_when_everybody_fails_the_caller_gets_an_openai_error(rig: Rig) -> None:
    async with rig.all(all_to_candidate(rig)):
        rig.candidate.behaviour.error_share = rig.control.behaviour.error_share = 1.0
        failed = await rig.ask(1, "house-1")
        assert failed.status == 502
        assert failed.document["error"]["type"] == "server_error"
        assert failed.headers["x-cutover-assessment-id"] == "house-1"
        rig.candidate.behaviour.hang_share = 1.0
        assert (await rig.ask(2)).status == 504
        rig.candidate.behaviour = type(rig.candidate.behaviour)(overload_share=1.0)
        overloaded = await rig.ask(3)
        assert (overloaded.status, overloaded.headers["retry-after"]) == (503, "1")
        assert await rig.value("cutover_requests_total", arm="candidate", outcome="error") == 3
        await until(lambda: len(rig.assessments.records) == 3)
        assert {record.get("servedVersion", "") for record in rig.assessments.records.values()} == {""}


async def test_a_failing_control_that_is_alone_is_asked_on_and_counted(rig: Rig) -> None:
    async with rig.all(rig.route()):
        rig.control.behaviour.prose_share = 1.0
        prose = await rig.ask(1)
        assert prose.status == 502
        assert prose.document["error"]["code"] == "invalid_answer"
        assert "Looking" not in prose.body.decode()
        record = await until(lambda: next(iter(rig.assessments.records.values()), None))
        assert "Looking at the photo" in record["control"]["text"], (
            "what it said is kept for whoever asks why"
        )
        rig.control.behaviour = type(rig.control.behaviour)(error_share=1.0)
        for number in range(8):
            assert (await rig.ask(number)).status == 502
        # One invalid answer; two tries while the breaker is closed: 2 + 2; then it opens; one try each: 6.
        assert await rig.value("cutover_breaker_open", arm="control") == 1
        assert rig.control.stats["requests"] == 1 + 4 + 6, "the last arm is asked even with an open breaker"
        assert await rig.value("cutover_requests_total", arm="control", outcome="error") == 9
        assert await rig.value("cutover_requests_total", arm="candidate") == 0
        assert rig.candidate.stats["requests"] == 0, (
            "a candidate on probation does not answer for the control"
        )


async def test_only_a_promoted_candidate_answers_for_a_dead_control(rig: Rig) -> None:
    rules = FallbackRules(deadline_seconds=1.0, reverse=True)
    async with rig.all(rig.route(fallback_rules=rules)):
        rig.control.behaviour.error_share = 1.0
        assert (await rig.ask(1)).status == 502
        rig.write_route(rig.route(fallback_rules=rules, promoted=True, generation=2))
        await rig.generation(2)
        answer = await rig.ask(1)
        assert answer.status == 200
        assert answer.headers["x-cutover-arm"] == "control"
        assert answer.headers["x-cutover-version"] == "v2"
        assert answer.headers["x-cutover-fallback"] == "error"


async def test_faults_that_are_not_named_reach_the_caller(rig: Rig) -> None:
    rules = FallbackRules(on=("timeout",), deadline_seconds=0.5)
    async with rig.all(all_to_candidate(rig, fallback_rules=rules)):
        rig.candidate.behaviour.error_share = 1.0
        assert (await rig.ask(1)).status == 502
        assert rig.control.stats["requests"] == 0
        rig.write_route(all_to_candidate(rig, fallback=None, generation=2))
        await rig.generation(2)
        assert (await rig.ask(1)).status == 502


async def test_nobody_listens_at_the_candidates_address(rig: Rig) -> None:
    gone = rig.candidate_arm.model_copy(update={"base_url": "http://127.0.0.1:1/v1"})
    async with rig.all(all_to_candidate(rig, candidate=gone)):
        answer = await rig.ask(1)
        assert answer.status == 200
        assert answer.headers["x-cutover-fallback"] == "error"


async def test_mirrored_answers_are_compared_beside_the_path(rig: Rig) -> None:
    route = rig.route(shadow_basis_points=10_000)
    async with rig.all(route):
        rig.candidate.behaviour.field_accuracy = {"damage": 0.5, "usable": 1.0}
        rig.candidate.behaviour.latency_mean_seconds = 0.2
        rig.candidate.behaviour.busy_seconds = 0.1
        answers = [await rig.ask(number, f"house-{number}") for number in range(12)]
        assert all(answer.headers["x-cutover-arm"] == "control" for answer in answers)
        await until(lambda: len(rig.assessments.shadows) == 12)
        same = sum(
            rig.candidate.answer(digest)[0]["damage"] == rig.control.answer(digest)[0]["damage"]
            for digest in (record["pictures"][0] for record in rig.assessments.records.values())
        )
        assert 0 < same < 12
        assert await rig.value("cutover_shadow_pairs_total", agreement="agree") == same
        assert await rig.value("cutover_shadow_pairs_total", agreement="disagree") == 12 - same
        assert await rig.value("cutover_shadow_duration_seconds_count", version="v2") == 12
        assert await rig.value("cutover_requests_total", arm="candidate") == 0
        shadow = rig.assessments.shadows[answers[0].document["id"]]
        assert shadow["candidate"]["costUsd"] == pytest.approx(0.0001)
        assert rig.assessments.problems == []
        rig.candidate.behaviour = type(rig.candidate.behaviour)(prose_share=1.0)
        await rig.ask(20)
        await until(lambda: len(rig.assessments.shadows) == 13)
        rig.candidate.behaviour = type(rig.candidate.behaviour)(error_share=1.0)
        await rig.ask(21)
        await until(lambda: len(rig.assessments.shadows) == 14)
        assert await rig.value("cutover_shadow_pairs_total", agreement="invalid") == 1
        assert await rig.value("cutover_shadow_pairs_total", agreement="error") == 1
        rig.control.behaviour.error_share = 1.0
        await rig.ask(22)
        assert await rig.value("cutover_shadow_dropped_total", reason="no_control_answer") == 1


async def test_bodies_that_are_only_announced_keep_nobody_out(rig: Rig) -> None:
    rig.settings["max_in_flight_bytes"] = 2_000_000
    async with rig.all(rig.route()):
        idle = []
        for _ in range(4):
            _, writer = await asyncio.open_connection("127.0.0.1", rig.ports["app"])
            writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 1900000\r\n\r\n{")
            await writer.drain()
            idle.append(writer)
        assert (await rig.ask(1)).status == 200
        for writer in idle:
            writer.close()


async def test_mirrored_copies_are_given_up_first(rig: Rig) -> None:
    rig.settings |= {"shadow_queue": 2, "shadow_concurrency": 1, "shadow_seconds": 0.5}
    async with rig.all(rig.route(shadow_basis_points=10_000)):
        rig.candidate.behaviour.hang_share = 1.0
        for number in range(6):
            assert (await rig.ask(number)).status == 200
        assert await rig.value("cutover_shadow_dropped_total", reason="queue_full") == 3
    rig.settings["max_in_flight_bytes"] = 2_000
    async with rig.all(rig.route(shadow_basis_points=10_000)):
        big = "data:image/png;base64," + "A" * 1200
        assert (await rig.ask(url=big)).status == 200
        assert await rig.value("cutover_shadow_dropped_total", reason="pressure") == 1


async def test_logprobs_that_cannot_be_written_again_are_left_out_of_a_stream(rig: Rig) -> None:
    """Nested so deeply that they can be read, but not written."""
    answer = json.dumps({"damage": "none", "usable": "yes", "reason": "r"})
    deep = b'{"content":' + b"[" * 400 + b"]" * 400 + b"}"

    def event(text: str, finish: str | None = None, logprobs: bytes = b"null") -> bytes:
        choice = b'{"index":0,"delta":{"content":%b},"logprobs":%b,"finish_reason":%b}' % (
            json.dumps(text).encode(),
            logprobs,
            json.dumps(finish).encode(),
        )
        return b'data: {"choices":[%b]}\n\n' % choice

    events = event(answer[:10]) + event(answer[10:], logprobs=deep) + event("", "stop") + b"data: [DONE]\n\n"

    async def write(writer: asyncio.StreamWriter) -> None:
        writer.write(events)

    async with rig.streamed_by_hand(write):
        async with asyncio.timeout(10):
            told = (await rig.ask(stream=True, logprobs=True)).body.decode()
        assert told.endswith("data: [DONE]\n\n")
        chunks = [json.loads(line[6:]) for line in told.splitlines() if line.startswith("data: {")]
        assert "".join(one["choices"][0]["delta"].get("content", "") for one in chunks) == answer
        assert await rig.value("cutover_requests_total", outcome="ok") == 1


async def test_fast_pieces_of_a_stream_are_handed_on_in_groups(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An arm that writes a character each millisecond; the caller gets all of them in far fewer writes."""
    answer = json.dumps({"damage": "none", "usable": "yes", "reason": "r"})
    written: list[bytes] = []
    hand_on = Connection._send

    async def counted(connection: Connection, piece: bytes) -> None:
        written.append(piece)
        await hand_on(connection, piece)

    monkeypatch.setattr(Connection, "_send", counted)

    async def write(writer: asyncio.StreamWriter) -> None:
        for one in [*answer, ""]:
            choice = {"delta": {"content": one}, "finish_reason": None if one else "stop"}
            writer.write(b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n")
            await writer.drain()
            await asyncio.sleep(0.001)
        writer.write(b"data: [DONE]\n\n")

    async with rig.streamed_by_hand(write):
        async with asyncio.timeout(10):
            told = (await rig.ask(stream=True)).body.decode()
        chunks = [json.loads(line[6:]) for line in told.splitlines() if line.startswith("data: {")]
        assert "".join(one["choices"][0]["delta"].get("content", "") for one in chunks) == answer
        assert len(chunks) >= len(answer)
        assert len(written) <= len(answer) / 2
