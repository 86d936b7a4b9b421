"""A chat completion request: what the gateway needs of it, and the bodies made from it. Pure.

The body is parsed once. Its pictures are found but not opened here; the bodies for an arm and for the record are made
once the pictures are at hand. Only what the gateway itself reads is checked: everything else is between caller and arm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from cutover.contract import HEADER_ARM, HEADER_ASSESSMENT_ID
from cutover.records import ArmName
from cutover.route import Arm
from cutover.task import Task
from cutover_server.gateway.embedded import cut_out, marker
from cutover_server.gateway.openai_shape import ApiError

MAX_PICTURES = 16
MAX_TEXT_BYTES = 1_000_000
"""Of the messages without their pictures: what one record may hold."""
MAX_KEY_CHARACTERS = 256
TOP_LOGPROBS = 5
_PARTS = {kind: frozenset({"type", kind, "cache_control"}) for kind in ("text", "image_url", "refusal")}
_URL = b'"url":"'
_PLACE = _URL + b"sha256:"
_MARKDOWN_PICTURE = "!["
_OURS = ("stream", "stream_options", "model", "messages", "metadata")


@dataclass(frozen=True, slots=True)
class ChatRequest:
    document: dict[str, Any]
    assessment_id: str | None
    """The caller's key; none when it gave none."""
    pictures: tuple[str | memoryview, ...]
    """Their URLs in the order in which they stand in the messages; a view of the body is a data URL that is its own JSON."""
    stream: bool
    include_usage: bool
    wants_logprobs: bool
    forced_arm: ArmName | None = None
    """Asked for by an admin; such a request counts for no rollout."""


def read_request(body: bytes, headers: Mapping[str, str], admin: bool = False) -> ChatRequest:
    """Raises ApiError, a 400, 403 or 413 that names the field."""
    rest, embedded = cut_out(body)
    document = _parsed(rest)
    urls: list[str] = [
        _picture_url(part) for message in document["messages"] for part in _picture_parts(message)
    ]
    pictures: tuple[str | memoryview, ...] = tuple(urls)
    if embedded:
        by_marker: dict[str, memoryview] = {marker(number): url for number, url in enumerate(embedded)}
        pictures = tuple(by_marker.pop(url, url) for url in urls)
        if by_marker:  # something that looks like a picture stands elsewhere, as text
            rest, document = body, _parsed(body)
            urls = [
                _picture_url(part) for message in document["messages"] for part in _picture_parts(message)
            ]
            pictures = tuple(urls)
    if len(pictures) > MAX_PICTURES:
        raise ApiError(
            400, f"messages: {len(pictures)} pictures; at most {MAX_PICTURES} are served.", param="messages"
        )
    if len(rest) > MAX_TEXT_BYTES and len(rest) - sum(map(len, urls)) > MAX_TEXT_BYTES:
        raise ApiError(413, f"messages: more than {MAX_TEXT_BYTES} bytes besides pictures.", param="messages")
    options = document.get("stream_options")
    return ChatRequest(
        document=document,
        assessment_id=_assessment_id(document, headers),
        pictures=pictures,
        stream=document.get("stream") is True,
        include_usage=isinstance(options, dict) and options.get("include_usage") is True,
        wants_logprobs=document.get("logprobs") is True,
        forced_arm=_forced_arm(headers.get(HEADER_ARM), admin),
    )


def _parsed(body: bytes) -> dict[str, Any]:
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise ApiError(400, f"The request body is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise ApiError(400, "The request body must be a JSON object.")
    messages = document.get("messages")
    if not isinstance(messages, list) or not messages or not all(isinstance(one, dict) for one in messages):
        raise ApiError(400, "messages: a list of at least one message object is needed.", param="messages")
    if document.get("n", 1) not in (1, None):
        raise ApiError(400, "n: only one choice per request is served; leave n out.", param="n")
    _check_parts(messages)
    return document


def holds_markdown_picture(request: ChatRequest) -> bool:
    """Whether an arm that opens the URL of a picture in Markdown, wherever in the prompt it stands, must not see this.

    TGI joins the text parts of a message, puts its template around them and then looks for pictures, so the
    beginning of one is enough. Pictures as content parts are not concerned: they are fetched here, with the guard.
    """
    texts: list[str] = []
    others: list[str] = []
    for message in request.document["messages"]:
        content = message.get("content")
        parts = content if isinstance(content, list) else [{"text": content}]
        texts += [part["text"] for part in parts if isinstance(part.get("text"), str)]
        others += _strings({key: value for key, value in message.items() if key != "content"})
    others += _strings({key: value for key, value in request.document.items() if key != "messages"})
    return any(_MARKDOWN_PICTURE in text for text in ("".join(texts), *others))


def markdown_picture_refused() -> ApiError:
    """For a request whose text holds a Markdown picture, when no arm may answer it."""
    return ApiError(
        400,
        f"messages: a text holds {_MARKDOWN_PICTURE}, the beginning of a Markdown picture, which every model that may "
        "answer would fetch; send pictures as content parts of type image_url.",
        param="messages",
        code="markdown_picture",
    )


def _strings(value: Any) -> list[str]:
    found: list[str] = []
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, str):
            found.append(one)
        elif isinstance(one, dict):
            waiting += [*one.keys(), *one.values()]
        elif isinstance(one, list):
            waiting += one
    return found


def messages_as_kept(request: ChatRequest, digests: Sequence[str]) -> bytes:
    """The messages as JSON, each picture by its digest: what is written down, and what an arm's body is made from."""
    messages = request.document["messages"]
    if digests:
        messages = _with_pictures(messages, [f"sha256:{one}" for one in digests])
    try:
        return orjson.dumps(messages)
    except orjson.JSONEncodeError:
        raise ApiError(400, "messages: nested too deeply.", param="messages") from None


