"""Bets on cohorts: strata, pairs, reviewers' errors and the routing threshold keep what they promise."""

from __future__ import annotations

import json
import math
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cutover.selective import auroc
from cutover_operator.rollout import pairs, strata
from cutover_operator.rollout.betting import STAKES, Purse
from cutover_operator.rollout.evalue import mixture
from cutover_operator.rollout.pairs import Pairs
from cutover_operator.rollout.reviewers import floor_on_labels, measured, seen_accuracy
from cutover_operator.rollout.selective import choose_threshold
from cutover_operator.rollout.strata import Cohort, Learned

CERTAIN = math.log(20)
COUNT = st.integers(0, 50)


def tolerated(alpha: float, runs: int) -> float:
    return alpha + 3 * math.sqrt(alpha * (1 - alpha) / runs)


# ---------------------------------------------------------------- purses
def test_a_purse_is_a_few_plain_numbers() -> None:
    purse = Purse.begun(drift=True).bet([3, 5], [1.0, 0.0], 0.5, 1).next_epoch()
    again = json.loads(json.dumps(asdict(purse)))
    assert Purse(tuple(again["in_play"]), again["epochs"]) == purse
    assert len(purse.in_play) == len(STAKES)


@settings(deadline=None)
@given(st.lists(st.tuples(COUNT, COUNT), min_size=1, max_size=8))
def test_cutting_a_cohort_in_two_changes_nothing(cohorts: list[tuple[int, int]]) -> None:
    whole, cut = Purse.begun(), Purse.begun()
    for won, lost in cohorts:
        whole = whole.bet([won, lost], [1.0, 0.0], 0.4, 1)
        cut = cut.bet([won // 2, lost], [1.0, 0.0], 0.4, 1).bet([won - won // 2, 0], [1.0, 0.0], 0.4, 1)
    assert float(cut.log_wealth) == pytest.approx(float(whole.log_wealth), abs=1e-9)


def test_epochs_of_a_purse_are_the_mixture_over_restarts() -> None:
    rng = np.random.default_rng(4)
    cohorts = rng.integers(0, 9, size=(12, 2))
    purse = Purse.begun(drift=True)
    fresh = [Purse.begun()]
    for i, cohort in enumerate(cohorts):
        if i in (4, 8):
            purse = purse.next_epoch()
            fresh.append(Purse.begun())
        purse = purse.bet(cohort, [1.0, 0.0], 0.5, 1)
        fresh = [one.bet(cohort, [1.0, 0.0], 0.5, 1) for one in fresh]
    assert float(purse.log_wealth) == pytest.approx(float(mixture([one.log_wealth for one in fresh])))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 10**6), min_size=3, max_size=3), st.sampled_from([-1, 1]))
def test_no_cohort_breaks_the_bank(counts: list[int], side: int) -> None:
    purse = Purse.begun().bet(counts, [1.0, 0.5, 0.0], 0.49, side)  # type: ignore[arg-type]
    assert math.isfinite(float(purse.log_wealth))


def test_purses_in_a_row_bet_on_means_like_each_alone() -> None:
    rng = np.random.default_rng(2)
    values, closed = 1.2 * rng.random((30, 4)), rng.random((30, 4)) < 0.7
    marked = rng.random((30, 4)) < 0.1
    together = Purse(Purse.begun((4,), drift=True).in_play, np.ones(4, dtype=np.int64))
    alone = [Purse.begun(drift=True) for _ in range(4)]
    for row, done, mark in zip(values, closed, marked, strict=True):
        together = together.bet_on_mean(row, 0.25, done).next_epoch(mark)
        alone = [b.bet_on_mean(v, 0.25) if d else b for b, v, d in zip(alone, row, done, strict=True)]
        alone = [b.next_epoch() if m else b for b, m in zip(alone, mark, strict=True)]
    assert together.log_wealth.tolist() == pytest.approx([float(b.log_wealth) for b in alone])
    assert together.epochs.tolist() == [b.epochs for b in alone]
    assert all(type(b.epochs) is int and all(type(v) is float for v in b.in_play) for b in alone)


