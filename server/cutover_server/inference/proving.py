"""`cutover-engine prove`: stands beside a server that proves nothing itself, and holds the pod back until it is proven.

The stored probe is asked as soon as the server is healthy, and again whenever it has been away: a restarted server may
have loaded something else. Ready only while the proof holds. A proof that fails ends the process with exit code 65 and
the reason in the termination message, like the engine's own.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import aiohttp
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from cutover.contract import PATH_LIVE, PATH_READY, ExitCode
from cutover.probe import Probe
from cutover_server.inference.adapter_tensors import refuse_vision_targets
from cutover_server.inference.failure import report_failure
from cutover_server.inference.http_server import Server, config
from cutover_server.inference.lines import log
from cutover_server.inference.probe import disproof, judge, read_probe
from cutover_server.inference.refusal import Unservable
from cutover_server.inference.remote_probe import probe_logprobs, probe_request
from cutover_server.inference.settings import ProveSettings

PERIOD_SECONDS = 1.0
"""Much less than a server takes to start, so that no restart goes unseen."""
HEALTH_SECONDS = 5.0
ANSWER_SECONDS = 300.0
"""The first picture of a cold server may take long."""
CHAT = "/v1/chat/completions"


class _Away(Exception):
    """The server gives no answer now; it may later."""


class Prover:
    """`proven` is the pod's readiness."""

    def __init__(self, settings: ProveSettings, probe: Probe, session: aiohttp.ClientSession) -> None:
        self.proven = False
        self._settings = settings
        self._probe = probe
        self._session = session

    async def run(self) -> None:
        """Until cancelled. Raises Unservable when the server answers otherwise than the trained model."""
        while True:
            try:
                await self.look()
            except _Away as problem:
                if self.proven:
                    log("server_away", level="warning", problem=str(problem))
                self.proven = False
            await asyncio.sleep(PERIOD_SECONDS)

    async def look(self) -> None:
        """One look at the server's health, and the proof if there is none in force. Raises _Away and Unservable."""
        await self._healthy()
        if self.proven:
            return
        probe, name = self._probe, self._settings.served_name
        compared = len(probe.answer_token_ids) - 1
        base = probe.base_logprobs[:compared]
        proof = judge(await self._ask(name), probe.adapter_logprobs[:compared], base)
        if not proof.holds:
            raise disproof(proof, base, await self._ask(self._settings.base_name))
        self.proven = True
        log("proven", served_name=name, distance=proof.distance, base_distance=proof.base_distance)

    async def _healthy(self) -> None:
        try:
            timeout = aiohttp.ClientTimeout(total=HEALTH_SECONDS)
            async with self._session.get(f"{self._settings.origin}/health", timeout=timeout) as response:
                if response.status != 200:
                    raise _Away(f"/health answers {response.status}")
        except (aiohttp.ClientError, TimeoutError) as error:
            raise _Away(f"/health: {type(error).__name__}") from error

    async def _ask(self, model: str) -> Sequence[float]:
        body = probe_request(self._probe, model)
        timeout = aiohttp.ClientTimeout(total=ANSWER_SECONDS)
        try:
            async with self._session.post(
                self._settings.origin + CHAT, json=body, timeout=timeout
            ) as response:
                text = await response.text()
                if response.status >= 500 or response.status == 429:
                    raise _Away(f"the probe is answered with {response.status}")
                if response.status != 200:
                    raise Unservable(
                        "ProbeRefused", f"the server answers the probe with {response.status}: {text[:500]}"
                    )
                reply: Any = await response.json(content_type=None)
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise _Away(f"the probe: {type(error).__name__}") from error
        return probe_logprobs(reply if isinstance(reply, dict) else {}, self._probe)


def probe_of(settings: ProveSettings) -> Probe:
    """Raises Unservable when there is none, or when it could not tell what vLLM leaves out of the adapter."""
    folder = Path(settings.adapter)
    refuse_vision_targets(folder)
    probe = read_probe(folder)
    if probe is None:
        raise Unservable(
            "NoProbe",
            f"adapter {folder.name} has no probe.json, so nothing proves that it is in force; train it "
            "with cutover-trainer, or add --allow-unproven to serving.args",
        )
    return probe


def build_app(prover: Prover) -> Starlette:
    async def ready(_request: Request) -> Response:
        return JSONResponse({"proven": prover.proven}, 200 if prover.proven else 503)

    async def live(_request: Request) -> Response:
        return JSONResponse({"proven": prover.proven})

    return Starlette(routes=[Route(PATH_READY, ready), Route(PATH_LIVE, live)])


async def _run(settings: ProveSettings) -> None:
    async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as session:
        prover = Prover(settings, probe_of(settings), session)
        server = Server(config(build_app(prover), settings.host, settings.port))
        proving = asyncio.create_task(prover.run())
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, proving.cancel)
        serving = asyncio.create_task(server.serve())
        try:
            with contextlib.suppress(asyncio.CancelledError):
                await proving
        finally:
            server.should_exit = True
            await serving


def prove_command(settings: ProveSettings) -> int:
    try:
        asyncio.run(_run(settings))
    except Exception as error:  # the pod's termination message must name every cause
        return report_failure(error)
    return ExitCode.DONE