def body_for_arm(
    request: ChatRequest,
    messages: bytes,
    pictures: Sequence[tuple[str, bytes | memoryview]],
    arm: Arm,
    task: Task,
    measured: bool,
    stream: bool = False,
) -> list[bytes | memoryview]:
    """The body an arm gets, in parts: its model, pictures inline, in one piece unless the stream is passed through.

    `messages` is what `messages_as_kept` made of the pictures' digests; each picture is put in the place of its digest,
    its URL as JSON without the quotes. `measured` asks for the log-probabilities the confidence needs and
    bounds the answer's length; it is for arms we serve ourselves.
    """
    document = {key: value for key, value in request.document.items() if key not in _OURS}
    document["model"] = arm.model
    metadata = request.document.get("metadata")
    if isinstance(metadata, dict):
        kept = {key: value for key, value in metadata.items() if key != "assessment_id"}
        if kept:
            document["metadata"] = kept
    if stream:
        document["stream"] = True
        document["stream_options"] = {"include_usage": True}
    if measured:
        asked = document.get("top_logprobs")
        document["logprobs"] = True
        document["top_logprobs"] = max(asked, TOP_LOGPROBS) if isinstance(asked, int) else TOP_LOGPROBS
        if document.get("max_tokens") is None and document.get("max_completion_tokens") is None:
            document["max_tokens"] = task.max_answer_tokens
    head = orjson.dumps(document)[:-1] + b',"messages":'
    parts = _spliced(messages, pictures)
    if parts is None:
        urls = [orjson.loads(b'"' + bytes(url) + b'"') for _, url in pictures]
        parts = [orjson.dumps(_with_pictures(request.document["messages"], urls))]
    first = head + parts[0]
    return [first, *parts[1:-1], bytes(parts[-1]) + b"}"] if len(parts) > 1 else [first + b"}"]


def _spliced(
    messages: bytes, pictures: Sequence[tuple[str, bytes | memoryview]]
) -> list[bytes | memoryview] | None:
    """The messages cut where a picture's digest stands, with the URLs between.

    None where the caller wrote such a digest itself, so that the places are not certain.
    """
    parts: list[bytes | memoryview] = []
    at = 0
    for digest, url in pictures:
        place = _PLACE + digest.encode()
        found = messages.index(place, at)
        parts += [messages[at : found + len(_URL)], url]
        at = found + len(place)
    parts.append(messages[at:])
    return parts if messages.count(_PLACE) == len(pictures) else None


def _with_pictures(messages: list[dict[str, Any]], urls: Sequence[str]) -> list[dict[str, Any]]:
    following = iter(urls)
    result = []
    for message in messages:
        if not isinstance(message.get("content"), list):
            result.append(message)
            continue
        content = []
        for part in message["content"]:
            if _is_picture(part):
                told = part["image_url"]
                extra = (
                    {key: value for key, value in told.items() if key != "url"}
                    if isinstance(told, dict)
                    else {}
                )
                part = {**part, "image_url": {"url": next(following), **extra}}
            content.append(part)
        result.append({**message, "content": content})
    return result


def _check_parts(messages: list[dict[str, Any]]) -> None:
    """Only what the gateway understands goes on: an arm must not find a URL that nobody has looked at."""
    for message in messages:
        content = message.get("content")
        if content is None or isinstance(content, str):
            continue
        if not isinstance(content, list):
            raise ApiError(
                400,
                f"messages: content is a text or a list of content parts; this one is {_json_type(content)}.",
                param="messages",
            )
        for part in content:
            kind = part.get("type") if isinstance(part, dict) else None
            allowed = _PARTS.get(kind) if isinstance(kind, str) else None
            if allowed is None or not part.keys() <= allowed:
                raise ApiError(
                    400,
                    "messages: a content part is {type: text, text} or {type: image_url, image_url}; "
                    f"this one has the type {str(kind)[:64]!r}.",
                    param="messages",
                )


def _json_type(value: Any) -> str:
    if isinstance(value, dict):
        return "an object"
    return "a boolean" if isinstance(value, bool) else "a number"


def _picture_parts(message: dict[str, Any]) -> list[dict[str, Any]]:
    content = message.get("content")
    return [part for part in content if _is_picture(part)] if isinstance(content, list) else []


def _is_picture(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == "image_url"


def _picture_url(part: dict[str, Any]) -> str:
    told = part.get("image_url")
    url = told.get("url") if isinstance(told, dict) else told
    if not isinstance(url, str) or not url:
        raise ApiError(400, "image_url: a URL, or an object with a url, is needed.", param="messages")
    return url


def _forced_arm(told: str | None, admin: bool) -> ArmName | None:
    if told is None:
        return None
    if not admin:
        raise ApiError(403, f"{HEADER_ARM}: only an admin's key may choose the arm.", "permission_error")
    if told == "control":
        return "control"
    if told == "candidate":
        return "candidate"
    raise ApiError(400, f"{HEADER_ARM}: control or candidate.", param=HEADER_ARM)


def _assessment_id(document: dict[str, Any], headers: Mapping[str, str]) -> str | None:
    metadata = document.get("metadata")
    named = metadata.get("assessment_id") if isinstance(metadata, dict) else None
    key = headers.get(HEADER_ASSESSMENT_ID) or named
    if key is None or key == "":
        return None
    if not isinstance(key, str) or len(key) > MAX_KEY_CHARACTERS or not key.isprintable():
        raise ApiError(
            400,
            f"assessment id: printable text of at most {MAX_KEY_CHARACTERS} characters is needed "
            f"(header {HEADER_ASSESSMENT_ID} or metadata.assessment_id).",
            param="metadata",
        )
    return key
