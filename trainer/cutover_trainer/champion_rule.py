"""Which version of a registered model has the alias `champion`. Pure.

A rollout leaves its last word on the version it served, as a tag of its own: promoted or withdrawn, and when. The
champion is the version whose promotion is the latest of those that stand. So it plays no part in which order the words
arrive, how often each is said, or which rollout's Job was cut short between its tag and the alias.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

CHAMPION = "champion"
TAG = "cutover.rollout."
"""Begins the key of a word; the rest is the uid of the rollout that said it."""
TAG_FOUND = f"{TAG}none"
"""Key of the word on a version that was champion before any rollout had said anything about it."""
_PROMOTED, _WITHDRAWN = "promoted", "withdrawn"

History = Mapping[str, Mapping[str, str]]
"""Tags by version."""


@dataclass(frozen=True, slots=True)
class Word:
    """What a rollout has to say about the version it served."""

    promoted: bool
    at: str
    """When the rollout ended so: UTC, RFC 3339 to the millisecond, so that texts compare like times."""
    rollout: str
    """namespace/name, for people."""

    def text(self) -> str:
        return f"{_PROMOTED if self.promoted else _WITHDRAWN} {self.at} {self.rollout}"

    @classmethod
    def parse(cls, text: str) -> Word | None:
        """None for what is none."""
        outcome, _, rest = text.partition(" ")
        at, _, rollout = rest.partition(" ")
        return cls(outcome == _PROMOTED, at, rollout) if outcome in (_PROMOTED, _WITHDRAWN) and at else None


FOUND = Word(True, "0", "by hand")
"""Older than any rollout's word."""


def words(tags: Mapping[str, str]) -> list[Word]:
    found = [Word.parse(text) for key, text in tags.items() if key.startswith(TAG)]
    return [word for word in found if word is not None]


def last_word(tags: Mapping[str, str], key: str, word: Word) -> Word:
    """The later of a rollout's new word and the one it has said before."""
    before = Word.parse(tags.get(key, ""))
    return before if before is not None and before.at > word.at else word


def latest(history: History) -> str | None:
    """The version promoted last of those some rollout still stands by."""
    standing = [
        (word.at, int(version)) for version, tags in history.items() for word in words(tags) if word.promoted
    ]
    return str(max(standing)[1]) if standing else None


def is_found_by_hand(champion: str | None, history: History) -> bool:
    """Somebody made it champion of whom no tag tells."""
    return champion is not None and champion in history and not words(history[champion])


def champion_after(champion: str | None, history: History, version: str, promoted: bool) -> str | None:
    """Who has the alias once the word on `version` stands in `history`; None when nobody.

    A champion that is neither this version nor a withdrawn one is left alone unless this version was promoted later:
    the alias may have been moved by hand.
    """
    last = latest(history)
    if last == version:
        return version
    if champion is None:
        return last if promoted else None
    said = words(history.get(champion, {}))
    withdrawn = bool(said) and not any(word.promoted for word in said)
    return last if withdrawn or champion == version else champion
