"""The written report: made by the operator at every end, from the record alone, and never in anybody's way."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutover.api.modelrollout import ModelRolloutSpec, ModelRolloutStatus
from cutover_operator.evidence.ledger import Ledger
from cutover_operator.port import CONFIG_MAPS, EVENTS
from cutover_operator.rollout.accounts import bill, dependency
from cutover_operator.rollout.lessons import Facts, lessons
from cutover_operator.rollout.report import LIMIT_BYTES, bounded, write_report
from cutover_operator.rollout.wording import cell, without_credentials
from fakes.rollout_town import (
    GATES,
    NAMESPACE,
    STEPS,
    Behaviour,
    Town,
    finished,
    rollout_spec,
    run_until,
    started,
)

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)


async def report_map(town: Town) -> dict[str, Any] | None:
    return await town.kube.get(CONFIG_MAPS, NAMESPACE, "cut-report")


async def text_of(town: Town) -> str:
    found = await report_map(town)
    assert found is not None
    return str(found["data"]["report.md"])


async def ticks(town: Town, n: int) -> None:
    for _ in range(n):
        await town.tick()
        await town.run_pass()


async def test_a_promotion_is_reported_with_its_steps_numbers_and_savings() -> None:
    town = await started()
    assert await report_map(town) is None
    await run_until(town, finished)
    text = await text_of(town)
    status = await town.status()
    assert text.startswith("# Rollout cut: promoted\n")
    for record in status["steps"]:
        assert f"| {record['name']} |" in text
        assert record["message"] in text
    assert "| accuracy | both | pass |" in text
    assert "gpt-4o" in text
    assert "goal 50 %: reached" in text
    assert "labels right (all fields)" in text
    said = [e for e in town.kube.all(EVENTS, NAMESPACE) if e["reason"] == "ReportWritten"]
    assert [e["count"] for e in said] == [1]
    assert "kubectl cutover report cut" in said[0]["message"]


async def test_a_rollback_is_reported_with_its_reason_and_what_users_saw() -> None:
    town = await started(candidate=Behaviour(accuracy=0.8))
    await run_until(town, finished)
    text = await text_of(town)
    assert text.startswith("# Rollout cut: rolled back\n")
    assert "AccuracyBelowLimit" in text
    assert "before the candidate had answered a single user" in text


async def test_a_report_of_a_promoted_model_follows_its_checkpoints_hourly_and_not_oftener() -> None:
    town = await started(tick_seconds=30.0, requests_per_second=5.0)
    await run_until(town, finished)
    first = await report_map(town)
    assert first is not None
    assert "Since the promotion: no answers yet" in first["data"]["report.md"]
    await ticks(town, 100)
    still = await report_map(town)
    assert still is not None
    assert still["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]
    await ticks(town, 40)
    later = await report_map(town)
    assert later is not None
    assert "Since the promotion the hosted model gave 0 of" in later["data"]["report.md"]
    assert sum(e["reason"] == "ReportWritten" for e in town.kube.all(EVENTS, NAMESPACE)) == 1


async def test_a_second_end_is_reported_anew() -> None:
    town = await started()
    await run_until(town, finished)
    town.candidate.errors = 0.4
    await run_until(town, lambda s: s["finish"] == "RolledBack", ticks=20)
    text = await text_of(town)
    assert text.startswith("# Rollout cut: rolled back\n")
    assert "after the promotion" in text


async def test_a_report_somebody_deleted_comes_back() -> None:
    town = await started()
    await run_until(town, finished)
    before = await text_of(town)
    await town.kube.delete(CONFIG_MAPS, NAMESPACE, "cut-report")
    await ticks(town, 1)
    assert (await text_of(town)).splitlines()[0] == before.splitlines()[0]


async def test_a_map_of_that_name_that_is_not_ours_is_left_alone() -> None:
    town = await started()
    theirs = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "cut-report", "namespace": NAMESPACE},
        "data": {"report.md": "mine"},
    }
    await town.kube.as_user("somebody").create(theirs)
    await run_until(town, finished)
    await ticks(town, 3)
    assert await text_of(town) == "mine"
    assert (await town.status())["finish"] == "Promoted"


async def test_a_candidate_that_never_served_is_reported_without_numbers() -> None:
    town = await started(candidate_starts=False)
    await run_until(town, finished)
    text = await text_of(town)
    assert "CandidateNotReady" in text
    assert "No step was entered." in text
    assert "There is no evidence ledger" in text


# ---------------------------------------------------------------- the text
def status(**changes: Any) -> ModelRolloutStatus:
    wire: dict[str, Any] = {
        "phase": "RolledBack",
        "finish": "RolledBack",
        "finishedAt": "2026-11-24T11:00:00Z",
        "candidateVersion": "damage-v1",
        "controlVersion": "gpt-4o",
        "reason": "AccuracyBelowLimit",
        "message": "m",
        "steps": [
            {
                "index": 0,
                "name": "shadow 100%",
                "enteredAt": "2026-11-24T01:00:00Z",
                "leftAt": "2026-11-24T11:00:00Z",
                "outcome": "RolledBack",
                "message": "x",
            }
        ],
        **changes,
    }
    return ModelRolloutStatus.model_validate(wire)


def spec(**changes: Any) -> ModelRolloutSpec:
    return ModelRolloutSpec.model_validate(rollout_spec(**changes))


def ledger(**totals: float) -> Ledger:
    named = {key.replace("__", "/"): value for key, value in totals.items()}
    return Ledger(uid="u", version="damage-v1", started_at=NOW.timestamp() - 36000, totals=named)


def test_what_can_stand_in_a_message_does_not_leak_or_break_the_page() -> None:
    hostile = "Prometheus at http://bob:s3cret@prom:9090/x?token=t0p answers | not\n# Heading"
    text = write_report("cut", "claims", spec(), status(message=hostile, reason="R"), None, NOW)
    assert "s3cret" not in text
    assert "t0p" not in text
    assert "http://prom:9090/x answers" in text
    assert "\n# Heading" not in text
    steps = [{**status().steps[0].to_wire(), "message": hostile}]
    rows = write_report("cut", "claims", spec(), status(steps=steps), None, NOW).splitlines()
    row = next(line for line in rows if line.startswith("| shadow 100%"))
    assert row.replace("\\|", "").count("|") == 7


def test_second_labels_and_the_threshold_of_confidence_are_reported() -> None:
    record = replace(
        ledger(doubles__overall__same=97.0, doubles__overall__different=3.0),
        control={"name": "gpt-4", "price": {"kind": "tokens"}},
    )
    routing = {"threshold": 0.8, "certified": True, "labels": 900, "keptShare": 0.87, "auroc": 0.76}
    text = write_report("cut", "claims", spec(), status(routing=routing), record, NOW)
    assert "| second labels that differ (all fields) | 3 of 100 (3 %) | - |" in text
    assert "below confidence 0.8 go to the fallback (proven on 900 labels): 87 %" in text
    assert "AUROC 0.76" in text


def test_the_same_record_gives_the_same_text() -> None:
    made = [
        write_report("cut", "claims", spec(), status(), ledger(requests__candidate__ok=5.0), NOW)
        for _ in "ab"
    ]
    assert made[0] == made[1]


@given(st.text(max_size=3000), st.integers(200, 2000))
def test_a_long_report_is_cut_to_its_limit_and_says_so(text: str, limit: int) -> None:
    kept = bounded(text, limit)
    assert len(kept.encode()) <= limit
    assert kept == text or "cut here" in kept


def test_the_longest_record_stays_within_the_limit() -> None:
    record = {**status().steps[0].to_wire(), "message": "ä" * 4000}
    gates = [{"name": f"g{i}", "verdict": "fail", "message": "ö" * 4000} for i in range(32)]
    text = write_report("cut", "claims", spec(), status(steps=[record] * 64, gates=gates), None, NOW)
    assert len(text.encode()) <= LIMIT_BYTES


@given(st.text(max_size=500))
def test_a_cell_holds_no_line_end_and_no_bare_bar(text: str) -> None:
    shown = cell(text)
    assert "\n" not in shown
    assert "|" not in shown.replace("\\|", "")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("at http://u:p@h:1/x", "at http://h:1/x"),
        ("s3://key:secret@bucket/a?sig=1 end", "s3://bucket/a end"),
        ("why? nothing: a@b", "why? nothing: a@b"),
    ],
)
def test_credentials_are_taken_out_of_urls(text: str, expected: str) -> None:
    assert without_credentials(text) == expected


# ---------------------------------------------------------------- money and dependency
TOTALS = {
    "requests/candidate/ok": 880.0,
    "requests/candidate/error": 20.0,
    "requests/candidate/deferred": 100.0,
    "requests/control/ok": 500.0,
    "requests/control/rejected": 7.0,
    "cost/candidate": 8.0,
    "cost/control": 20.0,
    "fallbacks/candidate/timeout": 12.0,
    "fallbacks/candidate/confidence": 100.0,
    "fallbacks/control/error": 3.0,
}


def test_the_bill_compares_an_answer_with_an_answer() -> None:
    account = bill(TOTALS)
    assert account.candidate_each == pytest.approx(0.008)
    assert account.control_each == pytest.approx(0.04)
    assert account.saved_usd == pytest.approx(1000 * 0.04 - 8)
    assert account.saved_share == pytest.approx(0.8)
    assert account.saved_share_of_all == pytest.approx(32 / 60)


def test_the_hosted_model_gave_what_it_gave_as_control_by_deferral_and_by_rescue() -> None:
    who = dependency(TOTALS)
    assert (who.answers, who.by_control, who.deferred, who.rescued, who.unanswered) == (1500, 500, 100, 12, 8)
    assert who.hosted_share == pytest.approx(612 / 1500)
    assert who.kept_share == pytest.approx(0.88)


def test_nothing_counted_says_nothing_about_money() -> None:
    assert bill({}).saved_usd is None
    assert bill({"requests/candidate/ok": 3.0, "requests/control/ok": 3.0}).saved_share is None
    assert dependency({}).hosted_share is None


# ---------------------------------------------------------------- lessons
def taught(status_: ModelRolloutStatus, ledger_: Ledger | None = None, **changes: Any) -> str:
    return "\n".join(lessons(Facts(spec(**changes), status_, ledger_, NOW)))


def test_time_beyond_the_least_duration_of_a_shadow_step_was_spent_on_labels() -> None:
    text = taught(status(), steps=[{"shadow": 100, "minDuration": "2h"}, {"weight": 100}])
    assert "Labels were what took longest: 80 % of 10h" in text


def test_a_live_step_after_a_skipped_shadow_step_waited_for_labels_too() -> None:
    def longest(outcome: str) -> str:
        stays = [
            {"index": 0, "name": "shadow 100%", "enteredAt": "2030-01-01T00:00:00Z", "leftAt": "2030-01-01T01:00:00Z"},
            {"index": 1, "name": "weight 50%", "enteredAt": "2030-01-01T01:00:00Z", "leftAt": "2030-01-01T11:00:00Z"},
        ]  # fmt: skip
        stays[0]["outcome"] = outcome
        steps = [{"shadow": 100, "minDuration": "1h"}, {"weight": 50, "minDuration": "1h"}, {"weight": 100}]
        return taught(status(steps=stays), steps=steps)

    assert "Labels were what took longest" in longest("Skipped")
    assert "Answers were what took longest" in longest("passed")


def test_a_rollout_that_waited_for_the_clock_alone_is_told_so() -> None:
    text = taught(
        status(finish="Promoted", phase="Promoted"),
        steps=[{"shadow": 100, "minDuration": "10h"}, {"weight": 100}],
    )
    assert "Time, not evidence, set the pace" in text
    assert "Labels" not in text


def test_each_rule_speaks_only_when_it_has_something_to_say() -> None:
    base = replace(ledger(), control={"name": "gpt-4", "price": {"kind": "tokens"}})
    quiet = taught(status(steps=[]), replace(base, totals={"requests/candidate/ok": 0.0}))
    assert (
        quiet
        == "It was stopped before the candidate had answered a single user: the shadow step paid for itself."
    )
    labels = {"labels/candidate/overall/right": 80.0, "labels/candidate/overall/missing": 20.0}
    assert "20 % of 100 sampled requests had no label" in taught(status(), replace(base, totals=labels))
    assert "2 shared incidents" in taught(status(), replace(base, incidents=2))
    assert "3 counter resets" in taught(status(), replace(base, resets=3))
    assert "2 samples were no counts" in taught(status(), replace(base, refused=2))
    assert "begun anew 1 time:" in taught(status(), replace(base, epoch=2))
    assert "requests of users when it was stopped; a shadow step" in taught(
        status(), replace(base, totals={"requests/candidate/ok": 9.0}), steps=STEPS[1:], gates=GATES[1:]
    )
    dear = {
        "requests/candidate/ok": 10.0,
        "requests/control/ok": 10.0,
        "cost/candidate": 3.0,
        "cost/control": 4.0,
    }
    assert "saves 25 % of the control's price; the goal is 50 %" in taught(
        status(), replace(base, totals=dear)
    )
    deferring = {"requests/candidate/ok": 60.0, "requests/candidate/deferred": 40.0}
    assert "answered 60 % of its requests itself" in taught(status(), replace(base, totals=deferring))
    by_hand = [{**status().steps[0].to_wire(), "outcome": "Skipped", "message": "by request s-1"}]
    assert "shadow 100% was left by hand" in taught(status(steps=by_hand))
    stuck = [{"name": "accuracy", "verdict": "insufficient", "message": "a; on the wrong side of the limit"}]
    open_end = {"finish": None, "finishedAt": None, "phase": "Holding"}
    assert "Gate accuracy is too near its limit" in taught(status(gates=stuck, **open_end))
