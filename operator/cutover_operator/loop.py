"""One pass over an object: gather, decide, then carry out the plan in one order.

before (evidence) -> status (compare-and-swap, only when it changed) -> after (children, route) -> events. A Conflict
anywhere drops the rest: the next pass looks again. Children are made from a plan whose status is committed.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Protocol, TypeVar

from cutover.contract import FINALIZER
from cutover_operator import events, stuck
from cutover_operator.plan import Action, Apply, Delete, Key, Notice, Plan, SetFinalizer, Swap
from cutover_operator.port import Conflict, Kube, KubeError, Object, Resource
from cutover_operator.telemetry import Telemetry

log = logging.getLogger(__name__)

LOOKS_AT_ONCE = 16
"""Whole looks at the same time: each is some ten requests to the API server. Passes that read none are not held up."""
OWN_VERSIONS = 512
"""As many own writes are known again when a watch reports them."""
SAY_AFTER_FAILURES = 5
"""Failures in a row after which the object itself says that the operator cannot get on with it."""


class World(Protocol):
    """What a decision looks at; the loop needs only the parent as it was read."""

    @property
    def parent(self) -> Object: ...


W = TypeVar("W", bound=World)


class Reconciler(Protocol[W]):
    """`gather` reads and never writes; None means the object is gone. `decide` is pure."""

    @property
    def resource(self) -> Resource: ...

    async def gather(self, key: Key, now: datetime) -> W | None: ...

    def decide(self, world: W, now: datetime) -> Plan: ...


class Memory(Protocol[W]):
    """Worlds that were seen a moment ago, for looks at which nothing happens; see `rollout.memory`."""

    def changed(self, key: Key) -> None: ...

    def changes(self, key: Key) -> int: ...

    def gone(self, key: Key) -> None: ...

    def keep(self, key: Key, world: W, written: Sequence[Object], changes: int, looked: bool) -> None: ...

    async def recall(self, key: Key, now: datetime) -> W | None: ...


class Loop:
    """Runs passes for the kinds it was given. `kube` must be the gated one."""

    def __init__(
        self,
        kube: Kube,
        reconcilers: Sequence[Reconciler[Any]],
        clock: Callable[[], datetime],
        telemetry: Telemetry | None = None,
        failures: Callable[[Key], int] = lambda key: 0,
        memories: Mapping[Resource, Memory[Any]] | None = None,
        ask: Callable[[Key], None] = lambda key: None,
    ) -> None:
        """`ask` wants a pass of a key as soon as possible."""
        self._kube = kube
        self._reconcilers = {reconciler.resource: reconciler for reconciler in reconcilers}
        self._clock = clock
        self._telemetry = telemetry or Telemetry()
        self._failures = failures
        self._memories = memories or {}
        self._ask = ask
        self._looking = asyncio.Semaphore(LOOKS_AT_ONCE)
        self._own_versions: deque[tuple[str, Key]] = deque(maxlen=OWN_VERSIONS)
        self._unsorted: dict[Key, set[str]] = {}
        """Versions seen while something is written of which nothing follows."""

    @property
    def resources(self) -> list[Resource]:
        return list(self._reconcilers)

    def changed(self, key: Key, version: str) -> bool:
        """Something of this object is at another resourceVersion: whether that asks for a pass. The next one looks at
        everything, unless the version is one that was written here and nothing follows from."""
        if (version, key) in self._own_versions:
            return False
        if key in self._unsorted:
            # Perhaps our own write, whose answer is still on its way.
            self._unsorted[key].add(version)
            return False
        memory = self._memories.get(key.resource)
        if memory is not None:
            memory.changed(key)
        return True

    async def run_pass(self, key: Key) -> float | None:
        """Seconds until the next pass is wanted. Raises Conflict for a lost race, and what went wrong otherwise."""
        kind = key.resource.kind
        started = time.perf_counter()
        outcome = "error"
        try:
            again, outcome = await self._pass(key)
            return again
        except Conflict:
            outcome = "conflict"
            raise
        except Exception as error:
            self._telemetry.errors.labels(kind, type(error).__name__).inc()
            if self._failures(key) + 1 >= SAY_AFTER_FAILURES:
                await self._say_stuck(key, error)
            raise
        finally:
            self._telemetry.passes.labels(kind, outcome).inc()
            self._telemetry.pass_seconds.labels(kind).observe(time.perf_counter() - started)

    async def _pass(self, key: Key) -> tuple[float | None, str]:
        reconciler = self._reconcilers[key.resource]
        memory = self._memories.get(key.resource)
        now = self._clock()
        changes = 0
        if memory is not None:
            changes = memory.changes(key)
            world = await memory.recall(key, now)
            if world is not None:
                plan = reconciler.decide(world, now)
                if plan.leaves_alone(world.parent):
                    return plan.again_in_seconds, "unchanged"
                if plan.routine:
                    return await self._routine(key, world, plan, now, changes, looked=False), "ok"
        async with self._looking:
            world = await reconciler.gather(key, now)
            if world is None:
                if memory is not None:
                    memory.gone(key)
                return None, "gone"
            plan = reconciler.decide(world, now)
            if plan.routine:
                return await self._routine(key, world, plan, now, changes, looked=True), "ok"
            await self._execute(key, plan, world.parent, now, [])
            return plan.again_in_seconds, "ok"

    async def _routine(
        self, key: Key, world: Any, plan: Plan, now: datetime, changes: int, looked: bool
    ) -> float | None:
        """Carry out a plan from which nothing follows, and remember how things stand then. What it writes is
        compare-and-swap: a world that was not as it is any more ends in a Conflict and is forgotten."""
        memory = self._memories.get(key.resource)
        if memory is None:
            await self._execute(key, plan, world.parent, now, [])
            return plan.again_in_seconds
        written: list[Object] = []
        self._unsorted[key] = set()
        try:
            await self._execute(key, plan, world.parent, now, written)
        except BaseException as error:
            memory.changed(key)
            # A lost race is read again at once anyway; any other failure would let the change wait for the back-off.
            if self._sort(key, written) and not isinstance(error, Conflict):
                self._ask(key)
            raise
        if self._sort(key, written):
            memory.changed(key)
            return 0.0
        memory.keep(key, world, written, changes, looked)
        return plan.again_in_seconds

    def _sort(self, key: Key, written: Sequence[Object]) -> bool:
        """Whether anything was seen meanwhile but what was written; that is known again from now on."""
        own = [obj["metadata"]["resourceVersion"] for obj in written]
        # Of this key alone: who owns the object may well want to see it.
        self._own_versions.extend((version, key) for version in own)
        return not self._unsorted.pop(key).issubset(own)

    async def _execute(
        self, key: Key, plan: Plan, parent: Object, now: datetime, written: list[Object]
    ) -> None:
        """Carry the plan out. Objects go to `written` as they were written, those before a failure too."""
        for action in plan.before:
            parent = await self._carry_out(action, parent, written)
        # Taken back before the end, it would be written and taken back by every pass that fails, each asking for another.
        status = stuck.still(plan.status, parent) if plan.status is not None and plan.after else plan.status
        if status is not None and status != parent.get("status"):
            parent = await self._write_status(parent, status)
            written.append(parent)
        for action in plan.after:
            try:
                parent = await self._carry_out(action, parent, written)
            except KubeError as error:
                if not isinstance(action, Apply) or action.vital:
                    raise
                await self._say_refused(action.obj, error, parent, now)
        # Whoever gave up the finalizer may be gone by now.
        if plan.status != status and plan.status is not None and SetFinalizer(False) not in plan.after:
            parent = await self._write_status(parent, plan.status)
            written.append(parent)
        for notice in plan.notices:
            log.info(notice.message, extra={"key": str(key), "reason": notice.reason})
            await events.record(self._kube, parent, notice, now)

    async def _write_status(self, parent: Object, status: dict[str, Any]) -> Object:
        written = await self._kube.apply_status({**_identity(parent, versioned=True), "status": status})
        self._telemetry.status_writes.labels(parent["kind"]).inc()
        return written

    async def _carry_out(self, action: Action, parent: Object, written: list[Object]) -> Object:
        """The parent as it is afterwards: a finalizer moves its resourceVersion."""
        match action:
            case Apply(obj, _):
                written.append(await self._kube.apply(obj))
            case Swap(obj):
                versioned = obj["metadata"].get("resourceVersion")
                written.append(await (self._kube.replace(obj) if versioned else self._kube.create(obj)))
            case Delete(resource, namespace, name, uid):
                await self._kube.delete(resource, namespace, name, uid)
            case SetFinalizer(present):
                return await self._set_finalizer(parent, present)
        return parent

    async def _set_finalizer(self, parent: Object, present: bool) -> Object:
        held = FINALIZER in parent["metadata"].get("finalizers", [])
        if held == present:
            return parent
        # The uid keeps a parent that went away meanwhile from being made anew.
        obj = _identity(parent, versioned=True)
        obj["metadata"]["finalizers"] = [FINALIZER] if present else []
        return await self._kube.apply(obj)

    async def _say_refused(self, obj: Object, error: KubeError, parent: Object, now: datetime) -> None:
        name = f"{obj['kind']} {obj['metadata']['name']}"
        log.warning("not made", extra={"what": name, "why": str(error)})
        await events.record(self._kube, parent, Notice("NotMade", f"{name}: {error}", "Warning", name), now)

    async def _say_stuck(self, key: Key, error: Exception) -> None:
        """Best effort; the condition goes away with the first pass that succeeds. That it is said must not end the
        back-off, so it asks for no pass."""
        try:
            parent = await self._kube.get(key.resource, key.namespace, key.name)
            if parent is None:
                return
            status = stuck.saying(parent, error, self._clock())
            if status is not None:
                await self._write_unseen(key, parent, status)
        except (KubeError, ValueError):
            log.warning("the failure could not be said on the object", extra={"key": str(key)}, exc_info=True)

    async def _write_unseen(self, key: Key, parent: Object, status: dict[str, Any]) -> None:
        """A status whose sight asks for no pass; what somebody else writes meanwhile does."""
        written: list[Object] = []
        self._unsorted[key] = set()
        try:
            written.append(await self._write_status(parent, status))
        finally:
            if self._sort(key, written):
                self._ask(key)
            memory = self._memories.get(key.resource)
            if memory is not None:
                memory.changed(key)


def _identity(parent: Object, *, versioned: bool) -> Object:
    meta = parent["metadata"]
    identity = {"name": meta["name"], "namespace": meta["namespace"], "uid": meta["uid"]}
    if versioned:
        identity["resourceVersion"] = meta["resourceVersion"]
    return {"apiVersion": parent["apiVersion"], "kind": parent["kind"], "metadata": identity}
