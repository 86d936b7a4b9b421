"""What the answers of a model on the test part say about it: shares with intervals, confusion, a paired comparison.

Pure: answers and truths in, numbers out.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scipy.stats import binomtest

from cutover.contract import FIELD_OVERALL
from cutover.task import Task, score

Z_95 = 1.959963984540054
NO_CLASS = "(none)"
"""Column of the confusion matrix for answers that name no class of the task."""


@dataclass(frozen=True, slots=True)
class Judged:
    """One test row: the truth and what a model made of it; no answer when it was unreadable or broke the schema."""

    truth: Mapping[str, str]
    answer: Mapping[str, Any] | None


def wilson(right: int, n: int) -> tuple[float, float]:
    """Interval of a share with 95 % confidence (Wilson 1927)."""
    if n == 0:
        return 0.0, 1.0
    share, z2 = right / n, Z_95**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z_95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def right_of(task: Task, judged: Sequence[Judged], field: str) -> list[bool]:
    return [score(task, one.answer, one.truth)[field] for one in judged]


def accuracy(task: Task, judged: Sequence[Judged]) -> dict[str, float]:
    """Per scored field and overall."""
    if not judged:
        return {}
    fields = [*task.scored_fields, FIELD_OVERALL]
    return {field: sum(right_of(task, judged, field)) / len(judged) for field in fields}


def json_validity(judged: Sequence[Judged]) -> float:
    return sum(one.answer is not None for one in judged) / max(1, len(judged))


def confusion(task: Task, judged: Sequence[Judged], field: str) -> dict[str, dict[str, int]]:
    """Truth -> answer -> rows."""
    known = task.classes(field)
    matrix: dict[str, Counter[str]] = {name: Counter() for name in known}
    for one in judged:
        said = str(one.answer.get(field)) if one.answer is not None else NO_CLASS
        matrix[one.truth[field]][said if said in known else NO_CLASS] += 1
    return {name: dict(row) for name, row in matrix.items()}


def recalls(task: Task, judged: Sequence[Judged], field: str) -> dict[str, dict[str, float]]:
    """Per class: rows, share found and its interval."""
    found: dict[str, dict[str, float]] = {}
    for name, row in confusion(task, judged, field).items():
        n, right = sum(row.values()), row.get(name, 0)
        low, high = wilson(right, n)
        found[name] = {"n": n, "recall": right / n if n else 0.0, "low": low, "high": high}
    return found


def mcnemar(one: Sequence[bool], other: Sequence[bool]) -> dict[str, float]:
    """Do two models differ on the same rows? Exact two-sided test on the rows where only one of them is right."""
    only_one = sum(a and not b for a, b in zip(one, other, strict=True))
    only_other = sum(b and not a for a, b in zip(one, other, strict=True))
    discordant = only_one + only_other
    p = float(binomtest(only_one, discordant, 0.5).pvalue) if discordant else 1.0
    return {"onlyCandidate": only_one, "onlyControl": only_other, "pValue": p}


def quantile(values: Sequence[float], share: float) -> float | None:
    """Nearest-rank quantile."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, math.ceil(share * len(ordered)) - 1))] if ordered else None
