"""Request bodies, bounded while they are read, and the models of what people send."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from starlette.requests import Request


class BodyTooLarge(ValueError):
    """413."""


class BodyUnfit(ValueError):
    """400."""


async def read_body(request: Request, limit_bytes: int) -> bytes:
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > limit_bytes:
        raise BodyTooLarge(f"the body has {announced} bytes; at most {limit_bytes} are taken")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit_bytes:
            raise BodyTooLarge(f"the body has more than {limit_bytes} bytes")
    return bytes(body)


async def read_object(request: Request, limit_bytes: int = 65536) -> dict[str, Any]:
    """The JSON object in the body."""
    body = await read_body(request, limit_bytes)
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BodyUnfit(f"the body is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise BodyUnfit(f"the body is a JSON {type(value).__name__}; send an object")
    return value


def _storable(text: str) -> str:
    if "\x00" in text:
        raise ValueError("the character U+0000 cannot be kept")
    return text


_Name = Annotated[str, Field(min_length=1, max_length=128), AfterValidator(_storable)]
_Comment = Annotated[str, Field(max_length=2000), AfterValidator(_storable)]


class ValidationBody(BaseModel):
    model_config = ConfigDict(extra="forbid")

    labeller: _Name | None = None
    labels: dict[str, Any]
    comment: _Comment = ""


class FeedbackBody(BaseModel):
    model_config = ConfigDict(extra="forbid")

    id: _Name
    score: Literal["up", "down"]
    comment: _Comment = ""
    client: _Name | None = None


class LabelFeedbackBody(ValidationBody):
    """A label given as feedback: validation, or correction, of the answer with this id."""

    id: _Name
