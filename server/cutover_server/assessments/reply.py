"""JSON answers. ASCII only: a model's answer may hold half a surrogate pair, which UTF-8 cannot carry."""

from __future__ import annotations

import json
from typing import Any

from starlette.responses import Response


class JsonReply(Response):
    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return json.dumps(content, separators=(",", ":"), allow_nan=False).encode("ascii")


def error(status: int, message: str, **more: object) -> JsonReply:
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else None
    return JsonReply({"error": {"message": message, **more}}, status_code=status, headers=headers)


def sound_text(text: str) -> str:
    """The text with what UTF-8 cannot carry replaced."""
    return text.encode("utf-8", "replace").decode()
