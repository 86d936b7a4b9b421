"""Rollouts on the real node, with parts killed in the middle. Outcomes: where the traffic ends, what the app saw."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from demo import story, tally
from demo.killing import kill_hard
from demo.stack import GATEWAY, Stack

pytestmark = [pytest.mark.node, pytest.mark.timeout(900)]


def quiet(_: str) -> None:
    """Progress is printed by pytest -s anyway."""


def candidate(stack: Stack, name: str, version: str) -> dict[str, Any]:
    return story.candidate_at(stack, name, version)


def seen(stack: Stack) -> dict[str, Any]:
    stack.kube.call("driver", "/app", {"rps": 0})
    stack.kube.wait(
        "every request answered",
        lambda: (s := stack.kube.call("driver", "/stats"))["answered"] + s["failed"] == s["sent"],
        90,
    )
    found: dict[str, Any] = stack.kube.call("driver", "/stats")
    return found


def route(stack: Stack) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(
        (stack.kube.get("configmap", f"{GATEWAY}-route") or {})["data"]["route.json"]
    )
    return document


def leader(stack: Stack) -> str:
    lease = next(item for item in stack.kube.items("leases") if "operator" in item["metadata"]["name"])
    holder: str = lease["spec"]["holderIdentity"]
    pods = [
        pod["metadata"]["name"] for pod in stack.kube.items("pods", "app.kubernetes.io/component=operator")
    ]
    return next(pod for pod in pods if holder.startswith(pod))


def test_killing_every_part_once_changes_nothing_in_the_outcome(app: Stack) -> None:
    killed: list[str] = []

    def at_step(step: str) -> None:
        if "weight 10%" in step:
            killed.append("operator")
            app.kube.run("delete", "pod", leader(app), "--grace-period=0", "--force", "--wait=false")
        elif "weight 25%" in step:
            killed.append("gateway")
            app.kube.run("delete", "pod", f"{GATEWAY}-0", "--wait=false")
        elif "weight 50%" in step:
            killed.append("prometheus")
            app.kube.run(
                "delete", "pod", "-l", "app=prometheus", "--grace-period=0", "--force", "--wait=false"
            )

    story.start_rollout(app, "kills", candidate(app, "slow-model", "kills-1"), {"engine": "external"})
    act = story.follow_rollout(app, print, "kills", 600, at_step)

    assert killed == ["operator", "gateway", "prometheus"]
    assert (act.phase, act.weight) == ("Promoted", 100)
    assert [step["index"] for step in act.steps] == [0, 1, 2, 3, 4], "no step skipped, none taken twice"
    outcome = seen(app)
    assert outcome["failed"] == 0, outcome["failures"]


def test_a_gateway_killed_hard_costs_at_most_its_requests_in_flight(app: Stack) -> None:
    seen(app)  # quiet, so that what is kept from here on is what is asked from here on
    kept_before = app.kube.wait("the spools to be empty", lambda: settled(app), 60)
    app.kube.call("driver", "/app", {"rps": 16, "reset": True})
    app.kube.wait("traffic", lambda: app.kube.call("driver", "/stats")["answered"] > 50, 60)
    kill_hard(app, f"{GATEWAY}-1")
    app.kube.wait_ready(f"cutover.dev/gateway={GATEWAY}", 120, count=2)
    outcome = seen(app)
    assert outcome["failed"] == 0, outcome["failures"]
    # Nothing that was answered is lost: every answer reaches the database from the spool.
    app.kube.wait(
        "all answers kept", lambda: kept_answers(app) - kept_before >= outcome["answered"] or None, 60
    )


def settled(stack: Stack) -> int | None:
    """The number of kept answers once it stays the same for a moment."""
    before = kept_answers(stack)
    time.sleep(2)  # the spool ships twice a second; two equal counts mean that it has nothing left
    return before if kept_answers(stack) == before else None


def kept_answers(stack: Stack) -> int:
    """Rows in PostgreSQL of requests the app made."""
    query = "select count(*) from assessments where assessment_id like 'app-%'"
    shell = f'PGPASSWORD=$POSTGRES_PASSWORD psql -h 127.0.0.1 -U cutover -tAc "{query}" cutover'
    return int(stack.kube.run("exec", "deploy/postgres", "--", "sh", "-c", shell))


def test_a_slow_candidate_is_rolled_back_and_its_reason_is_shown(app: Stack) -> None:
    def at_step(step: str) -> None:
        if "weight 25%" in step:
            story.behave(app, "slow-model", accuracy=0.96, latency_mean_seconds=3.0)

    story.start_rollout(app, "slow", candidate(app, "slow-model", "slow-2"), {"engine": "external"})
    act = story.follow_rollout(app, print, "slow", 600, at_step)
    assert (act.phase, act.weight) == ("RolledBack", 0)
    assert "atency" in act.reason
    assert "RolledBack" in app.kube.run("get", "mro", "slow")
    assert route(app)["weightBasisPoints"] == 0
    assert seen(app)["failed"] == 0


def test_without_prometheus_the_rollout_holds_says_so_and_counts_every_request_once(app: Stack) -> None:
    def at_step(step: str) -> None:
        if "weight 10%" not in step:
            return
        app.kube.run("scale", "deployment/prometheus", "--replicas=0")
        app.kube.wait("MetricsAvailable=False", lambda: condition("MetricsAvailable") == "False", 60)
        before = status()
        time.sleep(10)  # an outage lasts: what is tested is that nothing moves while it does
        after = status()
        assert (after["step"], after["weight"]) == (before["step"], before["weight"])
        assert after["phase"] == "Holding"
        app.kube.run("scale", "deployment/prometheus", "--replicas=1")
        app.kube.wait("MetricsAvailable=True", lambda: condition("MetricsAvailable") == "True", 120)
        counted_once()

    def counted_once() -> None:
        """Nobody died, so the ledger must say what the gateways' own counters say, outage or not."""
        tally.quiet(app)
        gateways = tally.gateway_totals(app, "outage")
        tally.scraped(app, gateways, "outage")
        # Leaving a step is what makes a checkpoint due now.
        order = {"spec": {"request": {"id": "counted", "action": "skip"}}}
        app.kube.run("patch", "modelrollout", "outage", "--type=merge", "-p", json.dumps(order))
        app.kube.wait("the step to be left", lambda: status()["handledRequest"] == "counted", 60)
        assert tally.counted(tally.ledger(app, "outage")) == gateways
        assert gateways["requests/candidate/ok"] > 0
        assert gateways["requests/control/ok"] > 0
        app.kube.call("driver", "/app", {"rps": 16})

    def status() -> dict[str, Any]:
        found: dict[str, Any] = (app.kube.get("modelrollout", "outage") or {})["status"]
        return found

    def condition(kind: str) -> str:
        found: str = next(c["status"] for c in status()["conditions"] if c["type"] == kind)
        return found

    story.start_rollout(app, "outage", candidate(app, "slow-model", "outage-1"), {"engine": "external"})
    act = story.follow_rollout(app, print, "outage", 600, at_step)
    assert (act.phase, act.weight) == ("Promoted", 100)
    assert seen(app)["failed"] == 0


def test_deleting_a_rollout_gives_the_traffic_back_first(app: Stack) -> None:
    story.start_rollout(app, "gone", candidate(app, "slow-model", "gone-1"), {"engine": "external"})
    app.kube.wait("traffic on the candidate", lambda: route(app)["weightBasisPoints"] > 0 or None, 300)
    app.kube.run("delete", "modelrollout", "gone", "--timeout=90s")
    left = route(app)
    assert left["weightBasisPoints"] == 0
    assert left.get("candidate") is None
    assert seen(app)["failed"] == 0
