"""What is wrong with a line of training data, where, and what to do about it. Pure data.

Every refusal has a reason from one fixed list; the list holds the remedy, so that no reason can be without one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Reason = Literal[
    "UnreadableLine",
    "InvalidId",
    "InvalidGroup",
    "InvalidValidated",
    "InvalidSynthetic",
    "NoMessages",
    "NoAssistantAnswer",
    "UnknownLayout",
    "ControlToken",
    "NoPicture",
    "SeveralPictures",
    "UnreadableAnswer",
    "AmbiguousAnswer",
    "InvalidAnswer",
    "UnknownClass",
    "LabelsDisagree",
    "PictureRefused",
    "PictureUnavailable",
    "UnusablePicture",
    "Unencodable",
]

REMEDIES: Mapping[Reason, str] = {
    "UnreadableLine": "write one JSON object a line, UTF-8, every key once",
    "InvalidId": "give the row an id: text of 1 to 256 characters or a whole number",
    "InvalidGroup": "give the building as text or a number, or leave the field out",
    "InvalidValidated": "write true or false without quotes",
    "InvalidSynthetic": "write true or false without quotes",
    "NoMessages": "export the row with its messages: system (optional), user, assistant",
    "NoAssistantAnswer": "export the answer people agreed on as the last message, role assistant",
    "UnknownLayout": "bring the messages into the order system (optional), user, assistant, of text and image_url parts",
    "ControlToken": "remove the text: a tokenizer would read it as a control token",
    "NoPicture": "add one image_url part to the user message",
    "SeveralPictures": "split the row: one picture, one answer",
    "UnreadableAnswer": "write the answer as one JSON object and nothing else",
    "AmbiguousAnswer": "name every field of the answer once",
    "InvalidAnswer": "correct the answer, or the task's answerSchema",
    "UnknownClass": "use one of the task's classes, spelled as the task spells it, or extend the task",
    "LabelsDisagree": "have the assessment settled by a person, or leave the row out",
    "PictureRefused": "put the picture on a public https address, into the data's own bucket, or into a data URL",
    "PictureUnavailable": "check that the address answers; the next attempt tries again",
    "UnusablePicture": "export the photo again as a whole JPEG, PNG or WebP",
    "Unencodable": "shorten the text, or choose a base model that reads more tokens",
}


@dataclass(frozen=True, slots=True)
class BadRow:
    """A line nothing is learnt from. `detail` is fit for a report; `field` is a path into the line, or empty."""

    line: int
    id: str
    reason: Reason
    field: str
    detail: str

    @property
    def remedy(self) -> str:
        return REMEDIES[self.reason]

    def to_wire(self) -> dict[str, str | int]:
        return {
            "line": self.line,
            "id": self.id,
            "reason": self.reason,
            "field": self.field,
            "detail": self.detail,
            "remedy": self.remedy,
        }


class RowWrong(Exception):
    """Raised while a line is read; becomes a `BadRow` once the line's number and id are known."""

    def __init__(self, reason: Reason, field: str, detail: str) -> None:
        super().__init__(detail)
        self.reason: Reason = reason
        self.field = field
        self.detail = detail

    def at(self, line: int, row_id: str) -> BadRow:
        return BadRow(line, row_id, self.reason, self.field, self.detail)
