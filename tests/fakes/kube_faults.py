"""A `port.Kube` around another one, real or in memory, that dies, lies or loses races when told.

Writes are counted from 1 in the order they are asked for. A crash is a BaseException: nothing in the operator catches
it, as nothing survives a kill.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from cutover_operator.port import Conflict, Kube, KubeError, Object, Resource
from fakes.kube import clone

WRITES = frozenset({"create", "replace", "apply", "apply_status", "delete"})


class Crash(BaseException):
    """The process was killed here."""


@dataclass(frozen=True)
class Fault:
    """At the n-th write: die before it or after it, or let it fail."""

    write: int
    kind: Literal["before", "after", "conflict", "unavailable", "lost answer"]


@dataclass
class FaultyKube:
    inner: Kube
    faults: tuple[Fault, ...] = ()
    writes: list[str] = field(default_factory=list)
    """Every write asked for, as `verb Kind/name`."""
    stale: Callable[[str, Resource, str], bool] = lambda verb, resource, name: False
    """Whether a read is answered with what the same read answered the first time it differed: an old cache."""
    on_read: Callable[[], None] = lambda: None
    _old: dict[tuple[Any, ...], Any] = field(default_factory=dict)
    _last: dict[tuple[Any, ...], Any] = field(default_factory=dict)

    async def get(self, resource: Resource, namespace: str, name: str) -> Object | None:
        answer = await self.inner.get(resource, namespace, name)
        return self._read("get", resource, (namespace, name), answer)

    async def list(self, resource: Resource, namespace: str | None, label_selector: str = "") -> list[Object]:
        answer = await self.inner.list(resource, namespace, label_selector)
        return self._read("list", resource, (namespace, label_selector), answer)

    async def pod_log(self, namespace: str, pod: str, tail_lines: int) -> str:
        return await self.inner.pod_log(namespace, pod, tail_lines)

    async def create(self, obj: Object) -> Object:
        return await self._write("create", _name(obj), lambda: self.inner.create(obj))

    async def replace(self, obj: Object) -> Object:
        return await self._write("replace", _name(obj), lambda: self.inner.replace(obj))

    async def apply(self, obj: Object) -> Object:
        return await self._write("apply", _name(obj), lambda: self.inner.apply(obj))

    async def apply_status(self, obj: Object) -> Object:
        return await self._write("apply_status", _name(obj), lambda: self.inner.apply_status(obj))

    async def delete(self, resource: Resource, namespace: str, name: str, uid: str | None = None) -> None:
        await self._write(
            "delete", f"{resource.kind}/{name}", lambda: self.inner.delete(resource, namespace, name, uid)
        )

    async def _write(self, verb: str, name: str, go: Callable[[], Any]) -> Any:
        self.writes.append(f"{verb} {name}")
        kinds = {fault.kind for fault in self.faults if fault.write == len(self.writes)}
        if "before" in kinds:
            raise Crash(f"before write {len(self.writes)}: {verb} {name}")
        if "conflict" in kinds:
            raise Conflict(409, f"injected at write {len(self.writes)}")
        if "unavailable" in kinds:
            raise KubeError(503, f"injected at write {len(self.writes)}")
        answer = await go()
        if "after" in kinds:
            raise Crash(f"after write {len(self.writes)}: {verb} {name}")
        if "lost answer" in kinds:
            raise KubeError(0, f"injected after write {len(self.writes)}")
        return answer

    def _read(self, verb: str, resource: Resource, rest: tuple[Any, ...], answer: Any) -> Any:
        """Old answers go back by exactly one change, as a cache that lags does."""
        self.on_read()
        key = (verb, resource, *rest)
        if key in self._last and self._last[key] != answer:
            self._old[key] = self._last[key]
        self._last[key] = clone(answer)
        if key in self._old and self.stale(verb, resource, str(rest[-1])):
            return clone(self._old[key])
        return answer


def _name(obj: Object) -> str:
    return f"{obj['kind']}/{obj['metadata']['name']}"
