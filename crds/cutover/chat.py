"""How OpenAI chat messages become what a vision-language model's chat template takes.

Pure, and shared by the trainer and the built-in engine: a model asked otherwise than it was trained answers worse.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Messages = Sequence[Mapping[str, Any]]


def picture_urls(messages: Messages) -> list[str]:
    """URLs of the pictures in the order of the messages; `image_url` may be a string or `{"url": …}`."""
    return [_url(part) for message in messages for part in _parts(message) if part.get("type") == "image_url"]


def template_messages(messages: Messages) -> list[dict[str, Any]]:
    """Messages for `apply_chat_template`: content is a list of `{"type": "text"}` and `{"type": "image"}` parts.

    No URL is passed on, so a template can never make the processor fetch one. Raises ValueError for another part.
    """
    return [
        {"role": str(message["role"]), "content": [_template_part(part) for part in _parts(message)]}
        for message in messages
    ]


def answer_separator(prompt: str) -> str:
    """What stands between the rendered prompt and the answer when a model is trained or scored."""
    return "" if prompt[-1:].isspace() else " "


def _parts(message: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    content = message.get("content")
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if isinstance(content, list) and all(isinstance(part, Mapping) for part in content):
        return content
    raise ValueError("content must be a string or a list of parts")


def _template_part(part: Mapping[str, Any]) -> dict[str, str]:
    kind = part.get("type")
    if kind == "text" and isinstance(part.get("text"), str):
        return {"type": "text", "text": part["text"]}
    if kind == "image_url":
        _url(part)
        return {"type": "image"}
    raise ValueError(f"content part of type {kind!r}: use text or image_url")


def _url(part: Mapping[str, Any]) -> str:
    target = part.get("image_url")
    if isinstance(target, Mapping):
        target = target.get("url")
    if not isinstance(target, str) or not target:
        raise ValueError('image_url must be a URL or {"url": …}')
    return target
