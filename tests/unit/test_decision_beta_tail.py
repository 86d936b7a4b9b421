"""The two special functions of the evidence, against scipy's and at their edges."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import betaincc, betaln

from cutover.beta_tail import FEW, Floats, log_below, log_beta

PARAMETER = st.floats(-2.0, 9.0).map(lambda power: 10.0**power)
SHARE = st.floats(0.001, 0.999)


def drawn(count: int, largest: float) -> tuple[Floats, Floats, Floats]:
    """Beta distributions and shares up to five standard deviations from their means."""
    draw = np.random.default_rng(11)
    n, mean = 10.0 ** draw.uniform(0.0, largest, count), draw.uniform(0.01, 0.99, count)
    off = draw.normal(0.0, 2.5, count) * np.sqrt(mean * (1.0 - mean) / (n + 1.0))
    return n * mean, n * (1.0 - mean), np.clip(mean + off, 0.001, 0.999)


def test_the_beta_function_is_scipys() -> None:
    a, b, _ = drawn(5000, 6.0)
    assert log_beta(a, b) == pytest.approx(betaln(a, b), rel=1e-9, abs=1e-9)


def test_the_lower_side_is_scipys() -> None:
    a, b, x = drawn(5000, 6.0)
    assert log_below(a, b, x) == pytest.approx(np.log(betaincc(b, a, 1.0 - x)), rel=1e-8, abs=1e-8)


@given(PARAMETER, PARAMETER, SHARE)
def test_few_are_as_many(a: float, b: float, x: float) -> None:
    many = FEW + 1
    assert log_beta([a] * many, b) == pytest.approx(float(log_beta(a, b)), rel=1e-12, abs=1e-12)
    one, several = float(log_below(a, b, x)), log_below([a] * many, b, x)
    assert several == pytest.approx(one, rel=1e-9, abs=1e-9 + 1e-15 * (a + b))


@given(PARAMETER, PARAMETER, SHARE)
def test_both_sides_add_up_to_one(a: float, b: float, x: float) -> None:
    below, above = float(log_below(a, b, x)), float(log_below(b, a, 1.0 - x))
    assert below <= 0.0
    assert above <= 0.0
    assert math.exp(below) + math.exp(above) == pytest.approx(1.0, abs=1e-6)


def test_a_chance_below_the_smallest_float_keeps_its_digits() -> None:
    # P(T < x) of Beta(a, 1) is x to the a.
    for a in (3.0, 1e3, 1e6):
        assert float(log_below(a, 1.0, 0.01)) == pytest.approx(a * math.log(0.01), rel=1e-9)
    # B(a, 1) is 1 / a.
    assert float(log_beta(1e9, 1.0)) == pytest.approx(-math.log(1e9))
