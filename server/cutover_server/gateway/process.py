"""The life of a gateway process: put together, serve, drain, leave.

It starts without the API server, the assessments service, or any arm. On SIGTERM it says it is not ready, waits for
endpoints to forget it, lets requests in flight finish, flushes the spool and makes one attempt to deliver it; what is
left waits on disk. A pod's grace period has to cover the delay, the drain and six seconds. Before the port closes, the
holder of its socket is told goodbye (see `listening`); a process that is killed leaves it to the next.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import random
import signal

import aiohttp

from cutover.fetch import FetchPolicy, guarded_session
from cutover.route import Route
from cutover_server.gateway.allocator import give_back_now_and_then, keep_freed_memory
from cutover_server.gateway.app import Applications, Operations
from cutover_server.gateway.arms import ArmCaller
from cutover_server.gateway.asking import Asking
from cutover_server.gateway.breakers import Breakers
from cutover_server.gateway.callers import Callers
from cutover_server.gateway.exchange import Exchange
from cutover_server.gateway.http_pool import HttpPool
from cutover_server.gateway.http_server import Limits, Server
from cutover_server.gateway.listening import Listening
from cutover_server.gateway.metrics import GatewayMetrics
from cutover_server.gateway.pressure import InFlight
from cutover_server.gateway.route_board import RouteBoard
from cutover_server.gateway.route_watch import ConfigMapWatch, FileWatch
from cutover_server.gateway.sender import Sender
from cutover_server.gateway.settings import Settings
from cutover_server.gateway.shadow import Shadow
from cutover_server.gateway.spool import Spool, claim_own_folder

log = logging.getLogger(__name__)
_FIRST_ROUTE_SECONDS = 5.0
"""How long readiness waits to hear the route's source; then the cached or idle route will do."""
_DELIVERY_SECONDS = 5.0
_OWN_CONNECTIONS = 4
"""To the assessments service."""
_OBJECTS_BEFORE_COLLECTION = 20_000


async def serve_until_told(settings: Settings) -> None:
    """Runs until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await serve(settings, stop)


async def serve(settings: Settings, stop: asyncio.Event) -> None:
    """Runs until `stop` is set, and then drains."""
    keep_freed_memory()
    chance = random.SystemRandom().random
    metrics = GatewayMetrics(settings.gateway)
    breakers = Breakers(metrics.breaker, chance)
    settings.spool.mkdir(parents=True, exist_ok=True)
    folder = await asyncio.to_thread(claim_own_folder, settings.spool, settings.pod)
    spool = Spool(folder, settings.max_spool_bytes)
    policy = FetchPolicy(
        allowed_hosts=settings.allowed_image_hosts, allowed_origins=settings.allowed_image_origins
    )

    async with contextlib.AsyncExitStack() as stack:
        pool = stack.enter_context(contextlib.closing(HttpPool(settings.connections)))
        own_pool = stack.enter_context(contextlib.closing(HttpPool(_OWN_CONNECTIONS)))
        own_session = await stack.enter_async_context(
            aiohttp.ClientSession(
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=30.0, sock_connect=5.0),
                trust_env=False,
            )
        )
        fetch_session = await stack.enter_async_context(guarded_session(policy))

        def takes_force(route: Route) -> None:
            breakers.follow(route)
            metrics.route_in_force(route)

        board = RouteBoard(
            settings.config,
            settings.spool / "route.json",
            changed=takes_force,
            refused=metrics.route_refused.inc,
        )
        sender = Sender(
            spool,
            settings.spool,
            own_pool,
            settings.assessments_url,
            settings.internal_token,
            chance,
            metrics.dead_letters.inc,
        )
        watch = _watch(settings, board, own_session)
        in_flight = InFlight(settings.max_in_flight_bytes)
        caller = ArmCaller(pool, settings.keys_folder, settings.silence_seconds)
        shadow = Shadow(
            caller,
            metrics,
            in_flight,
            spool.append,
            queue_length=settings.shadow_queue,
            concurrency=settings.shadow_concurrency,
            limit_seconds=settings.shadow_seconds,
        )
        exchange = Exchange(
            settings.gateway,
            board,
            caller,
            Asking(breakers, settings.last_arm_seconds, chance),
            spool,
            shadow,
            metrics,
            policy,
            fetch_session,
            settings.request_seconds,
        )
        passes = settings.streaming == "passthrough"
        faces = Applications(
            exchange,
            in_flight,
            Callers(settings.client_token, settings.client_keys_file),
            max_body_bytes=settings.max_body_bytes,
            body_seconds=settings.body_seconds,
            first_token_seconds=settings.first_token_seconds if passes else None,
        )
        operations = Operations(
            exchange, settings.pod, lambda: metrics.spool_records.set(sender.waiting_records())
        )
        limits = Limits(settings.body_seconds, settings.silence_seconds, 4 * settings.max_body_bytes)
        app_server = Server(faces.visit, settings.host, settings.port_app, settings.drain_seconds, limits)
        ops_server = Server(operations.visit, settings.host, settings.port_ops, 1.0)

        listening = Listening(settings.listener_socket, settings.host, settings.port_app)
        stack.callback(listening.close)

        # At once, which ends the holder's patience; who waits there is answered when the route is known.
        opening = asyncio.create_task(listening.open())
        await ops_server.listen()
        ops = asyncio.create_task(ops_server.serve())
        watching = asyncio.create_task(watch.run())
        sending = asyncio.create_task(sender.run())
        tidying = asyncio.create_task(give_back_now_and_then(in_flight))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(watch.heard.wait(), _FIRST_ROUTE_SECONDS)
        await app_server.listen(await opening)
        app = asyncio.create_task(app_server.serve())
        keeping = asyncio.create_task(listening.keep())
        # What is there now stays; what a request leaves behind is freed by counting, so cycles are looked for seldom.
        gc.collect()
        gc.freeze()
        gc.set_threshold(_OBJECTS_BEFORE_COLLECTION, 10, 20)
        operations.ready = True
        log.info("gateway %s serves on port %d", settings.gateway, settings.port_app)

        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait({stopping, app, ops}, return_when=asyncio.FIRST_COMPLETED)
        operations.ready = False
        app_server.leaving = True
        log.info("draining")
        if stop.is_set():
            await asyncio.sleep(settings.drain_delay_seconds)
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
        await listening.goodbye()
        app_server.stopping.set()
        # Side by side: mirrored requests get no time of their own out of the pod's grace period.
        await asyncio.gather(app, shadow.drain(settings.drain_seconds), return_exceptions=True)
        for task in (watching, sending, tidying, stopping):
            task.cancel()
        await asyncio.gather(watching, sending, tidying, stopping, return_exceptions=True)
        await sender.drain(_DELIVERY_SECONDS)
        await spool.close()
        ops_server.stopping.set()
        await asyncio.gather(ops, return_exceptions=True)
        if not stop.is_set():
            raise RuntimeError("a server ended unasked")
    log.info("gone")


def _watch(
    settings: Settings, board: RouteBoard, session: aiohttp.ClientSession
) -> ConfigMapWatch | FileWatch:
    if settings.route_file is not None:
        return FileWatch(settings.route_file, board.take)
    return ConfigMapWatch(
        session,
        settings.kubernetes_url,
        settings.account_folder,
        settings.namespace,
        settings.route_config_map or "",
        board.take,
        random.SystemRandom().random,
    )
