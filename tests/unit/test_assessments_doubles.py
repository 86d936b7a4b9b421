"""Second labellers: offered to somebody else than the first, who does not see what the first said."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from cutover.contract import LABEL_DOUBLES
from fakes.assessments_service import START, SURVEYOR, Running, new_settings, record, running

LIST = "/admin/building-assessments"


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Running]:
    async with running(new_settings(tmp_path)) as started:
        yield started


async def offered(service: Running, labeller: str, status: str = "toLabel") -> dict[str, dict[str, Any]]:
    _, page = await service.call("GET", f"/api/assessments?status={status}&labeller={labeller}", "surveyor")
    return {row["id"]: row for row in page["assessments"]}


async def sign_in(service: Running, name: str) -> dict[str, str]:
    form = {"token": SURVEYOR, "name": name, "next": LIST}
    async with service.client.post(f"{service.base}/login", data=form, allow_redirects=False) as response:
        return {"Cookie": response.headers["Set-Cookie"].partition(";")[0]}


async def page_of(service: Running, cookie: dict[str, str], status: str = "toLabel") -> str:
    _, page = await service.call("GET", f"{LIST}?status={status}", "nobody", headers=cookie)
    return str(page.decode())


async def save(service: Running, cookie: dict[str, str], identity: str, damage: str) -> None:
    csrf = re.search(r'name="csrf" value="([^"]+)"', await page_of(service, cookie, "all"))
    assert csrf is not None
    form = {"csrf": csrf[1], "label-damageType": damage, "label-severity": "low", "comment": "seen it"}
    status, _ = await service.call("POST", f"{LIST}/{identity}", "nobody", headers=cookie, data=form)
    assert status == 303


async def test_the_queue_offers_a_second_label_to_somebody_else(service: Running) -> None:
    await service.deliver(record("one"), record("two", labellers=2))
    assert set(await offered(service, "ann")) == {"one", "two"}
    for identity in ("one", "two"):
        await service.label(identity, "ann", damageType="leak", severity="low")
    assert await offered(service, "ann") == {}, "never the same person"
    assert await offered(service, "") == {}, "nor somebody who does not say who it is"
    again = await offered(service, "bob")
    assert set(again) == {"two"}
    assert (again["two"]["labels"], again["two"]["truth"], again["two"]["validated"]) == ([], None, False)
    listed = await offered(service, "bob", "all")
    assert (listed["two"]["labels"], listed["two"]["truth"]) == ([], None), "nor is it told elsewhere"
    assert listed["one"]["truth"] is not None
    mine = (await offered(service, "ann", "all"))["two"]
    assert mine["labels"][0]["labeller"] == "ann"
    _, alone = await service.call("GET", "/api/assessments/two?labeller=bob", "surveyor")
    assert alone["labels"] == []
    await service.label("two", "bob", damageType="crack", severity="low")
    assert await offered(service, "cat") == {}
    assert len((await offered(service, "cat", "all"))["two"]["labels"]) == 2
    service.clock.now = START + 101
    series = LABEL_DOUBLES + '{{field="{}",result="{}",rollout="0a1b2c3d-4e5f"}}'
    metrics = await service.until(lambda found: found.get(series.format("damageType", "different"), 0) == 1)
    assert metrics[series.format("severity", "same")] == 1
    assert metrics[series.format("severity", "different")] == 0


async def test_a_changed_mind_is_no_second_person(service: Running) -> None:
    await service.deliver(record("two", labellers=2))
    await service.label("two", "ann", damageType="leak", severity="low")
    await service.label("two", "ann", damageType="crack", severity="low")
    assert set(await offered(service, "bob")) == {"two"}
    assert await offered(service, "ann") == {}


async def test_after_the_deadline_nobody_is_asked_and_everything_is_told(service: Running) -> None:
    await service.deliver(record("two", labellers=2))
    await service.label("two", "ann", damageType="leak", severity="low")
    service.clock.now = START + 101
    assert await offered(service, "bob") == {}
    assert len((await offered(service, "bob", "all"))["two"]["labels"]) == 1


async def test_the_page_keeps_the_first_label_from_the_second_person(service: Running) -> None:
    await service.deliver(record("two", labellers=2))
    ann, bob = await sign_in(service, "Ann"), await sign_in(service, "Bob")
    await save(service, ann, "two", "leak")
    assert "a-two" not in await page_of(service, ann)
    assert "seen it" in await page_of(service, ann, "all")
    for status in ("toLabel", "all"):
        page = await page_of(service, bob, status)
        assert "a-two" in page
        assert "Ann" not in page
        assert "seen it" not in page
    await save(service, bob, "two", "leak")
    assert "a-two" not in await page_of(service, bob)
    assert "Ann" in await page_of(service, bob, "all")
