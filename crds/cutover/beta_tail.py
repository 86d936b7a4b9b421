"""Logarithms of the Beta function and of the two sides of a Beta distribution, with numpy alone.

The operator judges with two special functions at every look; scipy's import for them cost it a fifth of its memory.
Both take arrays, element by element, for parameters from 0.01 to 1e9:

* `log_beta` by Stirling's series, its terms grouped so that nothing large is subtracted from anything large (the
  grouping of Didonato and Morris, TOMS algorithm 708, 1992); small arguments are raised by the recurrence first.
* `log_below` by integrating the density of the log-odds over the side that lacks the mean. That density is
  log-concave and analytic whatever the parameters, so the exp-sinh rule (Takahasi and Mori 1974) reaches nine digits
  with 62 nodes; and since the sum stays a logarithm, a chance of 1e-5000 keeps its digits too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Number = TypeVar("Number", float, NDArray[np.float64])

FEW = 8
"""Up to so many elements one by one in Python's floats, ten times as fast as arrays that small."""
_RAISED_TO = 12
"""From here on six terms of Stirling's series are exact to the last digits of a double."""
_STIRLING = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360)
_HALF_LOG_TWO_PI = 0.5 * math.log(2.0 * math.pi)
_STEP = 0.1
_NODES = _STEP * np.arange(-36, 26, dtype=np.float64)
_REACH = 2.0 * np.exp(0.5 * math.pi * np.sinh(_NODES))
_LOG_WEIGHT = math.log(0.5 * math.pi * _STEP) + np.log(np.cosh(_NODES)) + np.log(_REACH)


def log_beta(a: ArrayLike, b: ArrayLike) -> Floats:
    """log B(a, b) for a and b above 0."""
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if x.size <= FEW and y.size <= FEW:
        return _one_by_one(log_beta_of_one, x, y)
    x, y = np.broadcast_arrays(x, y)
    gain: Floats = np.zeros(x.shape)
    if (x < _RAISED_TO).any():
        x, gain = _raised(x, y, gain)
    if (y < _RAISED_TO).any():
        y, gain = _raised(y, x, gain)
    return np.asarray(
        gain
        - (x - 0.5) * np.log1p(y / x)
        - y * np.log1p(x / y)
        - 0.5 * np.log(y)
        + _HALF_LOG_TWO_PI
        + (_remainder(x) + _remainder(y) - _remainder(x + y))
    )


def log_below(a: ArrayLike, b: ArrayLike, x: ArrayLike) -> Floats:
    """log P(T < x) for T ~ Beta(a, b), with a and b above 0 and x strictly between 0 and 1."""
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    at = np.asarray(x, dtype=np.float64)
    if first.size <= FEW and second.size <= FEW and at.size <= FEW:
        return _one_by_one(log_below_one, first, second, at)
    first, second, at = np.broadcast_arrays(first, second, at)
    mean_below = first < (first + second) * at
    tail = _log_above(
        np.where(mean_below, first, second),
        np.where(mean_below, second, first),
        np.where(mean_below, at, 1.0 - at),
        np.where(mean_below, 1.0 - at, at),
    )
    tail = np.minimum(tail, 0.0)
    with np.errstate(divide="ignore"):
        return np.asarray(np.where(mean_below, np.log1p(-np.exp(tail)), tail))


# ------------------------------------------------------------ many at once
def _raised(x: Floats, y: Floats, gain: Floats) -> tuple[Floats, Floats]:
    """B(x, y) = B(x + 1, y) (x + y) / x, as often as needed."""
    ratio: Floats = np.ones(x.shape)
    for step in range(_RAISED_TO):
        ratio = ratio * ((x + y + step) / (x + step))
    small = x < _RAISED_TO
    return np.where(small, x + _RAISED_TO, x), gain + np.where(small, np.log(ratio), 0.0)


def _remainder(x: Number) -> Number:
    """What log Gamma has beyond the leading terms of Stirling's formula, for x of at least `_RAISED_TO`."""
    inverse = 1.0 / x
    square = inverse * inverse
    total = _STIRLING[-1] * square
    for coefficient in _STIRLING[-2:0:-1]:
        total = (total + coefficient) * square
    return (total + _STIRLING[0]) * inverse


def _log_above(a: Floats, b: Floats, x: Floats, rest: Floats) -> Floats:
    """log P(T > x) where the mean is at most x; `rest` is 1 - x, given because it may have more digits."""
    n = a + b
    scale = 1.0 / (n * x - a + np.sqrt(n * x * rest))
    beyond = scale[..., None] * _REACH
    # The density of the log-odds at `beyond` past those of x, over that at x.
    fall = -b[..., None] * beyond - n[..., None] * np.log1p(rest[..., None] * np.expm1(-beyond))
    terms = fall + _LOG_WEIGHT
    top = terms.max(axis=-1)
    total = top + np.log(np.exp(terms - top[..., None]).sum(axis=-1))
    return np.asarray(total + np.log(scale) + a * np.log(x) + b * np.log(rest) - log_beta(a, b))


# ------------------------------------------------------------ few: the same formulas in Python's floats
def _one_by_one(function: Callable[..., float], *several: Floats) -> Floats:
    shape = several[0].shape
    if any(each.shape != shape for each in several):
        several = tuple(np.broadcast_arrays(*several))
        shape = several[0].shape
    found = [function(*one) for one in zip(*(each.ravel().tolist() for each in several), strict=True)]
    return np.asarray(found, dtype=np.float64).reshape(shape)


def log_beta_of_one(x: float, y: float) -> float:
    """`log_beta` of two numbers."""
    gain = 0.0
    if x < _RAISED_TO:
        x, gain = _raised_one(x, y, gain)
    if y < _RAISED_TO:
        y, gain = _raised_one(y, x, gain)
    return (
        gain
        - (x - 0.5) * math.log1p(y / x)
        - y * math.log1p(x / y)
        - 0.5 * math.log(y)
        + _HALF_LOG_TWO_PI
        + (_remainder(x) + _remainder(y) - _remainder(x + y))
    )


def _raised_one(x: float, y: float, gain: float) -> tuple[float, float]:
    ratio = 1.0
    for step in range(_RAISED_TO):
        ratio *= (x + y + step) / (x + step)
    return x + _RAISED_TO, gain + math.log(ratio)


def log_below_one(a: float, b: float, x: float) -> float:
    """`log_below` of three numbers."""
    if a < (a + b) * x:
        tail = min(_log_above_one(a, b, x, 1.0 - x), 0.0)
        return math.log1p(-math.exp(tail)) if tail < 0.0 else -math.inf
    return min(_log_above_one(b, a, 1.0 - x, x), 0.0)


def _log_above_one(a: float, b: float, x: float, rest: float) -> float:
    n = a + b
    scale = 1.0 / (n * x - a + math.sqrt(n * x * rest))
    beyond = scale * _REACH
    terms = -b * beyond - n * np.log1p(rest * np.expm1(-beyond)) + _LOG_WEIGHT
    top = float(terms.max())
    total = top + math.log(float(np.exp(terms - top).sum()))
    return total + math.log(scale) + a * math.log(x) + b * math.log(rest) - log_beta_of_one(a, b)
