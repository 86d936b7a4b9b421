"""Whether the data is worth a GPU: counts in, a refusal with the numbers or nothing out. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from cutover.api.trainingrun import Quality
from cutover.task import Task, score
from cutover_trainer.refused import BadRow
from cutover_trainer.rows import Row

FEW_TEST_ROWS = 30
DEFAULT_GROUP_FIELD = "group_id"


@dataclass(frozen=True, slots=True)
class Refusal:
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Census:
    """What was found in the data before it is divided."""

    rows: int
    """Lines read, bad ones included."""
    bad: int
    validated: int
    """Good rows with a human label: what is trained on."""
    per_class: dict[str, int] = field(default_factory=dict)
    """Of the decisive field, over validated rows."""
    control_rows: int = 0
    control_accuracy: dict[str, float] = field(default_factory=dict)
    """Per scored field and overall; empty when no row has an answer of today's model."""


def census(task: Task, rows: Sequence[Row], bad: Sequence[BadRow]) -> Census:
    validated = [row for row in rows if row.validated]
    compared = [row for row in validated if row.control is not None]
    right: Counter[str] = Counter()
    for row in compared:
        right.update(name for name, ok in score(task, row.control, row.truth).items() if ok)
    fields = [*task.scored_fields, "overall"]
    classes = Counter(row.truth[task.decisive_field] for row in validated)
    return Census(
        rows=len(rows) + len(bad),
        bad=len(bad),
        validated=len(validated),
        per_class={name: classes[name] for name in task.classes(task.decisive_field)},
        control_rows=len(compared),
        control_accuracy={name: right[name] / len(compared) for name in fields} if compared else {},
    )


def refusal(task: Task, quality: Quality, found: Census, bad: Sequence[BadRow]) -> Refusal | None:
    """The first demand the data does not meet; the order is from the file to its contents."""
    checks = (
        _bad_rows(quality, found, bad),
        _known_classes(task, quality),
        _validated_share(quality, found),
        _examples(quality, found),
        _classes(task, quality, found),
        _control(task, quality, found),
    )
    return next((check for check in checks if check is not None), None)


def synthetic_refusal(quality: Quality, rows: int, bad: Sequence[BadRow]) -> Refusal | None:
    """For the rows of `dataset.synthetic`, so that many good ones cannot hide bad real ones, nor the reverse."""
    if not rows or len(bad) / rows <= quality.max_bad_rows_share:
        return None
    first = "; ".join(f"line {row.line}: {row.detail} ({row.remedy})" for row in bad[:3])
    return Refusal(
        "UnreadableRows",
        f"dataset.synthetic: {len(bad)} of {rows} rows are unusable, dataset.quality.maxBadRowsShare allows "
        f"{quality.max_bad_rows_share:.1%}: {first}. Lines are counted on from the export's; correct the rows or raise "
        "the share",
    )


def group_field_refusal(group_by: str, rows: Sequence[Row]) -> Refusal | None:
    """A field that was named on purpose and that no row has: the split would not keep buildings together."""
    if group_by == DEFAULT_GROUP_FIELD or any(row.group is not None for row in rows):
        return None
    return Refusal(
        "GroupFieldAbsent",
        f"dataset.groupBy: no row has a field {group_by!r}, so photos of one building could be in training and test: "
        "correct the name, export the field, or leave groupBy out",
    )


def thin_test_part(test_per_class: dict[str, int]) -> str | None:
    """What does not stop the run but weakens what its evaluation can say."""
    few = [f"{name} {count}" for name, count in test_per_class.items() if count < FEW_TEST_ROWS]
    if not few:
        return None
    return f"fewer than {FEW_TEST_ROWS} test rows, so recall is a rough guess: {', '.join(few)}"


def _bad_rows(quality: Quality, found: Census, bad: Sequence[BadRow]) -> Refusal | None:
    if found.rows == 0:
        return Refusal("EmptyDataset", "dataset.source: it has no rows; check the source and its filters")
    share = found.bad / found.rows
    if share <= quality.max_bad_rows_share:
        return None
    first = "; ".join(f"line {row.line}: {row.detail} ({row.remedy})" for row in bad[:3])
    more = f" and {len(bad) - 3} more in data/report.html" if len(bad) > 3 else ""
    return Refusal(
        "UnreadableRows",
        f"dataset: {found.bad} of {found.rows} rows ({share:.1%}) are unusable, "
        f"dataset.quality.maxBadRowsShare allows {quality.max_bad_rows_share:.1%}: {first}{more}. "
        "Correct the rows or raise the share",
    )


def _known_classes(task: Task, quality: Quality) -> Refusal | None:
    known = task.classes(task.decisive_field)
    strange = [name for name in quality.required_classes if name not in known]
    if not strange:
        return None
    return Refusal(
        "UnknownClass",
        f"dataset.quality.requiredClasses: {strange[0]!r} is no class of {task.decisive_field}; "
        f"the task knows {', '.join(known)}",
    )


def _validated_share(quality: Quality, found: Census) -> Refusal | None:
    good = found.rows - found.bad
    share = found.validated / good if good else 0.0
    if share >= quality.min_validated_share:
        return None
    return Refusal(
        "TooFewValidated",
        f"dataset: {found.validated} of {good} rows ({share:.1%}) have a human label, "
        f"dataset.quality.minValidatedShare asks for {quality.min_validated_share:.1%}: "
        "label more, export only validated rows, or lower it",
    )


def _examples(quality: Quality, found: Census) -> Refusal | None:
    if found.validated >= quality.min_examples:
        return None
    return Refusal(
        "TooFewExamples",
        f"dataset: {found.validated} validated examples, dataset.quality.minExamples asks for "
        f"{quality.min_examples}: collect more, raise dataset.limit if it cuts them off, or lower minExamples",
    )


def _classes(task: Task, quality: Quality, found: Census) -> Refusal | None:
    needed = quality.required_classes or list(found.per_class)
    least = max(quality.min_per_class, 1 if quality.required_classes else 0)
    short = [
        f"{name} {found.per_class.get(name, 0)}" for name in needed if found.per_class.get(name, 0) < least
    ]
    if not short:
        return None
    return Refusal(
        "TooFewPerClass",
        f"dataset: classes of {task.decisive_field} with fewer than {least} examples: {', '.join(short)}. "
        "Collect more of them, or change dataset.quality.minPerClass and requiredClasses",
    )


def _control(task: Task, quality: Quality, found: Census) -> Refusal | None:
    if quality.min_control_accuracy <= 0:
        return None
    if not found.control_accuracy:
        return Refusal(
            "ControlAccuracyUnknown",
            "dataset: no row has a control_answer, so dataset.quality.minControlAccuracy "
            f"{quality.min_control_accuracy} cannot be checked: export the answers of today's model, or set it to 0",
        )
    reached = found.control_accuracy[task.decisive_field]
    if reached >= quality.min_control_accuracy:
        return None
    return Refusal(
        "ControlDisagreesWithLabels",
        f"dataset: today's model agrees with the human labels in {reached:.1%} of {found.control_rows} rows "
        f"({task.decisive_field}), dataset.quality.minControlAccuracy asks for {quality.min_control_accuracy:.1%}: "
        "check the labels and the prompt, or lower it",
    )
