"""Turns messages and pictures into model inputs, the way the model was trained, and token ids back into text.

The chat template only ever renders text; pictures reach the processor as decoded images. One picture is one
placeholder: text that spells a control token is refused, so placeholders and pictures cannot go out of step.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from cutover_server.inference.chat import Message, Text
from cutover_server.inference.refusal import Refusal, Unservable

Inputs = dict[str, Any]
"""Tensors of one row, batch dimension 1."""


def template_form(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages as a chat template takes them (the form of `cutover.chat.template_messages`)."""
    return [
        {
            "role": message.role,
            "content": [
                {"type": "text", "text": part.text} if isinstance(part, Text) else {"type": "image"}
                for part in message.parts
            ],
        }
        for message in messages
    ]


@dataclass(frozen=True, slots=True)
class PromptBuilder:
    """`processor` is used by one thread at a time; `Detokenizer` has its own tokenizer."""

    processor: Any
    family: str
    max_positions: int

    def inputs(self, messages: list[dict[str, Any]], pictures: Sequence[Image.Image]) -> Inputs:
        """Tensors of one row. Raises Refusal when the text cannot be encoded faithfully or is too long."""
        self._refuse_control_tokens(messages)
        if self.family == "blip2":
            encoded = self._without_template(messages, pictures)
        else:
            text = self.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            encoded = self.processor(images=list(pictures) or None, text=[text], return_tensors="pt")
        length = int(encoded["input_ids"].shape[1])
        if length >= self.max_positions:
            raise Refusal(
                400,
                f"the prompt has {length} tokens, pictures included; this model takes {self.max_positions} with "
                "the answer",
                param="messages",
                code="context_length_exceeded",
            )
        return dict(encoded)

    def _without_template(self, messages: list[dict[str, Any]], pictures: Sequence[Image.Image]) -> Inputs:
        """BLIP-2 knows one picture and one question; nothing checks the count of image tokens but this."""
        if len(pictures) != 1:
            raise Refusal(
                400, f"{len(pictures)} pictures; a BLIP-2 model takes exactly one", param="messages"
            )
        texts = [part["text"] for message in messages for part in message["content"] if "text" in part]
        image = str(getattr(self.processor.image_token, "content", self.processor.image_token))
        places = image * int(self.processor.num_query_tokens)
        text = f"{places}Question: {' '.join(texts)} Answer:"
        return {
            **self.processor.tokenizer([text], return_tensors="pt"),
            **self.processor.image_processor(list(pictures), return_tensors="pt"),
        }

    def _refuse_control_tokens(self, messages: list[dict[str, Any]]) -> None:
        control = self.processor.tokenizer.all_special_tokens
        for index, message in enumerate(messages):
            for part in message["content"]:
                found = next((token for token in control if token in part.get("text", "")), None)
                if found is not None:
                    raise Refusal(
                        400,
                        f"messages[{index}] holds the model's control token {found!r} as text; remove it",
                        param=f"messages[{index}].content",
                        code="control_token",
                    )


def check_processor(processor: Any, family: str, embedding_rows: int) -> None:
    """Refuse a processor that cannot belong to the model, before the first request does."""
    if family != "blip2" and processor.chat_template is None:
        raise Unservable(
            "NoChatTemplate",
            f"the processor of a {family} model must hold a chat template (chat_template.jinja)",
        )
    if len(processor.tokenizer) > embedding_rows:
        raise Unservable(
            "TokenizerMismatch",
            f"the tokenizer has {len(processor.tokenizer)} tokens, the model {embedding_rows}: they are not a pair",
        )


class Detokenizer:
    """Text of an answer, token by token; the pieces of its tokens always add up to the text.

    A token that ends inside a UTF-8 character has an empty piece; the one that completes the character has all of it.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = copy.deepcopy(tokenizer)

    def start(self) -> AnswerText:
        return AnswerText(self._tokenizer)


class AnswerText:
    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self.text = ""

    def append(self, token_id: int) -> str:
        """The piece of text this token adds."""
        piece = self.alternative(token_id)
        self._ids.append(token_id)
        self.text += piece
        return piece

    def alternative(self, token_id: int) -> str:
        """The piece this token would have added, without adding it."""
        whole = self._decode([*self._ids, token_id])
        return "" if whole.endswith("\ufffd") else whole[len(self.text) :]

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def top_logprob_entry(piece: str, logprob: float) -> Mapping[str, Any]:
    """One `{token, bytes, logprob}` of an OpenAI answer."""
    return {"token": piece, "logprob": logprob, "bytes": list(piece.encode())}
