"""The engine as a process: what it does with a signal, and how it ends when it must not serve."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import torch
from safetensors.torch import load_file, save_file

from cutover.contract import ExitCode
from cutover_server.inference.process import run
from cutover_server.inference.settings import FetchSettings, ServeSettings, read_settings
from fakes import sample_models
from fakes.free_ports import free_port

DEADLINE_SECONDS = 60.0


def log_lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


async def becomes(reading: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(DEADLINE_SECONDS):
        while True:
            if await reading():
                return
            await asyncio.sleep(0.002)


async def test_an_adapter_that_does_not_fit_ends_with_65_and_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = sample_models.tiny_llava()
    adapter = tmp_path / "adapter"
    shutil.copytree(sample_models.lora_adapter(base), adapter)
    weights = load_file(adapter / "adapter_model.safetensors")
    renamed = {name.replace("language_model.", ""): value for name, value in weights.items()}
    save_file(renamed, adapter / "adapter_model.safetensors")
    sample_models.write_manifest(adapter)
    code = await run(ServeSettings(base=str(base), adapter=str(adapter), host="127.0.0.1", port=0))
    assert code == ExitCode.BAD_INPUT
    [failure] = [line for line in log_lines(capsys) if line["event"] == "not_servable"]
    assert (failure["level"], failure["reason"]) == ("error", "AdapterKeysMismatch")


async def test_sigterm_ends_readiness_and_finishes_what_was_admitted(
    capsys: pytest.CaptureFixture[str],
) -> None:
    torch.set_num_threads(1)
    base, port = sample_models.tiny_llava(), free_port()
    adapter = str(sample_models.lora_adapter(base))
    settings = ServeSettings(
        base=str(base), adapter=adapter, served_name="m", host="127.0.0.1", port=port, max_batch=1
    )
    process = asyncio.create_task(run(settings))
    origin = f"http://127.0.0.1:{port}"
    async with aiohttp.ClientSession() as session:

        async def ready() -> bool:
            try:
                async with session.get(f"{origin}/health") as answer:
                    return answer.status == 200
            except aiohttp.ClientConnectionError:
                return False

        async def not_ready() -> bool:
            return not await ready()

        async def some_wait() -> bool:
            async with session.get(f"{origin}/metrics") as answer:
                text = await answer.text()
            gauge = next(line for line in text.splitlines() if line.startswith("cutover_engine_queued "))
            return float(gauge.split()[1]) >= 3

        async def ask(seed: int) -> tuple[int, int]:
            body = {"model": "m", "messages": sample_models.question(seed), "max_tokens": 150}
            async with session.post(f"{origin}/v1/chat/completions", json=body) as answer:
                document = await answer.json()
                return answer.status, document.get("usage", {}).get("completion_tokens", 0)

        await becomes(ready)
        asked = [asyncio.create_task(ask(seed)) for seed in range(12)]
        await becomes(some_wait)
        os.kill(os.getpid(), signal.SIGTERM)
        await becomes(not_ready)
        answers = await asyncio.gather(*asked)
    served = [tokens for code, tokens in answers if code == 200]
    assert all(code in (200, 503) for code, _ in answers)
    assert len(served) >= 3
    assert all(tokens > 0 for tokens in served)
    async with asyncio.timeout(DEADLINE_SECONDS):
        assert await process == ExitCode.DONE
    lines = log_lines(capsys)
    events = [line["event"] for line in lines]
    assert events.count("answered") == len(served)
    assert "drain_cut_short" not in events
    everything = json.dumps(lines)
    assert "base64" not in everything
    assert sample_models.QUESTION not in everything


def test_arguments_win_over_their_variables() -> None:
    env = {
        "CUTOVER_ENGINE_MAX_QUEUE": "7",
        "CUTOVER_ENGINE_THREADS": "3",
        "CUTOVER_ENGINE_ALLOW_UNPROVEN": "true",
    }
    settings = read_settings(["--base", "/models/base", "--threads", "2"], env)
    assert isinstance(settings, ServeSettings)
    assert (settings.max_queue, settings.threads, settings.allow_unproven) == (7, 2, True)
    assert read_settings(["fetch", "s3://b/m", "/cache/m"], {}) == FetchSettings("s3://b/m", "/cache/m")


@pytest.mark.parametrize(
    "words", [[], ["--base", "x", "--max-batch", "0"], ["--base", "x", "--family", "gpt"]]
)
def test_a_wrong_command_line_is_refused(words: list[str]) -> None:
    with pytest.raises(SystemExit):
        read_settings(words, {})
