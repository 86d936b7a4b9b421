"""The numbers a verdict stands on: published vectors, safety at the edges, and the promised error rate."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutover_operator.rollout.evalue import (
    Side,
    interval,
    log_e,
    log_e_of,
    mixture,
    still_needed,
)

VECTORS: list[tuple[float, float, float, Side, float, float]] = [
    (85, 15, 0.9, -1, 30, 0.803999),
    (93, 7, 0.9, 1, 30, 0.178316),
    (15, 85, 0.05, 1, 20, 5.703197),
    (2, 98, 0.05, -1, 20, 0.756055),
    (0, 0, 0.9, -1, 30, 0.0),
    (465, 35, 0.9, 1, 30, 1.840536),
    (170000, 30000, 0.9, -1, 30, 2442.923925),
]
COUNTS = st.integers(0, 10**9)
SHARES = st.floats(0.001, 0.999)
SIDES = st.sampled_from([-1, 1])


@pytest.mark.parametrize("vector", VECTORS)
def test_vectors(vector: tuple[float, float, float, Side, float, float]) -> None:
    *arguments, expected = vector
    assert log_e_of(*arguments) == pytest.approx(expected, abs=2e-6)  # type: ignore[arg-type]


def test_arrays_are_judged_element_by_element() -> None:
    several = log_e([85, 0], [15, 0], 0.9, -1, 30)
    assert several.tolist() == pytest.approx([0.803999, 0.0], abs=2e-6)


@given(COUNTS, COUNTS, SHARES, SIDES)
def test_always_a_finite_number(s: int, f: int, p0: float, side: Side) -> None:
    assert math.isfinite(log_e_of(s, f, p0, side, 20.0))


@given(st.integers(0, 5000), st.integers(0, 5000), st.floats(0.01, 0.99), st.integers(1, 500))
def test_more_good_evidence_never_turns_a_pass_into_less(s: int, f: int, p0: float, more: int) -> None:
    """For the certificate of "at least p0", another success raises the evidence once it points the right way."""
    before, after = log_e_of(s, f, p0, 1, 30), log_e_of(s + more, f, p0, 1, 30)
    if before >= math.log(20):
        assert after >= before - 1e-9


@given(st.integers(0, 3000), st.integers(0, 3000), st.floats(0.02, 0.98))
def test_only_one_side_can_be_proven(s: int, f: int, p0: float) -> None:
    certain = math.log(20)
    assert not (log_e_of(s, f, p0, 1, 20) >= certain and log_e_of(s, f, p0, -1, 20) >= certain)


@pytest.mark.parametrize(
    ("p0", "side", "kappa"), [(0.9, -1, 30.0), (0.9, 1, 30.0), (0.05, 1, 20.0), (0.05, -1, 20.0)]
)
def test_false_alarms_stay_below_the_risk_under_a_look_after_every_outcome(
    p0: float, side: Side, kappa: float
) -> None:
    runs, length, alpha = 400, 1500, 0.05
    right = np.cumsum(np.random.default_rng(7).random((runs, length)) < p0, axis=1)
    wrong = np.arange(1, length + 1)[None] - right
    alarms = (log_e(right, wrong, p0, side, kappa) >= math.log(1 / alpha)).any(axis=1).mean()
    assert alarms <= alpha + 3 * math.sqrt(alpha * (1 - alpha) / runs)


def test_the_mixture_over_epochs_keeps_the_risk_too() -> None:
    runs, length, alpha, every = 300, 1200, 0.05, 200
    bad = np.cumsum(np.random.default_rng(11).random((runs, length)) < 0.05, axis=1)
    alarms = 0
    for run in bad:
        for n in range(50, length + 1, 50):
            starts = [0, *range(every, n, every)]
            values = [
                log_e_of(
                    run[n - 1] - (run[s - 1] if s else 0),
                    n - s - run[n - 1] + (run[s - 1] if s else 0),
                    0.05,
                    1,
                    20,
                )
                for s in starts
            ]
            if mixture(values) >= math.log(1 / alpha):
                alarms += 1
                break
    assert alarms / runs <= alpha + 3 * math.sqrt(alpha * (1 - alpha) / runs)


def test_it_finds_what_it_should_in_reasonable_time() -> None:
    """Accuracy .85 against .90 takes about 300 labels on average; the Wald limit is 245."""
    runs, length = 300, 3000
    right = np.cumsum(np.random.default_rng(3).random((runs, length)) < 0.85, axis=1)
    wrong = np.arange(1, length + 1)[None] - right
    hit = log_e(right, wrong, 0.9, -1, 30) >= math.log(20)
    assert hit.any(axis=1).all()
    assert 245 / (hit.argmax(axis=1) + 1).mean() >= 0.7


def test_the_mixture_sees_a_late_drift_and_drops_old_epochs_carefully() -> None:
    assert mixture([]) == 0.0
    assert mixture([0.0] * 5) == pytest.approx(0.0)
    whole = mixture([1.0, 5.0, 2.0])
    assert mixture([1.0, 2.0], [1, 3]) < whole
    assert mixture([-1e6, 8.0]) > 8.0 - math.log(4.1)


@given(st.integers(0, 2000), st.integers(0, 2000), st.floats(0.001, 0.3))
def test_the_interval_holds_the_observed_share_and_narrows(s: int, f: int, alpha: float) -> None:
    low, high = interval(s, f, alpha)
    assert 0 <= low <= high <= 1
    if s + f:
        assert low - 1e-9 <= s / (s + f) <= high + 1e-9
        wide = interval(s, f, alpha / 10)
        assert wide[0] <= low + 1e-9
        assert wide[1] >= high - 1e-9


def test_labels_still_needed_are_where_the_mixture_crosses() -> None:
    assert still_needed(93, 7, 0.9, 1, 30, 0.05) == pytest.approx(641.3, rel=0.02)
    assert still_needed(90, 10, 0.9, 1, 30, 0.05) is None
    assert still_needed(0, 0, 0.9, 1, 30, 0.05) is None
    assert still_needed(9900, 100, 0.9, 1, 30, 0.05) == 0.0


@given(
    st.integers(20, 100_000),
    st.floats(0.02, 0.98),
    st.floats(0.0005, 1.0),
    st.sampled_from([(1, 30.0), (-1, 20.0)]),
    st.sampled_from([0.1, 0.05, 0.045, 0.001]),
)
def test_that_many_more_prove_it_and_a_fifth_fewer_do_not(
    n: int, p0: float, beyond: float, kind: tuple[Side, float], alpha: float
) -> None:
    """`beyond`: how far the share lies between the limit and the end."""
    side, kappa = kind
    seen = p0 + beyond * ((1 - p0) if side > 0 else -p0)
    right, wrong = seen * n, (1 - seen) * n
    more = still_needed(right, wrong, p0, side, kappa, alpha)
    assert more is not None

    def evidence(extra: float) -> float:
        scale = 1 + extra / n
        return log_e_of(right * scale, wrong * scale, p0, side, kappa)

    assert evidence(more) >= math.log(1 / alpha) - 1e-9
    assert more == 0 or evidence(0.8 * more) < math.log(1 / alpha)


def test_an_almost_nothing_beyond_the_limit_is_no_number() -> None:
    for more in (still_needed(9e15 + 2, 1e15, 0.9, 1, 30, 0.05), still_needed(1, 1e-320, 0.5, 1, 30, 0.05)):
        assert more is None or math.isfinite(more)


def test_a_share_outside_its_range_is_refused() -> None:
    with pytest.raises(ValueError, match="strictly between"):
        log_e_of(1, 1, 1.0, 1, 20)
