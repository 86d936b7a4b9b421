"""Greedy answers of a model, in batches or alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from cutover_trainer.batches import picture_inputs
from cutover_trainer.encoding import Encoder
from cutover_trainer.examples import Example, PreparedData
from cutover_trainer.models import Hardware


class Answerer:
    def __init__(
        self, model: Any, encoder: Encoder, data: PreparedData, hardware: Hardware, max_answer_tokens: int
    ) -> None:
        self._model = model
        self._encoder = encoder
        self._data = data
        self._hardware = hardware
        self._max_answer_tokens = max_answer_tokens

    def answers(self, examples: Sequence[Example]) -> list[str]:
        """One text per example; the same whatever is asked together, up to rounding."""
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
        with torch.no_grad():
            made = self._model.generate(
                **{name: value.to(self._hardware.device) for name, value in inputs.items()},
                max_new_tokens=self._max_answer_tokens,
                do_sample=False,
                pad_token_id=self._encoder.pad_id,
            )
        texts = self._encoder.tokenizer.batch_decode(made[:, longest:], skip_special_tokens=True)
        return [str(text).strip() for text in texts]
