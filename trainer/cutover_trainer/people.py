"""How often people agree with each other: what no model that learns from them can be seen to exceed. Pure.

Counted on rows two or more people labelled, over the pairs of people of a row; a row counts once, however many pairs it
has. Beside it, on the rows of the test part, how often the model agrees with one of those people: the like-for-like
figure, since the accuracy is against the answer they settled on.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cutover.contract import FIELD_OVERALL
from cutover.task import Task
from cutover_trainer.measures import Share, share_of

Labels = Sequence[Mapping[str, str]]
"""What each person said of one row."""


def people_in(labels: Any, fields: Sequence[str]) -> Labels:
    """What each person last said, out of a row's `labels`; entries that name no `labeller` are people of their own."""
    if not isinstance(labels, list):
        return []
    last: dict[str, Mapping[str, str]] = {}
    for number, entry in enumerate(labels):
        if not isinstance(entry, dict):
            continue
        said = entry.get("labels", entry)
        if isinstance(said, dict):
            found = {name: str(said[name]) for name in fields if name in said}
            if found:
                last[str(entry.get("labeller") or f"\x00{number}")] = found
    return list(last.values())


@dataclass(frozen=True, slots=True)
class Doubled:
    """A row labelled by two or more people, and the model's answer if it was asked."""

    labels: Labels
    group: str
    answer: Mapping[str, Any] | None = None


def agreement(task: Task, rows: Sequence[Doubled]) -> dict[str, Share]:
    """Between people, per scored field and overall; a field nobody labelled twice is left out."""
    pairs = [(list(itertools.combinations(row.labels, 2)), row.group) for row in rows]
    return _shares(task, pairs, lambda one, name: name in one)


def agreement_with(task: Task, rows: Sequence[Doubled]) -> dict[str, Share]:
    """Of the model with one of the people, chosen at random."""
    pairs = [([(row.answer or {}, said) for said in row.labels], row.group) for row in rows]
    return _shares(task, pairs, lambda one, name: True)  # A model that names no value disagrees.


Pair = tuple[Mapping[str, Any], Mapping[str, str]]


def _shares(
    task: Task,
    rows: Sequence[tuple[Sequence[Pair], str]],
    counts: Callable[[Mapping[str, Any], str], bool],
) -> dict[str, Share]:
    found: dict[str, Share] = {}
    for field in (*task.scored_fields, FIELD_OVERALL):
        names = task.scored_fields if field == FIELD_OVERALL else [field]
        values, groups = [], []
        for pairs, group in rows:
            same = [
                all(one.get(name) == other[name] for name in names)
                for one, other in pairs
                if all(name in other and counts(one, name) for name in names)
            ]
            if same:
                values.append(sum(same) / len(same))
                groups.append(group)
        if values:
            found[field] = share_of(values, groups)
    return found
