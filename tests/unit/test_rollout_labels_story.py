"""Rollouts whose labels are drawn by stratum, compared by pairs, or joined by counters of a user's own: metric to route."""

from __future__ import annotations

from typing import Any

from cutover.contract import SHADOW_PAIRS
from fakes.rollout_town import GATES, STEPS, Behaviour, finished, run_until, started

SLOW: dict[str, Any] = {"tick_seconds": 120.0, "requests_per_second": 2.0}
LABELS = {"perHour": 360, "deadline": "10m"}


def analysis(**labels: Any) -> dict[str, Any]:
    return {"interval": "10s", "labels": LABELS | labels}


async def test_labels_drawn_by_stratum_promote_a_good_candidate() -> None:
    spec = {"analysis": analysis(strata="disagreement", doubleShare=0)}
    town = await started(spec=spec, candidate=Behaviour(accuracy=0.96), **SLOW)
    statuses = await run_until(town, finished, ticks=1500)
    final = statuses[-1]
    assert final["finish"] == "Promoted"
    first = final["steps"][0]
    assert (first["outcome"], "by stratum" in first["message"]) == ("passed", True)
    route = await town.route()
    assert route is not None
    chances = route.labels.probability
    assert set(chances) == {"all", "agree", "disagree"}
    assert 1 < chances["disagree"] / chances["agree"] <= 4.001


async def test_labels_drawn_by_stratum_stop_a_bad_candidate_before_it_serves() -> None:
    spec = {"analysis": analysis(strata="disagreement", doubleShare=0)}
    town = await started(spec=spec, candidate=Behaviour(accuracy=0.82), **SLOW)
    final = (await run_until(town, finished, ticks=1500))[-1]
    assert (final["finish"], final["reason"]) == ("RolledBack", "AccuracyBelowLimit")
    assert max(step["index"] for step in final["steps"]) == 0


async def test_a_margin_is_proven_by_requests_both_models_answered() -> None:
    gates = [{"metric": "accuracy", "margin": 0.02}, *GATES[1:]]
    town = await started(
        spec={"gates": gates, "analysis": analysis()}, candidate=Behaviour(accuracy=0.97), **SLOW
    )
    town.control.accuracy = 0.93
    final = (await run_until(town, finished, ticks=1500))[-1]
    assert final["finish"] == "Promoted"
    assert "pairs" in final["steps"][0]["message"]


async def test_without_a_shadow_step_pairs_come_from_sampled_requests() -> None:
    """A live rollout at 10 %: the other 90 % of the sampled requests are answered by both, and a worse model is found."""
    gates = [{"metric": "accuracy", "margin": 0.02}, *GATES[1:]]
    town = await started(
        spec={"gates": gates, "steps": STEPS[1:], "analysis": analysis()},
        candidate=Behaviour(accuracy=0.80),
        **SLOW,
    )
    town.control.accuracy = 0.95
    final = (await run_until(town, finished, ticks=1500))[-1]
    assert (final["finish"], final["reason"]) == ("RolledBack", "AccuracyBelowControl")
    assert any(name == SHADOW_PAIRS for name, _ in town.counters)


async def test_errors_far_above_the_controls_roll_back_within_the_limit() -> None:
    gates = [{"metric": "errorRate", "limit": 0.2, "margin": 0.5}]
    town = await started(
        spec={"gates": gates, "steps": STEPS[1:]}, candidate=Behaviour(errors=0.08), requests_per_second=20.0
    )
    town.control.errors = 0.01
    final = (await run_until(town, finished))[-1]
    assert (final["finish"], final["reason"]) == ("RolledBack", "ErrorRateAboveControl")
    assert "1.5 times the control's share" in final["message"]


APPEALS = {
    "metric": "custom",
    "name": "appeals",
    "bad": "appeals_total",
    "total": "claims_total",
    "limit": 0.1,
}


async def test_counters_of_a_users_own_hold_while_they_are_away_and_then_decide() -> None:
    steps = [{**step, "gates": ["appeals", "errorrate"]} for step in STEPS[1:]]
    town = await started(spec={"gates": [APPEALS, GATES[2]], "steps": steps})
    for _ in range(20):
        await town.tick()
        await town.run_pass()
    status = await town.status()
    appeals = next(g for g in status["gates"] if g["name"] == "appeals")
    assert (appeals["verdict"], status["step"], status["phase"]) == ("unavailable", 0, "Progressing")
    assert "appeals_total" in appeals["message"]
    assert next(g for g in status["gates"] if g["name"] == "errorrate")["verdict"] == "pass"

    def happen(bad: float) -> None:
        for name, count in (("appeals_total", bad), ("claims_total", 100.0)):
            town.counters[(name, (("instance", "claims-0"), ("job", "claims")))] += count

    happen(0)
    for _ in range(8):
        happen(1)
        await town.tick()
        await town.run_pass()
    assert (await town.status())["step"] > 0

    def appeal(status: dict[str, Any]) -> None:
        happen(60)

    final = (await run_until(town, finished, each=appeal))[-1]
    assert (final["finish"], final["reason"]) == ("RolledBack", "CustomShareAboveLimit")
