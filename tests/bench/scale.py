"""`make bench-scale`: what the operator costs with hundreds of rollouts under way, beside Argo Rollouts' figures.

A real API server with its etcd, a real Prometheus, and the operator's own process. Every figure is taken from outside
the operator where that is possible: CPU and memory from /proc, requests from the API server's and Prometheus's own
counters. A goal that is missed is printed as FAIL; the exit code only says whether the bench could run.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import yaml

from bench.scale_town import Fleet
from cluster import packages
from cluster.api import Api
from cluster.controlplane import ControlPlane
from cluster.daemons import Daemon
from cutover_operator import access
from cutover_operator.kube import KubeClient
from cutover_operator.port import MODEL_ROLLOUTS, KubeError
from fakes.free_ports import free_port

ROOT = Path(__file__).resolve().parents[2]
RESULT = ROOT / "build/bench/scale.json"
SIZES = (500, 2000)
INTERVAL_SECONDS = 10.0
SCRAPE_SECONDS = 10.0
SETTLE_SECONDS = 330.0
"""While a step is young its ledger is also stored each time the evidence has doubled."""
WINDOW_SECONDS = 300.0
"""As long as the time between two checkpoints, so that each rollout's checkpoint falls into it once."""
BREACH_ROUNDS = 3
BREACHES = 20
WRITES = ("POST", "PUT", "PATCH", "DELETE", "APPLY")
ARGO = {"size": 500, "queries": 126.0, "status_writes": 41.0, "cores": 0.23, "rss_mb": 140.0}
"""Argo Rollouts 1.9, 500 analyses x 3 metrics x 10 s, measured on two cores like these."""


@dataclass
class Figures:
    """One size, measured over one steady window."""

    size: int
    window_seconds: float = 0.0
    queries: float = 0.0
    """Per second, as are the next four."""
    status_writes: float = 0.0
    ledger_writes: float = 0.0
    other_writes: float = 0.0
    reads: float = 0.0
    passes: float = 0.0
    reports_asked: float = 0.0
    status_writes_per_rollout: float = 0.0
    """In the window."""
    cores: float = 0.0
    rss_mb: float = 0.0
    peak_rss_mb: float = 0.0
    pass_mean_ms: float = 0.0
    pass_p99_ms: float = 0.0
    looks_per_interval: float = 0.0
    """Passes per rollout and interval."""
    breaches_seconds: list[float] = field(default_factory=list)


@dataclass
class Sampled:
    """Counters at one moment."""

    at: float
    cpu_seconds: float
    queries: float
    requests: dict[tuple[str, str, str], float]
    passes: dict[float, float]
    pass_seconds: float
    reports: int