def test_a_bet_on_a_mean_is_the_bet_on_outcomes_whose_worst_is_zero() -> None:
    mean, outcomes = Purse.begun().bet_on_mean(0.6, 0.25), Purse.begun().bet([1, 0], [0.6, 0.0], 0.25, 1)
    assert mean.in_play == pytest.approx(outcomes.in_play)


def test_bets_on_means_earn_above_the_limit_and_rarely_below() -> None:
    rich = Purse.begun(drift=True)
    for _ in range(40):
        rich = rich.bet_on_mean(0.5, 0.25)
    assert rich.log_wealth > math.log(400)
    rng, runs = np.random.default_rng(5), 400
    purse, alarm = Purse(Purse.begun((runs,), drift=True).in_play, np.ones(runs, dtype=np.int64)), False
    for cohort in range(600):
        purse = purse.bet_on_mean(rng.beta(2, 6, size=runs), 0.25)
        alarm = alarm | (purse.log_wealth >= CERTAIN)
        purse = purse.next_epoch(np.full(runs, cohort % 60 == 59))
    assert np.mean(alarm) <= tolerated(0.05, runs)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 10), max_size=30))
def test_no_mean_breaks_the_bank(values: list[float]) -> None:
    purse = Purse.begun(drift=True)
    for value in values:
        purse = purse.bet_on_mean(value, 0.25)
    assert math.isfinite(float(purse.log_wealth))


# ---------------------------------------------------------------- strata
def simulate(
    accuracy: tuple[float, float],
    share: float,
    side: int,
    runs: int,
    cohorts: int,
    p0: float,
    size: int = 200,
) -> np.ndarray:
    """Labels drawn until proof (inf: never) in each run; strata (agree, disagree), 5 % of the requests labelled."""
    rng = np.random.default_rng(5)
    pi = strata.probabilities((1 - share, share), 0.05)
    purse, labels = Purse.begun((runs,)), np.zeros(runs)
    learned = Learned(np.zeros((2, runs)), np.zeros((2, runs)), np.asarray([0.9, 0.5]))
    found = np.full(runs, np.inf)
    for _ in range(cohorts):
        second = rng.binomial(size, share, runs)
        requests = np.asarray([size - second, second])
        drawn = rng.binomial(requests, pi[:, None])
        right = rng.binomial(drawn, np.asarray(accuracy)[:, None])
        cohort = Cohort(requests, right, drawn - right, np.zeros_like(drawn))
        purse = strata.bet(purse, cohort, pi, learned.guess(), p0, side)  # type: ignore[arg-type]
        learned, labels = learned.after(cohort), labels + drawn.sum(axis=0)
        found = np.where(np.isinf(found) & (purse.log_wealth >= CERTAIN), labels, found)
    return found


@pytest.mark.parametrize("side", [-1, 1])
def test_strata_keep_the_risk_exactly_at_the_limit(side: int) -> None:
    share, runs = 0.2, 400
    hits = np.isfinite(simulate((0.98, 0.58), share, side, runs, 150, 0.98 * 0.8 + 0.58 * 0.2))
    assert hits.mean() <= tolerated(0.05, runs)


def test_strata_certify_with_fewer_labels_than_a_uniform_sample() -> None:
    """A model right in 93 %, with GPT-4's agreement as it is in the bench; a uniform sample takes about 610 labels."""
    found = simulate((0.99, 0.61), 0.158, 1, 150, 200, 0.9)
    assert np.isfinite(found).mean() >= 0.97
    assert np.minimum(found, 2000).mean() <= 0.75 * 610


