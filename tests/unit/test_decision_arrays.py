"""One rollout and many are judged by the same lines: arrays give what their elements give, and moves follow the policy."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cutover_operator.rollout.evalue import (
    Side,
    interval,
    intervals,
    log_e_bound,
    log_e_of,
    mixture,
    refuted,
)
from cutover_operator.rollout.gate_tests import (
    Code,
    Counts,
    Judged,
    Segments,
    judge_cost,
    judge_satisfaction,
    judge_share,
    odd_share,
)
from cutover_operator.rollout.label_tests import Labels, judge_accuracy
from cutover_operator.rollout.moves import Move, choose, incident_lasts

COUNT = st.integers(0, 400)


def shares(epochs: np.ndarray, k: np.ndarray, **changes: object) -> Judged:
    """`epochs` (K, 4, ...): bad, good, control bad, control good since each epoch began."""
    bad, good, control_bad, control_good = (epochs[:, i] for i in range(4))
    settings_: dict[str, object] = {
        "limit": 0.05,
        "floor": 0.05,
        "fail_alpha": 0.01,
        "pass_alpha": 0.05,
        "margin": None,
        "default_margin": 0.5,
    }
    return judge_share(
        Counts(bad[0], good[0]),
        Counts(bad, good),
        k,
        Counts(control_bad, control_good),
        lambda: Segments(Counts(bad, good), Counts(control_bad, control_good)),
        **(settings_ | changes),  # type: ignore[arg-type]
    )


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_many_rollouts_at_once_give_what_each_gives_alone(seed: int) -> None:
    rng = np.random.default_rng(seed)
    runs = 5
    epochs = rng.integers(0, 60, size=(3, 4, runs)).astype(float)
    epochs[:, [1, 3]] *= rng.integers(1, 40, size=(3, 2, runs))
    k = np.where(rng.random((3, runs)) < 0.8, np.arange(1, 4)[:, None], 0)
    k[0] = 1
    for changes in ({}, {"margin": 0.5}, {"mirrored": Counts(epochs[:, 0] + 3, epochs[:, 1])}):
        together = shares(epochs, k, **changes)
        for i in range(runs):
            one = {
                name: Counts(v.bad[:, i], v.good[:, i]) if isinstance(v, Counts) else v
                for name, v in changes.items()
            }
            alone = shares(epochs[:, :, i], k[:, i], **one)
            assert alone.code == together.code[i]
            assert alone.shared == together.shared[i]
            assert together.log_e_fail is not None
            assert alone.log_e_fail == pytest.approx(together.log_e_fail[i])
            assert alone.log_e_pass == pytest.approx(together.log_e_pass[i])  # type: ignore[index]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(COUNT, COUNT, COUNT, COUNT, COUNT), min_size=2, max_size=6))
def test_accuracy_of_many_is_the_accuracy_of_each(rows: list[tuple[int, ...]]) -> None:
    right, wrong, missing, control_right, control_wrong = np.asarray(rows, dtype=float).T
    together = judge_accuracy(
        Labels(right, wrong, missing),
        Labels(right[None], wrong[None], missing[None]),
        [1],
        Labels(control_right, control_wrong, np.zeros(len(rows))),
        limit=0.9,
        floor=0.85,
        fail_alpha=0.02,
        pass_alpha=0.05,
        margin=0.05,
    )
    for i in range(len(rows)):
        alone = judge_accuracy(
            Labels(right[i], wrong[i], missing[i]),
            Labels(right[i : i + 1], wrong[i : i + 1], missing[i : i + 1]),
            [1],
            Labels(control_right[i], control_wrong[i], 0.0),
            limit=0.9,
            floor=0.85,
            fail_alpha=0.02,
            pass_alpha=0.05,
            margin=0.05,
        )
        assert alone.code == together.code[i]
        assert alone.against_control == together.against_control[i]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_cheap_bounds_decide_nothing_else(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = rng.integers(1, 400, size=(3, 2, 40)).astype(float)
    bad = rng.binomial(n.astype(int), rng.choice([0.02, 0.05, 0.1, 0.2], size=(1, 1, 40)))
    epochs = np.concatenate([bad[:, :1], n[:, :1] - bad[:, :1], bad[:, 1:], n[:, 1:] - bad[:, 1:]], axis=1)
    k = np.where(rng.random((3, 40)) < 0.8, np.arange(1, 4)[:, None], 0)
    for mirrored in (None, Counts(epochs[:, 2], epochs[:, 3])):
        exact, cheap = (shares(epochs, k, mirrored=mirrored, exact=e) for e in (True, False))
        assert exact.code.tolist() == cheap.code.tolist()
        assert exact.shared.tolist() == cheap.shared.tolist()
        assert exact.log_e_fail is not None
        assert cheap.log_e_fail is not None
        assert (cheap.log_e_fail >= exact.log_e_fail - 1e-9).all()


@settings(deadline=None)
@given(COUNT, COUNT, st.floats(0.01, 0.99), st.sampled_from([-1, 1]), st.floats(1.0, 50.0))
def test_the_bound_is_one(s: int, f: int, p0: float, side: Side, kappa: float) -> None:
    assert log_e_of(s, f, p0, side, kappa) <= float(log_e_bound(s, f, p0, side)) + 1e-6


def test_epochs_that_are_not_there_weigh_nothing() -> None:
    values = np.asarray([[1.0, 1.0], [5.0, 99.0], [2.0, 2.0]])
    found = mixture(values, np.asarray([[1, 1], [2, 0], [3, 3]]))
    assert found.tolist() == pytest.approx([float(mixture([1, 5, 2])), float(mixture([1, 2], [1, 3]))])
    assert mixture(np.zeros((0, 4))).tolist() == [0.0] * 4
    assert mixture(np.ones((2, 1)), np.zeros((2, 1), int)).tolist() == [0.0], "no epoch at all is no evidence"


@settings(deadline=None)
@given(COUNT, COUNT, st.floats(0.001, 0.3), st.floats(0.01, 0.99))
def test_intervals_are_what_is_not_refuted(s: int, f: int, alpha: float, p: float) -> None:
    low, high = interval(s, f, alpha)
    several = intervals([s, 3], [f, 4], alpha)
    assert (several[0][0], several[1][0]) == pytest.approx((low, high), abs=1e-9)
    if abs(p - low) > 1e-6 and abs(p - high) > 1e-6:
        assert bool(refuted(s, f, p, alpha)) == (not low <= p <= high)


def test_cost_and_votes_on_arrays() -> None:
    cost = judge_cost([50, 200, 200, 200], [1, 1, 4, 4], [0, 0, 0, 9], limit=0.01, fail_alpha=0.01)
    assert cost.code.tolist() == [Code.INSUFFICIENT, Code.PASS, Code.INSUFFICIENT, Code.FAIL]
    mine, theirs = (
        Counts(np.asarray([10, 80, 2]), np.asarray([190, 120, 20])),
        Counts(
            np.asarray([10, 100, 10]),
            np.asarray([190, 1900, 190]),
        ),
    )
    segments = Segments(Counts(mine.bad[None], mine.good[None]), Counts(theirs.bad[None], theirs.good[None]))
    votes = judge_satisfaction(mine, theirs, segments, margin=0.5, fail_alpha=0.01)
    assert votes.code.tolist() == [Code.PASS, Code.FAIL, Code.INSUFFICIENT]


def test_nobody_is_judged_without_data() -> None:
    nothing = np.zeros((1, 4, 2))
    found = shares(nothing, np.asarray([1]))
    assert found.code.tolist() == [Code.INSUFFICIENT] * 2
    assert np.isnan(found.value).all()
    labels = Labels(np.zeros(2), np.zeros(2), np.zeros(2))
    accuracy = judge_accuracy(
        labels,
        Labels(np.zeros((1, 2)), np.zeros((1, 2)), np.zeros((1, 2))),
        [1],
        labels,
        limit=0.9,
        floor=0.9,
        fail_alpha=0.02,
        pass_alpha=0.05,
        margin=None,
        available=[True, False],
    )
    assert accuracy.code.tolist() == [Code.INSUFFICIENT, Code.UNAVAILABLE]


def test_a_share_far_from_the_weight_is_odd_once_it_is_proven() -> None:
    assert odd_share([10, 100, 5000], [90, 100, 5000], 0.1).tolist() == [False, True, True]
    assert not odd_share(1030, 8970, 0.1), "within two points"
    assert not odd_share(3, 7, 0.1), "too few to tell"


def test_a_limit_is_proven_kept_on_the_counts_it_was_shown_for() -> None:
    assert log_e_of(10, 490, 0.05, -1, 20) > np.log(20)
    found = shares(np.asarray([[[10.0], [490.0], [0.0], [0.0]]]), np.asarray([1]))
    assert found.code.tolist() == [Code.PASS]


# ---------------------------------------------------------------- moves
@pytest.mark.parametrize(
    ("facts", "move"),
    [
        ({}, Move.ADVANCE),
        ({"codes": [Code.PASS, Code.INSUFFICIENT]}, Move.HOLD),
        ({"codes": [Code.PASS, Code.INSUFFICIENT], "wanted": [True, False]}, Move.ADVANCE),
        ({"codes": [Code.PASS, Code.UNAVAILABLE]}, Move.HOLD),
        ({"enough_time": False}, Move.HOLD),
        ({"enough_requests": False}, Move.HOLD),
        ({"in_force": False}, Move.HOLD),
        ({"held": True}, Move.HOLD),
        ({"promoted": True}, Move.HOLD),
        ({"codes": [Code.FAIL, Code.PASS]}, Move.ROLL_BACK),
        ({"codes": [Code.FAIL, Code.PASS], "wanted": [False, True]}, Move.ROLL_BACK),
        ({"codes": [Code.FAIL, Code.PASS], "held": True}, Move.ROLL_BACK),
        ({"codes": [Code.FAIL, Code.PASS], "promoted": True}, Move.ROLL_BACK),
        ({"codes": [Code.FAIL, Code.PASS], "shared": [True, False]}, Move.FREEZE),
        ({"codes": [Code.FAIL, Code.FAIL], "shared": [True, False]}, Move.ROLL_BACK),
        ({"codes": [Code.FAIL, Code.PASS], "control_down": True}, Move.FREEZE),
        (
            {"codes": [Code.FAIL, Code.PASS], "control_down": True, "excusable": [True, False]},
            Move.FREEZE,
        ),
        (
            {"codes": [Code.FAIL, Code.FAIL], "control_down": True, "excusable": [True, False]},
            Move.ROLL_BACK,
        ),
        ({"incident": True}, Move.FREEZE),
        ({"codes": [Code.FAIL, Code.PASS], "incident": True}, Move.ROLL_BACK),
        ({"enough_time": False, "too_late": True}, Move.ROLL_BACK),
        ({"too_late": True}, Move.ADVANCE),
        ({"enough_time": False, "too_late": True, "held": True}, Move.HOLD),
    ],
)
def test_the_policy(facts: dict[str, object], move: Move) -> None:
    base: dict[str, object] = {
        "codes": [Code.PASS, Code.PASS],
        "shared": [False, False],
        "wanted": [True, True],
    }
    assert choose(**(base | facts)) == move  # type: ignore[arg-type]


def test_no_combination_advances_without_every_wanted_pass() -> None:
    codes = np.asarray(list(itertools.product(Code, Code))).T
    flags = np.asarray(list(itertools.product([False, True], repeat=6)))
    for row in flags:
        moved = choose(
            codes,
            np.zeros_like(codes, bool),
            np.ones_like(codes, bool),
            control_down=row[0],
            incident=row[1],
            held=row[2],
            in_force=row[3],
            enough_time=row[4],
            too_late=row[5],
        )
        passed = (codes == Code.PASS).all(axis=0)
        assert not ((moved == Move.ADVANCE) & ~passed).any()
        assert not ((moved == Move.ROLL_BACK) & (codes != Code.FAIL).all(axis=0) & ~row[5]).any()


def test_an_incident_is_over_when_the_control_answers_within_its_limit() -> None:
    lasts = incident_lasts([0, 0, 4, 0, 2], [19, 60, 60, 60, 40], 0.05, [False, False, False, True, False])
    assert lasts.tolist() == [True, False, True, True, True]
