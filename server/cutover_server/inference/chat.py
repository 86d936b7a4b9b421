"""What a chat completion request asks for. Pure: the parsed JSON body in, `ChatRequest` out, or a `Refusal`.

Everything that would change the answer is either honoured or refused; only fields that cannot change it
(`user`, `metadata`, `store`) are ignored. Pictures come inside the request; the engine never opens an address.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass
from typing import Any, Literal

from cutover_server.inference.refusal import Refusal

Role = Literal["system", "user", "assistant"]
_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
}
MAX_TOP_LOGPROBS = 20
MAX_SEED = 2**63 - 1
_DATA_URL = re.compile(r"data:(image/[a-z0-9.+-]+);base64,", re.IGNORECASE)
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "stop": ([],),
    "tools": ([],),
    "tool_choice": ("none",),
    "functions": ([],),
    "modalities": (["text"],),
    "structured_outputs": (),
    "guided_json": (),
    "repetition_penalty": (1,),
    "min_tokens": (0,),
    "top_k": (0, -1),
    "min_p": (0,),
    "echo": (False,),
    "ignore_eos": (False,),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
    "add_special_tokens": (False,),
    "skip_special_tokens": (True,),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "documents": ([],),
    "stop_token_ids": ([],),
    "bad_words": ([],),
    "allowed_token_ids": (),
    "truncate_prompt_tokens": (),
    "prompt_logprobs": (),
    "return_token_ids": (False,),
}
"""Fields that are accepted only with these values, besides null: the engine does nothing else."""


@dataclass(frozen=True, slots=True)
class Text:
    text: str


@dataclass(frozen=True, slots=True)
class Picture:
    """An encoded picture as it came; `repr` shows its size only."""

    content: bytes

    def __repr__(self) -> str:
        return f"Picture({len(self.content)} bytes)"


@dataclass(frozen=True, slots=True)
class Message:
    role: Role
    parts: tuple[Text | Picture, ...]


@dataclass(frozen=True, slots=True)
class Sampling:
    """Generation settings that all rows of one batch must share."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0


@dataclass(frozen=True, slots=True)
class ChatRequest:
    model: str
    messages: tuple[Message, ...]
    max_tokens: int | None
    sampling: Sampling
    stream: bool
    stream_usage: bool
    top_logprobs: int | None
    """None: no log-probabilities wanted; 0: of the chosen token alone."""
    schema: dict[str, Any] | None

    @property
    def pictures(self) -> list[Picture]:
        return [part for message in self.messages for part in message.parts if isinstance(part, Picture)]


def read_request(body: Any, *, max_pictures: int) -> ChatRequest:
    if not isinstance(body, dict):
        raise Refusal(400, f"the body must be a JSON object, not {_kind(body)}")
    for name, allowed in _NEUTRAL.items():
        value = body.get(name)
        if value is not None and value not in allowed:
            raise Refusal(
                400, f"{name} is not supported by this engine; leave it out", param=name, code="unsupported"
            )
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise Refusal(400, "model must be the name of a served model; GET /v1/models lists it", param="model")
    messages = _messages(body.get("messages"))
    stream = _boolean(body, "stream")
    request = ChatRequest(
        model=model,
        messages=messages,
        max_tokens=_max_tokens(body),
        sampling=_sampling(body),
        stream=stream,
        stream_usage=stream and _stream_usage(body),
        top_logprobs=_top_logprobs(body),
        schema=_schema(body.get("response_format")),
    )
    if len(request.pictures) > max_pictures:
        raise Refusal(
            400,
            f"{len(request.pictures)} pictures in one request; this model takes at most {max_pictures}",
            param="messages",
            code="too_many_images",
        )
    return request


def _messages(value: Any) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise Refusal(400, "messages must be a non-empty list", param="messages")
    messages = tuple(_message(item, f"messages[{index}]") for index, item in enumerate(value))
    if messages[-1].role != "user":
        raise Refusal(400, f"the last message must be the user's, not {messages[-1].role}", param="messages")
    return messages


def _message(value: Any, where: str) -> Message:
    if not isinstance(value, dict):
        raise Refusal(400, f"{where} must be an object, not {_kind(value)}", param=where)
    role = _ROLES.get(str(value.get("role")))
    if role is None:
        raise Refusal(
            400,
            f"{where}.role must be system, user or assistant, not {value.get('role')!r}"[:300],
            param=f"{where}.role",
        )
    content = value.get("content")
    if isinstance(content, str):
        return Message(role, (Text(content),))
    if not isinstance(content, list) or not content:
        raise Refusal(
            400,
            f"{where}.content must be text or a non-empty list of parts, not {_kind(content)}",
            param=f"{where}.content",
        )
    parts = tuple(_part(part, role, f"{where}.content[{index}]") for index, part in enumerate(content))
    return Message(role, parts)