class Operator:
    """The operator's process as a pod would run it."""

    def __init__(self, kubeconfig: Path, folder: Path, prometheus: str) -> None:
        self.log = folder / "operator.log"
        self.port = free_port()
        environment = {
            **os.environ,
            "KUBECONFIG": str(kubeconfig),
            "POD_NAME": "bench",
            "CUTOVER_OPS_PORT": str(self.port),
            "CUTOVER_PROMETHEUS_URL": prometheus,
            "CUTOVER_ENGINE_IMAGE": "engine:1",
            "MALLOC_ARENA_MAX": "2",  # as in the image
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "cutover_operator.main"],
            env=environment,
            stdout=self.log.open("w"),
            stderr=subprocess.STDOUT,
        )

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()

    def cpu_seconds(self) -> float:
        """User and system time of all its threads so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory_mb(self, name: str) -> float:
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(rf"{name}:\s+(\d+) kB", text)
        return int(found.group(1)) / 1024 if found else 0.0


def start_prometheus(folder: Path, exporter_port: int, port: int) -> Daemon:
    packages.install(packages.PROMETHEUS)
    scrape = {
        "job_name": "gateways",
        "honor_labels": True,
        "static_configs": [{"targets": [f"127.0.0.1:{exporter_port}"]}],
    }
    seconds = f"{SCRAPE_SECONDS:g}s"
    config = {
        "global": {"scrape_interval": seconds, "scrape_timeout": seconds},
        "scrape_configs": [scrape],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    daemon = Daemon("prometheus", folder, folder)
    daemon.start(
        [
            packages.find("prometheus") or "prometheus",
            f"--config.file={folder}/prometheus.yml",
            f"--storage.tsdb.path={folder}/tsdb",
            f"--web.listen-address=127.0.0.1:{port}",
        ]
    )
    return daemon


# ---------------------------------------------------------------- reading counters
LINE = re.compile(r"^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? ([^ ]+)$")
PAIR = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


def parsed(text: str, wanted: str) -> list[tuple[dict[str, str], float]]:
    """The samples of one metric in an exposition."""
    found = []
    for line in text.splitlines():
        if not line.startswith(wanted):
            continue
        match = LINE.match(line)
        if match and match.group(1) == wanted:
            found.append((dict(PAIR.findall(match.group(2) or "")), float(match.group(3))))
    return found


async def text_of(session: aiohttp.ClientSession, url: str) -> str:
    async with session.get(url) as answer:
        return await answer.text()


@dataclass
class Site:
    """What one size runs on."""

    api: Api
    operator: Operator
    fleet: Fleet
    prometheus: str
    session: aiohttp.ClientSession
    kube: KubeClient

    async def sampled(self) -> Sampled:
        cpu = self.operator.cpu_seconds()
        at = time.monotonic()
        own = await text_of(self.session, f"http://127.0.0.1:{self.operator.port}/metrics")
        theirs = await text_of(self.session, f"{self.prometheus}/metrics")
        served = await asyncio.to_thread(self.api.get, "metrics")
        requests: dict[tuple[str, str, str], float] = {}
        for labels, value in parsed(served, "apiserver_request_total"):
            key = (labels["verb"], labels["resource"], labels["subresource"])
            requests[key] = requests.get(key, 0.0) + value
        buckets = {
            float(labels["le"]): value
            for labels, value in parsed(own, "cutover_operator_pass_duration_seconds_bucket")
            if labels["kind"] == "ModelRollout"
        }
        spent = parsed(own, "cutover_operator_pass_duration_seconds_sum")
        queries = sum(
            value
            for labels, value in parsed(theirs, "prometheus_http_requests_total")
            if labels["handler"].startswith("/api/v1/query")
        )
        seconds = sum(value for labels, value in spent if labels["kind"] == "ModelRollout")
        return Sampled(at, cpu, queries, requests, buckets, seconds, self.fleet.reports_asked)

    async def in_live_step(self) -> int:
        """Rollouts that serve users, every gateway confirmed and metrics read."""
        try:
            found = await self.kube.list(MODEL_ROLLOUTS, None)
        except KubeError:
            return 0  # the API server is busy
        return sum(
            (obj.get("status") or {}).get("weight") == 10
            and bool(obj["status"].get("stepConfirmedAt"))
            and obj["status"].get("verdict") not in ("", "unavailable")
            for obj in found
        )


class TooLate(Exception):
    """What was waited for did not come true in time."""


async def until(what: str, probe: Callable[[], Awaitable[bool]], seconds: float, every: float = 1.0) -> None:
    deadline = time.monotonic() + seconds
    while not await probe():
        if time.monotonic() >= deadline:
            raise TooLate(f"{what}: not within {seconds:.0f} s")
        await asyncio.sleep(every)


# ---------------------------------------------------------------- measuring
def figures(size: int, first: Sampled, last: Sampled) -> Figures:
    seconds = last.at - first.at

    def requests(wanted: Callable[[str, str, str], bool]) -> float:
        grown = {k: v - first.requests.get(k, 0.0) for k, v in last.requests.items()}
        return sum(v for k, v in grown.items() if wanted(*k)) / seconds

    def is_write(verb: str, resource: str, part: str) -> bool:
        return verb in WRITES and resource != "leases"

    def is_status(verb: str, resource: str, part: str) -> bool:
        return is_write(verb, resource, part) and (resource, part) == ("modelrollouts", "status")

    def is_ledger(verb: str, resource: str, part: str) -> bool:
        return is_write(verb, resource, part) and resource == "configmaps"

    passes = {edge: n - first.passes.get(edge, 0.0) for edge, n in sorted(last.passes.items())}
    count = passes[float("inf")]
    status = requests(is_status)
    return Figures(
        size=size,
        window_seconds=seconds,
        queries=(last.queries - first.queries) / seconds,
        status_writes=status,
        ledger_writes=requests(is_ledger),
        other_writes=requests(lambda *key: is_write(*key) and not is_status(*key) and not is_ledger(*key)),
        reads=requests(lambda verb, resource, part: verb in ("GET", "LIST") and resource != "leases"),
        passes=count / seconds,
        reports_asked=(last.reports - first.reports) / seconds,
        status_writes_per_rollout=status * seconds / size,
        cores=(last.cpu_seconds - first.cpu_seconds) / seconds,
        pass_mean_ms=1000 * (last.pass_seconds - first.pass_seconds) / max(count, 1.0),
        pass_p99_ms=1000 * next((edge for edge, n in passes.items() if n >= 0.99 * count), float("inf")),
        looks_per_interval=count / seconds * INTERVAL_SECONDS / size,
    )


async def breaches(site: Site) -> list[float]:
    """Seconds from the scrape that showed a breach to weight 0 in the route, at all phases of the interval."""
    fleet = site.fleet
    for number in range(BREACH_ROUNDS):
        chosen = fleet.gateways[number::BREACH_ROUNDS][:: max(1, fleet.size // BREACH_ROUNDS // BREACHES)]
        for gateway in chosen:
            gateway.breach_next = True

        async def all_back(names: tuple[str, ...] = tuple(g.name for g in chosen)) -> bool:
            return all(name in fleet.zeroed for name in names)

        await until("weight 0 after a breach", all_back, 120, every=0.2)
    return sorted(
        fleet.zeroed[g.name] - g.breached_at
        for g in fleet.gateways
        if g.breached_at and g.name in fleet.zeroed
    )


async def measure(size: int, window: float, settle: float, folder: Path, profile: str) -> Figures:
    fleet = Fleet(size)
    with ControlPlane(folder / "plane") as plane:
        os.environ["KUBECONFIG"] = str(plane.kubeconfig)
        target = access.access(access.credentials())
        port = free_port()
        async with (
            fleet.serve(),
            KubeClient(target, request_seconds=60.0) as kube,
            aiohttp.ClientSession() as session,
        ):
            prometheus = start_prometheus(folder, fleet.port, port)
            url = f"http://127.0.0.1:{port}"
            operator: Operator | None = None
            following = asyncio.create_task(fleet.follow(kube, target))
            try:
                api = Api(plane.kubeconfig, timeout=60)
                await install(api, kube)
                say(f"{size} rollouts: creating their objects")
                await fleet.create(kube)
                operator = Operator(plane.kubeconfig, folder, url)
                site = Site(api, operator, fleet, url, session, kube)
                return await _measured(site, window, settle, profile)
            except BaseException:
                if operator is not None:
                    print(operator.log.read_text()[-4000:], file=sys.stderr)
                raise
            finally:
                following.cancel()
                if operator is not None:
                    operator.stop()
                prometheus.stop()


async def _measured(site: Site, window: float, settle: float, profile: str) -> Figures:
    size = site.fleet.size
    started = time.monotonic()

    async def all_live() -> bool:
        if site.operator.process.poll() is not None:
            raise RuntimeError("the operator ended")
        return await site.in_live_step() == size

    try:
        await until("every rollout in its live step", all_live, 120 + size / 4, every=5.0)
    except TooLate as late:
        say(f"{late}; {await site.in_live_step()} of {size} are")
    say(f"{size} rollouts live after {time.monotonic() - started:.0f} s; settling for {settle:.0f} s")
    await asyncio.sleep(settle)
    say(f"measuring for {window:.0f} s")
    first = await site.sampled()
    if profile:
        seconds, pid = f"{window * 0.8:.0f}", str(site.operator.process.pid)
        await asyncio.create_subprocess_exec(
            "py-spy", "record", "-d", seconds, "-o", profile, "-f", "raw", "-p", pid
        )
    await asyncio.sleep(window)
    last = await site.sampled()
    found = figures(size, first, last)
    found.rss_mb = site.operator.memory_mb("VmRSS")
    say("breaking some of them")
    found.breaches_seconds = [round(seconds, 3) for seconds in await breaches(site)]
    found.peak_rss_mb = site.operator.memory_mb("VmHWM")
    return found


async def install(api: Api, kube: KubeClient) -> None:
    for file in sorted((ROOT / "crds").glob("*.yaml")):
        kinds = "apis/apiextensions.k8s.io/v1/customresourcedefinitions"
        await asyncio.to_thread(api.call, "POST", kinds, yaml.safe_load(file.read_text()))

    async def served() -> bool:
        try:
            await kube.list(MODEL_ROLLOUTS, None)
        except KubeError:
            return False
        return True

    await until("the custom resources are served", served, 60)


# ---------------------------------------------------------------- what is printed
def goals(found: Figures) -> list[tuple[str, bool, str]]:
    """(goal, reached, what was measured). CPU and memory are compared at the size Argo was measured at."""
    worst = max(found.breaches_seconds, default=float("inf"))
    rows = [
        ("Prometheus queries <= 1/s", found.queries <= 1.0, f"{found.queries:.2f}/s"),
        (
            "no status write but for a verdict or a checkpoint (<= 1.1 per rollout in a checkpoint's time)",
            found.status_writes_per_rollout <= 1.1 * max(1.0, found.window_seconds / 300.0),
            f"{found.status_writes_per_rollout:.2f}",
        ),
        (
            "breach scraped to weight 0 within one interval + 1 s",
            worst <= INTERVAL_SECONDS + 1.0,
            f"worst of {len(found.breaches_seconds)}: {worst:.2f} s",
        ),
        (
            "every rollout judged every interval (>= 0.95 looks)",
            found.looks_per_interval >= 0.95,
            f"{found.looks_per_interval:.2f}",
        ),
    ]
    if found.size == ARGO["size"]:
        rows += [
            ("no more CPU than Argo's 0.23 cores", found.cores <= ARGO["cores"], f"{found.cores:.3f}"),
            (
                "no more memory than Argo's 140 MB",
                found.rss_mb <= ARGO["rss_mb"],
                f"{found.rss_mb:.0f} MB",
            ),
        ]
    return rows


def table(all_found: list[Figures]) -> str:
    rows: list[tuple[str, str, list[str]]] = [
        ("Prometheus queries /s", "126", [f"{f.queries:.2f}" for f in all_found]),
        ("status writes /s", "41", [f"{f.status_writes:.2f}" for f in all_found]),
        ("ledger (ConfigMap) writes /s", "-", [f"{f.ledger_writes:.2f}" for f in all_found]),
        ("other writes /s", "-", [f"{f.other_writes:.2f}" for f in all_found]),
        ("API-server reads /s", "-", [f"{f.reads:.2f}" for f in all_found]),
        ("gateway reports asked /s", "-", [f"{f.reports_asked:.2f}" for f in all_found]),
        ("looks per rollout and interval", "1", [f"{f.looks_per_interval:.2f}" for f in all_found]),
        ("cores (user + system)", "0.23", [f"{f.cores:.3f}" for f in all_found]),
        ("RSS, MB", "140", [f"{f.rss_mb:.0f}" for f in all_found]),
        ("highest RSS since the start, MB", "-", [f"{f.peak_rss_mb:.0f}" for f in all_found]),
        ("pass, mean ms", "-", [f"{f.pass_mean_ms:.1f}" for f in all_found]),
        ("pass, 99 % below ms", "-", [f"{f.pass_p99_ms:.0f}" for f in all_found]),
        (
            "breach scraped to weight 0, median s",
            "-",
            [f"{f.breaches_seconds[len(f.breaches_seconds) // 2]:.2f}" for f in all_found],
        ),
        ("breach scraped to weight 0, worst s", "-", [f"{f.breaches_seconds[-1]:.2f}" for f in all_found]),
    ]
    head = f"{'':36}{'Argo 500':>12}" + "".join(f"{f.size:>12}" for f in all_found)
    lines = [head, *(f"{name:36}{argo:>12}" + "".join(f"{v:>12}" for v in own) for name, argo, own in rows)]
    for found in all_found:
        for goal, reached, measured in goals(found):
            lines.append(f"{'PASS' if reached else 'FAIL'}  {found.size}: {goal}: {measured}")
    return "\n".join(lines)


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def main() -> int:
    options = argparse.ArgumentParser(prog="bench-scale")
    options.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    options.add_argument("--window", type=float, default=WINDOW_SECONDS, help="seconds measured")
    options.add_argument("--settle", type=float, default=SETTLE_SECONDS, help="seconds before that")
    options.add_argument("--profile", default="", help="file for py-spy's raw stacks of the window")
    options.add_argument("--result", type=Path, default=RESULT)
    chosen = options.parse_args()
    found: list[Figures] = []
    for size in chosen.sizes:
        with tempfile.TemporaryDirectory(prefix="bench-scale-", ignore_cleanup_errors=True) as folder:
            found.append(
                asyncio.run(measure(size, chosen.window, chosen.settle, Path(folder), chosen.profile))
            )
    print(table(found))
    document: dict[str, Any] = {
        "argo": ARGO,
        "interval_seconds": INTERVAL_SECONDS,
        "metrics": 3,
        "sizes": [asdict(one) for one in found],
        "goals": [
            {"size": one.size, "goal": goal, "reached": reached, "measured": measured}
            for one in found
            for goal, reached, measured in goals(one)
        ],
    }
    chosen.result.parent.mkdir(parents=True, exist_ok=True)
    chosen.result.write_text(json.dumps(document, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
