"""The gateway as a process: killed under load, drained, started without anything around it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import pytest

from cutover_server.gateway.settings import SettingsError, read_settings
from fakes.gateway_rig import Rig, running, until


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with aiohttp.ClientSession() as session:
        yield Rig(tmp_path, session)


@contextlib.contextmanager
def process(rig: Rig) -> Iterator[subprocess.Popen[bytes]]:
    log = (rig.folder / "gateway.log").open("ab")
    started = subprocess.Popen(
        [sys.executable, "-m", "cutover_server.gateway.main"],
        env={**os.environ, **rig.environment()},
        stderr=log,
        stdout=log,
    )
    try:
        yield started
    finally:
        started.kill()
        started.wait()
        log.close()


async def test_a_kill_under_load_loses_no_answered_request(rig: Rig) -> None:
    rig.write_route(rig.route(weight_basis_points=5000, shadow_basis_points=5000))
    rig.control.behaviour.latency_mean_seconds = 0.02
    rig.candidate.behaviour.latency_mean_seconds = 0.02
    answered: set[str] = set()

    async def load(worker: int) -> None:
        number = 0
        while True:
            number += 1
            try:
                answer = await rig.ask(number, f"house-{worker}-{number}")
            except aiohttp.ClientError:
                return
            assert answer.status == 200
            answered.add(answer.document["id"])

    async with rig.models():
        rig.assessments.status = 503
        async with running(rig.assessments.app(), rig.ports["assessments"]):
            with process(rig) as gateway:
                await until(rig.ready, 30)
                workers = [asyncio.create_task(load(worker)) for worker in range(6)]
                await until(lambda: len(answered) >= 60, 30)
                rig.assessments.status = 200
                await until(lambda: rig.assessments.records, 30)
                gateway.send_signal(signal.SIGKILL)  # with a backlog half delivered
                await asyncio.gather(*workers)
        async with running(rig.assessments.app(), rig.ports["assessments"]):
            with process(rig):
                await until(lambda: answered <= set(rig.assessments.records), 30)

                async def empty() -> bool:
                    return await rig.ready() and await rig.value("cutover_spool_records") == 0

                await until(empty)
    assert rig.assessments.problems == []
    assert len(rig.assessments.records) - len(answered) <= 6, "at most what was in flight at the kill"
    assert all(
        record["pictures"][0] in rig.assessments.pictures for record in rig.assessments.records.values()
    )


async def test_sigterm_finishes_what_is_in_flight_and_then_leaves(rig: Rig) -> None:
    rig.write_route(rig.route())
    rig.control.behaviour.latency_mean_seconds = 1.0
    async with rig.models(), running(rig.assessments.app(), rig.ports["assessments"]):
        with process(rig) as gateway:
            await until(rig.ready, 30)
            asking = asyncio.create_task(rig.ask(1, "house-1"))
            await until(lambda: rig.control.in_flight)
            gateway.send_signal(signal.SIGTERM)

            async def draining() -> bool:
                return not await rig.ready()

            await until(draining)
            assert gateway.poll() is None
            answer = await asking
            assert answer.status == 200
            assert answer.headers["connection"] == "close", "the caller is to open its next one elsewhere"
            assert await asyncio.to_thread(gateway.wait, 15) == 0
    assert answer.document["id"] in rig.assessments.records
    log = (rig.folder / "gateway.log").read_text()
    assert "sk-control" not in log
    assert "base64" not in log
    assert all(json.loads(line) for line in log.splitlines())


async def test_it_serves_with_everything_else_down(rig: Rig) -> None:
    """No API server, no assessments, no control: up, ready, and answering with the cached route's candidate."""
    (rig.folder / "spool").mkdir()
    cached = rig.route(weight_basis_points=10_000, generation=4)
    (rig.folder / "spool" / "route.json").write_text(json.dumps(cached.to_wire()))
    plain = rig.environment()
    del plain["CUTOVER_ROUTE_FILE"]
    (rig.folder / "token").write_text("t")
    plain |= {
        "CUTOVER_ROUTE_CONFIGMAP": "main-route",
        "CUTOVER_SERVICE_ACCOUNT_FOLDER": str(rig.folder),
        "KUBERNETES_SERVICE_HOST": "127.0.0.1",
        "KUBERNETES_SERVICE_PORT": "1",
        "POD_NAMESPACE": "ns",
    }
    settings = read_settings(plain)
    rig.settings |= {
        name: getattr(settings, name)
        for name in ("route_file", "route_config_map", "kubernetes_url", "account_folder", "namespace")
    }
    async with rig.models(), rig.gateway():
        answer = await rig.ask(1)
        assert (answer.status, answer.headers["x-cutover-version"]) == (200, "v2")
        assert (await rig.report())["generation"] == 4
        assert await rig.value("cutover_spool_records") == 1


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"CUTOVER_INTERNAL_TOKEN": ""}, "CUTOVER_INTERNAL_TOKEN"),
        ({"CUTOVER_ROUTE_FILE": ""}, "CUTOVER_ROUTE_CONFIGMAP"),
        ({"CUTOVER_MAX_IN_FLIGHT_BYTES": "many"}, "CUTOVER_MAX_IN_FLIGHT_BYTES"),
        ({"CUTOVER_GATEWAY_NAME": "other"}, "CUTOVER_GATEWAY_NAME"),
        ({"CUTOVER_GATEWAY_CONFIG": "/nowhere.yaml"}, "CUTOVER_GATEWAY_CONFIG"),
        ({"CUTOVER_ASSESSMENTS_URL": "assessments"}, "CUTOVER_ASSESSMENTS_URL"),
    ],
)
async def test_wrong_settings_are_named(rig: Rig, change: dict[str, str], word: str) -> None:
    with pytest.raises(SettingsError, match=word):
        read_settings({**rig.environment(), **change})
