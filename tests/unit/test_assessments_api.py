"""The assessments service over HTTP, on SQLite and on PostgreSQL: deliver, label, mature, export, delete."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from starlette.routing import Route

from cutover.contract import LABEL_CORRECTIONS, LABELS_MATURED, SATISFACTION
from cutover_server.assessments.app import build_app
from cutover_server.assessments.audit import schema_version
from cutover_server.assessments.service import Service
from fakes.assessments_service import (
    PNG,
    PNG_DIGEST,
    START,
    TASK,
    Running,
    answer,
    new_settings,
    record,
    running,
)
from fakes.postgres_server import new_database, new_server, wait_until_answering


@pytest.fixture(params=["sqlite", "postgresql"])
async def service(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Running]:
    url = new_database()[1] if request.param == "postgresql" else ""
    async with running(new_settings(tmp_path, url)) as started:
        yield started


@pytest.fixture
async def embedded(tmp_path: Path) -> AsyncIterator[Running]:
    """On SQLite only: for what does not depend on the database."""
    async with running(new_settings(tmp_path)) as started:
        yield started


def matured(metrics: dict[str, float], field: str = "overall") -> dict[tuple[str, str], float]:
    """(arm, result) -> count"""
    found: dict[tuple[str, str], float] = {}
    for name, value in metrics.items():
        if name.startswith(LABELS_MATURED + "{") and f'field="{field}"' in name:
            labels = dict(part.split("=", 1) for part in name.partition("{")[2].rstrip("}").split(","))
            found[labels["arm"].strip('"'), labels["result"].strip('"')] = value
    return found


# ------------------------------------------------------------------ intake


async def test_batch_is_idempotent_and_one_bad_record_stops_no_other(service: Running) -> None:
    good, bad, odd = record("good"), record("bad", chosen="nobody"), {"no": "id"}
    nul = record("nul", servedVersion="a\x00b")
    nan = record("nan", control={"version": "x", "confidence": float("nan")})
    naive = record("naive", receivedAt="2026-01-01T00:00:00")
    digest = record("digest", pictures=["../../etc/passwd"])
    result = await service.deliver(bad, good, odd, nul, nan, naive, digest, shadows=[{"id": "s"}])  # type: ignore[list-item]
    assert result["accepted"] == ["good"]
    reasons = {entry["id"]: entry["reason"] for entry in result["refused"]}
    assert set(reasons) == {"bad", "", "nul", "nan", "naive", "digest", "s"}
    assert "chosen" in reasons["bad"]
    assert "time zone" in reasons["naive"]
    again = await service.deliver(good, record("second"))
    assert (again["accepted"], again["duplicate"]) == (["second"], ["good"])
    status, page = await service.call("GET", "/api/assessments?status=all")
    assert (status, {row["id"] for row in page["assessments"]}) == (200, {"good", "second"})


async def test_text_a_model_may_write_is_kept(service: Running) -> None:
    wild = {"damageType": "crack", "severity": "low", "advice": "nul \x00, half \ud800, 家 🏚"}
    result = await service.deliver(record("wild", control=answer() | {"answer": wild, "text": "x\x00y"}))
    assert result["accepted"] == ["wild"]
    _, row = await service.call("GET", "/api/assessments/wild")
    assert row["answer"] == wild


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"[" * 100_000, b'{"records": 5}'])
async def test_body_that_is_no_batch_is_refused(embedded: Running, body: bytes) -> None:
    status, _ = await embedded.call("POST", "/internal/records", "internal", data=body)
    assert status == 400


async def test_large_batch_is_taken_whole(service: Running) -> None:
    result = await service.deliver(*(record(f"many-{n:04}") for n in range(1500)))
    assert len(result["accepted"]) == 1500


# ------------------------------------------------------------------ pictures


async def test_picture_is_kept_under_its_own_digest_only(service: Running) -> None:
    wrong = hashlib.sha256(b"other").hexdigest()
    assert (await service.call("PUT", f"/internal/pictures/{wrong}", "internal", data=PNG))[0] == 422
    assert (await service.call("PUT", "/internal/pictures/..%2F..%2Fx", "internal", data=PNG))[0] in (
        400,
        404,
    )
    for _ in range(2):
        assert (await service.call("PUT", f"/internal/pictures/{PNG_DIGEST}", "internal", data=PNG))[0] == 204
    assert await service.call("GET", f"/api/pictures/{PNG_DIGEST}", "surveyor") == (200, PNG)
    assert (await service.call("GET", f"/api/pictures/{wrong}", "surveyor"))[0] == 404
    assert (await service.call("GET", f"/api/pictures/{PNG_DIGEST}", "internal"))[0] == 403


async def test_oversized_picture_is_refused(tmp_path: Path) -> None:
    async with running(new_settings(tmp_path, max_picture_bytes=1000)) as small:
        body = b"x" * 1001
        digest = hashlib.sha256(body).hexdigest()
        assert (await small.call("PUT", f"/internal/pictures/{digest}", "internal", data=body))[0] == 413


async def test_page_script_stored_as_picture_is_served_as_a_download(embedded: Running) -> None:
    body = b"<script>alert(1)</script>"
    digest = hashlib.sha256(body).hexdigest()
    await embedded.call("PUT", f"/internal/pictures/{digest}", "internal", data=body)
    async with embedded.client.get(
        f"{embedded.base}/api/pictures/{digest}", headers=embedded.headers["admin"]
    ) as response:
        assert response.content_type == "application/octet-stream"
        assert response.headers["Content-Disposition"] == "attachment"
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert "sandbox" in response.headers["Content-Security-Policy"]


async def test_picture_damaged_in_the_store_is_not_served(embedded: Running, tmp_path: Path) -> None:
    await embedded.call("PUT", f"/internal/pictures/{PNG_DIGEST}", "internal", data=PNG)
    (tmp_path / "pictures" / PNG_DIGEST[:2] / PNG_DIGEST).write_bytes(b"damaged")
    assert (await embedded.call("GET", f"/api/pictures/{PNG_DIGEST}"))[0] == 404


# ------------------------------------------------------------------ listing and labels


async def test_list_pages_newest_first_without_gaps(service: Running) -> None:
    await service.deliver(
        *(record(f"p{n}", received=START + n // 2) for n in range(7)), record("x", sampled=False)
    )
    seen: list[str] = []
    cursor = ""
    while True:
        _, page = await service.call("GET", f"/api/assessments?limit=2&cursor={cursor}")
        seen += [row["id"] for row in page["assessments"]]
        cursor = page["nextCursor"]
        if not cursor:
            break
    assert seen == ["p6", "p5", "p4", "p3", "p2", "p1", "p0"]
    await service.label("p3", damageType="leak", severity="low")
    service.clock.now = START + 100 + 1.5
    _, page = await service.call("GET", "/api/assessments?status=toLabel")
    assert [row["id"] for row in page["assessments"]] == ["p6", "p5", "p4"]


@pytest.mark.parametrize("query", ["status=none", "limit=0", "limit=x", "limit=201", "cursor=zz"])
async def test_unfit_query_is_answered_with_the_remedy(embedded: Running, query: str) -> None:
    status, body = await embedded.call("GET", f"/api/assessments?{query}")
    assert status == 400
    assert query.partition("=")[0] in body["error"]["message"]


async def test_surveyor_does_not_see_which_arm_answered(embedded: Running) -> None:
    await embedded.deliver(record("b", chosen="candidate", control=None, candidate=answer(version="mine-7")))
    for path in ("/api/assessments?status=all", "/api/assessments/b"):
        _, seen = await embedded.call("GET", path, "surveyor")
        assert "mine-7" not in json.dumps(seen)
        assert '"chosen"' not in json.dumps(seen)
    _, seen = await embedded.call("GET", "/api/assessments/b")
    assert (seen["chosen"], seen["candidate"]["version"]) == ("candidate", "mine-7")
    _, seen = await embedded.call("GET", "/api/assessments/b?blind=true")
    assert "chosen" not in seen


async def test_label_is_checked_against_the_task(embedded: Running) -> None:
    await embedded.deliver(record("v"))
    path = "/api/assessments/v/validation"
    for labels, field in (
        ({"damageType": "fire"}, "damageType"),
        ({"colour": "red"}, "colour"),
        ({}, "labels"),
    ):
        status, body = await embedded.call("POST", path, json={"labeller": "ann", "labels": labels})
        assert status == 422
        assert body["error"]["problems"][0]["field"] == field
        assert body["error"]["problems"][0]["allowed"]
    assert (await embedded.call("POST", path, json={"labels": {"severity": "low"}}))[0] == 422
    assert (await embedded.call("POST", path, json={"labeller": "", "labels": {"severity": "low"}}))[0] == 422
    missing = {"labeller": "ann", "labels": {"severity": "low"}}
    assert (await embedded.call("POST", "/api/assessments/none/validation", json=missing))[0] == 404


async def test_label_is_idempotent_and_keeps_its_history(service: Running) -> None:
    await service.deliver(record("h"))
    first = await service.label("h", damageType="leak", severity="low")
    again = await service.label("h", damageType="leak", severity="low")
    changed = await service.label("h", damageType="none", severity="low")
    assert [r["changed"] for r in (first, again, changed)] == [True, False, True]
    _, row = await service.call("GET", "/api/assessments/h")
    assert [entry["labels"]["damageType"] for entry in row["labels"]] == ["leak", "none"]
    assert row["truth"] == {"damageType": "none", "severity": "low"}


async def test_labels_sent_at_once_are_one(service: Running) -> None:
    await service.deliver(record("c"))
    results = await asyncio.gather(*(service.label("c", damageType="leak", severity="low") for _ in range(8)))
    assert sum(r["changed"] for r in results) == 1


# ------------------------------------------------------------------ totals


async def test_cohort_matures_into_counters(service: Running) -> None:
    candidate = answer("leak", version="mine")
    await service.deliver(
        record("m1"), record("m2"), record("m3"), shadows=[{"id": "m1", "candidate": candidate}]
    )
    await service.deliver(
        record("m4", chosen="candidate", control=None, candidate={"version": "mine", "error": "x"})
    )
    await service.label("m1", damageType="leak", severity="low")
    await service.label("m2", damageType="crack", severity="low")
    await service.label("m4", damageType="crack", severity="low")
    assert matured(await service.metrics()) == {}
    service.clock.now += 101
    metrics = await service.until(lambda m: sum(matured(m).values()) == 5)
    assert matured(metrics) == {
        ("control", "right"): 1,
        ("control", "wrong"): 1,
        ("control", "missing"): 1,
        ("candidate", "right"): 1,
        ("candidate", "wrong"): 1,
        ("candidate", "missing"): 0,
    }
    assert matured(metrics, "severity")["control", "right"] == 2
    series = (
        LABELS_MATURED + '{arm="control",field="overall",result="right",rollout="0a1b2c3d-4e5f",'
        'stratum="all",version="gpt-4"}'
    )
    assert metrics[series] == 1

    late = await service.label("m3", damageType="crack", severity="low")
    assert late["late"]
    correction = LABEL_CORRECTIONS + '{arm="control",rollout="0a1b2c3d-4e5f",version="gpt-4"}'
    after = await service.until(lambda m: m.get(correction) == 1)
    assert matured(after) == matured(metrics)


async def test_feedback_counts_once_even_when_it_overtakes_its_record(service: Running) -> None:
    path = "/api/feedback"
    assert await service.call("POST", path, json={"id": "f1", "score": "up"}) == (
        200,
        {"id": "f1", "counted": True},
    )
    await service.deliver(record("f1"), record("f2", chosen="candidate", candidate=answer(version="mine")))
    for client in ("one", "two", "two"):
        await service.call("POST", path, json={"id": "f2", "score": "down", "client": client})
    metrics = await service.until(lambda m: sum(v for k, v in m.items() if k.startswith(SATISFACTION)) == 3)
    found = {k: v for k, v in metrics.items() if k.startswith(SATISFACTION + "{")}
    base = 'rollout="0a1b2c3d-4e5f",score="{}",version="{}"'
    assert found == {
        f'{SATISFACTION}{{arm="control",{base.format("up", "gpt-4")}}}': 1,
        f'{SATISFACTION}{{arm="control",{base.format("down", "gpt-4")}}}': 0,
        f'{SATISFACTION}{{arm="candidate",{base.format("up", "mine")}}}': 0,
        f'{SATISFACTION}{{arm="candidate",{base.format("down", "mine")}}}': 2,
    }
    assert (await service.call("POST", path, json={"id": "f2", "score": "meh"}))[0] == 422


async def test_the_audit_tells_who_said_what_became_of_it_and_against_which_schema(service: Running) -> None:
    async def trail(identity: str) -> list[tuple[str, str, str]]:
        status, told = await service.call("GET", f"/api/admin/audit/{identity}")
        assert status == 200
        assert [entry["at"] for entry in told["audit"]] == sorted(entry["at"] for entry in told["audit"])
        return [(entry["who"], entry["action"], entry["effect"]) for entry in told["audit"]]

    thumb = {"id": "a1", "score": "up", "client": "app"}
    assert (await service.call("POST", "/v1/feedback", json=thumb))[1]["counted"] is True
    await service.deliver(record("a1"))
    assert (await service.call("POST", "/v1/feedback", json=thumb))[1]["counted"] is False
    other = {**thumb, "score": "down"}
    assert (await service.call("POST", "/v1/feedback", json=other))[1]["counted"] is False
    later = {**thumb, "client": "portal"}
    assert (await service.call("POST", "/v1/feedback", "surveyor", json=later))[1]["counted"] is True

    async def label(who: str, severity: str) -> Any:
        labels = {"damageType": "crack", "severity": severity}
        body = {"id": "a1", "labeller": who, "labels": labels}
        status, told = await service.call("POST", "/v1/feedback", json=body)
        assert status == 200, told
        return told

    assert (await label("ann", "low"))["changed"]
    assert not (await label("ann", "low"))["changed"]
    assert (await label("ann", "high"))["truth"]["severity"] == "high", "the last word of a person counts"
    assert (await label("bob", "low"))["truth"]["severity"] == "low", "of as many, the newest prevails"
    assert (await label("cat", "high"))["truth"]["severity"] == "high", "the majority prevails"
    service.clock.now += 101
    await service.until(
        lambda m: matured(m).get(("control", "right"), 0) + matured(m).get(("control", "wrong"), 0) == 1
    )
    assert (await label("dan", "low"))["late"]
    assert await trail("a1") == [
        ("app", "feedback", "early"),
        ("app", "feedback", "repeated"),
        ("app", "feedback", "refused"),
        ("portal", "feedback", "kept"),
        ("ann", "label", "kept"),
        ("ann", "label", "repeated"),
        ("ann", "label", "changed"),
        ("bob", "label", "conflicting"),
        ("cat", "label", "conflicting"),
        ("dan", "label", "late"),
    ]
    entries = (await service.call("GET", "/api/admin/audit/a1"))[1]["audit"]
    assert {entry["role"] for entry in entries} == {"admin", "surveyor"}
    assert {entry["via"] for entry in entries} == {"bearer"}
    assert {entry["schemaVersion"] for entry in entries if entry["action"] == "label"} == {
        schema_version(TASK)
    }
    assert "crack" not in json.dumps(entries), "what was said is not told twice"
    assert (await service.call("GET", "/api/admin/audit/a1", "surveyor"))[0] == 403
    assert (await service.call("DELETE", "/api/admin/assessments/a1"))[0] == 200
    assert len(await trail("a1")) == 10, "who spoke stays known"
    assert (await service.call("POST", "/v1/feedback", json={"id": "a1", "labels": {"severity": "huge"}}))[
        0
    ] in (404, 422)


def test_the_schema_version_follows_what_may_be_answered() -> None:
    same = TASK.model_copy(update={"user_prompt": "What is broken?"})
    assert schema_version(same) == schema_version(TASK)
    fewer = TASK.model_copy(update={"scored_fields": TASK.scored_fields[:1]})
    assert schema_version(fewer) != schema_version(TASK)


async def test_counters_outlive_the_database(tmp_path: Path) -> None:
    server = new_server()
    async with running(new_settings(tmp_path, server.url("postgres"))) as service:
        await service.deliver(record("d1"))
        service.clock.now += 101
        await service.until(lambda m: matured(m).get(("control", "missing")) == 1)
        server.stop()
        metrics = await service.until(lambda m: m["cutover_assessments_database_up"] == 0, 30)
        assert matured(metrics)["control", "missing"] == 1
        async with service.client.get(f"{service.ops}/readyz") as response:
            assert response.status == 503
        async with service.client.get(f"{service.ops}/healthz") as response:
            assert response.status == 200
        batch = {"records": [record("d2")], "shadows": []}
        assert (await service.call("POST", "/internal/records", "internal", json=batch))[0] == 503
        assert (await service.call("GET", "/api/admin/training-data/export"))[0] == 503
        server.start()
        wait_until_answering(server)
        await service.until(lambda m: m["cutover_assessments_database_up"] == 1, 30)
        assert (await service.call("POST", "/internal/records", "internal", json=batch))[0] == 200
        metrics = await service.until(lambda m: matured(m).get(("control", "missing")) == 2)
    server.stop()


# ------------------------------------------------------------------ export, figures, deletion


async def export(service: Running, query: str = "") -> list[dict[str, Any]]:
    status, body = await service.call("GET", f"/api/admin/training-data/export?format=jsonl{query}")
    assert status == 200
    return [json.loads(line) for line in body.splitlines()]


async def test_export_round_trip(service: Running) -> None:
    await service.call("PUT", f"/internal/pictures/{PNG_DIGEST}", "internal", data=PNG)
    await service.deliver(
        record("e1", groupId="house-1"), shadows=[{"id": "e1", "candidate": answer("none", version="mine")}]
    )
    await service.deliver(record("e2", received=START + 1, control={"version": "gpt-4", "text": "no idea"}))
    await service.label("e1", damageType="leak", severity="high")
    (row,) = await export(service, "&validated=true&limit=10")
    system, user, assistant = row["messages"]
    assert system == {"role": "system", "content": "You assess buildings."}
    assert user["content"][0] == {"type": "text", "text": "Assess the damage."}
    url = user["content"][1]["image_url"]["url"]
    assert url == f"{service.base}/api/pictures/{PNG_DIGEST}"
    async with service.client.get(url, headers=service.headers["admin"]) as response:
        assert await response.read() == PNG
    assert json.loads(assistant["content"]) == {
        "damageType": "leak",
        "severity": "high",
        "advice": "call someone",
    }
    assert (row["id"], row["group_id"], row["validated"]) == ("e1", "house-1", True)
    assert (row["control_answer"]["damageType"], row["candidate_answer"]["damageType"]) == ("crack", "none")
    assert row["labels"] == [{"labeller": "ann", "labels": {"damageType": "leak", "severity": "high"}}]
    assert [r["id"] for r in await export(service)] == ["e1"]  # e2 has no answer to learn
    await service.label("e2", damageType="leak", severity="high")
    assert [r["id"] for r in await export(service)] == ["e2", "e1"]
    assert [r["id"] for r in await export(service, "&since=2027-01-15T08:00:01Z")] == ["e2"]
    assert [r["id"] for r in await export(service, "&limit=1")] == ["e2"]


async def test_export_has_one_row_per_assessment_and_reads_past_a_page(service: Running) -> None:
    await service.deliver(*(record(f"x{n:03}", received=START + n) for n in range(450)))
    await service.deliver(
        *(record(f"again{n}", assessmentId="a-x000", received=START + 1000 + n) for n in range(3))
    )
    await service.label("again1", damageType="leak", severity="high")
    rows = await export(service)
    assert len(rows) == len({row["id"] for row in rows}) == 450
    assert rows[0]["id"] == "again1"
    assert len(await export(service, "&limit=333")) == 333


@pytest.mark.parametrize("query", ["format=csv", "limit=0", "since=yesterday", "validated=yes"])
async def test_unfit_export_is_refused(embedded: Running, query: str) -> None:
    status, body = await embedded.call("GET", f"/api/admin/training-data/export?{query}")
    assert status == 400
    assert query.partition("=")[0] in body["error"]["message"]


async def test_public_url_stands_in_the_export(tmp_path: Path) -> None:
    async with running(new_settings(tmp_path, public_url="https://assess.example.org")) as service:
        await service.deliver(record("u"))
        (row,) = await export(service)
        assert f"https://assess.example.org/api/pictures/{PNG_DIGEST}" in json.dumps(row)


async def test_accuracy_stats(service: Running) -> None:
    await service.deliver(*(record(f"s{n}") for n in range(10)), record("hand", sampled=False))
    for n in range(10):
        await service.label(f"s{n}", damageType="crack" if n < 8 else "leak", severity="low")
    await service.label("s0", "bob", damageType="leak", severity="low")
    await service.label("s1", "bob", damageType="crack", severity="low")
    await service.label("hand", damageType="leak", severity="low")
    _, stats = await service.call("GET", "/api/admin/training-data/accuracy-stats")
    by_hand, sampled = stats["arms"]
    assert (by_hand["sampled"], by_hand["fields"]["overall"]["n"]) == (False, 1)
    assert (sampled["arm"], sampled["version"]) == ("control", "gpt-4")
    overall = sampled["fields"]["overall"]
    assert (overall["n"], overall["right"]) == (10, 7)  # s0: one against one, the newer label says leak
    assert overall["low"] == pytest.approx(0.3968, abs=1e-3)
    assert overall["high"] == pytest.approx(0.8922, abs=1e-3)
    assert sampled["fields"]["severity"]["share"] == 1
    assert sampled["confusion"]["damageType"] == {"crack": {"crack": 7}, "leak": {"crack": 3}}
    assert stats["disagreement"]["damageType"] == {"n": 2, "disagree": 1}


async def test_deleted_assessment_leaves_nothing_and_cannot_return(service: Running, tmp_path: Path) -> None:
    other = PNG + b"shared"
    digest = hashlib.sha256(other).hexdigest()
    for name, body in ((PNG_DIGEST, PNG), (digest, other)):
        await service.call("PUT", f"/internal/pictures/{name}", "internal", data=body)
    gone = record("g1", assessmentId="house/7 ä", pictures=[PNG_DIGEST, digest])
    await service.deliver(gone, record("stay", pictures=[digest]))
    await service.label("g1", damageType="crack", severity="low")
    path = "/api/admin/assessments/house%2F7%20%C3%A4"
    service.clock.now += 1
    assert await service.call("DELETE", path) == (200, {"requests": 1, "pictures": 1})
    assert await service.call("DELETE", path) == (200, {"requests": 0, "pictures": 0})
    assert (await service.call("GET", "/api/assessments/g1"))[0] == 404
    assert (await service.call("GET", f"/api/pictures/{PNG_DIGEST}"))[0] == 404
    assert (await service.call("GET", f"/api/pictures/{digest}"))[0] == 200
    assert [p.name for p in (tmp_path / "pictures").glob("*/*")] == [digest]
    # The same record again, and one that was still on its way, bring nothing back.
    late = record("g2", assessmentId="house/7 ä", received=START)
    await service.deliver(
        gone, late, shadows=[{"id": "g1", "candidate": answer()}, {"id": "g2", "candidate": answer()}]
    )
    assert [row["id"] for row in await export(service)] == ["stay"]
    label = {"labeller": "ann", "labels": {"severity": "low"}}
    assert (await service.call("POST", "/api/assessments/g1/validation", json=label))[0] == 404
    # What it had given to the figures stays.
    metrics = await service.until(lambda m: sum(matured(m).values()) == 1)
    assert matured(metrics)["control", "right"] == 1
    service.clock.now += 200
    metrics = await service.until(lambda m: sum(matured(m).values()) == 2)


async def test_retention_takes_old_pictures_nobody_validated(service: Running, tmp_path: Path) -> None:
    bodies = {name: PNG + name.encode() for name in ("old", "kept", "young", "orphan", "fresh")}
    digests = {name: hashlib.sha256(body).hexdigest() for name, body in bodies.items()}

    async def put(name: str) -> None:
        path = f"/internal/pictures/{digests[name]}"
        assert (await service.call("PUT", path, "internal", data=bodies[name]))[0] == 204

    for name in ("old", "kept", "orphan"):
        await put(name)
    await service.deliver(*(record(name, pictures=[digests[name]]) for name in ("old", "kept")))
    await service.label("kept", damageType="crack", severity="low")
    service.clock.now += 400 * 86400
    for name in ("young", "fresh"):
        await put(name)
    await service.deliver(record("young", pictures=[digests["young"]], received=service.clock.now))
    await service.service.purge()
    left = {p.name for p in (tmp_path / "pictures").glob("*/*")}
    assert left == {digests[name] for name in ("kept", "young", "fresh")}
    # A row that lost its picture is no training row any more.
    assert {row["id"] for row in await export(service) if digests["old"] in json.dumps(row)} == set()


# ------------------------------------------------------------------ doors


def doors(tmp_path: Path) -> list[tuple[str, str]]:
    app = build_app(Service(new_settings(tmp_path)))
    return [
        (
            method,
            route.path.replace("{id:path}", "x")
            .replace("{assessment_id:path}", "x")
            .replace("{digest}", "0" * 64),
        )
        for route in app.routes
        if isinstance(route, Route)
        for method in sorted(route.methods or ())
    ]


async def test_every_route_has_a_door(embedded: Running, tmp_path: Path) -> None:
    open_paths = {"/login", "/static/{name}"}
    routes = [(method, path) for method, path in doors(tmp_path) if path not in open_paths]
    assert len(routes) > 15
    for method, path in routes:
        for headers in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": "Basic x"},
            {"Cookie": "cutover_session=a.b"},
        ):
            async with embedded.client.request(
                method, embedded.base + path, headers=headers, allow_redirects=False
            ) as response:
                if path.startswith(("/api/", "/internal/", "/v1/")):
                    assert response.status == 401, (method, path)
                else:
                    assert response.status == 303, (method, path)
                    assert response.headers["Location"].startswith("/login?next=/")


@pytest.mark.parametrize(
    ("method", "path", "role"),
    [
        ("POST", "/internal/records", "admin"),
        ("POST", "/internal/records", "surveyor"),
        ("PUT", f"/internal/pictures/{PNG_DIGEST}", "surveyor"),
        ("GET", "/api/assessments", "internal"),
        ("GET", "/api/admin/training-data/export", "surveyor"),
        ("GET", "/api/admin/training-data/accuracy-stats", "internal"),
        ("DELETE", "/api/admin/assessments/x", "surveyor"),
        ("GET", "/admin/model-performance", "surveyor"),
        ("GET", "/admin/building-assessments", "internal"),
    ],
)
async def test_role_goes_no_further_than_its_own_doors(
    embedded: Running, method: str, path: str, role: str
) -> None:
    assert (await embedded.call(method, path, role))[0] == 403


async def test_proxy_header_is_believed_only_when_it_is_configured(tmp_path: Path, embedded: Running) -> None:
    claim = {"X-Auth-User": "eve"}
    assert (await embedded.call("GET", "/api/assessments", "nobody", headers=claim))[0] == 401
    folder = tmp_path / "proxied"
    folder.mkdir()
    settings = new_settings(folder, proxy_user_header="x-auth-user", proxy_admins=frozenset({"root"}))
    async with running(settings) as proxied:
        assert (await proxied.call("GET", "/api/assessments", "nobody", headers=claim))[0] == 200
        assert (await proxied.call("GET", "/admin/model-performance", "nobody", headers=claim))[0] == 403
        boss = {"X-Auth-User": "root"}
        assert (await proxied.call("GET", "/admin/model-performance", "nobody", headers=boss))[0] == 200
        # The proxy adds its header to what another site makes the browser send: changing something takes the token.
        await proxied.deliver(record("q"))
        body = {"labels": {"severity": "low"}}
        path = "/api/assessments/q/validation"
        assert (await proxied.call("POST", path, "nobody", headers=claim, json=body))[0] == 403
