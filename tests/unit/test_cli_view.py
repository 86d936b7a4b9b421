"""What `kubectl cutover` shows: the numbers of the status, why it waits, and nothing that is not there."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutover_cli import rollout_view, run_view
from cutover_cli.explain import explain
from cutover_cli.layout import age, fields, table, tree
from cutover_operator.rollout.wording import number, span

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


def ago(**spans: float) -> str:
    return (NOW - timedelta(**spans)).isoformat().replace("+00:00", "Z")


def condition(kind: str, status: str, reason: str, message: str = "") -> dict[str, Any]:
    moment = ago(minutes=9)
    return {
        "type": kind,
        "status": status,
        "reason": reason,
        "message": message,
        "lastTransitionTime": moment,
    }


def rollout(spec: dict[str, Any] | None = None, **status: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": "damage-v7", "namespace": "claims", "uid": "u-1", "generation": 2},
        "spec": {
            "gatewayRef": "main",
            "candidate": {"trainingRunRef": {"name": "damage"}},
            "steps": [
                {"shadow": 20, "minDuration": "2h"},
                {"weight": 25, "minDuration": "1h", "deadline": "6h", "onDeadline": "rollback"},
                {"weight": 100, "minDuration": "1d"},
            ],
            "gates": [
                {"metric": "accuracy", "limit": 0.93, "field": "damageType"},
                {"metric": "latency", "limit": 2.0},
                {"metric": "errorRate", "limit": 0.02, "role": "rollback"},
            ],
            **(spec or {}),
        },
        "status": {
            "observedGeneration": 2,
            "phase": "Progressing",
            "step": 1,
            "stepText": "2/3 weight 25%",
            "stepEnteredAt": ago(minutes=40),
            "stepConfirmedAt": ago(minutes=38),
            "weight": 25,
            "actualWeight": "24.6",
            "routeGeneration": 7,
            "gateways": [{"pod": "gw-1", "generation": 7}, {"pod": "gw-2", "generation": 6}],
            "candidateVersion": "damage-vlm/7",
            "controlVersion": "gpt-4o",
            "verdict": "insufficient",
            "reason": "TooFewRequests",
            "message": "latency needs about 120 more requests",
            "gates": [
                {
                    "name": "accuracy-damagetype",
                    "verdict": "pass",
                    "value": 0.9521,
                    "limit": 0.93,
                    "samples": 1834,
                },
                {
                    "name": "latency",
                    "verdict": "insufficient",
                    "value": 0.02,
                    "limit": 0.05,
                    "samples": 80,
                    "message": "about 120 more requests, expected within 20m",
                },
                {"name": "errorrate", "verdict": "insufficient", "samples": 80},
            ],
            "steps": [
                {
                    "index": 0,
                    "name": "shadow",
                    "enteredAt": ago(hours=3),
                    "leftAt": ago(minutes=40),
                    "outcome": "passed",
                    "message": "all gates passed",
                }
            ],
            "conditions": [
                condition("CandidateServing", "True", "Ready", "2 of 2 replicas"),
                condition("RouteInSync", "False", "Behind", "gw-2 serves generation 6"),
                condition("SharedIncident", "False", "NoIncident"),
            ],
            **status,
        },
    }


EVENTS = [
    {
        "type": "Warning",
        "reason": "GateFailed",
        "message": "later",
        "lastTimestamp": ago(minutes=1),
        "count": 3,
    },
    {"type": "Normal", "reason": "StepEntered", "message": "earlier", "lastTimestamp": ago(minutes=40)},
]


def test_a_rollout_shows_step_weight_gates_and_events() -> None:
    text = rollout_view.view(rollout(), EVENTS, NOW)
    for expected in (
        "damage-v7  (namespace claims, gateway main)",
        "2/3 weight 25 %  (entered 40m ago, in force for 38m)",
        "set 25 %, actual 24.6 %",
        "damage-vlm/7",
        "0.9521 (limit 0.93)",
        "n=1834",
        "✔ accuracy-damagetype",
        "✔ shadow 20 %",
        "passed after 2h20m: all gates passed",
        "● weight 25 %",
        "○ weight 100 %",
        "generation 6, wanted 7",
        "! RouteInSync",
        "✔ CandidateServing",
        "later (x3)",
    ):
        assert expected in text, text
    assert "SharedIncident" not in text
    assert text.index("earlier") < text.index("later")


def test_a_rollout_without_a_status_is_shown_as_pending() -> None:
    bare = {"metadata": {"name": "new"}, "spec": {"gatewayRef": "main", "steps": [{"weight": 5}]}}
    text = rollout_view.view(bare, [], NOW)
    assert "Pending" in text
    assert "○ weight 5 %" in text
    assert "Gates" not in text
    assert "no step has begun" in explain(bare, NOW)


def test_a_status_of_a_newer_operator_is_shown_as_far_as_known() -> None:
    obj = rollout(somethingNew={"a": 1})
    obj["spec"]["somethingNew"] = True
    assert "weight 25 %" in rollout_view.view(obj, [], NOW)
    assert "gate latency has too little evidence" in explain(obj, NOW)


def test_the_list_has_a_line_each() -> None:
    lines = rollout_view.list_view([rollout(), rollout(phase="Holding")], NOW).splitlines()
    assert lines[0].split()[:3] == ["NAMESPACE", "NAME", "GATEWAY"]
    assert ["Progressing" in lines[1], "Holding" in lines[2]] == [True, True]
    assert rollout_view.list_view([], NOW) == "none found"


def test_explain_names_what_is_missing_and_what_comes() -> None:
    text = explain(rollout(), NOW)
    for expected in (
        "Progressing at step 2 of 3 (weight 25 %) for 40m",
        "22m of its least duration 1h",
        "gate latency has too little evidence: about 120 more requests",
        "route generation 7 is not in force on gw-2",
        "RouteInSync is False (Behind): gw-2 serves generation 6",
        "Next: weight 100 %.",
        "in 5h20m, then rollback",
    ):
        assert expected in text, text
    # Passed gates and gates that only roll back are not in the way.
    assert "accuracy-damagetype" not in text
    assert "errorrate" not in text


def test_explain_asks_for_accuracy_after_a_skipped_shadow_step() -> None:
    one = rollout()
    one["status"]["gates"][0] |= {"verdict": "insufficient", "message": "no labels yet"}
    assert "gate accuracy-damagetype" not in explain(one, NOW)
    one["status"]["steps"][0]["outcome"] = "Skipped"
    assert "gate accuracy-damagetype has too little evidence: no labels yet" in explain(one, NOW)


def test_explain_says_what_a_person_has_set() -> None:
    spec = {"freeze": True, "hold": True, "request": {"id": "r-1", "action": "skip"}}
    text = explain(rollout(spec), NOW)
    assert "spec.freeze is set" in text
    assert "spec.hold is set" in text
    assert "request r-1 (skip) has not been seen" in text


def test_explain_when_nothing_is_missing() -> None:
    passing = [{"name": name, "verdict": "pass"} for name in ("accuracy-damagetype", "latency")]
    text = explain(rollout(gates=passing, gateways=[], conditions=[], stepConfirmedAt=ago(hours=2)), NOW)
    assert "Nothing is missing" in text


@pytest.mark.parametrize("finish", ["Promoted", "RolledBack", "Aborted", "Superseded"])
def test_explain_of_an_end_never_looks_like_another(finish: str) -> None:
    obj = rollout(
        phase=finish, finish=finish, finishedAt=ago(hours=2), reason="LatencyAboveLimit", message="p95"
    )
    text = explain(obj, NOW)
    assert "2h ago" in text
    assert ("promoted" in text) == (finish == "Promoted")
    assert ("kubectl cutover retry damage-v7" in text) == (finish in ("RolledBack", "Aborted"))
    assert "LatencyAboveLimit: p95" in text


def test_a_run_shows_stages_data_and_accuracy() -> None:
    run = {
        "metadata": {"name": "damage", "namespace": "claims"},
        "spec": {"baseModel": {"uri": "hf://llava-hf/llava-1.5-7b-hf"}, "compute": {"gpuHourBudget": 20}},
        "status": {
            "stage": "evaluate",
            "gpuHours": "4.2",
            "progress": {"step": 120, "steps": 400, "loss": 0.2134, "samplesPerSecond": 2.51},
            "stages": [
                {
                    "name": "prepare",
                    "state": "Done",
                    "startedAt": ago(hours=2),
                    "finishedAt": ago(minutes=90),
                    "attempt": 1,
                },
                {
                    "name": "train",
                    "state": "Running",
                    "startedAt": ago(minutes=90),
                    "attempt": 3,
                    "failures": 1,
                },
            ],
            "tuning": {
                "trials": [
                    {
                        "number": 4,
                        "rung": 2,
                        "epochs": 9,
                        "state": "Done",
                        "objective": 0.2134,
                        "settings": {"lora.rank": 8},
                    },
                    {
                        "number": 5,
                        "rung": 0,
                        "epochs": 1,
                        "state": "Failed",
                        "settings": {"learningRate": 0.01},
                    },
                ],
                "winner": 4,
            },
            "data": {"rows": 12000, "train": 9600, "validation": 1200, "test": 1200, "controlAccuracy": 0.87},
            "evaluation": {
                "examples": 1200,
                "accuracy": {"damageType": 0.941},
                "accuracyBefore": {"damageType": 0.3},
                "accuracyControl": {"damageType": 0.87},
            },
            "conditions": [condition("BudgetExceeded", "True", "OverBudget", "spent")],
        },
    }
    text = run_view.view(run, EVENTS, NOW)
    for expected in (
        "step 120/400, loss 0.2134, 2.51 samples/s",
        "4.2 of 20 GPU-hours",
        "took 30m",
        "attempt 3, 1 failed",
        "94.1% of 1200, base 30.0%, today's model 87.0%",
        "12000 (9600 train, 1200 validation, 1200 test)",
        "rung 2, 9 epochs",
        "validation loss 0.2134",
        "learningRate 0.01",
        "! BudgetExceeded",
    ):
        assert expected in text, text
    assert "evaluate" in run_view.list_view([run], NOW)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (59, "59s"),
        (60, "1m"),
        (3599, "59m"),
        (3600, "1h"),
        (11520, "3h12m"),
        (187200, "2d4h"),
        (-5, "0s"),
    ],
)
def test_spans(seconds: float, text: str) -> None:
    assert span(seconds) == text


@given(st.lists(st.tuples(st.text("abc", max_size=9), st.text("xyz", max_size=9)), max_size=6))
def test_tables_keep_every_cell(rows: list[tuple[str, str]]) -> None:
    lines = table(rows)
    assert len(lines) == len(rows)
    assert all(cell in line for row, line in zip(rows, lines, strict=True) for cell in row)


def test_small_pieces() -> None:
    assert number(None) == "-"
    assert number(0.950001) == "0.95"
    assert age("not a time", NOW) == "not a time"
    assert age(None, NOW) == ""
    assert fields([("A", "1"), ("Long", ""), ("B", "2")]) == "A:  1\nB:  2"
    assert tree("T", ["a", "b"]) == "T\n├── a\n└── b"
    assert tree("T", []) == ""


def test_the_threshold_found_is_told_where_there_is_one() -> None:
    found = {"threshold": 0.9, "certified": True, "message": "answers surer than 0.9 are kept: 61 % of all"}
    assert "Kept answers" not in rollout_view.view(rollout(), [], NOW)
    assert "answers surer than 0.9 are kept: 61 % of all" in rollout_view.view(
        rollout(routing=found), [], NOW
    )
