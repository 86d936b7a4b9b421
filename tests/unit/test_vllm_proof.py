"""A vLLM pod is ready only while its adapter is proven: with the answers a real vLLM gave to the stored probe."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from cutover.contract import ExitCode
from cutover_server.inference import proving
from cutover_server.inference.main import main
from cutover_server.inference.probe import judge, read_probe
from cutover_server.inference.proving import Prover, build_app, probe_of
from cutover_server.inference.refusal import Unservable
from cutover_server.inference.remote_probe import probe_logprobs, probe_request
from cutover_server.inference.settings import ProveSettings, read_settings
from fakes import vllm_pod, vllm_recording
from fakes.free_ports import free_port
from fakes.gateway_rig import running, until


def adapter(kind: str = "damage") -> Path:
    return vllm_pod.under(vllm_pod.files(), f"{vllm_pod.ADAPTERS_PATH}/{kind}")


def settings(**more: Any) -> ProveSettings:
    plain = ProveSettings(
        origin="http://127.0.0.1:1", adapter=str(adapter()), served_name=vllm_pod.NAME, host="127.0.0.1"
    )
    return replace(plain, **more)


def told(recording: str, kind: str = "damage") -> list[float]:
    probe = read_probe(adapter(kind))
    assert probe is not None
    return probe_logprobs(vllm_recording.read(recording).reply, probe)


def proof_of(recording: str, kind: str = "damage") -> Any:
    probe = read_probe(adapter(kind))
    assert probe is not None
    served = told(recording, kind)
    count = len(probe.answer_token_ids) - 1
    return judge(served, probe.adapter_logprobs[:count], probe.base_logprobs[:count])


def test_the_recorded_question_is_the_one_that_is_put() -> None:
    probe = read_probe(adapter())
    assert probe is not None
    assert vllm_recording.read("probe_adapter").body == probe_request(probe, vllm_pod.NAME)


def test_vllm_gives_the_trained_and_the_base_values_to_four_decimals() -> None:
    probe = read_probe(adapter())
    assert probe is not None
    assert told("probe_adapter") == pytest.approx(probe.adapter_logprobs[:-1], abs=5e-5)
    assert told("probe_base") == pytest.approx(probe.base_logprobs[:-1], abs=5e-5)
    assert proof_of("probe_adapter").holds


def test_an_adapter_vllm_finds_no_place_for_is_told_from_the_trained_one() -> None:
    # It was served under the adapter's name, listed, and called healthy.
    listed = vllm_recording.read("bare_models").reply["data"]
    assert [one["id"] for one in listed] == ["base", vllm_pod.NAME]
    assert told("bare_probe") == pytest.approx(told("probe_base"), abs=1e-6)
    assert not proof_of("bare_probe").holds


def test_half_the_precision_is_near_enough() -> None:
    proof = proof_of("half_probe")
    assert proof.holds
    assert proof.distance > 1e-4


def test_what_vllm_leaves_out_of_a_vision_adapter_is_not_left_to_the_probe() -> None:
    # Accepted like the others, and only its language model's part applied: so little that the proof alone would hold.
    assert vllm_recording.read("load_vision").status == 200
    assert told("vision_probe", "vision") == pytest.approx(told("vision_probe", "damage"), abs=0)
    probe = read_probe(adapter("vision"))
    assert probe is not None
    assert told("vision_probe", "vision") != pytest.approx(probe.adapter_logprobs[:-1], abs=1e-3)
    with pytest.raises(Unservable) as caught:
        probe_of(settings(adapter=str(adapter("vision"))))
    assert caught.value.reason == "AdapterTargetsVision"
    assert "lora.targets language_model" in caught.value.message


class Vllm:
    """Health and probe of a recorded vLLM."""

    def __init__(self, adapter_reply: str = "probe_adapter", base_reply: str = "probe_base") -> None:
        self.replies = {vllm_pod.NAME: adapter_reply, "base": base_reply}
        self.status = 200
        self.health = 200
        self.asked: list[str] = []
        self.app = Starlette(
            routes=[
                Route("/health", self._health),
                Route("/v1/chat/completions", self._chat, methods=["POST"]),
            ]
        )

    async def _health(self, _request: Request) -> Response:
        return Response(status_code=self.health)

    async def _chat(self, request: Request) -> Response:
        model = (await request.json())["model"]
        self.asked.append(model)
        if self.status != 200:
            return JSONResponse({"error": {"message": "no", "type": "x", "code": self.status}}, self.status)
        return JSONResponse(vllm_recording.read(self.replies[model]).reply)


@asynccontextmanager
async def prover_of(vllm: Vllm, **more: Any) -> AsyncIterator[Prover]:
    port = free_port()
    async with running(vllm.app, port), aiohttp.ClientSession() as session:
        wanted = settings(origin=f"http://127.0.0.1:{port}", **more)
        yield Prover(wanted, probe_of(wanted), session)


async def test_a_proven_server_is_asked_once() -> None:
    vllm = Vllm()
    async with prover_of(vllm) as prover:
        await prover.look()
        await prover.look()
        assert prover.proven
        assert vllm.asked == [vllm_pod.NAME]


async def test_the_base_under_the_adapters_name_is_named_as_such() -> None:
    async with prover_of(Vllm("bare_probe")) as prover:
        with pytest.raises(Unservable) as caught:
            await prover.look()
        assert not prover.proven
    assert caught.value.reason == "AdapterProofFailed"
    assert "the base is the right one, the adapter is not applied as trained" in caught.value.message


async def test_a_request_vllm_refuses_proves_nothing() -> None:
    vllm = Vllm()
    vllm.status = 404
    async with prover_of(vllm) as prover:
        with pytest.raises(Unservable) as caught:
            await prover.look()
    assert caught.value.reason == "ProbeRefused"


async def test_a_server_that_was_away_is_proven_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proving, "PERIOD_SECONDS", 0.01)
    vllm = Vllm()
    vllm.health = 503
    async with prover_of(vllm) as prover:
        port = free_port()
        async with running(build_app(prover), port), aiohttp.ClientSession() as session:

            async def answers(status: int) -> bool:
                async with session.get(f"http://127.0.0.1:{port}/readyz") as response:
                    return response.status == status

            task = asyncio.create_task(prover.run())
            assert await answers(503)
            vllm.health = 200
            await until(lambda: answers(200))
            vllm.health = 500
            await until(lambda: answers(503))
            # Busy is not wrong: it is asked until it answers.
            vllm.health, vllm.status = 200, 503
            await until(lambda: len(vllm.asked) > 3)
            assert await answers(503)
            vllm.status = 200
            await until(lambda: answers(200))
            vllm.health = 500
            await until(lambda: answers(503))
            vllm.replies[vllm_pod.NAME] = "bare_probe"
            vllm.health = 200
            with pytest.raises(Unservable):
                await task


async def test_another_prompt_or_no_numbers_are_refused() -> None:
    probe = read_probe(adapter())
    assert probe is not None
    reply = json.loads(json.dumps(vllm_recording.read("probe_adapter").reply))
    reply["prompt_token_ids"][3] += 1
    with pytest.raises(Unservable) as caught:
        probe_logprobs(reply, probe)
    assert caught.value.reason == "PromptMismatch"
    for damaged in ({}, {**reply, "prompt_logprobs": None}):
        with pytest.raises(Unservable) as caught:
            probe_logprobs(damaged, probe)
        assert caught.value.reason == "ProbeUnanswered"


def test_without_a_probe_the_process_ends_with_65(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "adapter"
    shutil.copytree(adapter(), folder)
    (folder / "probe.json").unlink()
    line = ["prove", "--origin", "http://127.0.0.1:1", "--adapter", str(folder), "--served-name", "x"]
    assert main([*line, "--port", "0", "--host", "127.0.0.1"]) == ExitCode.BAD_INPUT
    assert "--allow-unproven" in capsys.readouterr().out
    assert read_settings(line, {}) == ProveSettings("http://127.0.0.1:1", str(folder), "x")
