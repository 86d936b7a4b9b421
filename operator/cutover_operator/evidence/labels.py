"""What a series is called, worked out once: the next answer of Prometheus names the same series again. Pure.

Five hundred rollouts have thousands of series, and each is named in every answer. What tells one counter from another,
and the short name under which a ledger keeps it, follow from the labels alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from sys import intern

OWN_LABELS = frozenset(
    {
        "gateway",
        "rollout",
        "arm",
        "version",
        "outcome",
        "le",
        "agreement",
        "bin",
        "reason",
        "field",
        "stratum",
        "result",
        "score",
        "instance",
        "pod",
    }
)
"""Labels our counters carry, and those that tell one target from another."""


class Labels(dict[str, str]):
    """The labels that tell a counter from others. Never changed once made."""

    __slots__ = ("_ids", "metric")

    def __init__(self, labels: Mapping[str, str], metric: str = "") -> None:
        super().__init__(labels)
        self.metric = metric
        """Its `__name__`, where that was read."""
        self._ids: tuple[str, ...] = ()
        """What `id_of` was asked for and said, in turns: two or three questions are asked again and again."""

    def id_of(self, metric: str, edge: str | None = None) -> str:
        """A short name for the series that does not depend on the order of its labels; `edge` in place of its `le`."""
        asked = metric if edge is None else f"{metric}\x1f{edge}"
        known = self._ids
        for at in range(0, len(known), 2):
            if known[at] == asked:
                return known[at + 1]
        found = intern(series_id(metric, self if edge is None else {**self, "le": edge}))
        self._ids = (*known, intern(asked), found)
        return found

    @property
    def key(self) -> str:
        """The same for the same counter, whatever it counts."""
        return self.id_of("")


def series_id(metric: str, labels: Mapping[str, str]) -> str:
    """A short name for a series that does not depend on the order of its labels."""
    text = "\x1f".join([metric, *(f"{name}={labels[name]}" for name in sorted(labels))])
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def counter_labels(labels: Mapping[str, str]) -> Labels:
    """What tells this counter from others: its own labels and the target's `instance` and `pod`; without those every
    label."""
    if isinstance(labels, Labels):
        return labels
    if "instance" in labels or "pod" in labels:
        return Labels({k: v for k, v in labels.items() if k in OWN_LABELS})
    return Labels(labels)


def name_in_ledger(metric: str, labels: Mapping[str, str], edge: str | None = None) -> str:
    """`series_id`, known already where the labels were read with `Names`; `edge` in place of the label `le`."""
    if isinstance(labels, Labels):
        return labels.id_of(metric, edge)
    return series_id(metric, labels if edge is None else {**labels, "le": edge})


class Names:
    """The series of the answers so far. What no answer named for two turns of `turn` is forgotten."""

    def __init__(self) -> None:
        self._young: dict[tuple[object, ...], Labels] = {}
        self._old: dict[tuple[object, ...], Labels] = {}
        self._kinds: dict[tuple[str, ...], tuple[str, ...]] = {}

    def of(self, row: Mapping[str, str]) -> Labels:
        """The labels of a row of an answer, `metric` with them."""
        kind = tuple(row)
        # Rows of one metric have the same names in the same order: one tuple serves for all.
        address = (self._kinds.setdefault(kind, kind), *row.values())
        known = self._young.get(address)
        if known is None:
            texts = {intern(str(name)): intern(str(value)) for name, value in row.items()}
            known = self._old.get(address)
            if known is None:
                known = Labels(counter_labels(texts), texts.get("__name__", ""))
            self._young[(address[0], *texts.values())] = known
        return known

    def turn(self) -> None:
        self._old, self._young = self._young, {}