def test_missing_labels_count_against_what_is_proven_in_strata_too() -> None:
    some = Cohort(np.asarray([180.0, 20.0]), np.asarray([9.0, 1.0]), np.zeros(2), np.zeros(2))
    gone = Cohort(some.requests, some.right, some.wrong, np.asarray([3.0, 0.0]))
    for side in (1, -1):
        with_, without = (
            strata.bet(Purse.begun(), c, (0.05, 0.05), (0.9, 0.5), 0.9, side)  # type: ignore[arg-type]
            for c in (gone, some)
        )
        assert with_.log_wealth < without.log_wealth


def test_guesses_come_from_labels_that_were_seen() -> None:
    learned = Learned(np.zeros(2), np.zeros(2), (0.9, 0.5))
    assert learned.guess().tolist() == [0.9, 0.5]
    cohort = Cohort([100, 100], [40, 10], [0, 40], [6, 0])
    assert learned.after(cohort).guess().tolist() == pytest.approx([43.6 / 44, 12 / 54])


def test_disagreements_are_drawn_more_often_within_reason() -> None:
    chances = strata.probabilities((0.9, 0.1), 0.05)
    assert chances @ [0.9, 0.1] == pytest.approx(0.05)
    assert chances[1] / chances[0] == pytest.approx(4.0)
    assert strata.probabilities((1.0, 0.0), 0.05).tolist() == [0.05, 0.05]


# ---------------------------------------------------------------- pairs
def paired(both: float, mine: float, theirs: float, side: int, margin: float, runs: int = 300) -> np.ndarray:
    rng = np.random.default_rng(6)
    purse, found = Purse.begun((runs,)), np.full(runs, np.inf)
    for cohort in range(100):
        counts = rng.multinomial(30, [both, mine, theirs, 1 - both - mine - theirs], runs).T
        purse = pairs.bet(purse, Pairs(*counts), margin, side)  # type: ignore[arg-type]
        found = np.where(np.isinf(found) & (purse.log_wealth >= CERTAIN), 30 * (cohort + 1), found)
    return found


@pytest.mark.parametrize("side", [-1, 1])
def test_pairs_keep_the_risk_exactly_at_the_margin(side: int) -> None:
    assert np.isfinite(paired(0.85, 0.06, 0.08, side, 0.02)).mean() <= tolerated(0.05, 300)


def test_pairs_prove_a_difference_with_fewer_labels_than_two_samples() -> None:
    """Candidate .93, control .92, margin .02: the prototype took 831 pairs, 1234 unpaired labels."""
    found = paired(0.88, 0.05, 0.04, 1, 0.02)
    assert np.isfinite(found).mean() >= 0.95
    assert np.minimum(found, 3000).mean() <= 1000


def test_missing_pairs_count_against_both_proofs() -> None:
    for side in (1, -1):
        full = pairs.bet(Purse.begun(), Pairs(80, 8, 4, 8), 0.02, side)  # type: ignore[arg-type]
        less = pairs.bet(Purse.begun(), Pairs(80, 8, 4, 8, 6), 0.02, side)  # type: ignore[arg-type]
        assert less.log_wealth < full.log_wealth
    assert float(Pairs(80, 8, 4, 8).difference) == pytest.approx(0.04)
    assert math.isnan(float(Pairs(0, 0, 0, 0).difference))


# ---------------------------------------------------------------- reviewers
def test_reviewers_errors_are_bounded_on_both_sides() -> None:
    noise = measured(same=961, different=39, alpha=0.005)
    assert noise.least < 0.02 < noise.most
    assert seen_accuracy(0.93, 0.02) == pytest.approx(0.9128)
    assert seen_accuracy(0.9, 0.02) < floor_on_labels(0.9, noise) < 0.9
    unknown = measured(0, 0, 0.005)
    assert (float(unknown.least), float(unknown.most)) == (0.0, 0.5)
    assert floor_on_labels(0.9, unknown) == 0.9, "what nobody measured is no excuse"


