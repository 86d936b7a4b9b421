"""What the answers of a model on the test part say about it: shares with intervals, confusion, macro-F1, paired tests.

Pure: answers and truths in, numbers out; the bootstrap is seeded. Rows of one group (a building) are not independent:
intervals know that. Wilson's interval was chosen over Clopper and Pearson's because what is read here is a size, not a
proof: it covers 95 % on average over the possible shares, the exact one more and is wider for it (Brown, Cai and
DasGupta 2001, section 4). Proofs are the rollout's.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr

from cutover.contract import FIELD_OVERALL
from cutover.task import Task, score

Z_95 = 1.959963984540054
NO_CLASS = "(none)"
"""Column of the confusion matrix for answers that name no class of the task."""
RESAMPLES = 2000
BOOTSTRAP_SEED = 20_000


@dataclass(frozen=True, slots=True)
class Judged:
    """One row: the truth and what a model made of it; no answer when it was unreadable or broke the schema."""

    truth: Mapping[str, str]
    answer: Mapping[str, Any] | None
    group: str = ""
    """Rows of one group depend on each other; empty stands for a group of its own."""
    confidence: float | None = None
    """Of the decisive field, as the gateway reckons it."""


@dataclass(frozen=True, slots=True)
class Share:
    """A share of n rows with its 95 % interval."""

    n: int
    value: float
    low: float
    high: float

    def to_wire(self) -> dict[str, float]:
        return {"n": self.n, "value": self.value, "low": self.low, "high": self.high}


def wilson(right: float, n: float) -> tuple[float, float]:
    """Interval of a share with 95 % confidence (Wilson 1927)."""
    if n == 0:
        return 0.0, 1.0
    share, z2 = right / n, Z_95**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z_95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def share_of(values: Sequence[float], groups: Sequence[str]) -> Share:
    """Mean of values in [0, 1] with Wilson's interval at the number of rows the groups are worth."""
    n = len(values)
    if n == 0:
        return Share(0, 0.0, 0.0, 1.0)
    mean = math.fsum(values) / n
    effective = effective_rows(values, groups)
    return Share(n, mean, *wilson(mean * effective, effective))


def effective_rows(values: Sequence[float], groups: Sequence[str]) -> float:
    """As many independent rows would tell as much about the mean: n over the design effect of the groups.

    Korn and Graubard 1998. Never more than n; where all values are equal the effect is unknown, and a group counts as
    one row. Rows with an empty group stand alone.
    """
    n, sums = len(values), dict[str, float]()
    mean = math.fsum(values) / max(1, n)
    for number, (value, group) in enumerate(zip(values, groups, strict=True)):
        key = group or f"\x00{number}"
        sums[key] = sums.get(key, 0.0) + value - mean
    count, alone = len(sums), mean * (1.0 - mean)
    if count == n or count < 2 or alone <= 0:
        return float(count)
    together = count / (count - 1) * math.fsum(value * value for value in sums.values()) / n
    return n * min(1.0, alone / max(together, alone))


def groups_of(judged: Sequence[Judged]) -> list[str]:
    return [one.group for one in judged]


def right_of(task: Task, judged: Sequence[Judged], field: str) -> list[bool]:
    return [score(task, one.answer, one.truth)[field] for one in judged]


def accuracy_shares(task: Task, judged: Sequence[Judged]) -> dict[str, Share]:
    """Per scored field and overall; empty without rows."""
    if not judged:
        return {}
    groups = groups_of(judged)
    return {
        field: share_of(right_of(task, judged, field), groups)
        for field in (*task.scored_fields, FIELD_OVERALL)
    }


def json_validity(judged: Sequence[Judged]) -> Share:
    return share_of([one.answer is not None for one in judged], groups_of(judged))


def said_of(task: Task, one: Judged, field: str) -> str:
    """The class a model named, or `NO_CLASS`."""
    said = NO_CLASS if one.answer is None else str(one.answer.get(field))
    return said if said in task.classes(field) else NO_CLASS


def confusion(task: Task, judged: Sequence[Judged], field: str) -> dict[str, dict[str, int]]:
    """Truth -> answer -> rows."""
    matrix: dict[str, Counter[str]] = {name: Counter() for name in task.classes(field)}
    for one in judged:
        matrix[one.truth[field]][said_of(task, one, field)] += 1
    return {name: dict(row) for name, row in matrix.items()}


def recalls(task: Task, judged: Sequence[Judged], field: str) -> dict[str, Share]:
    """Per class: how many of its rows were found."""
    found: dict[str, Share] = {}
    for name in task.classes(field):
        rows = [one for one in judged if one.truth[field] == name]
        found[name] = share_of([said_of(task, one, field) == name for one in rows], groups_of(rows))
    return found


def macro_f1(task: Task, judged: Sequence[Judged], field: str) -> Share:
    """Mean F1 of the classes that occur in the truth, with a 95 % percentile interval of a bootstrap over groups.

    Of a resample only the classes that occur in it count. `n` is the number of rows; without rows 0 in [0, 1].
    """
    if not judged:
        return Share(0, 0.0, 0.0, 1.0)
    counts = _class_counts(task, judged, field)
    value = float(_mean_f1(counts.sum(axis=0)[None])[0])
    random = np.random.default_rng(BOOTSTRAP_SEED)
    groups = len(counts)
    drawn = random.multinomial(groups, np.full(groups, 1.0 / groups), size=RESAMPLES)
    resampled = _mean_f1(np.tensordot(drawn.astype(np.float64), counts, axes=1))
    low, high = np.quantile(resampled, [0.025, 0.975])
    return Share(len(judged), value, float(low), float(high))


def _class_counts(task: Task, judged: Sequence[Judged], field: str) -> NDArray[np.float64]:
    """Shape (groups, 3, classes): rows found, rows of the class, answers that name it."""
    at = {name: index for index, name in enumerate(task.classes(field))}
    index_of: dict[str, int] = {}
    places = [
        index_of.setdefault(one.group or f"\x00{number}", len(index_of)) for number, one in enumerate(judged)
    ]
    counts = np.zeros((len(index_of), 3, len(at)))
    for place, one in zip(places, judged, strict=True):
        true, said = at[one.truth[field]], at.get(said_of(task, one, field))
        counts[place, 1, true] += 1
        if said is not None:
            counts[place, 2, said] += 1
            counts[place, 0, true] += said == true
    return counts


def _mean_f1(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Shape (samples, 3, classes) in, (samples,) out."""
    found, true, named = counts[:, 0], counts[:, 1], counts[:, 2]
    there = true > 0
    f1 = np.where(there, 2 * found / np.maximum(true + named, 1.0), 0.0)
    return np.asarray(f1.sum(axis=1) / np.maximum(there.sum(axis=1), 1))


def mcnemar(one: Sequence[bool], other: Sequence[bool]) -> dict[str, float]:
    """Do two models differ on the same rows? Exact two-sided test on the rows where only one of them is right
    (McNemar 1947). Rows of one group count as independent."""
    only_one = sum(a and not b for a, b in zip(one, other, strict=True))
    only_other = sum(b and not a for a, b in zip(one, other, strict=True))
    discordant = only_one + only_other
    p = min(1.0, 2.0 * float(bdtr(min(only_one, only_other), discordant, 0.5)))
    return {"onlyCandidate": only_one, "onlyOther": only_other, "pValue": p}


def quantile(values: Sequence[float], share: float) -> float | None:
    """Nearest-rank quantile."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, math.ceil(share * len(ordered)) - 1))] if ordered else None