def _part(value: Any, role: str, where: str) -> Text | Picture:
    kind = value.get("type") if isinstance(value, dict) else None
    if kind == "text" and isinstance(value.get("text"), str):
        return Text(value["text"])
    if kind == "image_url":
        if role != "user":
            raise Refusal(400, f"{where}: only the user's messages may hold pictures", param=where)
        source = value.get("image_url")
        url = source.get("url") if isinstance(source, dict) else source
        return Picture(_picture(url, f"{where}.image_url.url"))
    raise Refusal(
        400,
        f"{where} must be {{type: text, text}} or {{type: image_url, image_url: {{url: data:…}}}}",
        param=where,
    )


def _picture(url: Any, where: str) -> bytes:
    if not isinstance(url, str):
        raise Refusal(400, f"{where} must be a data: URL, not {_kind(url)}", param=where)
    head = _DATA_URL.match(url[:100])
    if head is None:
        scheme = url.split(":", 1)[0][:16] if ":" in url[:16] else "no"
        raise Refusal(
            400,
            f"{where} has the scheme {scheme!r}: this engine never opens addresses; send the picture itself as "
            "data:image/jpeg;base64,…",
            param=where,
            code="unsupported_image_url",
        )
    try:
        content = base64.b64decode(url[head.end() :], validate=True)
    except (binascii.Error, ValueError):
        raise Refusal(400, f"{where} is not valid base64", param=where, code="invalid_image") from None
    if not content:
        raise Refusal(400, f"{where} holds no bytes", param=where, code="invalid_image")
    return content


def _max_tokens(body: dict[str, Any]) -> int | None:
    for name in ("max_completion_tokens", "max_tokens"):
        value = body.get(name)
        if value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise Refusal(400, f"{name} must be a whole number from 1, not {value!r}"[:200], param=name)
        return value
    return None


def _sampling(body: dict[str, Any]) -> Sampling:
    temperature = _number(body, "temperature", 0.0, 2.0, default=0.0)
    top_p = _number(body, "top_p", 0.0, 1.0, default=1.0)
    seed = body.get("seed")
    if seed is not None and (
        not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed <= MAX_SEED
    ):
        raise Refusal(400, f"seed must be a whole number from 0 to {MAX_SEED}", param="seed")
    if temperature == 0.0:
        return Sampling()
    if top_p == 0.0:
        raise Refusal(
            400, "top_p must be above 0; for the likeliest answer set temperature to 0", param="top_p"
        )
    return Sampling(temperature, top_p, seed)


def _number(body: dict[str, Any], name: str, low: float, high: float, *, default: float) -> float:
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise Refusal(
            400, f"{name} must be a number from {low:g} to {high:g}, not {value!r}"[:200], param=name
        )
    return float(value)


def _boolean(body: dict[str, Any], name: str) -> bool:
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise Refusal(400, f"{name} must be true or false, not {_kind(value)}", param=name)
    return bool(value)


def _stream_usage(body: dict[str, Any]) -> bool:
    options = body.get("stream_options")
    if options is None:
        return False
    if not isinstance(options, dict):
        raise Refusal(400, "stream_options must be an object", param="stream_options")
    return _boolean(options, "include_usage")


def _top_logprobs(body: dict[str, Any]) -> int | None:
    count = body.get("top_logprobs")
    if not _boolean(body, "logprobs"):
        if count:
            raise Refusal(400, "top_logprobs needs logprobs: true", param="top_logprobs")
        return None
    if count is None:
        return 0
    if not isinstance(count, int) or isinstance(count, bool) or not 0 <= count <= MAX_TOP_LOGPROBS:
        raise Refusal(
            400, f"top_logprobs must be a whole number from 0 to {MAX_TOP_LOGPROBS}", param="top_logprobs"
        )
    return count


def _schema(value: Any) -> dict[str, Any] | None:
    kind = value.get("type") if isinstance(value, dict) else None
    if value is None or kind == "text":
        return None
    if kind == "json_object":
        return {"type": "object"}
    if kind == "json_schema" and isinstance(value.get("json_schema"), dict):
        schema = value["json_schema"].get("schema", {})
        if isinstance(schema, dict):
            return schema
    raise Refusal(
        400,
        "response_format must be {type: text}, {type: json_object} or {type: json_schema, json_schema: {name, schema}}",
        param="response_format",
    )


def _kind(value: Any) -> str:
    return "null" if value is None else type(value).__name__
