"""The watches: kopf tells which objects changed, and nothing else.

A change becomes the key of the object that answers for it; whether anything follows is decided from live reads. kopf
runs in a thread of its own with an explicit registry, so that its signals and its way of ending stay its own. It writes
nothing: no annotation, no finalizer, no event, no status.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any

import kopf

from cutover.contract import LABEL_MANAGED_BY, LABEL_OWNER_KIND, LABEL_OWNER_NAME, MANAGED_BY
from cutover_operator.plan import Key
from cutover_operator.port import (
    CONFIG_MAPS,
    DEPLOYMENTS,
    JOBS,
    MODEL_ROLLOUTS,
    PODS,
    TRAINING_RUNS,
    Resource,
)

log = logging.getLogger(__name__)

PARENTS = {resource.kind: resource for resource in (TRAINING_RUNS, MODEL_ROLLOUTS)}
CHILDREN = (JOBS, PODS, DEPLOYMENTS, CONFIG_MAPS)
STOP_SECONDS = 10.0

Seen = Callable[[Key, str], None]
"""Whose pass a change asks for, and the resourceVersion that was seen."""


def keys_of(resource: Resource, meta: Mapping[str, Any]) -> list[Key]:
    """Whose passes a change of this object asks for: its own, if it is a run or a rollout, and its owner's."""
    keys = [Key(resource, meta["namespace"], meta["name"])] if resource.kind in PARENTS else []
    labels = meta.get("labels") or {}
    parent = PARENTS.get(labels.get(LABEL_OWNER_KIND, ""))
    name = labels.get(LABEL_OWNER_NAME)
    if parent and name:
        keys.append(Key(parent, meta["namespace"], name))
    return keys


def registry(info: Callable[[], kopf.ConnectionInfo], seen: Seen) -> Any:
    """A registry whose handlers only call `seen`."""
    own = kopf.OperatorRegistry()

    async def login(**_: Any) -> kopf.ConnectionInfo:
        return info()

    kopf.on.login(registry=own)(login)
    for resource in (*PARENTS.values(), *CHILDREN):
        _watch(own, resource, seen)
    return own


def _watch(own: Any, resource: Resource, seen: Seen) -> None:
    async def changed(meta: Mapping[str, Any], **_: Any) -> None:
        for key in keys_of(resource, meta):
            seen(key, str(meta.get("resourceVersion", "")))

    labels = None if resource.kind in PARENTS else {LABEL_MANAGED_BY: MANAGED_BY}
    kopf.on.event(
        resource.group, resource.version, resource.plural, labels=labels, id=resource.plural, registry=own
    )(changed)


def settings(namespaces: tuple[str, ...]) -> Any:
    chosen = kopf.OperatorSettings()
    chosen.posting.enabled = False
    chosen.peering.standalone = True
    chosen.watching.chunk_size = 500
    chosen.watching.connect_timeout = 10
    chosen.networking.request_timeout = 30
    # Until then the last state of every object that changed stays in memory.
    chosen.queueing.idle_timeout = 1.0
    chosen.process.ultimate_exiting_timeout = None
    # A Role cannot list namespaces or CRDs; what is watched is fixed then.
    chosen.scanning.disabled = bool(namespaces)
    for resource in CHILDREN:
        chosen.watching.label_selectors[resource.group, resource.version, resource.plural] = (
            f"{LABEL_MANAGED_BY}={MANAGED_BY}"
        )
    return chosen


class Watches:
    """Starts and ends the thread. `add` is called in the loop that started it."""

    def __init__(
        self, login: Callable[[], kopf.ConnectionInfo], namespaces: tuple[str, ...], add: Seen
    ) -> None:
        self._login = login
        self._namespaces = namespaces
        self._add = add
        self._stop = threading.Event()
        self._ready = threading.Event()
        self._ended = asyncio.Event()
        self._thread: threading.Thread | None = None

    @property
    def ready(self) -> bool:
        return self._ready.is_set()

    def start(self) -> None:
        loop = asyncio.get_running_loop()

        def seen(key: Key, version: str) -> None:
            loop.call_soon_threadsafe(self._add, key, version)

        def run() -> None:
            try:
                asyncio.run(
                    kopf.operator(
                        registry=registry(self._login, seen),
                        settings=settings(self._namespaces),
                        clusterwide=not self._namespaces,
                        namespaces=self._namespaces,
                        standalone=True,
                        identity="cutover",
                        stop_flag=self._stop,
                        ready_flag=self._ready,
                    )
                )
            except Exception:
                log.exception("the watches ended")
            finally:
                loop.call_soon_threadsafe(self._ended.set)

        self._thread = threading.Thread(target=run, name="watches", daemon=True)
        self._thread.start()

    async def ended(self) -> None:
        """Return when the watches have ended, by themselves or by `stop`."""
        await self._ended.wait()

    async def stop(self) -> None:
        self._stop.set()
        if self._thread is not None:
            await asyncio.wait_for(self._ended.wait(), STOP_SECONDS)
