"""Divides rows into train, validation and test, so that nothing in one part is known from another.

Pure and deterministic: the same rows, seed and shares give the same parts on any machine. Rows that share a key (the
building, the assessment, the picture) form a group; a group is never divided. Within each class groups are ordered by
a seeded hash and dealt out by the shares, so that every part has about the same mixture.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Part = Literal["train", "validation", "test"]
PARTS: tuple[Part, ...] = ("train", "validation", "test")
LEAST_GROUPS = 3
"""From here on a class gives a group to the test part."""


@dataclass(frozen=True, slots=True)
class Member:
    """A row as the split sees it."""

    row: str
    """Unique among the rows."""
    keys: tuple[str, ...]
    """Rows with a key in common belong together."""
    stratum: str


@dataclass(frozen=True, slots=True)
class Shares:
    train: float
    validation: float
    test: float


def groups_of(members: Sequence[Member], joined: Iterable[tuple[int, int]] = ()) -> list[int]:
    """For every member the index of its group's first member; `joined` are pairs of members to unite besides."""
    parent = list(range(len(members)))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    def unite(one: int, other: int) -> None:
        low, high = sorted((root(one), root(other)))
        parent[high] = low

    first_with: dict[str, int] = {}
    for index, member in enumerate(members):
        for key in member.keys:
            unite(index, first_with.setdefault(key, index))
    for one, other in joined:
        unite(one, other)
    return [root(index) for index in range(len(members))]


def divide(members: Sequence[Member], groups: Sequence[int], shares: Shares, seed: int) -> dict[str, Part]:
    """Part of every row."""
    rows_of: dict[int, list[Member]] = defaultdict(list)
    for member, group in zip(members, groups, strict=True):
        rows_of[group].append(member)
    strata: dict[str, list[list[Member]]] = defaultdict(list)
    for rows in rows_of.values():
        strata[_stratum(rows)].append(rows)
    rare = [name for name in sorted(strata) if len(strata[name]) < LEAST_GROUPS]
    if rare:
        # Too few to be dealt out alone: together they may still fill a test part.
        strata[""] = [rows for name in rare for rows in strata.pop(name)]
    parts: dict[str, Part] = {}
    for stratum in sorted(strata):
        ordered = sorted(strata[stratum], key=lambda rows: _rank(seed, rows))
        for rows, part in zip(ordered, _deal([len(rows) for rows in ordered], shares), strict=True):
            parts.update((member.row, part) for member in rows)
    return parts


def _stratum(rows: Sequence[Member]) -> str:
    counts = Counter(member.stratum for member in rows)
    return min(counts, key=lambda name: (-counts[name], name))


def _rank(seed: int, rows: Sequence[Member]) -> bytes:
    """Place of a group in its stratum; depends on its rows, not on the order of the file."""
    return hashlib.sha256(f"{seed}\x1f{min(member.row for member in rows)}".encode()).digest()


def _deal(sizes: Sequence[int], shares: Shares) -> list[Part]:
    """Test first, then validation, the rest is for training; `LEAST_GROUPS` suffice for a test part."""
    total = sum(sizes)
    wanted = {
        "test": _wanted(total, shares.test, len(sizes) >= LEAST_GROUPS),
        "validation": _wanted(total, shares.validation, len(sizes) >= LEAST_GROUPS + 2),
    }
    dealt: list[Part] = []
    got = {"test": 0, "validation": 0}
    for size in sizes:
        part: Part = "train"
        for candidate in ("test", "validation"):
            if got[candidate] < wanted[candidate]:
                got[candidate] += size
                part = "test" if candidate == "test" else "validation"
                break
        dealt.append(part)
    return dealt


def _wanted(total: int, share: float, at_least_one: bool) -> int:
    return max(round(total * share), 1 if share > 0 and at_least_one else 0)


def class_counts(parts: Mapping[str, Part], members: Iterable[Member]) -> dict[Part, dict[str, int]]:
    """Rows per part and class, for the report."""
    counts: dict[Part, Counter[str]] = {part: Counter() for part in PARTS}
    for member in members:
        counts[parts[member.row]][member.stratum] += 1
    return {part: dict(sorted(counter.items())) for part, counter in counts.items()}
