"""`cutover-operator`: a process that leads or waits to lead.

Both replicas answer health checks; only the holder of the Lease watches, decides and writes. Losing the Lease shuts the
gate first and then ends the process at once: a half-dead leader is worse than a restart.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import logging
import os
import random
import signal
import sys
from collections.abc import Coroutine
from datetime import UTC, datetime
from typing import Any

import aiohttp

from cutover_operator import access, health, watches
from cutover_operator.kube import KubeClient
from cutover_operator.lease import GatedKube, Lease
from cutover_operator.loop import Loop
from cutover_operator.plan import Key
from cutover_operator.port import KubeError
from cutover_operator.rollout.reconciler import RolloutReconciler
from cutover_operator.settings import Settings, SettingsError
from cutover_operator.telemetry import Telemetry, configure_logging
from cutover_operator.training.reconciler import TrainingReconciler
from cutover_operator.workqueue import WorkQueue

log = logging.getLogger("cutover_operator")

LEASE_NAME = "cutover-operator"
RESYNC_SECONDS = 600.0
SPREAD_SECONDS = 30.0
"""A resync is spread out, so that it is no burst on the API server."""
GAUGE_SECONDS = 1.0
RETRY_SECONDS = 2.0
GIVE_BACK_SECONDS = 60.0
GARBAGE_OBJECTS = 50_000


def main() -> int:
    try:
        settings = Settings.from_environment(os.environ)
        info = access.credentials()
    except (SettingsError, access.NoAccess) as error:
        print(f"cutover-operator: {error}", file=sys.stderr)
        return 2
    configure_logging(settings.log_level)
    _collect_seldom()
    return asyncio.run(run(settings, access.access(info)))


def _collect_seldom() -> None:
    """What the imports made stays for good, and an answer of Prometheus is thousands of small lists: with the default
    thresholds the collector would walk over everything several times for each."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(GARBAGE_OBJECTS, 20, 50)


async def run(settings: Settings, target: access.Access) -> int:
    """Until SIGTERM (0), or until the watches or the Lease are lost (1)."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    telemetry = Telemetry()
    runner, port = await health.serve(telemetry, settings.ops_port)
    log.info("started", extra={"pod": settings.pod_name, "ops_port": port})
    async with (
        KubeClient(target) as kube,
        # The lease never waits for a connection behind the passes: a busy leader is a leader still.
        KubeClient(target) as lease_kube,
        aiohttp.ClientSession() as session,
    ):
        lease = Lease(lease_kube, settings.pod_namespace, LEASE_NAME, settings.pod_name)
        try:
            if not await _first(lease.acquire(), stop.wait()):
                return 0
            return await _lead(settings, kube, session, lease, telemetry, stop)
        finally:
            await runner.cleanup()


async def _lead(
    settings: Settings,
    kube: KubeClient,
    session: aiohttp.ClientSession,
    lease: Lease,
    telemetry: Telemetry,
    stop: asyncio.Event,
) -> int:
    gated = GatedKube(kube, lease)
    keeping = asyncio.create_task(lease.keep(), name="lease")
    keeping.add_done_callback(lambda task: None if task.cancelled() else _lost())
    queue: WorkQueue
    rollouts = RolloutReconciler(gated, settings, session)
    loop = Loop(
        gated,
        [TrainingReconciler(gated, settings), rollouts],
        clock=lambda: datetime.now(UTC),
        telemetry=telemetry,
        failures=lambda key: queue.failures(key),
        memories={rollouts.resource: rollouts.memory},
        ask=lambda key: queue.add(key),
    )
    queue = WorkQueue(loop.run_pass, settings.workers)
    telemetry.queue_depth.set_function(lambda: float(queue.depth))
    telemetry.leader.set_function(lambda: float(lease.held))

    def seen(key: Key, version: str) -> None:
        telemetry.watch_events.labels(key.resource.kind).inc()
        if loop.changed(key, version):
            queue.add(key)

    if not await _first(_kinds_served(kube, loop, settings), stop.wait()):
        await _hand_over(lease, keeping)
        return 0
    watching = watches.Watches(access.credentials, settings.namespaces, seen)
    watching.start()
    queue.start()
    resync = asyncio.create_task(_resync(kube, loop, queue, settings), name="resync")
    tidying = asyncio.create_task(_give_back(), name="tidying")
    stopped = not await _first(watching.ended(), stop.wait())
    log.info("ending", extra={"asked": stopped})
    resync.cancel()
    tidying.cancel()
    await queue.stop()
    await _hand_over(lease, keeping)
    if stopped:
        with contextlib.suppress(TimeoutError):
            await watching.stop()
    return 0 if stopped else 1


async def _hand_over(lease: Lease, keeping: asyncio.Task[None]) -> None:
    keeping.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await keeping
    await lease.release()


async def _give_back() -> None:
    """What a burst of answers took goes back to the system; glibc keeps it otherwise."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    while trim is not None:
        await asyncio.sleep(GIVE_BACK_SECONDS)
        trim(0)


def _lost() -> None:
    # The gate is shut. No clean-up: whatever this process still believes is out of date.
    log.error("the lease is lost; the process ends")
    sys.stdout.flush()
    os._exit(1)


async def _kinds_served(kube: KubeClient, loop: Loop, settings: Settings) -> None:
    """Return when the API server knows the custom resources; before that a watch would never begin."""
    while True:
        try:
            for resource in loop.resources:
                names = kube.names(resource, settings.namespaces[0] if settings.namespaces else None)
                await anext(names, None)
            return
        except KubeError as error:
            log.warning("custom resources not served yet", extra={"why": str(error)})
            await asyncio.sleep(RETRY_SECONDS)


async def _resync(kube: KubeClient, loop: Loop, queue: WorkQueue, settings: Settings) -> None:
    """Every object gets a pass now and then, whatever a watch may have missed."""
    wait = 0.0
    while True:
        for resource in loop.resources:
            for namespace in settings.namespaces or (None,):
                try:
                    async for place in kube.names(resource, namespace):
                        later = random.uniform(0.0, min(wait, SPREAD_SECONDS))  # noqa: S311
                        # Whoever has a pass before it keeps its company.
                        queue.ensure(Key(resource, *place), later, within_seconds=SPREAD_SECONDS)
                except KubeError as error:
                    log.warning("resync", extra={"kind": resource.kind, "why": str(error)})
                except Exception:
                    # Nobody waits for this task: without the next round nobody would know that there is none.
                    log.exception("resync", extra={"kind": resource.kind})
        wait = RESYNC_SECONDS
        await asyncio.sleep(RESYNC_SECONDS)


async def _first(wanted: Coroutine[Any, Any, object], stop: Coroutine[Any, Any, object]) -> bool:
    """Whether `wanted` ended before `stop` did; the other one is cancelled. What `wanted` raises is raised."""
    tasks = [asyncio.create_task(wanted), asyncio.create_task(stop)]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    stopped = tasks[1].done()
    for task in tasks:
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    if isinstance(results[0], Exception):
        raise results[0]
    return not stopped


if __name__ == "__main__":
    sys.exit(main())
