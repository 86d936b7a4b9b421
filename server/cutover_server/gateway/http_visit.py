"""What passes between the HTTP server and the gateway's two faces: a head, a visit, an answer. Pure but for the date."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from http import HTTPStatus
from typing import Protocol

_STATUS_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n" for status in HTTPStatus}
Send = Callable[[bytes], Awaitable[None]]


@dataclass(slots=True)
class Head:
    """What comes before a body. Headers by lower-case name; of a repeated one the first."""

    method: str = ""
    path: str = ""
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Answer:
    status: int
    body: bytes
    headers: Mapping[str, str]
    stream: Callable[[Send], Awaitable[bool]] | None = None
    """Instead of a body: sends its pieces, and says whether they end well. `send` raises OSError when nobody reads."""


class Visit(Protocol):
    """One request. `close` is called once it is over, however it ends."""

    refusal: Answer | None
    """Set when the head alone says that this is not to be answered."""

    def arrives(self, size: int) -> Answer | None:
        """So many bytes of body have come; an answer ends the visit."""

    def is_late(self) -> Answer:
        """The body has not come within its time."""

    async def answer(self, body: bytes) -> Answer: ...

    def close(self) -> None: ...


_date = (0, "")


def response_head(answer: Answer, keeps: bool) -> bytes:
    """The head of a response."""
    global _date
    now = int(time.time())
    if _date[0] != now:
        _date = (now, f"date: {formatdate(now, usegmt=True)}\r\n")
    lines = [_STATUS_LINES[answer.status], _date[1]]
    for name, value in answer.headers.items():
        if not value.isprintable():
            raise ValueError(f"header {name}: its value cannot be sent")
        lines.append(f"{name}: {value}\r\n")
    if answer.stream is None:
        lines.append(f"content-length: {len(answer.body)}\r\n")
    else:
        lines.append("transfer-encoding: chunked\r\n")
    lines.append("\r\n" if keeps else "connection: close\r\n\r\n")
    return "".join(lines).encode("latin-1")
