"""Turns a question, its picture's size and an answer into token ids, and refuses what would train on the wrong tokens.

Promises for every example: the prompt's ids are a prefix of the whole; at least one answer token is trained; the image
tokens are as many as the model makes features; nothing is cut off; no text of a row becomes a control token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from cutover.api.trainingrun import Family
from cutover.chat import answer_separator, template_messages


class Unencodable(Exception):
    """Says why the row cannot be trained on."""


@dataclass(frozen=True, slots=True)
class Encoded:
    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]
    """Follow the prompt; the end token is the last."""


class Encoder:
    """The processor of one model, its template and its limits."""

    def __init__(self, processor: Any, config: Any, family: Family) -> None:
        self.processor = processor
        self.tokenizer = processor.tokenizer
        self._family = family
        text_config = config.get_text_config() if hasattr(config, "get_text_config") else config.text_config
        self._limit = int(getattr(text_config, "max_position_embeddings", 1 << 30))
        self._image_id = int(config.image_token_id)
        self._image_token = str(self.tokenizer.convert_ids_to_tokens(self._image_id))
        self._controls = [token for token in self.tokenizer.all_special_tokens if token != self._image_token]
        self._counts: dict[tuple[int, int], int] = {}
        self._prompts: dict[tuple[str, int], tuple[int, ...]] = {}

    @property
    def pad_id(self) -> int:
        pad = self.tokenizer.pad_token_id
        return int(pad if pad is not None else self.tokenizer.eos_token_id)

    def prompt_text(self, question: Sequence[Mapping[str, Any]]) -> str:
        """The question as the model reads it, one image token for the picture."""
        messages = template_messages(question)
        if self._family == "blip2":
            texts = [
                part["text"] for message in messages for part in message["content"] if part["type"] == "text"
            ]
            return f"{self._image_token}Question: {' '.join(texts)} Answer:"
        return str(self.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))

    def encode_prompt(self, question: Sequence[Mapping[str, Any]], size: tuple[int, int]) -> tuple[int, ...]:
        """Raises Unencodable."""
        for text in _texts(question):
            self._refuse_controls(text, "the prompt")
        text = self.prompt_text(question)
        count = self.image_tokens(size)
        known = self._prompts.get((text, count))
        if known is None:
            known = self._prompts[text, count] = self._checked_prompt(text, count)
        return known

    def encode(self, question: Sequence[Mapping[str, Any]], answer: str, size: tuple[int, int]) -> Encoded:
        """Raises Unencodable."""
        self._refuse_controls(answer, "the answer")
        prompt_ids = self.encode_prompt(question, size)
        text = self.prompt_text(question)
        whole = self._expanded_ids(
            f"{text}{answer_separator(text)}{answer}{self.tokenizer.eos_token}", self.image_tokens(size)
        )
        if whole[: len(prompt_ids)] != prompt_ids:
            raise Unencodable(
                "the prompt's tokens are no prefix of the example's; the chat template merges them"
            )
        answer_ids = whole[len(prompt_ids) :]
        self._check_answer(answer, answer_ids)
        if len(whole) > self._limit:
            raise Unencodable(f"{len(whole)} tokens; the base model reads at most {self._limit}")
        return Encoded(prompt_ids, answer_ids)

    def _check_answer(self, answer: str, answer_ids: tuple[int, ...]) -> None:
        """The trained tokens are the answer, then one end token: neither cut, nor empty, nor in another spelling."""
        if not answer_ids or answer_ids[-1] != self.tokenizer.eos_token_id:
            raise Unencodable("the answer does not end with the end token; it would be cut off")
        if self._image_id in answer_ids:
            raise Unencodable("an image token stands in the answer")
        text = self.tokenizer.decode(
            answer_ids[:-1], skip_special_tokens=False, clean_up_tokenization_spaces=False
        ).strip()
        if not text:
            raise Unencodable("no answer token would be trained")
        if text != answer.strip():
            raise Unencodable(f"the tokenizer makes {text[:60]!r} of the answer {answer[:60]!r}")

    def image_tokens(self, size: tuple[int, int]) -> int:
        """How many places the picture takes; depends on the size only where the family tiles pictures."""
        if self._family == "blip2":
            return int(self.processor.num_query_tokens)
        key = size if self._family == "llava_next" else (0, 0)
        if key not in self._counts:
            blank = Image.new("RGB", size)
            ids = self.processor(text=[self._image_token], images=[blank])["input_ids"][0]
            self._counts[key] = list(ids).count(self._image_id)
        return self._counts[key]

    def _checked_prompt(self, text: str, count: int) -> tuple[int, ...]:
        if text.count(self._image_token) != 1:
            raise Unencodable(
                f"the chat template renders {text.count(self._image_token)} image tokens for one picture"
            )
        ids = self._expanded_ids(text, count)
        if ids.count(self._image_id) != count:
            raise Unencodable(
                f"{ids.count(self._image_id)} image tokens where the picture has {count} features"
            )
        return ids

    def _expanded_ids(self, text: str, count: int) -> tuple[int, ...]:
        ids = self.tokenizer(text.replace(self._image_token, self._image_token * count, 1))["input_ids"]
        return tuple(int(value) for value in ids)

    def _refuse_controls(self, text: str, where: str) -> None:
        for token in (*self._controls, self._image_token):
            if token in text:
                raise Unencodable(f"{where} contains {token!r}, which the tokenizer reads as a control token")


def _texts(question: Sequence[Mapping[str, Any]]) -> list[str]:
    return [
        part["text"]
        for message in template_messages(question)
        for part in message["content"]
        if part["type"] == "text"
    ]
