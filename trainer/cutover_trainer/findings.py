"""What is odd about rows that are good one by one: copies, contradictions, lumps, thin classes. Pure.

Nothing here stops a run; every finding names the lines and what to do about it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cutover.task import Task
from cutover_trainer.kept_rows import KeptRow
from cutover_trainer.quality import FEW_TEST_ROWS, thin_test_part
from cutover_trainer.split import PARTS, Part, Shares
from cutover_trainer.synthetic import LeftOut

MAX_LINES = 20
"""Lines named in one finding."""
LARGE_GROUP_SHARE = 0.1
SHARE_TOLERANCE = 0.02
IMBALANCE = 10


@dataclass(frozen=True, slots=True)
class Finding:
    """`rows` counts all of them, `lines` names the first `MAX_LINES`."""

    kind: str
    rows: int
    lines: tuple[int, ...]
    detail: str
    remedy: str


def findings(
    task: Task,
    group_by: str,
    kept: Sequence[KeptRow],
    groups: Sequence[int],
    pairs: Sequence[tuple[int, int]],
    repeated_ids: Sequence[int],
    per_part: Mapping[Part, Mapping[str, int]],
    shares: Shares,
) -> list[Finding]:
    """`groups` and `pairs` are of `kept`; `repeated_ids` are lines whose id an earlier line had."""
    checks = (
        _contradictions(task, kept, pairs),
        _same_pictures(kept),
        _near_pictures(kept, pairs),
        _repeated_ids(repeated_ids),
        _without_group(kept, group_by),
        _large_groups(kept, groups),
        _imbalance(task, kept),
        _thin_test_part(per_part),
        _shares(per_part, shares),
    )
    return [check for check in checks if check is not None]


def synthetic_findings(lines: Mapping[LeftOut, Sequence[int]]) -> list[Finding]:
    """Of made-up rows that were not used and that somebody may have counted on; `lines` by the reason why not."""
    checks = (
        _found(
            "SyntheticNotAskedFor",
            lines.get("NotAskedFor", ()),
            "rows are marked synthetic and were left out",
            "set dataset.synthetic if they are to fill up classes that are short",
        ),
        _found(
            "SyntheticKnowsTest",
            lines.get("KnowsHeldOutRows", ()),
            "synthetic rows share a building, an assessment or a photograph with the validation or test part; left out",
            "make them up from rows of the training part, or not from photographs at all",
        ),
    )
    return [check for check in checks if check is not None]


def _found(kind: str, lines: Sequence[int], detail: str, remedy: str) -> Finding | None:
    ordered = sorted(set(lines))
    return Finding(kind, len(ordered), tuple(ordered[:MAX_LINES]), detail, remedy) if ordered else None


def _contradictions(task: Task, kept: Sequence[KeptRow], pairs: Sequence[tuple[int, int]]) -> Finding | None:
    name = task.decisive_field
    lines: set[int] = set()
    for one, other in [*_equal_pictures(kept), *pairs]:
        if kept[one].row.truth[name] != kept[other].row.truth[name]:
            lines |= {kept[one].row.line, kept[other].row.line}
    return _found(
        "ContradictingAnswers",
        list(lines),
        f"rows show the same or almost the same picture and name another {name}",
        "have one person settle them; until then the model learns both",
    )


def _equal_pictures(kept: Sequence[KeptRow]) -> list[tuple[int, int]]:
    first: dict[str, int] = {}
    found = ((first.setdefault(entry.picture, index), index) for index, entry in enumerate(kept))
    return [pair for pair in found if pair[0] != pair[1]]


def _same_pictures(kept: Sequence[KeptRow]) -> Finding | None:
    return _found(
        "SamePicture",
        [kept[index].row.line for _, index in _equal_pictures(kept)],
        "rows repeat a picture of an earlier row; they stay in its part",
        "export each photo once, unless the repetition is wanted",
    )


def _near_pictures(kept: Sequence[KeptRow], pairs: Sequence[tuple[int, int]]) -> Finding | None:
    lines = [kept[two].row.line for one, two in pairs if kept[one].picture != kept[two].picture]
    return _found(
        "NearDuplicate",
        lines,
        "rows show almost the picture of an earlier row; they stay in its part",
        "look at the pairs in data/report.html; export each photo once",
    )


def _repeated_ids(lines: Sequence[int]) -> Finding | None:
    return _found(
        "RepeatedId",
        lines,
        "rows carry the id of an earlier row; the line was added to it and they count as one assessment",
        "give every row its own id",
    )


def _without_group(kept: Sequence[KeptRow], group_by: str) -> Finding | None:
    lines = [entry.row.line for entry in kept if entry.row.group is None]
    return _found(
        "NoGroup",
        lines,
        f"rows have no {group_by}: two photos of one building may end up in training and test",
        f"export {group_by}, or name the field that holds the building in dataset.groupBy",
    )


def _large_groups(kept: Sequence[KeptRow], groups: Sequence[int]) -> Finding | None:
    sizes = Counter(groups)
    large = {group for group, size in sizes.items() if size > max(1, LARGE_GROUP_SHARE * len(kept))}
    lines = [entry.row.line for entry, group in zip(kept, groups, strict=True) if group in large]
    return _found(
        "LargeGroup",
        lines,
        f"{len(large)} group(s) hold more than {LARGE_GROUP_SHARE:.0%} of the rows each and stay in one part",
        "check that dataset.groupBy names a building, not a street or a source",
    )


def _imbalance(task: Task, kept: Sequence[KeptRow]) -> Finding | None:
    lines_of: dict[str, list[int]] = defaultdict(list)
    for entry in kept:
        lines_of[entry.row.truth[task.decisive_field]].append(entry.row.line)
    counts = {name: len(lines) for name, lines in lines_of.items()}
    most = max(counts.values(), default=0)
    rare = [name for name, count in counts.items() if count * IMBALANCE < most]
    return _found(
        "RareClass",
        [line for name in rare for line in lines_of[name]],
        f"classes more than {IMBALANCE} times rarer than the most frequent: {', '.join(sorted(rare))}",
        "collect more of them; set dataset.quality.minPerClass to have such data refused",
    )


def _thin_test_part(per_part: Mapping[Part, Mapping[str, int]]) -> Finding | None:
    thin = thin_test_part(dict(per_part["test"]))
    if thin is None:
        return None
    few = sum(count for count in per_part["test"].values() if count < FEW_TEST_ROWS)
    return Finding("FewTestRows", few, (), thin, "collect more of them before recall of a class is gated")


def _shares(per_part: Mapping[Part, Mapping[str, int]], shares: Shares) -> Finding | None:
    achieved = achieved_shares(per_part)
    wanted = {"train": shares.train, "validation": shares.validation, "test": shares.test}
    off = [part for part in PARTS if abs(achieved[part] - wanted[part]) > SHARE_TOLERANCE]
    if not off:
        return None
    said = ", ".join(f"{part} {achieved[part]:.1%} for {wanted[part]:.1%}" for part in off)
    rows = sum(sum(per_part[part].values()) for part in off)
    return Finding(
        "SharesMissed",
        rows,
        (),
        f"groups are never divided, so the parts came out as {said}",
        "group by a finer key, or accept the shares as they are",
    )


def achieved_shares(per_part: Mapping[Part, Mapping[str, int]]) -> dict[Part, float]:
    """Share of the rows in each part."""
    counts = {part: sum(per_part.get(part, {}).values()) for part in PARTS}
    total = sum(counts.values())
    return {part: count / total if total else 0.0 for part, count in counts.items()}
