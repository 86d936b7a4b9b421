"""The engine as a process: what it does with a signal, and how it ends when it must not serve."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from cutover.contract import ExitCode
from cutover_server.inference.process import run
from cutover_server.inference.settings import ServeSettings
from fakes import sample_models
from fakes.sample_engines import until
from safetensors.torch import load_file, save_file

START_SECONDS = 90.0


@dataclass
class Process:
    handle: subprocess.Popen[bytes]
    output: Path
    port: int

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.output.read_text().splitlines()]


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    output = tmp_path_factory.mktemp("process") / "log"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    base = sample_models.tiny_llava()
    arguments = ["--base", str(base), "--adapter", str(sample_models.lora_adapter(base)), "--port", str(port)]
    with output.open("wb") as file:
        handle = subprocess.Popen(
            [sys.executable, "-m", "cutover_server.inference.main", *arguments, "--served-name", "m"],
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, "CUTOVER_ENGINE_HOST": "127.0.0.1", "CUTOVER_ENGINE_MAX_BATCH": "1"},
        )
    yield Process(handle, output, port)
    handle.kill()
    handle.wait()


async def becomes(reading: Callable[[], Awaitable[bool]], deadline_seconds: float) -> None:
    async with asyncio.timeout(deadline_seconds):
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
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    [failure] = [line for line in lines if line["event"] == "not_servable"]
    assert (failure["level"], failure["reason"]) == ("error", "AdapterKeysMismatch")


async def test_sigterm_ends_readiness_and_finishes_what_was_admitted(process: Process) -> None:
    origin = f"http://127.0.0.1:{process.port}"
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

        await becomes(ready, START_SECONDS)
        asked = [asyncio.create_task(ask(seed)) for seed in range(12)]
        await becomes(some_wait, 30)
        process.handle.send_signal(signal.SIGTERM)
        await becomes(not_ready, 30)
        answers = await asyncio.gather(*asked)
    served = [tokens for code, tokens in answers if code == 200]
    assert all(code in (200, 503) for code, _ in answers)
    assert len(served) >= 3
    assert all(tokens > 0 for tokens in served)
    await asyncio.to_thread(until, lambda: process.handle.poll() is not None)
    assert process.handle.returncode == ExitCode.DONE
    events = [line["event"] for line in process.lines]
    assert events.count("answered") == len(served)
    assert events[-1] == "stopped"
    assert "drain_cut_short" not in events


def test_logs_are_json_lines_without_what_was_asked(process: Process) -> None:
    text = process.output.read_text()
    assert process.lines
    assert "base64" not in text
    assert sample_models.QUESTION not in text
