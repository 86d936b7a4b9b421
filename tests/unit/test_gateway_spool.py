"""The spool and its sender: on disk before the answer, delivered in the end, whatever dies in between."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import os
import threading
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutover_server.gateway.http_pool import HttpPool
from cutover_server.gateway.segments import frame, frame_picture, read_segment
from cutover_server.gateway.sender import Sender
from cutover_server.gateway.spool import Spool, SpoolFull, claim_own_folder
from cutover_server.gateway.spool_folder import SpoolFolder
from fakes.assessments_server import FakeAssessments
from fakes.free_ports import free_port
from fakes.gateway_rig import INTERNAL_TOKEN, Rig, running, until

PAYLOAD = st.binary(max_size=200).filter(lambda data: b"\n" not in data)


PICTURE = st.binary(max_size=60)
ENTRIES = st.lists(st.tuples(st.one_of(st.none(), PICTURE), PAYLOAD), max_size=12)


def written(entries: list[tuple[bytes | None, bytes]]) -> list[bytes]:
    """What stands in the segment for each entry: its picture if it has one, and its line."""
    return [
        (b"".join(frame_picture(digest_of(body), body)) if body is not None else b"") + frame(payload)
        for body, payload in entries
    ]


@given(ENTRIES, st.integers(0, 5000))
def test_a_torn_segment_gives_back_every_whole_entry(
    entries: list[tuple[bytes | None, bytes]], cut: int
) -> None:
    parts = written(entries)
    data = b"".join(parts)
    torn = data[: min(cut, len(data))]
    content = read_segment(torn)
    whole = sum(len(torn) >= end for end in itertools.accumulate(map(len, parts)))
    assert content.payloads == tuple(payload for _, payload in entries[:whole])
    assert content.damaged == ()
    for body, _ in entries[:whole]:
        if body is not None:
            at, length = content.pictures[digest_of(body)]
            assert torn[at : at + length] == body


@given(st.lists(PAYLOAD, min_size=1, max_size=10), st.data())
def test_damage_costs_its_line_and_no_other(payloads: list[bytes], data: st.DataObject) -> None:
    raw = bytearray(b"".join(map(frame, payloads)))
    at = data.draw(st.integers(0, len(raw) - 1))
    if raw[at] == 10:
        return
    raw[at] = data.draw(st.integers(0, 255).filter(lambda value: value not in (10, raw[at])))
    content = read_segment(bytes(raw))
    assert len(content.payloads) + len(content.damaged) == len(payloads)
    assert len(content.damaged) == 1


@given(ENTRIES, st.data())
def test_damage_to_a_picture_costs_no_record(
    entries: list[tuple[bytes | None, bytes]], data: st.DataObject
) -> None:
    body = data.draw(PICTURE)
    payload = data.draw(PAYLOAD)
    lost = bytearray(b"".join(frame_picture(digest_of(body), body)))
    at = data.draw(st.integers(0, lost.index(10) - 1))
    lost[at] ^= data.draw(st.integers(1, 255).filter(lambda value: lost[at] ^ value != 10))
    content = read_segment(bytes(lost) + frame(payload) + b"".join(written(entries)))
    assert content.payloads == (payload, *(one for _, one in entries))
    assert len(content.damaged) >= 1


def record(number: int, pictures: tuple[str, ...] = (), assessment: str | None = None) -> bytes:
    return orjson.dumps(
        {
            "record": {
                "id": f"r{number}",
                "assessmentId": assessment or f"house-{number}",
                "receivedAt": "2026-01-01T00:00:00+00:00",
                "gateway": "main",
                "task": "building-damage",
                "chosen": "control",
                "outcome": "ok",
                "messages": [],
                "pictures": list(pictures),
            }
        }
    )


def digest_of(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


class Post:
    """A sender with its spool and a stand-in for the assessments service."""

    def __init__(self, root: Path, port: int) -> None:
        self.root, self.pool, self.port = root, HttpPool(4), port
        self.service = FakeAssessments(INTERNAL_TOKEN)
        self.dead = 0

    def open(self, instance: str = "gateway-0", max_bytes: int = 10_000_000) -> tuple[Spool, Sender]:
        spool = Spool(claim_own_folder(self.root, instance), max_bytes)
        sender = Sender(
            spool,
            self.root,
            self.pool,
            f"http://127.0.0.1:{self.port}",
            INTERNAL_TOKEN,
            lambda: 0.5,
            self.count_dead,
        )
        return spool, sender

    def count_dead(self) -> None:
        self.dead += 1


@pytest.fixture
async def post(tmp_path: Path) -> AsyncIterator[Post]:
    made = Post(tmp_path, free_port())
    with closing(made.pool):
        async with running(made.service.app(), made.port):
            yield made


async def test_records_and_their_pictures_are_delivered_and_deleted(post: Post) -> None:
    spool, sender = post.open()
    body = b"picture"
    for number in range(3):
        await spool.append(record(number, (digest_of(body),)), [(digest_of(body), body)])
    assert spool.folder.records == 3
    while await sender.deliver_some():
        pass
    assert set(post.service.records) == {"r0", "r1", "r2"}
    assert post.service.pictures == {digest_of(body): body}
    assert post.service.problems == []
    assert (spool.folder.records, spool.folder.bytes_used) == (0, 0)
    assert not list(spool.folder.segments.iterdir())
    assert post.service.puts == 1, "a picture is written and sent once for all records of a segment"
    await spool.close()


async def test_every_segment_holds_the_pictures_of_its_records(post: Post) -> None:
    spool, sender = post.open()
    body = b"picture"
    digest = digest_of(body)
    await spool.append(record(1, (digest,)), [(digest, body)])
    await spool.seal()
    await spool.append(record(2, (digest,)), [(digest, body)])
    await sender.deliver_some()
    post.service.pictures.clear()
    await sender.deliver_some()
    assert set(post.service.records) == {"r1", "r2"}
    assert post.service.pictures == {digest: body}
    await spool.close()


async def test_a_picture_the_service_refuses_is_put_aside_and_its_record_is_delivered(post: Post) -> None:
    spool, sender = post.open()
    body = b"picture"
    wrong = digest_of(b"another")
    await spool.append(record(1, (wrong,)), [(wrong, body)])
    while await sender.deliver_some():
        pass
    assert post.dead == 1
    assert (spool.folder.dead / wrong).read_bytes() == body
    assert set(post.service.records) == {"r1"}
    await spool.close()


async def test_an_absent_service_is_waited_for(post: Post) -> None:
    post.service.status = 503
    spool, sender = post.open()
    task = asyncio.create_task(sender.run())
    await asyncio.gather(*(spool.append(record(number)) for number in range(50)))
    await asyncio.sleep(0.3)
    assert sender.waiting_records() == 50
    post.service.status = 200
    await until(lambda: len(post.service.records) == 50)
    await until(lambda: sender.waiting_records() == 0)
    task.cancel()
    await spool.close()


@pytest.mark.parametrize("way", ["named in the reply", "whole batch refused"])
async def test_a_poison_record_is_put_aside_and_holds_nobody_up(post: Post, way: str) -> None:
    if way == "named in the reply":
        post.service.poison_assessments = frozenset({"poison"})
    else:
        post.service.poison_batches = frozenset({"poison"})
    spool, sender = post.open()
    for number in range(9):
        await spool.append(record(number, assessment="poison" if number == 4 else None))
    while await sender.deliver_some():
        pass
    assert set(post.service.records) == {f"r{number}" for number in range(9)} - {"r4"}
    assert post.dead == 1
    letters = (spool.folder.dead / "records.ndjson").read_text()
    assert '\\"r4\\"' in letters
    await spool.close()


async def test_what_a_dead_process_left_is_delivered_by_the_next(post: Post) -> None:
    spool, _ = post.open()
    body = b"line\nbreaks and \x00 bytes\n"
    await spool.append(record(1, (digest_of(body),)), [(digest_of(body), body)])
    await spool.append(record(2))
    segment = next(spool.folder.segments.iterdir())
    with segment.open("ab") as file:
        torn = b"of a request that was never answered"
        file.write(b"".join(frame_picture(digest_of(torn), torn))[:-10])  # by the crash
    os.close(spool.folder._lock_descriptor)  # what the kernel does when the process dies
    again, sender = post.open()
    assert again.folder.path == spool.folder.path
    assert again.folder.records == 2
    while await sender.deliver_some():
        pass
    assert set(post.service.records) == {"r1", "r2"}
    assert post.service.pictures == {digest_of(body): body}
    await again.close()


async def test_folders_of_dead_gateways_are_taken_over_and_live_ones_left_alone(post: Post) -> None:
    dead, _ = post.open("gateway-dead")
    await dead.append(record(1))
    dead.folder.bury(b"{}", "unfit")
    await dead.close()
    alive, _ = post.open("gateway-alive")
    await alive.append(record(2))
    spool, sender = post.open("gateway-0")
    task = asyncio.create_task(sender.run())
    await until(lambda: "r1" in post.service.records)
    await until(lambda: not dead.folder.path.exists())
    assert "r2" not in post.service.records
    assert len(list(spool.folder.dead.iterdir())) == 1, "dead letters move on"
    task.cancel()
    await spool.close()
    await alive.close()


async def test_two_processes_of_one_name_get_two_folders(tmp_path: Path) -> None:
    first, second = claim_own_folder(tmp_path, "gateway-0"), claim_own_folder(tmp_path, "gateway-0")
    assert first.path != second.path
    assert SpoolFolder.claim(first.path) is None
    first.release()
    assert claim_own_folder(tmp_path, "gateway-0").path == first.path


async def test_a_full_spool_says_so_and_takes_more_once_it_is_emptied(post: Post) -> None:
    spool, sender = post.open(max_bytes=2 * len(frame(record(1))) + 50)
    await spool.append(record(1))
    await spool.append(record(2))
    with pytest.raises(SpoolFull):
        await spool.append(record(3))
    with pytest.raises(SpoolFull):
        await spool.append(record(3, (digest_of(b"x" * 500),)), [(digest_of(b"x" * 500), b"x" * 500)])
    while await sender.deliver_some():
        pass
    await spool.append(record(4))
    while await sender.deliver_some():
        pass
    assert set(post.service.records) == {"r1", "r2", "r4"}
    await spool.close()


async def test_a_disk_that_fails_leaves_nothing_half_written(
    post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool, sender = post.open()
    await spool.append(record(1))
    real = os.fdatasync

    def broken(descriptor: int) -> None:
        raise OSError(5, "input/output error")

    monkeypatch.setattr(os, "fdatasync", broken)
    with pytest.raises(SpoolFull):
        await spool.append(record(2))
    monkeypatch.setattr(os, "fdatasync", real)
    await spool.append(record(3))
    while await sender.deliver_some():
        pass
    assert set(post.service.records) == {"r1", "r3"}
    assert post.dead == 0
    await spool.close()


@pytest.mark.parametrize("refused", ["close", "unlink"])
async def test_a_disk_that_does_not_even_let_go_of_a_segment_is_written_to_again_once_it_is_well(
    post: Post, monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    """As with a file system that a failed write turns read-only."""
    spool, sender = post.open()
    where, real = (os, os.close) if refused == "close" else (Path, Path.unlink)

    def letting_go(*arguments: Any, **named: Any) -> None:
        if threading.current_thread() is spool._thread:
            raise OSError(30, "read-only file system")
        real(*arguments, **named)

    def written(descriptor: int, parts: Any) -> int:
        raise OSError(5, "input/output error")

    with monkeypatch.context() as broken:
        broken.setattr(os, "writev", written)
        broken.setattr(where, refused, letting_go)
        with pytest.raises(SpoolFull):
            async with asyncio.timeout(5):
                await spool.append(record(1))
    async with asyncio.timeout(5):
        await spool.append(record(2))
    while await sender.deliver_some():
        pass
    assert set(post.service.records) == {"r2"}
    await spool.close()


async def test_what_waits_for_the_disk_is_bounded_but_one_large_entry_may_wait_alone(
    post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cutover_server.gateway.spool.MAX_WAITING_BYTES", 1000)
    spool, sender = post.open()
    body = bytes(2000)
    large = spool.append(record(1, (digest_of(body),)), [(digest_of(body), body)])
    outcomes = await asyncio.gather(large, spool.append(record(2)), return_exceptions=True)
    assert outcomes[0] is None
    assert isinstance(outcomes[1], SpoolFull)
    await spool.append(record(3))
    while await sender.deliver_some():
        pass
    assert set(post.service.records) == {"r1", "r3"}
    await spool.close()


async def test_a_damaged_line_is_put_aside(post: Post) -> None:
    spool, _ = post.open()
    for number in (1, 2, 3):
        await spool.append(record(number))
    segment = next(spool.folder.segments.iterdir())
    await spool.close()
    segment.write_bytes(segment.read_bytes().replace(b'"r2"', b'"rX"'))
    again, sender = post.open()
    while await sender.deliver_some():
        pass
    assert set(post.service.records) == {"r1", "r3"}
    assert post.dead == 1
    await again.close()


async def test_answers_go_out_when_the_spool_is_full_and_when_the_service_is_away(tmp_path: Path) -> None:
    async with aiohttp.ClientSession() as session:
        rig = Rig(tmp_path, session)
        rig.settings["max_spool_bytes"] = 4_000
        rig.assessments.status = 500
        async with rig.all(rig.route()):
            for number in range(8):
                assert (await rig.ask(number)).status == 200
            full = await rig.value("cutover_spool_full_total")
            waiting = await rig.value("cutover_spool_records")
            assert full > 0
            assert full + waiting == 8
            assert await rig.value("cutover_requests_total", outcome="ok") == 8
            rig.assessments.status = 200
            await until(lambda: len(rig.assessments.records) == waiting)
            assert (await rig.ask(9)).status == 200
            await until(lambda: len(rig.assessments.records) == waiting + 1)
            assert rig.assessments.problems == []
