"""What every verdict promises whatever the data: cuts, order and restarts change nothing, good evidence never harms,
and each test keeps its risk."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cutover.api.modelrollout import ModelRolloutSpec
from cutover.contract import DURATION, LABELS_MATURED, REQUESTS, rollout_key
from cutover_operator.evidence.folding import Wanted, fold
from cutover_operator.evidence.ledger import Ledger
from cutover_operator.evidence.samples import Answer, Sample, Series
from cutover_operator.rollout import pairs, strata
from cutover_operator.rollout.betting import Purse
from cutover_operator.rollout.gate_tests import (
    Code,
    Counts,
    Segments,
    judge_satisfaction,
    judge_share,
    log_level,
    ratio_violation,
)
from cutover_operator.rollout.gates import named_gates
from cutover_operator.rollout.label_tests import Labels, judge_accuracy
from cutover_operator.rollout.pairs import Pairs
from cutover_operator.rollout.risk import epoch_due, spent
from cutover_operator.rollout.strata import Cohort
from cutover_operator.rollout.verdict import Bench, Verdict, judge
from cutover_operator.simulation import Behaviour, Scenario, simulate
from fakes.rollout_town import rollout_spec

SPEC = ModelRolloutSpec.model_validate(
    rollout_spec(
        gates=[
            {"metric": "accuracy", "limit": 0.9, "margin": 0.1},
            {"metric": "errorRate", "limit": 0.05, "margin": 0.5},
            {"metric": "latency", "limit": 2.0},
        ]
    )
)
WANTED = Wanted(rollout_key("u"), "v1", edges=(2.0,))
COUNT = st.integers(0, 400)


def tolerated(risk: float, runs: int) -> float:
    return risk + 3 * math.sqrt(risk * (1 - risk) / runs)


# ---------------------------------------------------------------- windows, order, restarts
def history(seed: int, scrapes: int) -> list[tuple[str, dict[str, str], list[Sample]]]:
    """Counters of two replicas as scraped, some of which restart at zero on the way; labels of one database."""
    rng = random.Random(seed)
    found = []
    for pod in ("gw-0", "gw-1"):
        own = {"gateway": "g", "rollout": rollout_key("u"), "instance": pod}
        restarts = {i for i in range(scrapes) if rng.random() < 0.1}
        for arm, version in (("candidate", "v1"), ("control", "c")):
            for metric, label, values in (
                (REQUESTS, "outcome", ("ok", "error", "deferred", "rejected")),
                (DURATION, "le", ("2.0", "+Inf")),
            ):
                for value in values:
                    total, samples = 0.0, []
                    for i in range(scrapes):
                        total = (0.0 if i in restarts else total) + rng.randrange(12)
                        samples.append((15.0 * i, total))
                    found.append((metric, {**own, "arm": arm, "version": version, label: value}, samples))
    for arm, version in (("candidate", "v1"), ("control", "c")):
        for result in ("right", "right", "wrong", "missing"):
            growth = np.cumsum([rng.randrange(8) for _ in range(scrapes)])
            labels = {"rollout": rollout_key("u"), "arm": arm, "version": version, "field": "overall"}
            labels |= {"stratum": "all", "result": result, "instance": f"as-{rng.randrange(2)}"}
            found.append((LABELS_MATURED, labels, [(15.0 * i, float(v)) for i, v in enumerate(growth)]))
    return found


def answers(
    counters: list[tuple[str, dict[str, str], list[Sample]]], start: int, end: int, rng: random.Random
) -> dict[str, Answer]:
    """What Prometheus answers about the scrapes start..end, series and samples in any order."""
    series: dict[str, list[Series]] = {}
    for metric, labels, samples in counters:
        some = samples[start:end]
        rng.shuffle(some)
        series.setdefault(metric, []).append(Series(labels, tuple(some)))
    for found in series.values():
        rng.shuffle(found)
    return {metric: Answer(tuple(found), 15.0 * end) for metric, found in series.items()}


def verdicts(ledger: Ledger) -> list[Verdict]:
    return [judge(Bench(SPEC, 3, ledger, 3600.0), gate) for gate in named_gates(SPEC)]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 12), st.sets(st.integers(1, 11), max_size=5), st.integers(0, 10))
def test_verdicts_do_not_depend_on_windows_order_or_restarts(
    seed: int, scrapes: int, cuts: set[int], overlap: int
) -> None:
    counters, rng = history(seed, scrapes), random.Random(seed)
    empty = Ledger(uid="u", version="v1", started_at=0.0).with_mark(0.0, 0)
    whole = fold(empty, answers(counters, 0, scrapes, rng), WANTED)
    cut = empty
    for end in [*sorted(c for c in cuts if c < scrapes), scrapes]:
        # The operator restarts, and asks for more than it needs: what was counted is not counted again.
        cut = Ledger.from_json(cut.to_json())
        last = max((int(at // 15) for at, _ in cut.series.values()), default=-1)
        cut = fold(cut, answers(counters, max(0, last - overlap), end, rng), WANTED)
    assert cut.totals == whole.totals
    assert verdicts(cut) == verdicts(whole)


# ---------------------------------------------------------------- good evidence never harms
def share(bad: int, good: int, control_bad: int, control_good: int, **changes: Any) -> int:
    mine, theirs = (
        Counts(np.asarray([float(b)]), np.asarray([float(g)]))
        for b, g in ((bad, good), (control_bad, control_good))
    )
    found = judge_share(
        Counts(float(bad), float(good)),
        mine,
        [1],
        theirs,
        lambda: Segments(mine, theirs),
        limit=0.05,
        floor=0.07,
        fail_alpha=0.02,
        pass_alpha=0.05,
        default_margin=0.5,
        **({"margin": 0.5} | changes),
    )
    return int(found.code)


@settings(max_examples=200, deadline=None)
@given(COUNT, st.integers(0, 5000), COUNT, st.integers(0, 5000), st.integers(1, 500), st.booleans())
def test_good_answers_never_take_a_pass_away_nor_make_a_fail(
    bad: int, good: int, control_bad: int, control_good: int, more: int, margin: bool
) -> None:
    changes = {"margin": 0.5 if margin else None}
    before = share(bad, good, control_bad, control_good, **changes)
    after = share(bad, good + more, control_bad, control_good, **changes)
    assert not (before == Code.PASS and after != Code.PASS)
    assert not (before != Code.FAIL and after == Code.FAIL)


@settings(max_examples=150, deadline=None)
@given(COUNT, COUNT, COUNT, COUNT, COUNT, st.integers(1, 200))
def test_right_labels_never_harm_against_limit_and_control(
    right: int, wrong: int, missing: int, control_right: int, control_wrong: int, more: int
) -> None:
    def code(right: int) -> int:
        mine = Labels(*(np.asarray([float(v)]) for v in (right, wrong, missing)))
        found = judge_accuracy(
            Labels(float(right), float(wrong), float(missing)),
            mine,
            [1],
            Labels(float(control_right), float(control_wrong), 0.0),
            limit=0.85,
            floor=0.8,
            fail_alpha=0.02,
            pass_alpha=0.05,
            margin=0.05,
        )
        return int(found.code)

    before, after = code(right), code(right + more)
    assert not (before == Code.PASS and after != Code.PASS)
    assert not (before != Code.FAIL and after == Code.FAIL)


@settings(deadline=None)
@given(COUNT, COUNT, COUNT, st.integers(1, 50), st.sampled_from([0.05, 0.3, 1.0]))
def test_a_right_label_in_any_stratum_helps_the_candidate(
    right: int, wrong: int, missing: int, more: int, pi: float
) -> None:
    drawn = right + wrong + missing + more

    def wealth(right: int, side: int) -> float:
        requests = np.asarray([drawn / pi + 5, 40.0])
        cohort = Cohort(
            requests, np.asarray([right, 1.0]), np.asarray([wrong, 1.0]), np.asarray([missing, 0.0])
        )
        return float(strata.bet(Purse.begun(), cohort, (pi, 0.2), (0.9, 0.5), 0.9, side).log_wealth)  # type: ignore[arg-type]

    assert wealth(right + more, 1) >= wealth(right, 1) - 1e-9
    assert wealth(right + more, -1) <= wealth(right, -1) + 1e-9


@settings(deadline=None)
@given(COUNT, COUNT, COUNT, COUNT, st.integers(1, 50))
def test_a_pair_won_instead_of_lost_helps_the_candidate(
    both: int, won: int, lost: int, neither: int, more: int
) -> None:
    for side, better in ((1, 1.0), (-1, -1.0)):
        before, after = (
            float(pairs.bet(Purse.begun(), p, 0.02, side).log_wealth)  # type: ignore[arg-type]
            for p in (Pairs(both, won, lost + more, neither), Pairs(both, won + more, lost, neither))
        )
        assert better * after >= better * before - 1e-9


# ---------------------------------------------------------------- error control
@pytest.mark.parametrize("weight", [0.1, 0.5])
def test_the_ratio_keeps_its_risk_exactly_at_the_ratio(weight: float) -> None:
    """Candidate 6 %, control 4 %, ratio 1.5, in three segments of changing weight, a look after each twenty requests."""
    rng, runs, looks, risk = np.random.default_rng(12), 400, 120, 0.05
    hit = np.zeros(runs, bool)
    bad, whole = np.zeros((2, 3, runs)), np.zeros((2, 3, runs))
    for look in range(looks):
        segment = look // 40
        share_now = min(weight * (segment + 1), 0.9)
        n = rng.binomial(200, share_now, runs)
        both = np.asarray([n, 200 - n])
        bad[:, segment] += rng.binomial(both, np.asarray([[0.06], [0.04]]))
        whole[:, segment] += both
        segments = Segments(Counts(bad[0], whole[0] - bad[0]), Counts(bad[1], whole[1] - bad[1]))
        hit |= ratio_violation(segments, 1.5) >= log_level(risk)
    assert hit.mean() <= tolerated(risk, runs)


def test_votes_keep_their_risk_exactly_at_the_margin() -> None:
    rng, runs, risk = np.random.default_rng(13), 400, 0.05
    down, votes = np.zeros((2, runs)), np.zeros((2, runs))
    hit = np.zeros(runs, bool)
    for _ in range(100):
        n = np.asarray([np.full(runs, 10), np.full(runs, 30)])
        down, votes = down + rng.binomial(n, np.asarray([[0.15], [0.10]])), votes + n
        mine, theirs = (Counts(down[i], votes[i] - down[i]) for i in (0, 1))
        segments = Segments(*(Counts(c.bad[None], c.good[None]) for c in (mine, theirs)))
        hit |= judge_satisfaction(mine, theirs, segments, margin=0.5, fail_alpha=risk).code == Code.FAIL
    assert hit.mean() <= tolerated(risk, runs)


def test_the_margin_against_the_control_keeps_its_risk() -> None:
    rng, runs, risk = np.random.default_rng(14), 200, 0.05
    false = {Code.PASS: np.zeros(runs, bool), Code.FAIL: np.zeros(runs, bool)}
    right = np.zeros((2, runs))
    for look in range(1, 41):
        right += rng.binomial(50, np.asarray([[0.90], [0.92]]), (2, runs))
        mine, theirs = (Labels(r, 50.0 * look - r, np.zeros(runs)) for r in right)
        found = judge_accuracy(
            mine,
            Labels(*(np.asarray(v)[None] for v in (mine.right, mine.wrong, mine.missing))),
            [1],
            theirs,
            limit=None,
            floor=None,
            fail_alpha=risk,
            pass_alpha=risk,
            margin=0.02,
        )
        for code, hit in false.items():
            hit |= found.code == code
    assert all(hit.mean() <= tolerated(risk, runs) for hit in false.values())


def test_no_number_of_incidents_spends_more_than_the_risk() -> None:
    parts = spent(0.05, np.arange(10_000))
    assert 0.0499 < parts.sum() <= 0.05
    assert parts[0] > 0.04


def test_epochs_come_closer_after_a_beginning_and_stay_few() -> None:
    marks = [0.0]
    for minute in range(0, 14 * 1440, 10):
        if epoch_due(marks[0], marks[-1], 60.0 * minute):
            marks.append(60.0 * minute)
    assert [m / 3600 for m in marks[:6]] == [0, 3, 6, 12, 24, 36]
    assert len(marks) < 32


def test_whole_rollouts_keep_the_risk_on_both_sides() -> None:
    """Exactly at a limit: hardly ever promoted; well within all of them: hardly ever rolled back."""
    gates = [{"metric": "accuracy", "limit": 0.9}, {"metric": "errorRate", "limit": 0.05}]
    steps = [{"weight": w, "minDuration": "1h"} for w in (10, 25, 50, 100)]
    spec = ModelRolloutSpec.model_validate(
        rollout_spec(gates=gates, steps=steps, analysis={"labels": {"deadline": "2h"}})
    )
    for wrong in ({"accuracy": 0.9}, {"errors": 0.05}):
        world = Scenario(candidate=Behaviour(**wrong), horizon_hours=48.0)  # type: ignore[arg-type]
        assert simulate(spec, world, 100, seed=31).served_all <= tolerated(0.05, 100)
    good = simulate(spec, Scenario(candidate=Behaviour(accuracy=0.94), horizon_hours=48.0), 100, seed=32)
    assert good.summary().promoted >= 0.99
    assert good.summary().rolled_back <= 0.01
