"""The soak's town of local processes: two gateways with their listeners, the assessments service and PostgreSQL are real
and die for real.

In the place of Kubernetes stand a route file and a balancer that, like kube-proxy, gives each new connection to one of
the gateways that say they are ready. The models are stand-ins in this process.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Coroutine, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

import yaml

from cutover.route import Arm, FallbackRules, GatewayConfig, LabelSampling, Price, Provider, Route
from fakes import postgres_server
from fakes.free_ports import free_port
from fakes.gateway_load import Load
from fakes.gateway_rig import TASK, running, sample_sum
from fakes.openai_server import FakeOpenAI, Model
from soak.gateway_account import Row, Story, endpoint
from soak.gateway_balancer import Balancer
from soak.gateway_phases import QUICK_SECONDS

T = TypeVar("T")
ARMS = ("control", "candidate", "backup")
WEIGHTS = (2000, 3500, 5000, 6000, 7000, 8000, 9000)
TOKENS = {f"CUTOVER_{role}_TOKEN": f"{role.lower()}-token-0123456789" for role in ("ADMIN", "INTERNAL")}
START_SECONDS = 60.0


class Processes:
    """See the module. Use as a context manager: nothing of it outlives the block."""

    gateways: tuple[str, ...] = ("gateway-0", "gateway-1")
    has_backup = True

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ports = {
            name: free_port()
            for name in (
                *ARMS,
                "assessments",
                "assessments-ops",
                "balancer",
                *self.gateways,
                *(f"{one}-ops" for one in self.gateways),
            )
        }
        self._models = {arm: Model(TASK, f"{arm}-model") for arm in ARMS}
        self._streaming = {self.gateways[0]: "buffered", self.gateways[1]: "buffered"}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._up: dict[str, contextlib.AsyncExitStack] = {}
        self._loop = asyncio.new_event_loop()
        self._balancer = Balancer(
            {one: (self._ports[one], self._ports[f"{one}-ops"]) for one in self.gateways}
        )
        self._load: Load
        self._stack = contextlib.ExitStack()
        self._weight = -1
        self._route: Route

    def __enter__(self) -> Processes:
        try:
            self._open()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _open(self) -> None:
        thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        thread.start()
        self._stack.callback(thread.join, 10)
        self._stack.callback(self._loop.call_soon_threadsafe, self._loop.stop)
        self._stack.callback(lambda: self._wait(_cancel_the_rest()))
        self._database = postgres_server.new_server()
        self._database.sql("CREATE DATABASE soak")
        for arm in ARMS:
            self._models[arm].behaviour.latency_mean_seconds = QUICK_SECONDS
            self._wait(self._start_arm(arm))
            self._stack.callback(self._end_arm, arm)
        self._write_configuration()
        self._stack.callback(self._end_processes)
        self._start("assessments", "cutover_server.assessments.main", self._assessments_environment())
        for gateway in self.gateways:
            self._start(f"listener-{gateway}", "cutover_server.listener", self._listener_environment(gateway))
            self._start_gateway(gateway)
        for gateway in self.gateways:
            self.back(gateway)
        self._wait(self._balancer.start(self._ports["balancer"]))
        self._stack.callback(lambda: self._wait(self._balancer.stop()))
        ops = [f"http://127.0.0.1:{self._ports[f'{one}-ops']}" for one in self.gateways]
        self._load = Load(f"http://127.0.0.1:{self._ports['balancer']}", ops)
        asking = self._load.running()
        self._wait(asking.__aenter__())
        self._stack.callback(lambda: self._wait(asking.__aexit__(None, None, None)))

    # ------------------------------------------------------------------ starting

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        future: Future[T] = asyncio.run_coroutine_threadsafe(work, self._loop)
        return future.result(60)

    async def _start_arm(self, arm: str) -> None:
        self._up[arm] = contextlib.AsyncExitStack()
        await self._up[arm].enter_async_context(running(FakeOpenAI(self._models[arm]).app, self._ports[arm]))

    def _end_arm(self, arm: str) -> None:
        self._wait(self._stop_arm(arm))

    async def _stop_arm(self, arm: str) -> None:
        await self._up.pop(arm, contextlib.AsyncExitStack()).aclose()

    def _arm(self, arm: str) -> Arm:
        return Arm(
            name=arm,
            version=f"{arm}-1",
            base_url=f"http://127.0.0.1:{self._ports[arm]}/v1",
            model=f"{arm}-model",
            price=Price(usd_per_request=0.01),
        )

    def _write_configuration(self) -> None:
        control = self._arm("control")
        provider = Provider(base_url=control.base_url, model=control.model, price=control.price)
        config = GatewayConfig(
            name="assessor", task=TASK, providers={"control": provider}, default_provider="control"
        )
        (self.folder / "gateway.yaml").write_text(yaml.safe_dump(config.to_wire()))
        (self.folder / "task.yaml").write_text(yaml.safe_dump(TASK.model_dump(mode="json", by_alias=True)))
        (self.folder / "keys").mkdir()
        self._route = Route(
            generation=1,
            rollout="0123456789abc",
            rollout_name="soak",
            task=TASK,
            control=control,
            candidate=self._arm("candidate"),
            fallback=self._arm("backup"),
            salt="soak",
            shadow_basis_points=2000,
            fallback_rules=FallbackRules(deadline_seconds=2.5),
            labels=LabelSampling(probability={"all": 0.1}),
        )
        self._write_route()

    def _write_route(self) -> None:
        part = self.folder / "route.part"
        part.write_text(json.dumps(self._route.to_wire()))
        part.replace(self.folder / "route.json")

    def _start(self, name: str, module: str, environment: dict[str, str]) -> None:
        log = (self.folder / f"{name}.log").open("ab")
        code = f"from {module} import main; main()"
        self._processes[name] = subprocess.Popen(
            [sys.executable, "-c", code], env={**os.environ, **environment}, stdout=log, stderr=log
        )
        log.close()

    def _end_processes(self) -> None:
        for process in self._processes.values():
            process.kill()
        for process in self._processes.values():
            process.wait(10)

    def _assessments_environment(self) -> dict[str, str]:
        return TOKENS | {
            "CUTOVER_TASK": str(self.folder / "task.yaml"),
            "CUTOVER_DATABASE_URL": self._database.url("soak"),
            "CUTOVER_PICTURES_URI": str(self.folder / "pictures"),
            "CUTOVER_PORT_APP": str(self._ports["assessments"]),
            "CUTOVER_PORT_OPS": str(self._ports["assessments-ops"]),
        }

    def _listener_environment(self, gateway: str) -> dict[str, str]:
        return {
            "CUTOVER_LISTENER_SOCKET": str(self.folder / f"listener-{gateway}"),
            "CUTOVER_PORT_APP": str(self._ports[gateway]),
            "CUTOVER_HOST": "127.0.0.1",
        }

    def _start_gateway(self, gateway: str) -> None:
        environment = self._listener_environment(gateway) | {
            "CUTOVER_GATEWAY_NAME": "assessor",
            "CUTOVER_GATEWAY_CONFIG": str(self.folder / "gateway.yaml"),
            "CUTOVER_ROUTE_FILE": str(self.folder / "route.json"),
            # Each has a claim of its own, which outlives it.
            "CUTOVER_SPOOL_DIR": str(self.folder / f"spool-{gateway}"),
            "CUTOVER_ASSESSMENTS_URL": f"http://127.0.0.1:{self._ports['assessments']}",
            "CUTOVER_INTERNAL_TOKEN": TOKENS["CUTOVER_INTERNAL_TOKEN"],
            "CUTOVER_KEYS_FOLDER": str(self.folder / "keys"),
            "CUTOVER_PORT_OPS": str(self._ports[f"{gateway}-ops"]),
            "CUTOVER_LAST_ARM_SECONDS": "5",
            "CUTOVER_DRAIN_DELAY_SECONDS": "1",
            "CUTOVER_DRAIN_SECONDS": "20",
            "CUTOVER_STREAMING": self._streaming[gateway],
            "POD_NAME": gateway,
        }
        self._start(gateway, "cutover_server.gateway.main", environment)

    # ------------------------------------------------------------------ the town, see gateway_phases.Town

    def endpoint(self, arm: str) -> str:
        return endpoint(self._arm(arm))

    def load(self, requests_per_second: float | None = None, phase: str | None = None) -> None:
        def change() -> None:
            self._load.phase = self._load.phase if phase is None else phase
            if requests_per_second is not None:
                self._load.requests_per_second = requests_per_second

        self._loop.call_soon_threadsafe(change)

    def state(self) -> dict[str, Any]:
        async def read() -> dict[str, Any]:
            return self._load.state()

        return self._wait(read())

    def route_text(self) -> str:
        return (self.folder / "route.json").read_text()

    def next_weight(self) -> None:
        self._weight = min(self._weight + 1, len(WEIGHTS) - 1)
        self._route = self._route.model_copy(
            update={
                "generation": self._route.generation + 1,
                "weight_basis_points": WEIGHTS[self._weight],
            }
        )
        self._write_route()

    def behave(self, arm: str, **settings: Any) -> None:
        def change() -> None:
            for name, value in settings.items():
                setattr(self._models[arm].behaviour, name, value)

        self._loop.call_soon_threadsafe(change)

    @contextlib.contextmanager
    def arm_away(self, arm: str) -> Iterator[None]:
        self._wait(self._stop_arm(arm))
        try:
            yield
        finally:
            self._wait(self._start_arm(arm))

    @contextlib.contextmanager
    def database_away(self) -> Iterator[None]:
        self._database.stop()
        try:
            yield
        finally:
            self._database.start()

    def source_away(self) -> None:
        return None

    def metrics_away(self) -> None:
        return None

    def waiting(self, gateway: str) -> int:
        url = f"http://127.0.0.1:{self._ports[f'{gateway}-ops']}/metrics"
        with urllib.request.urlopen(url, timeout=5) as reply:
            return int(sample_sum(reply.read().decode(), "cutover_spool_records"))

    def kill(self, gateway: str) -> tuple[float, float]:
        process, at = self._processes[gateway], time.time()
        process.send_signal(signal.SIGKILL)
        process.wait(30)
        gone_at = time.time()
        self._start_gateway(gateway)
        return at, gone_at

    def back(self, gateway: str) -> None:
        end = time.monotonic() + START_SECONDS
        while True:
            if (code := self._processes[gateway].poll()) is not None:
                log = (self.folder / f"{gateway}.log").read_text()[-2000:]
                raise RuntimeError(f"{gateway} ended with {code}:\n{log}")
            with contextlib.suppress(OSError):
                url = f"http://127.0.0.1:{self._ports[f'{gateway}-ops']}/readyz"
                with urllib.request.urlopen(url, timeout=2):
                    return
            if time.monotonic() > end:
                raise RuntimeError(f"{gateway} is not ready within {START_SECONDS:.0f} s")
            time.sleep(0.1)

    def leave(self, gateway: str) -> None:
        process = self._processes[gateway]
        process.send_signal(signal.SIGTERM)
        code = process.wait(40)
        if code != 0:
            log = (self.folder / f"{gateway}.log").read_text()[-2000:]
            raise RuntimeError(f"{gateway} left with {code}:\n{log}")
        self._start_gateway(gateway)
        self.back(gateway)

    def pass_streams(self) -> bool:
        for gateway in self.gateways:
            self._streaming[gateway] = "passthrough"
            self.leave(gateway)
        return True

    def rows(self) -> list[Row]:
        query = f"select id, assessment_id from assessments where assessment_id like '{self._load.prefix}-%'"
        psql = [str(self._database.binaries / "psql"), "-qtAX", "-F", " ", "-d", self._database.url("soak")]
        done = subprocess.run([*psql, "-c", query], capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"psql: {done.stderr.strip()}")
        return [Row(*line.split(" ", 1)) for line in done.stdout.splitlines()]

    def story_of_load(self, story: Story) -> None:
        story.asked = list(self._load.asked)
        story.seen = list(self._load.routes)
        story.unsent, story.stalls = self._load.skipped, list(self._load.stalls)


async def _cancel_the_rest() -> None:
    """Stand-ins that hang would do so for ever."""
    rest = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in rest:
        task.cancel()
    await asyncio.gather(*rest, return_exceptions=True)
