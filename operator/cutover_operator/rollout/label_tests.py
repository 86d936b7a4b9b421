"""The tests behind a verdict on accuracy: labels in, proof of keeping or of breaking a limit or a margin out.

Pure numbers on arrays, like `gate_tests`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from cutover_operator.rollout.evalue import KAPPA_ACCURACY, Floats, log_e, log_e_difference, mixture
from cutover_operator.rollout.gate_tests import (
    Bools,
    Code,
    Counts,
    Judged,
    coded,
    log_level,
    portion,
    since_each,
    violations,
)


@dataclass(frozen=True, slots=True)
class Labels:
    """Sampled answers past the label deadline."""

    right: Any
    wrong: Any
    missing: Any

    @property
    def all(self) -> Floats:
        return np.asarray(np.add(np.add(self.right, self.wrong), self.missing, dtype=np.float64))


@dataclass(frozen=True, slots=True)
class LabelStretches:
    """Labels of both arms in stretches of one weight, shape `(stretches, ...)`, see `rollout.stretches`."""

    candidate: Labels
    control: Labels
    k: ArrayLike | None = None
    """Numbers them from 1, 0 where there is none."""

    @classmethod
    def one(cls, candidate: Labels, control: Labels) -> LabelStretches:
        mine, theirs = (
            Labels(*(np.asarray(value)[None] for value in (arm.right, arm.wrong, arm.missing)))
            for arm in (candidate, control)
        )
        return cls(mine, theirs)


def judge_accuracy(
    total: Labels,
    epochs: Labels,
    k: ArrayLike | None,
    control: Labels,
    *,
    limit: ArrayLike | None,
    floor: ArrayLike | None,
    fail_alpha: ArrayLike,
    pass_alpha: ArrayLike,
    margin: float | None,
    available: ArrayLike = True,
    stretches: Callable[[], LabelStretches] | None = None,
    exact: bool = True,
) -> Judged:
    """A share of right answers that must reach `limit`, or the control's less `margin`, or both.

    `stretches` is what may be compared with the control; None: everything, since no weight ever changed.

    Missing labels count against what is being proven: as wrong for a pass, as right for a fail. Not `exact`: evidence that decides nothing may be an upper bound.
    """
    n, value = total.all, portion(total.right, total.all)
    shape = np.broadcast_shapes(n.shape, np.shape(fail_alpha), np.shape(available))
    level_alpha = np.asarray(fail_alpha) / (2.0 if limit is not None and margin is not None else 1.0)
    log_pass = log_fail = None
    fail, proven = np.zeros(shape, bool), np.ones(shape, bool)
    if limit is not None:
        held = np.asarray(epochs.right) + epochs.missing
        aim = np.asarray(limit, dtype=np.float64)
        certify = np.asarray(limit if floor is None else floor)
        needed = log_level(level_alpha)
        kinds = [Counts(epochs.wrong, held)]
        (log_fail,) = violations(kinds, k, aim, -1, KAPPA_ACCURACY, None if exact else needed)
        log_pass = log_e(total.right, np.asarray(total.wrong) + total.missing, certify, 1, KAPPA_ACCURACY)
        fail = fail | (log_fail >= needed)
        proven = proven & (log_pass >= log_level(pass_alpha)) & (value >= aim)
    worse = np.zeros(shape, bool)
    if margin is not None:
        alike = LabelStretches.one(total, control) if stretches is None else stretches()
        below, within = compare_accuracy(alike, margin, level_alpha, pass_alpha)
        worse, proven = ~fail & below, proven & within
    code = coded(fail | worse, proven & (n > 0))
    code = np.where((code != Code.FAIL) & ~np.asarray(available), np.int8(Code.UNAVAILABLE), code)
    nobody = np.zeros(shape, bool)
    return Judged(code, value, n, log_pass, log_fail, nobody, nobody, worse)


def judge_accuracy_bets(
    total: Labels,
    *,
    value: ArrayLike,
    limit: float | None,
    log_pass: ArrayLike | None,
    log_fail: ArrayLike | None,
    log_within: ArrayLike | None,
    log_below: ArrayLike | None,
    fail_alpha: ArrayLike,
    pass_alpha: ArrayLike,
    available: ArrayLike = True,
) -> Judged:
    """Like `judge_accuracy`, from evidence worked out before: against a limit (`log_pass`, `log_fail`), and by pairs
    against the control (`log_within`, `log_below`). None: not asked for."""
    n, share = total.all, np.asarray(value, dtype=np.float64)
    parts = 2.0 if log_fail is not None and log_below is not None else 1.0
    level, enough = log_level(np.asarray(fail_alpha) / parts), log_level(pass_alpha)
    fail = worse = np.zeros(n.shape, bool)
    proven = np.asarray(n > 0)
    if log_fail is not None and log_pass is not None:
        fail = np.asarray(np.asarray(log_fail) >= level)
        proven = proven & (np.asarray(log_pass) >= enough) & (share >= (limit or 0.0))
    if log_below is not None and log_within is not None:
        worse = ~fail & (np.asarray(log_below) >= level)
        proven = proven & (np.asarray(log_within) >= enough)
    code = coded(fail | worse, proven)
    code = np.where((code != Code.FAIL) & ~np.asarray(available), np.int8(Code.UNAVAILABLE), code)
    nobody = np.zeros(n.shape, bool)
    shown_pass = log_pass if log_pass is not None else log_within
    shown_fail = log_fail if log_fail is not None else log_below
    return Judged(
        code,
        share,
        n,
        None if shown_pass is None else np.asarray(shown_pass, dtype=np.float64),
        None if shown_fail is None else np.asarray(shown_fail, dtype=np.float64),
        nobody,
        nobody,
        worse,
    )


def compare_accuracy(
    stretches: LabelStretches, margin: float, fail_alpha: ArrayLike, pass_alpha: ArrayLike
) -> tuple[Bools, Bools]:
    """(below the control by more than the margin, within it): needs no assumption on how the arms' answers go together,
    and none on how accuracy moves from stretch to stretch, since each is compared with itself. What speaks for either
    may begin with any of them."""
    mine, theirs = stretches.candidate, stretches.control
    refuting = log_e_difference(
        (np.add(mine.right, mine.missing), mine.wrong),
        (theirs.right, np.add(theirs.wrong, theirs.missing)),
        margin,
        -1,
    )
    proving = log_e_difference(
        (mine.right, np.add(mine.wrong, mine.missing)),
        (np.add(theirs.right, theirs.missing), theirs.wrong),
        margin,
        1,
    )
    below, within = (mixture(since_each(found), stretches.k) for found in (refuting, proving))
    return below >= log_level(fail_alpha), within >= log_level(pass_alpha)
