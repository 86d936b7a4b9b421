"""A good row and what is known of its picture, without the picture's bytes. Pure data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from cutover.task import Task
from cutover_trainer.examples import KEPT_PICTURE_URL, Example
from cutover_trainer.picture import KeptPicture
from cutover_trainer.rows import Row, answer_text
from cutover_trainer.split import Member


@dataclass(frozen=True, slots=True)
class KeptRow:
    row: Row
    """Its picture's URL is `sha256:<hex>` in the question and empty outside: the URL may be the picture itself."""
    picture: str
    """SHA-256 of the kept bytes."""
    width: int
    height: int
    bytes: int
    perceptual_hash: int

    @classmethod
    def of(cls, row: Row, picture: KeptPicture) -> KeptRow:
        question = [_without_url(message, picture.sha256) for message in row.question]
        return cls(
            replace(row, picture_url="", question=question),
            picture.sha256,
            picture.width,
            picture.height,
            len(picture.data),
            picture.perceptual_hash,
        )

    def member(self, task: Task) -> Member:
        """The row as the split sees it."""
        keys = [f"assessment:{self.row.assessment}", f"picture:{self.picture}"]
        if self.row.group is not None:
            keys.append(f"group:{self.row.group}")
        return Member(self.row.id, tuple(keys), self.row.truth[task.decisive_field])

    def example(self, group: str) -> Example:
        return Example(
            id=self.row.id,
            group=group,
            picture=self.picture,
            width=self.width,
            height=self.height,
            question=self.row.question,
            answer=answer_text(self.row.answer),
            truth=self.row.truth,
            control=self.row.control,
            people=self.row.people,
            synthetic=self.row.synthetic,
        )


def _without_url(message: Mapping[str, Any], picture: str) -> dict[str, Any]:
    content = message["content"]
    if isinstance(content, list):
        kept_url = {"type": "image_url", "image_url": {"url": f"{KEPT_PICTURE_URL}{picture}"}}
        content = [kept_url if part.get("type") == "image_url" else part for part in content]
    return {"role": message["role"], "content": content}
