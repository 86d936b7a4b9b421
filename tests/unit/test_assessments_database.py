"""What a PostgreSQL that is there but cannot do it now means, and a deletion that races with a record on its way."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from cutover_server.assessments import intake
from fakes.assessments_service import Running, new_settings, record, running
from fakes.postgres_server import Server, new_database


async def set_for_all(server: Server, url: str, service: Running, change: str) -> None:
    await asyncio.to_thread(server.sql, f"ALTER DATABASE {url.rsplit('/', 1)[1]} {change}")
    await service.service.database.engine.dispose()


@pytest.mark.parametrize(
    "setting", ["default_transaction_read_only = on", "statement_timeout = '20ms'", "lock_timeout = '20ms'"]
)
async def test_a_database_that_cannot_write_now_refuses_no_record(tmp_path: Path, setting: str) -> None:
    """Refused is for good; not now is 503, and the gateway keeps the record and comes again."""
    server, url = new_database()
    batch = {"records": [record("n1")], "shadows": []}
    async with running(new_settings(tmp_path, url)) as service:
        other = await asyncpg.connect(url)
        await other.execute("BEGIN; LOCK TABLE traffic_totals IN ACCESS EXCLUSIVE MODE")
        await set_for_all(server, url, service, f"SET {setting}")
        assert (await service.call("POST", "/internal/records", "internal", json=batch))[0] == 503
        await other.close()
        await set_for_all(server, url, service, "RESET ALL")
        status, body = await service.call("POST", "/internal/records", "internal", json=batch)
        assert (status, body["accepted"], body["refused"]) == (200, ["n1"], [])


async def test_a_deletion_waits_for_the_record_on_its_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record has read that there is no tombstone; the deletion that comes now must still catch it."""
    url = new_database()[1]
    read, go = asyncio.Event(), asyncio.Event()
    tombstones = intake._erased

    async def held(*arguments: Any) -> dict[str, float]:
        found = await tombstones(*arguments)
        read.set()
        await go.wait()
        return found

    monkeypatch.setattr(intake, "_erased", held)
    async with running(new_settings(tmp_path, url)) as service:
        delivered = asyncio.create_task(service.deliver(record("late", assessmentId="house")))
        await read.wait()
        deleted = asyncio.create_task(service.call("DELETE", "/api/admin/assessments/house"))
        watch = await asyncpg.connect(url)
        waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted"
        async with asyncio.timeout(20):
            while not deleted.done() and not await watch.fetchval(waiting):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await watch.close()
        go.set()
        assert (await delivered)["accepted"] == ["late"]
        assert (await deleted)[0] == 200
        assert (await service.call("GET", "/api/assessments/late"))[0] == 404