@pytest.mark.parametrize("eps", [0.0, 0.02, 0.1])
def test_the_bounds_of_the_error_rate_hold_at_all_times(eps: float) -> None:
    runs, length, alpha = 200, 400, 0.05
    differ = np.random.default_rng(8).random((runs, length)) < 2 * eps * (1 - eps)
    d = np.cumsum(differ, axis=1)
    noise = measured(np.arange(1, length + 1) - d, d, alpha)
    missed = ((noise.least > eps + 1e-9) | (noise.most < eps - 1e-9)).any(axis=1).mean()
    assert missed <= tolerated(alpha, runs)


# ---------------------------------------------------------------- selective routing
EDGES = [i / 20 for i in range(20)]


def binned(
    rng: np.random.Generator, n: int, accuracy: float, separation: float
) -> tuple[np.ndarray, np.ndarray]:
    y = rng.random(n) < accuracy
    confidence = 1 / (1 + np.exp(-rng.normal(np.where(y, separation, 0.0), 1.0)))
    index = np.minimum((confidence * 20).astype(int), 19)
    return np.bincount(index[y], minlength=20), np.bincount(index[~y], minlength=20)


@pytest.mark.parametrize(("looks", "least"), [("once", 0.35), ("many", 0.25)])
def test_the_kept_answers_meet_the_floor(looks: str, least: float) -> None:
    rng = np.random.default_rng(9)
    right, wrong = binned(rng, 400_000, 0.85, 1.0)
    truth = np.cumsum(right[::-1]) / np.cumsum((right + wrong)[::-1])
    broken, kept, runs = 0, 0.0, 200
    for _ in range(runs):
        r, w = binned(rng, 1000, 0.85, 1.0)
        routing = choose_threshold(EDGES, r, w, np.zeros(20), floor=0.9, risk=0.05, looks=looks)  # type: ignore[arg-type]
        kept += routing.kept_share
        if routing.threshold is not None:
            broken += truth[19 - EDGES.index(routing.threshold)] < 0.9
    assert broken / runs <= 0.05
    assert kept / runs >= least


def test_a_worthless_confidence_certifies_nothing_and_everything_goes_to_gpt_4() -> None:
    right, wrong = np.full(20, 40), np.full(20, 10)
    routing = choose_threshold(EDGES, right, wrong, np.zeros(20), floor=0.9, risk=0.05)
    assert routing.threshold is None
    assert (routing.kept_share, routing.dependency) == (0.0, 1.0)
    assert routing.auroc == pytest.approx(0.5)
    assert routing.usd_per_assessment(0.002, 0.04) == pytest.approx(0.042)
    assert routing.system_accuracy(0.92) == pytest.approx(0.92)


def test_a_good_model_keeps_most_answers_and_says_what_that_costs() -> None:
    right = np.asarray([0] * 10 + [10, 20, 40, 80, 120, 200, 300, 400, 500, 600])
    wrong = np.asarray([0] * 10 + [30, 30, 20, 20, 20, 10, 10, 10, 5, 5])
    routing = choose_threshold(EDGES, right, wrong, np.zeros(20), floor=0.9, risk=0.05)
    assert routing.threshold is not None
    assert routing.kept_share > 0.9
    assert routing.auroc > 0.8
    assert routing.usd_per_assessment(0.002, 0.04) == pytest.approx(0.002 + routing.dependency * 0.04)
    assert [p.kept_share for p in routing.curve] == sorted(p.kept_share for p in routing.curve)
    fewer = choose_threshold(EDGES, right, wrong, np.full(20, 30), floor=0.9, risk=0.05)
    assert fewer.kept_share < routing.kept_share, "missing labels count as wrong"


def test_counts_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="edges for"):
        choose_threshold([0.0, 0.5], [1], [1], [0], floor=0.9, risk=0.05)
    with pytest.raises(ValueError, match="rise"):
        choose_threshold([0.5, 0.5], [1, 1], [1, 1], [0, 0], floor=0.9, risk=0.05)
    assert math.isnan(auroc([1, 2], [0, 0]))
    assert choose_threshold([0.0], [0], [0], [0], floor=0.9, risk=0.05).threshold is None
