"""The pages over HTTP: signing in, labelling by form, forgery and script injection, the figures."""

from __future__ import annotations

import html
import re
from collections.abc import AsyncIterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from fakes.assessments_service import (
    ADMIN,
    PNG,
    PNG_DIGEST,
    START,
    SURVEYOR,
    Running,
    answer,
    new_settings,
    record,
    running,
)

LIST = "/admin/building-assessments"
PERFORMANCE = "/admin/model-performance"
EVIL = '"><script>alert(1)</script><img src=x onerror=alert(1)>'


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Running]:
    async with running(new_settings(tmp_path)) as started:
        yield started


class Tags(HTMLParser):
    """Start tags with their attributes; complains about what never closes."""

    VOID = frozenset({"meta", "link", "input", "img", "br"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID and tag not in ("p", "li", "option"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("p", "li", "option"):
            assert self.open.pop() == tag


async def sign_in(service: Running, token: str = SURVEYOR, name: str = "Ann") -> dict[str, str]:
    async with service.client.post(
        f"{service.base}/login", data={"token": token, "name": name, "next": LIST}, allow_redirects=False
    ) as response:
        assert response.status == 303
        assert response.headers["Location"] == LIST
        cookie = response.headers["Set-Cookie"]
        assert "HttpOnly" in cookie
        assert "samesite=strict" in cookie.lower()
        return {"Cookie": cookie.partition(";")[0]}


async def page(service: Running, path: str, headers: dict[str, str]) -> str:
    status, body = await service.call("GET", path, "nobody", headers=headers)
    assert status == 200
    return str(body.decode())


def csrf_of(text: str) -> str:
    found = re.search(r'name="csrf" value="([0-9a-f]{64})"', text)
    assert found
    return found[1]


async def test_label_given_by_form_is_kept_under_the_name_of_the_session(service: Running) -> None:
    await service.call("PUT", f"/internal/pictures/{PNG_DIGEST}", "internal", data=PNG)
    await service.deliver(record("web/1 ä"))
    me = await sign_in(service)
    text = await page(service, LIST, me)
    tags = Tags(text).found
    (image,) = [a["src"] for tag, a in tags if tag == "img"]
    assert await service.call("GET", str(image), "nobody", headers=me) == (200, PNG)
    (action,) = [a["action"] for tag, a in tags if tag == "form" and a.get("class") == "label"]
    selects = [a["name"] for tag, a in tags if tag == "select"]
    assert selects == ["label-damageType", "label-severity"]
    form = {"csrf": csrf_of(text), "label-damageType": "leak", "label-severity": "high", "comment": "wet"}
    status, _ = await service.call("POST", html.unescape(str(action)), "nobody", headers=me, data=form)
    assert status == 303
    _, row = await service.call("GET", "/api/assessments/web%2F1%20%C3%A4")
    assert [(e["labeller"], e["comment"]) for e in row["labels"]] == [("Ann", "wet")]
    assert row["truth"] == {"damageType": "leak", "severity": "high"}
    assert "Nothing here" in await page(service, LIST, me)
    assert "Ann" in await page(service, LIST + "?status=all", me)
    form["label-damageType"] = "fire"
    status, body = await service.call("POST", html.unescape(str(action)), "nobody", headers=me, data=form)
    assert status == 422
    Tags(body.decode())


async def test_forged_form_changes_nothing(service: Running) -> None:
    await service.deliver(record("w"))
    me, other = await sign_in(service), await sign_in(service, name="Eve")
    good = csrf_of(await page(service, LIST, me))
    form = {"csrf": good, "label-damageType": "leak", "label-severity": "high"}
    forged: list[tuple[dict[str, str], dict[str, str]]] = [
        (me, {**form, "csrf": ""}),
        (me, {**form, "csrf": "0" * 64}),
        (me, {**form, "csrf": csrf_of(await page(service, LIST, other))}),
        ({**me, "Origin": "https://evil.example"}, form),
        ({**me, "Origin": "null"}, form),
        ({**me, "Sec-Fetch-Site": "cross-site"}, form),
    ]
    for headers, data in forged:
        assert (await service.call("POST", f"{LIST}/w", "nobody", headers=headers, data=data))[0] == 403
    assert (await service.call("POST", "/logout", "nobody", headers=me, data={}))[0] == 403
    body = {"labels": {"severity": "low"}}
    assert (await service.call("POST", "/api/assessments/w/validation", "nobody", headers=me, json=body))[
        0
    ] == 403
    _, row = await service.call("GET", "/api/assessments/w")
    assert row["labels"] == []
    same = {**me, "Origin": service.base, "Sec-Fetch-Site": "same-origin"}
    assert (await service.call("POST", f"{LIST}/w", "nobody", headers=same, data=form))[0] == 303


async def test_session_is_signed_and_ends(service: Running) -> None:
    me = await sign_in(service)
    name, _, value = me["Cookie"].partition("=")
    payload, _, signature = value.rpartition(".")
    for forged in (f"{payload}x.{signature}", f"{payload}.{'0' * 64}", signature, "", "é."):
        status, _ = await service.call("GET", LIST, "nobody", headers={"Cookie": f"{name}={forged}"})
        assert status == 303
    # A surveyor's session opens no administrator's page, and the data API for admins stays shut.
    assert (await service.call("GET", PERFORMANCE, "nobody", headers=me))[0] == 403
    assert (await service.call("GET", "/api/admin/training-data/export", "nobody", headers=me))[0] == 403
    service.clock.now += 13 * 3600
    assert (await service.call("GET", LIST, "nobody", headers=me))[0] == 303


@pytest.mark.parametrize(
    ("form", "status"),
    [
        ({"token": "wrong", "name": "A"}, 401),
        ({"token": "internal-token-0123456", "name": "A"}, 401),
        ({"token": ADMIN, "name": ""}, 422),
        ({}, 401),
    ],
)
async def test_unfit_login_is_refused(service: Running, form: dict[str, str], status: int) -> None:
    found, body = await service.call("POST", "/login", "nobody", data=form or b"")
    assert found == status
    Tags(body.decode())


@pytest.mark.parametrize(
    ("headers", "secure"),
    [
        ({}, False),
        ({"X-Forwarded-Proto": "http"}, False),
        ({"X-Forwarded-Proto": "https"}, True),
        ({"X-Forwarded-Proto": "https, http"}, True),
        ({"Forwarded": "for=192.0.2.1; proto=https; by=proxy"}, True),
    ],
)
async def test_a_session_that_came_by_https_travels_by_https_only(
    service: Running, headers: dict[str, str], secure: bool
) -> None:
    data = {"token": ADMIN, "name": "A"}
    async with service.client.post(
        f"{service.base}/login", data=data, headers=headers, allow_redirects=False
    ) as response:
        cookie = response.headers["Set-Cookie"]
    assert ("; Secure" in cookie) is secure
    assert "HttpOnly" in cookie


@pytest.mark.parametrize(
    "target", ["//evil.example", "https://evil.example", "/\\evil.example", "javascript:x", ""]
)
async def test_login_leads_to_no_other_site(service: Running, target: str) -> None:
    data = {"token": ADMIN, "name": "A", "next": target}
    async with service.client.post(f"{service.base}/login", data=data, allow_redirects=False) as response:
        assert response.headers["Location"] == LIST


async def test_large_form_is_refused(service: Running) -> None:
    me = await sign_in(service)
    form = {"csrf": "x", "comment": "y" * 100_000}
    assert (await service.call("POST", f"{LIST}/w", "nobody", headers=me, data=form))[0] == 413
    assert (await service.call("POST", "/login", "nobody", data=form))[0] == 413


async def test_no_script_gets_in_anywhere(service: Running) -> None:
    wild = answer(version=EVIL) | {"answer": {"damageType": EVIL, EVIL: [EVIL], "half": "\ud800"}}
    await service.deliver(
        record(EVIL[:100], assessmentId=EVIL, control=wild, servedVersion=EVIL, rollout=EVIL),
        shadows=[{"id": EVIL[:100], "candidate": wild}],
    )
    boss = await sign_in(service, ADMIN, EVIL)
    text = await page(service, LIST, boss)
    form = {"csrf": csrf_of(text), "label-damageType": "leak", "label-severity": "high", "comment": EVIL}
    (action,) = [a["action"] for tag, a in Tags(text).found if tag == "form" and a.get("class") == "label"]
    assert (await service.call("POST", str(action), "nobody", headers=boss, data=form))[0] == 303
    paths = [LIST + "?status=all", LIST + "?status=all&saved=<script>", PERFORMANCE, "/login?next=/<script>"]
    for path in paths:
        async with service.client.get(service.base + path, headers=boss) as response:
            tags = Tags(await response.text()).found
            policy = response.headers["Content-Security-Policy"]
        assert response.status == 200
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert response.headers["Cache-Control"] == "no-store"
        assert not [tag for tag, _ in tags if tag == "script"]
        assert not [a for _, a in tags for name in a if name.startswith("on") or name == "style"]
        for _, attributes in tags:
            for name in ("src", "href", "action"):
                target = urlsplit(attributes.get(name) or "")
                assert (target.scheme, target.netloc) == ("", "")


async def test_form_can_be_used_by_keyboard_and_reader(service: Running) -> None:
    await service.deliver(record("k"))
    tags = Tags(await page(service, LIST, await sign_in(service))).found
    ids = {a["id"] for _, a in tags if "id" in a}
    labels = {a["for"] for tag, a in tags if tag == "label"}
    fields = [a for tag, a in tags if tag in ("select", "input") and a.get("type") != "hidden"]
    assert labels <= ids
    assert all(a["id"] in labels for a in fields)
    assert all(a.get("alt") for tag, a in tags if tag == "img")
    assert not any(int(a["tabindex"] or 0) > 0 for _, a in tags if "tabindex" in a)
    assert any(tag == "meta" and a.get("name") == "viewport" for tag, a in tags)


def cells(text: str) -> list[list[str]]:
    rows = re.findall(r"<tr>(.*?)</tr>", text, re.S)
    return [
        [re.sub(r"<.*?>", "", c).strip() for c in re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row)]
        for row in rows
    ]


async def test_performance_page_tells_the_figures(service: Running) -> None:
    def mine(damage: str) -> dict[str, Any]:
        return answer(damage, version="mine-1", latencySeconds=0.2, costUsd=0.002)

    await service.deliver(*(record(f"c{n}") for n in range(4)))
    await service.deliver(
        *(
            record(
                f"d{n}",
                chosen="candidate",
                control=None,
                candidate=mine("crack"),
                received=START + 86400 * (n % 2),
            )
            for n in range(4)
        )
    )
    for n in range(4):
        await service.label(f"c{n}", damageType="crack", severity="low")
        await service.label(f"d{n}", damageType="crack" if n else "leak", severity="low")
    await service.deliver(record("waiting"))
    await service.call("POST", "/api/feedback", json={"id": "d1", "score": "up"})
    await service.until(lambda m: any("satisfaction" in name for name in m if name.endswith("}")))
    text = await page(service, PERFORMANCE, await sign_in(service, ADMIN))
    tags = Tags(text).found
    table = cells(text)
    assert ["candidate", "mine-1", "sampled", "overall", "75.0 % (30.1 % to 95.4 %)", "4"] in table
    assert ["control", "gpt-4", "sampled", "overall", "100.0 % (51.0 % to 100.0 %)", "4"] in table
    candidate = next(row for row in table if row[:2] == ["candidate", "mine-1"] and len(row) == 13)
    assert candidate[2:11] == ["4", "0", "0", "0.20 s", "0.25 s", "0.25 s", "$0.01", "$2.00", "80.0 %"]
    assert ["leak", "0.0 % (0.0 % to 79.3 %) of 1", "crack: 1"] in table
    assert "wait for a label: <strong>1</strong>" in text
    assert len([1 for tag, _ in tags if tag == "svg"]) == 2


async def test_other_path_for_the_list(tmp_path: Path) -> None:
    async with running(new_settings(tmp_path, assessments_path="/admin/roof-assessments")) as service:
        await sign_in_at(service, "/admin/roof-assessments")
        assert (await service.call("GET", LIST))[0] == 404


async def sign_in_at(service: Running, path: str) -> None:
    data = {"token": ADMIN, "name": "A"}
    async with service.client.post(f"{service.base}/login", data=data, allow_redirects=False) as response:
        assert response.headers["Location"] == path
    assert (await service.call("GET", path))[0] == 200


async def test_static_files(service: Running) -> None:
    async with service.client.get(f"{service.base}/static/style.css") as response:
        assert (response.status, response.content_type) == (200, "text/css")
    for name in ("pages.py", "..%2Fpages.py", "%2Fetc%2Fpasswd"):
        async with service.client.get(f"{service.base}/static/{name}") as response:
            assert response.status == 404
