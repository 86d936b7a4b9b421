"""`explain` with the evidence and `report`, as a process would see them, on rollouts the operator itself has led."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from cutover_cli import main as program
from cutover_cli.main import main
from cutover_operator.port import CONFIG_MAPS, MODEL_ROLLOUTS
from cutover_operator.rollout.wording import span
from fakes.kubectl import ROLLOUTS, Cluster, stand_in
from fakes.rollout_town import NAMESPACE, Behaviour, Town, finished, run_until, started

SLOW_LABELS = {"interval": "10s", "labels": {"perHour": 60, "deadline": "60s"}}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KUBECTL", str(tmp_path / "kubectl"))
    return tmp_path


async def seen(town: Town, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """The town's objects behind kubectl, at the town's time."""
    obj = await town.kube.get(MODEL_ROLLOUTS, NAMESPACE, "cut")
    maps = {o["metadata"]["name"]: o for o in town.kube.all(CONFIG_MAPS, NAMESPACE)}
    at = datetime.fromtimestamp(town.now, UTC)
    monkeypatch.setattr(program, "_now", lambda: at)
    return stand_in(folder, {ROLLOUTS: obj, "configmaps": maps})[1]


async def after(ticks: int, **settings: Any) -> Town:
    town = await started(**settings)
    for _ in range(ticks):
        await town.tick()
        await town.run_pass()
    return town


async def test_explain_says_how_many_labels_are_missing_and_when(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    town = await after(
        120,
        spec={"analysis": SLOW_LABELS},
        candidate=Behaviour(accuracy=0.99),
        requests_per_second=0.3,
        tick_seconds=20,
    )
    await seen(town, folder, monkeypatch)
    assert main(["explain", "cut", "-n", NAMESPACE]) == 0
    text = capsys.readouterr().out
    assert "gate accuracy has too little evidence: accuracy" in text
    assert "more labels like these to pass, at" in text
    assert "Next decision expected around" in text
    assert "what comes last is gate accuracy" in text
    assert "gate latency" not in text


@pytest.mark.parametrize("accuracy", [0.94, 0.99])
async def test_explain_and_the_operator_name_the_same_number_of_labels(
    accuracy: float, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    town = await after(
        100,
        spec={"analysis": SLOW_LABELS},
        candidate=Behaviour(accuracy=accuracy),
        requests_per_second=0.3,
        tick_seconds=20,
    )
    await seen(town, folder, monkeypatch)
    assert main(["explain", "cut"]) == 0
    text = capsys.readouterr().out
    figures = re.findall(r"n=(\d+)\).* about (\d+) more labels like these (needed|to pass)", text)
    assert [word for _, _, word in figures] == ["needed", "to pass"], text
    said, foretold = (int(n) + int(more) for n, more, _ in figures)
    assert said == pytest.approx(foretold, rel=0.05, abs=2)


async def test_explain_before_the_first_label_counts_from_the_deadline(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    analysis = {"interval": "10s", "labels": {"perHour": 60, "deadline": "2h"}}
    town = await after(40, spec={"analysis": analysis})
    await seen(town, folder, monkeypatch)
    assert main(["explain", "cut"]) == 0
    text = capsys.readouterr().out
    assert "the first labels come due around" in text
    assert "if 95 % are right and 60 an hour are labelled" in text


async def test_explain_foretells_a_rollback(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    town = await after(
        30,
        spec={"analysis": SLOW_LABELS},
        candidate=Behaviour(accuracy=0.75),
        requests_per_second=0.3,
        tick_seconds=20,
    )
    assert "finish" not in await town.status()
    await seen(town, folder, monkeypatch)
    assert main(["explain", "cut"]) == 0
    assert "a rollback, if gate accuracy goes on like this" in capsys.readouterr().out


async def test_explain_tells_no_time_while_a_person_stands_in_the_way(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    town = await after(40, spec={"analysis": SLOW_LABELS, "hold": True})
    await seen(town, folder, monkeypatch)
    assert main(["explain", "cut"]) == 0
    text = capsys.readouterr().out
    assert "When the next decision comes cannot be told: spec.hold is set" in text


async def test_explain_without_the_evidence_says_so_and_shows_the_status(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    town = await after(40, spec={"analysis": SLOW_LABELS}, candidate=Behaviour(accuracy=0.91))
    cluster = await seen(town, folder, monkeypatch)
    cluster.put(forbidden=["configmaps"])
    assert main(["explain", "cut"]) == 0
    text = capsys.readouterr().out
    assert "Without a forecast: ConfigMap cut-evidence may not be read" in text
    assert "gate accuracy has too little evidence" in text
    cluster.put(forbidden=[], configmaps={})
    assert main(["explain", "cut"]) == 0
    assert "ConfigMap cut-evidence is gone" in capsys.readouterr().out


async def slow(analysis: dict[str, Any] = SLOW_LABELS) -> Town:
    """Twenty minutes into a first step that lasts longer."""
    return await after(60, spec={"analysis": analysis}, requests_per_second=0.3, tick_seconds=20)


async def without_metrics(town: Town, ticks: int) -> Town:
    town.scraping = False
    for _ in range(ticks):
        await town.tick()
        await town.run_pass()
    return town


@pytest.mark.parametrize("action", ["rollback", "hold"])
async def test_explain_says_when_missing_metrics_are_acted_upon(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], action: str
) -> None:
    analysis = {**SLOW_LABELS, "onUnavailable": {"after": "20m", "action": action}}
    town = await slow(analysis)
    await without_metrics(town, 40)
    since = datetime.fromisoformat((await town.status())["unavailableSince"])
    await seen(town, folder, monkeypatch)
    assert main(["explain", "cut"]) == 0
    text = capsys.readouterr().out
    left = since + timedelta(minutes=20) - datetime.fromtimestamp(town.now, UTC)
    line = next(line for line in text.splitlines() if line.startswith("Metrics away since"))
    assert f"{since:%H:%M} UTC" in line
    assert f"{action} at {since + timedelta(minutes=20):%H:%M} UTC (in {span(left.total_seconds())})" in line
    assert "Not before" not in text
    assert "Next decision expected" not in text
    assert ("nothing is decided until the metrics are back" in text) == (action == "hold")
    told = town.now + left.total_seconds()
    for _ in range(60):
        if "finish" not in await town.status():
            await without_metrics(town, 1)
    status = await town.status()
    assert ("finish" in status) == (action == "rollback")
    if action == "rollback":
        assert abs(datetime.fromisoformat(status["finishedAt"]).timestamp() - told) <= 20


async def test_explain_of_a_promoted_rollout_tells_its_end_from_what_is_now(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    town = await started()
    await run_until(town, finished)
    await seen(town, folder, monkeypatch)
    assert main(["explain", "cut"]) == 0
    text = capsys.readouterr().out
    assert "it answers all requests, and its rollback gates stay on watch" in text
    assert "gate errorrate: pass: errors" in text[text.index("Now:") :]
    await without_metrics(town, 40)
    cluster = await seen(town, folder, monkeypatch)
    rollout = cluster.objects[ROLLOUTS]
    rollout["spec"]["request"] = {"id": "r-1", "action": "abort"}
    cluster.put(**{ROLLOUTS: rollout})
    assert main(["explain", "cut"]) == 0
    before, now = capsys.readouterr().out.split("Now:")
    assert f"Why: {rollout['status']['steps'][-1]['message']}" in before
    assert "MetricsUnavailable" not in before
    assert "on watch" not in before
    since = datetime.fromisoformat(rollout["status"]["unavailableSince"])
    assert f"the rollback gates are blind since {since:%H:%M} UTC" in now
    assert "request r-1 (abort) has not been seen by the operator yet" in now


async def test_explain_of_a_rollback_tells_its_reason_and_not_a_later_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    town = await started(candidate=Behaviour(accuracy=0.75))
    await run_until(town, finished)
    cluster = await seen(town, folder, monkeypatch)
    cluster.set(reason="RequestRefused", message="skip makes no sense")
    assert main(["explain", "cut"]) == 0
    before, now = capsys.readouterr().out.split("Now:")
    assert "Why: AccuracyBelowLimit: " in before
    assert "RequestRefused: skip makes no sense" in now


@pytest.mark.parametrize("promoted", [True, False])
async def test_explain_notices_an_operator_that_does_not_look(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], promoted: bool
) -> None:
    town = await (started() if promoted else slow())
    if promoted:
        await run_until(town, finished)

    async def told(later: float) -> str:
        town.now += later
        await seen(town, folder, monkeypatch)
        assert main(["explain", "cut"]) == 0
        return capsys.readouterr().out

    assert "see whether the operator runs" not in await told(600)
    text = await told(3 * 86_400)
    assert (
        "the evidence was kept last 3d ago, though that is due every 5m: see whether the operator runs"
        in text
    )
    if not promoted:
        assert "When the next decision comes cannot be told: the evidence was kept last 3d ago" in text
        assert "Next decision expected" not in text


async def test_evidence_that_stands_still_while_metrics_are_away_is_no_absence_of_the_operator(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    town = await slow()
    maps = {o["metadata"]["name"]: o for o in town.kube.all(CONFIG_MAPS, NAMESPACE)}
    kept = maps["cut-evidence"]
    await without_metrics(town, 80)
    cluster = await seen(town, folder, monkeypatch)
    cluster.put(configmaps={**cluster.objects["configmaps"], "cut-evidence": kept})
    assert main(["explain", "cut"]) == 0
    text = capsys.readouterr().out
    assert "Metrics away since" in text
    assert "the evidence was kept last" not in text


async def test_explain_notices_a_spec_nobody_acted_on_and_a_deletion(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    town = await slow()
    cluster = await seen(town, folder, monkeypatch)
    rollout = cluster.objects[ROLLOUTS]
    for change, said in (
        ({"generation": 9}, "metadata.generation is 9, the operator has acted on 1"),
        ({"deletionTimestamp": "2030-03-17T18:00:00Z"}, "it is being deleted"),
    ):
        cluster.put(**{ROLLOUTS: {**rollout, "metadata": {**rollout["metadata"], **change}}})
        assert main(["explain", "cut"]) == 0
        text = capsys.readouterr().out
        assert f"  - {said}" in text
        assert f"When the next decision comes cannot be told: {said}" in text


async def test_report_prints_what_the_operator_wrote(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    town = await started()
    await run_until(town, finished)
    cluster = await seen(town, folder, monkeypatch)
    written = cluster.objects["configmaps"]["cut-report"]["data"]["report.md"]
    assert main(["report", "cut"]) == 0
    assert capsys.readouterr().out == written


async def test_report_is_made_from_status_and_ledger_while_there_is_none(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    town = await after(40, spec={"analysis": SLOW_LABELS}, candidate=Behaviour(accuracy=0.91))
    cluster = await seen(town, folder, monkeypatch)
    assert main(["report", "cut"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("# Rollout cut: in progress")
    assert "| mirrored requests |" in text
    assert "| shadow 100% |" in text
    cluster.put(forbidden=["configmaps"])
    assert main(["report", "cut"]) == 0
    caught = capsys.readouterr()
    assert "There is no evidence ledger" in caught.out
    assert "may not be read" in caught.err


async def test_a_report_of_an_earlier_end_or_of_somebody_else_is_not_shown(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    town = await started()
    await run_until(town, finished)
    cluster = await seen(town, folder, monkeypatch)
    maps = cluster.objects["configmaps"]
    maps["cut-report"]["data"]["report.md"] = "stale"
    cluster.put(configmaps=maps)
    cluster.set(finish="RolledBack", phase="RolledBack", finishedAt="2030-03-18T00:00:00Z")
    assert main(["report", "cut"]) == 0
    assert capsys.readouterr().out.startswith("# Rollout cut: rolled back")
    maps["cut-report"]["metadata"]["ownerReferences"] = []
    cluster.put(configmaps=maps)
    assert main(["report", "cut"]) == 0
    assert "stale" not in capsys.readouterr().out
