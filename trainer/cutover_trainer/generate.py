"""Greedy answers of a model, in batches or alone, and how sure it was of the decisive field.

The confidence is the gateway's: the probability of the tokens that spell the value, from the model's own distribution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList

from cutover.confidence import value_probability
from cutover.task import Task
from cutover_trainer.batches import picture_inputs
from cutover_trainer.encoding import Encoder
from cutover_trainer.examples import Example, PreparedData
from cutover_trainer.models import Hardware


@dataclass(frozen=True, slots=True)
class Answer:
    text: str
    confidence: float | None
    """None when the text has no decisive field."""


class Answerer:
    def __init__(
        self, model: Any, encoder: Encoder, data: PreparedData, hardware: Hardware, task: Task
    ) -> None:
        self._model = model
        self._encoder = encoder
        self._data = data
        self._hardware = hardware
        self._task = task

    def answers(self, examples: Sequence[Example]) -> list[Answer]:
        """One per example; the same whatever is asked together, up to rounding."""
        prompts = [self._encoder.encode_prompt(example.question, example.size) for example in examples]
        longest = max(len(prompt) for prompt in prompts)
        ids = torch.full((len(prompts), longest), self._encoder.pad_id)
        mask = torch.zeros_like(ids)
        for number, prompt in enumerate(prompts):
            ids[number, longest - len(prompt) :] = torch.tensor(prompt)
            mask[number, longest - len(prompt) :] = 1
        images = [self._data.picture(example) for example in examples]
        inputs = {"input_ids": ids, "attention_mask": mask, **picture_inputs(self._encoder, images)}
        inputs["pixel_values"] = inputs["pixel_values"].to(self._hardware.dtype)
        sure = _Sureness()
        with torch.no_grad():
            made = self._model.generate(
                **{name: value.to(self._hardware.device) for name, value in inputs.items()},
                max_new_tokens=self._task.max_answer_tokens,
                do_sample=False,
                pad_token_id=self._encoder.pad_id,
                logits_processor=LogitsProcessorList([sure]),
            )
        said = made[:, longest:].tolist()
        logprobs = torch.stack(sure.logprobs, dim=1).tolist()
        return [self._answer(ids, row) for ids, row in zip(said, logprobs, strict=True)]

    def _answer(self, ids: Sequence[int], logprobs: Sequence[float]) -> Answer:
        pieces = self._pieces(ids)
        return Answer(
            b"".join(pieces).decode().strip(),
            value_probability(pieces, logprobs[: len(pieces)], self._task.decisive_field),
        )

    def _pieces(self, ids: Sequence[int]) -> list[bytes]:
        """What each token adds to the text, as the engine hands it out; control tokens add nothing."""
        pieces, text = [], ""
        for end in range(1, len(ids) + 1):
            whole = str(
                self._encoder.tokenizer.decode(
                    ids[:end], skip_special_tokens=True, clean_up_tokenization_spaces=False
                )
            )
            # A token that ends inside a character adds nothing yet.
            piece = "" if whole.endswith("\N{REPLACEMENT CHARACTER}") else whole[len(text) :]
            pieces.append(piece.encode())
            text += piece
        return pieces


class _Sureness(LogitsProcessor):  # type: ignore[misc]
    """Notes the log-probability of the likeliest token, which greedy decoding takes, and changes nothing."""

    def __init__(self) -> None:
        self.logprobs: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        wide = scores.float()
        self.logprobs.append(wide.max(dim=-1).values - torch.logsumexp(wide, dim=-1))
        return scores
