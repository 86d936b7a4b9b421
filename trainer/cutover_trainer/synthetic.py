"""Which made-up rows help the training part: those of classes that are short, and none that knows the test part. Pure.

A row is synthetic when it says so or comes from `dataset.synthetic`, and stays it for ever. None is used that the run
did not ask for, none that shares a building, an assessment or a photograph with the validation or test part, and no
more than the share the run allows. Which ones follows from the seed and the rows' ids alone.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from cutover.api.trainingrun import Synthetic
from cutover_trainer.split import Member, Part, groups_of

LeftOut = Literal["NotAskedFor", "KnowsHeldOutRows", "ClassNotShort", "ShareUsedUp"]


@dataclass(frozen=True, slots=True)
class Choice:
    """Indices into the synthetic rows."""

    used: tuple[int, ...] = ()
    left_out: Mapping[LeftOut, tuple[int, ...]] = field(default_factory=dict)


def choose(
    made: Sequence[Member],
    real: Sequence[Member],
    parts: Mapping[str, Part],
    pairs: Iterable[tuple[int, int]],
    wanted: Synthetic | None,
    seed: int,
) -> Choice:
    """`parts` are the real rows' parts; `pairs` are near pictures, as indices into the real rows and then the made."""
    left: dict[LeftOut, list[int]] = defaultdict(list)
    if wanted is None:
        return _choice([], {"NotAskedFor": list(range(len(made)))})
    knows = _knows_held_out(made, real, parts, pairs)
    waiting: dict[str, deque[int]] = defaultdict(deque)
    for index in sorted(range(len(made)), key=lambda one: _rank(seed, made[one])):
        if knows[index]:
            left["KnowsHeldOutRows"].append(index)
        else:
            waiting[made[index].stratum].append(index)
    training = Counter(member.stratum for member in real if parts[member.row] == "train")
    most = most_synthetic(training.total(), wanted.max_share)
    used: list[int] = []
    while len(used) < most:
        short = [name for name in waiting if waiting[name] and training[name] < wanted.up_to_per_class]
        if not short:
            break
        # The rarest first, so that a small allowance goes where it is needed most.
        name = min(short, key=lambda one: (training[one], one))
        used.append(waiting[name].popleft())
        training[name] += 1
    for name, rest in waiting.items():
        full = training[name] >= wanted.up_to_per_class
        left["ClassNotShort" if full else "ShareUsedUp"] += rest
    return _choice(used, left)


def most_synthetic(real: int, max_share: float) -> int:
    """The most synthetic rows that are no more than `max_share` of a training part with `real` others."""
    most = int(real * max_share / (1.0 - max_share))
    # Division rounds: the share is the promise.
    return most - 1 if most and most > max_share * (real + most) * (1 + 1e-12) else most


def _choice(used: Sequence[int], left: Mapping[LeftOut, Sequence[int]]) -> Choice:
    return Choice(tuple(sorted(used)), {reason: tuple(sorted(rows)) for reason, rows in left.items() if rows})


def _knows_held_out(
    made: Sequence[Member],
    real: Sequence[Member],
    parts: Mapping[str, Part],
    pairs: Iterable[tuple[int, int]],
) -> list[bool]:
    """Also through another synthetic row: a copy of a copy is a copy."""
    groups = groups_of([*real, *made], pairs)
    held = {group for group, member in zip(groups, real, strict=False) if parts[member.row] != "train"}
    return [group in held for group in groups[len(real) :]]


def _rank(seed: int, member: Member) -> bytes:
    return hashlib.sha256(f"{seed}\x1fsynthetic\x1f{member.row}".encode()).digest()
