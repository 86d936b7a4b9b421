"""Leader election on a clock of its own: who leads, who waits, and when the gate is shut."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from datetime import UTC, datetime
from typing import Any, Literal

import pytest

from cutover_operator.lease import GatedKube, Lease, NotLeading
from cutover_operator.port import CONFIG_MAPS, LEASES, KubeError, Object
from fakes.kube import FakeKube
from fakes.kube_faults import FaultyKube

NOTE = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "note", "namespace": "ns"}, "data": {}}


class Clock:
    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def lease(kube: object, name: str, clock: Clock, **more: float) -> Lease:
    return Lease(
        kube,  # type: ignore[arg-type]
        "ns",
        "lease",
        name,
        monotonic=clock,
        clock=lambda: datetime.fromtimestamp(clock.seconds, UTC),
        **more,
    )


async def test_the_second_waits_until_the_record_stood_still_for_its_whole_duration() -> None:
    kube, clock = FakeKube(), Clock()
    first, second = lease(kube, "one", clock), lease(kube, "two", clock)
    assert await first._try()
    assert not await second._try()
    for _ in range(5):
        clock.seconds += 8
        assert await first._try()
        assert not await second._try()
    clock.seconds += 14.9
    assert not await second._try()
    assert not first.held
    clock.seconds += 0.2
    assert await second._try()
    spec = kube.peek(LEASES, "ns", "lease")["spec"]
    assert spec["holderIdentity"] == "two"
    assert spec["leaseTransitions"] == 1
    # The old leader comes back: it sees and stays out.
    assert not await first._try()
    assert not first.held


async def test_the_gate_is_shut_five_seconds_before_anybody_else_may_lead() -> None:
    kube, clock = FakeKube(), Clock()
    one = lease(kube, "one", clock)
    gated = GatedKube(kube, one)
    with pytest.raises(NotLeading):
        await gated.apply(NOTE)
    await one._try()
    await gated.apply(NOTE)
    clock.seconds += 9.9
    await gated.apply(NOTE)
    clock.seconds += 0.2
    for write in (
        gated.apply(NOTE),
        gated.create(NOTE),
        gated.replace(NOTE),
        gated.apply_status(NOTE),
        gated.delete(CONFIG_MAPS, "ns", "note"),
    ):
        with pytest.raises(NotLeading):
            await write
    assert await gated.get(CONFIG_MAPS, "ns", "note") is not None
    assert len(await gated.list(CONFIG_MAPS, "ns")) == 1


async def test_release_hands_over_at_the_next_look() -> None:
    kube, clock = FakeKube(), Clock()
    first, second = lease(kube, "one", clock), lease(kube, "two", clock)
    await first._try()
    await second._try()
    await first.release()
    assert not first.held
    assert await second._try()


async def test_a_lease_that_cannot_be_renewed_is_lost_in_time() -> None:
    class Silent(FaultyKube):
        broken = False

        async def get(self, resource: object, namespace: str, name: str) -> object:  # type: ignore[override]
            if self.broken:
                raise KubeError(0, "no answer")
            return await super().get(resource, namespace, name)  # type: ignore[arg-type]

    kube = Silent(FakeKube())
    one = Lease(kube, "ns", "lease", "one", renew_deadline_seconds=0.3, retry_seconds=0.02)
    await one.acquire()
    keeping = asyncio.create_task(one.keep())
    await asyncio.sleep(0.5)
    assert one.held
    kube.broken = True
    await asyncio.wait_for(keeping, 5)
    assert not one.held


async def test_a_renewal_that_hangs_does_not_keep_the_gate_open() -> None:
    class Hanging(FaultyKube):
        broken = False

        async def get(self, resource: object, namespace: str, name: str) -> object:  # type: ignore[override]
            if self.broken:
                await asyncio.Event().wait()
            return await super().get(resource, namespace, name)  # type: ignore[arg-type]

    kube = Hanging(FakeKube())
    one = Lease(kube, "ns", "lease", "one", renew_deadline_seconds=0.3, retry_seconds=0.02)
    await one.acquire()
    kube.broken = True
    await asyncio.wait_for(one.keep(), 5)
    assert not one.held


Where = Literal["read", "write", "answer"]


class Stopping(FaultyKube):
    """One renewal stops before its read, before its write or before the answer to it, until `go` is set."""

    where: Where | None = None

    def __init__(self, inner: FakeKube) -> None:
        super().__init__(inner)
        self.there, self.go, self.over = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def get(self, resource: Any, namespace: str, name: str) -> Object | None:
        return await self._stop("read", super().get(resource, namespace, name))

    async def replace(self, obj: Object) -> Object:
        return await self._stop("answer", self._stop("write", super().replace(obj)))

    async def _stop(self, where: Where, then: Coroutine[Any, Any, Any]) -> Any:
        if where != self.where:
            return await then
        self.where = None
        answer = await then if where == "answer" else None
        self.there.set()
        try:
            await self.go.wait()
            return answer or await then
        finally:
            then.close()
            self.over.set()


@pytest.mark.parametrize("where", ["read", "write", "answer"])
async def test_a_renewal_ends_with_its_keeper(where: Where) -> None:
    kube = Stopping(FakeKube())
    one = Lease(kube, "ns", "lease", "one", retry_seconds=0.02)
    await one.acquire()
    keeping = asyncio.create_task(one.keep())
    kube.where = where
    await asyncio.wait_for(kube.there.wait(), 5)
    keeping.cancel()
    await asyncio.wait([keeping])
    assert keeping.cancelled()
    assert kube.over.is_set()
    assert one.held, "it still leads, and may hand over"


@pytest.mark.parametrize("where", ["read", "write", "answer"])
async def test_nothing_that_was_under_way_takes_a_released_lease_back(where: Where) -> None:
    inner = FakeKube()
    kube = Stopping(inner)
    one = Lease(kube, "ns", "lease", "one")
    await one.acquire()
    kube.where = where
    renewal = asyncio.create_task(one._try())
    await asyncio.wait_for(kube.there.wait(), 5)
    await one.release()
    kube.go.set()
    await renewal
    assert not one.held
    assert inner.peek(LEASES, "ns", "lease")["spec"]["holderIdentity"] == ""
    assert not await one._try(), "nor does it begin again"
    assert not one.held
