"""One writer among the replicas: a Lease, and a gate that every write passes.

Who holds the Lease is judged by this process's own monotonic clock since the record last changed, never by a remote
timestamp. The gate shuts when the Lease could not be renewed for `RENEW_DEADLINE_SECONDS`, five seconds before another
replica may take it; what was sent before is over by then or refused by compare-and-swap.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from cutover_operator.port import LEASES, Conflict, Kube, KubeError, Object, Resource

log = logging.getLogger(__name__)

DURATION_SECONDS = 15.0
RENEW_DEADLINE_SECONDS = 10.0
RETRY_SECONDS = 2.0
JITTER = 0.2


class NotLeading(RuntimeError):
    """A write was asked for while the gate is shut."""


class Lease:
    def __init__(
        self,
        kube: Kube,
        namespace: str,
        name: str,
        identity: str,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        duration_seconds: float = DURATION_SECONDS,
        renew_deadline_seconds: float = RENEW_DEADLINE_SECONDS,
        retry_seconds: float = RETRY_SECONDS,
    ) -> None:
        self._kube = kube
        self._namespace = namespace
        self._name = name
        self._identity = identity
        self._monotonic = monotonic
        self._clock = clock
        self._duration = duration_seconds
        self._renew_deadline = renew_deadline_seconds
        self._retry = retry_seconds
        self._seen: dict[str, Any] | None = None
        self._seen_at = 0.0
        self._held_until = float("-inf")
        self._released = False

    @property
    def held(self) -> bool:
        return not self._released and self._monotonic() < self._held_until

    def assert_held(self) -> None:
        if not self.held:
            raise NotLeading(f"{self._identity} does not hold the lease {self._namespace}/{self._name}")

    def shut(self) -> None:
        self._held_until = float("-inf")

    async def acquire(self) -> None:
        """Return when this replica leads."""
        while True:
            if await self._try():
                log.info("leading", extra={"identity": self._identity})
                return
            await asyncio.sleep(self._retry * (1 + JITTER * random.random()))  # noqa: S311

    async def keep(self) -> None:
        """Renew for as long as it works; return when the lease is lost. The gate is shut by then."""
        while self.held:
            await asyncio.sleep(self._retry)
            renewal = asyncio.create_task(self._try())
            try:
                # A renewal that hangs must not keep the gate's end from being noticed.
                await asyncio.wait([renewal], timeout=max(0.0, self._held_until - self._monotonic()))
            finally:
                # Nor may one outlive its keeper: it would take back what is released next.
                renewal.cancel()
                await asyncio.wait([renewal])
            if not renewal.cancelled() and (error := renewal.exception()) is not None:
                log.error("lease not renewed", exc_info=error)
        self.shut()

    async def release(self) -> None:
        """Let another replica lead after its next look instead of after the whole duration. Best effort. This one never
        leads again: an answer that is still on its way changes nothing."""
        led = self.held
        self._released = True
        self.shut()
        if not led:
            return
        try:
            record = await self._kube.get(LEASES, self._namespace, self._name)
            if record is not None and record["spec"].get("holderIdentity") == self._identity:
                spec = {**record["spec"], "holderIdentity": "", "leaseDurationSeconds": 1}
                await self._kube.replace({**record, "spec": spec})
        except KubeError as error:
            log.warning("lease not released", extra={"why": str(error)})

    async def _try(self) -> bool:
        """One look at the lease, and one write when it is ours to take or to renew."""
        started = self._monotonic()
        try:
            record = await self._kube.get(LEASES, self._namespace, self._name)
            if self._released:
                return False
            if record is None:
                await self._kube.create(self._record(None))
            else:
                self._note(record)
                holder = record["spec"].get("holderIdentity")
                if holder and holder != self._identity and not self._expired(record):
                    self.shut()
                    return False
                await self._kube.replace(self._record(record))
        except Conflict:
            return False
        except KubeError as error:
            log.warning("lease not reached", extra={"why": str(error)})
            return False
        self._held_until = started + self._renew_deadline
        return True

    def _note(self, record: Object) -> None:
        if record["spec"] != self._seen:
            self._seen = record["spec"]
            self._seen_at = self._monotonic()

    def _expired(self, record: Object) -> bool:
        duration = float(record["spec"].get("leaseDurationSeconds") or self._duration)
        return self._monotonic() - self._seen_at >= duration

    def _record(self, before: Object | None) -> Object:
        now = self._clock().astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        spec = dict(before["spec"]) if before else {}
        if spec.get("holderIdentity") != self._identity:
            # Counted as client-go does: the first holder is no transition.
            spec["leaseTransitions"] = int(spec.get("leaseTransitions") or 0) + 1 if before else 0
            spec["acquireTime"] = now
        spec |= {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": max(1, round(self._duration)),
            "renewTime": now,
        }
        meta = before["metadata"] if before else {"name": self._name, "namespace": self._namespace}
        return {"apiVersion": LEASES.api_version, "kind": LEASES.kind, "metadata": meta, "spec": spec}


class GatedKube:
    """`port.Kube` whose writes pass only while the lease is held."""

    def __init__(self, kube: Kube, lease: Lease) -> None:
        self._kube = kube
        self._lease = lease

    async def get(self, resource: Resource, namespace: str, name: str) -> Object | None:
        return await self._kube.get(resource, namespace, name)

    async def list(self, resource: Resource, namespace: str | None, label_selector: str = "") -> list[Object]:
        return await self._kube.list(resource, namespace, label_selector)

    async def pod_log(self, namespace: str, pod: str, tail_lines: int) -> str:
        return await self._kube.pod_log(namespace, pod, tail_lines)

    async def create(self, obj: Object) -> Object:
        self._lease.assert_held()
        return await self._kube.create(obj)

    async def replace(self, obj: Object) -> Object:
        self._lease.assert_held()
        return await self._kube.replace(obj)

    async def apply(self, obj: Object) -> Object:
        self._lease.assert_held()
        return await self._kube.apply(obj)

    async def apply_status(self, obj: Object) -> Object:
        self._lease.assert_held()
        return await self._kube.apply_status(obj)

    async def delete(self, resource: Resource, namespace: str, name: str, uid: str | None = None) -> None:
        self._lease.assert_held()
        await self._kube.delete(resource, namespace, name, uid)
