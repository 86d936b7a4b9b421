"""One batch through the model: greedy or sampled tokens with raw log-probabilities, row by row.

Built on transformers' `generate`, watched from inside: every step of every row is handed out as it happens, a row
can be stopped alone, and the time of a step is shared equally by the rows that were running in it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from cutover_server.inference.chat import Sampling
from cutover_server.inference.prompt import Inputs

Finish = Literal["stop", "length", "cancelled"]
_PADDED = {"attention_mask", "token_type_ids", "mm_token_type_ids"}


@dataclass(frozen=True, slots=True)
class Row:
    inputs: Inputs
    max_tokens: int
    top_logprobs: int | None


@dataclass(frozen=True, slots=True)
class Step:
    """One token of one row. The end token is a step as well."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]
    ends: bool
    """An end token: not part of the text."""


@dataclass(slots=True)
class RowRun:
    """How a row went."""

    tokens: int = 0
    finish: Finish | None = None
    busy_seconds: float = 0.0


OnStep = Callable[[int, Step], bool]
"""Called with the row's index; false drops the row."""


def generate(
    model: Any,
    rows: Sequence[Row],
    sampling: Sampling,
    *,
    pad_id: int,
    eos_ids: frozenset[int],
    on_step: OnStep,
) -> list[RowRun]:
    """Run the rows to their ends. Blocks; call it from the one thread that owns the model."""
    watch = _Watch(rows, sampling, eos_ids, on_step)
    if sampling.seed is not None:
        torch.manual_seed(sampling.seed)
    draw = {} if sampling.greedy else {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
    config = GenerationConfig(
        max_new_tokens=max(row.max_tokens for row in rows),
        do_sample=not sampling.greedy,
        pad_token_id=pad_id,
        eos_token_id=sorted(eos_ids),
        **draw,
    )
    with torch.inference_mode():
        model.generate(
            **collate([row.inputs for row in rows], pad_id, model.device, model.dtype),
            generation_config=config,
            logits_processor=LogitsProcessorList([watch.scores]),
            stopping_criteria=StoppingCriteriaList([watch.stop]),
        )
    return watch.runs


def collate(rows: Sequence[Inputs], pad_id: int, device: Any, dtype: torch.dtype) -> Inputs:
    """Rows side by side: text padded on the left, pictures in order."""
    width = max(row["input_ids"].shape[1] for row in rows)
    batch: Inputs = {}
    for name in sorted({name for row in rows for name in row}):
        tensors = [row[name] for row in rows if name in row]
        if name == "input_ids" or name in _PADDED:
            tensors = [_pad_left(tensor, width, pad_id if name == "input_ids" else 0) for tensor in tensors]
        elif name == "pixel_values" and tensors[0].dim() == 5:
            tensors = _pad_patches(tensors)
        joined = torch.cat(tensors, dim=0).to(device)
        batch[name] = joined.to(dtype) if joined.is_floating_point() else joined
    return batch


def _pad_left(tensor: torch.Tensor, width: int, value: int) -> torch.Tensor:
    return torch.nn.functional.pad(tensor, (width - tensor.shape[1], 0), value=value)


def _pad_patches(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    """LLaVA-NeXT: pictures cut into different numbers of patches; the model reads only as many as `image_sizes` say."""
    most = max(tensor.shape[1] for tensor in tensors)
    return [torch.nn.functional.pad(tensor, (0, 0) * 3 + (0, most - tensor.shape[1])) for tensor in tensors]


@dataclass(slots=True)
class _Watch:
    rows: Sequence[Row]
    sampling: Sampling
    eos_ids: frozenset[int]
    on_step: OnStep
    runs: list[RowRun] = field(init=False)
    raw: torch.Tensor | None = None
    since: float = field(default_factory=time.perf_counter)

    def __post_init__(self) -> None:
        self.runs = [RowRun() for _ in self.rows]

    @property
    def scores(self) -> LogitsProcessor:
        return _Scores(self)

    @property
    def stop(self) -> StoppingCriteria:
        return _Stop(self)

    def see_scores(self, scores: torch.Tensor) -> torch.Tensor:
        """Keep the model's own log-probabilities, then shape the distribution that is drawn from."""
        wanted = any(row.top_logprobs is not None for row in self.rows)
        self.raw = torch.log_softmax(scores, dim=-1) if wanted else None
        if self.sampling.greedy:
            return scores
        return nucleus(scores / self.sampling.temperature, self.sampling.top_p)

    def see_tokens(self, chosen: list[int]) -> list[bool]:
        """Which rows are at their end."""
        now = time.perf_counter()
        running = [index for index, run in enumerate(self.runs) if run.finish is None]
        share = (now - self.since) / max(len(running), 1)
        self.since = now
        for index in running:
            run, row = self.runs[index], self.rows[index]
            run.busy_seconds += share
            run.tokens += 1
            ends = chosen[index] in self.eos_ids
            if not self.on_step(index, self._step(index, chosen[index], ends)):
                run.finish = "cancelled"
            elif ends:
                run.finish = "stop"
            elif run.tokens >= row.max_tokens:
                run.finish = "length"
        return [run.finish is not None for run in self.runs]

    def _step(self, index: int, token_id: int, ends: bool) -> Step:
        wanted = self.rows[index].top_logprobs
        if wanted is None or self.raw is None:
            return Step(token_id, 0.0, (), ends)
        raw = self.raw[index]
        top: tuple[tuple[int, float], ...] = ()
        if wanted:
            best = torch.topk(raw, min(wanted, raw.shape[0]))
            top = tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))
        return Step(token_id, float(raw[token_id]), top, ends)


def nucleus(scores: torch.Tensor, top_p: float) -> torch.Tensor:
    """Keep the likeliest tokens that together reach `top_p`; always at least one."""
    if top_p >= 1.0:
        return scores
    ordered, order = torch.sort(scores, descending=True, dim=-1)
    share = torch.softmax(ordered, dim=-1)
    beyond = share.cumsum(dim=-1) - share >= top_p
    return scores.masked_fill(torch.zeros_like(beyond).scatter(-1, order, beyond), float("-inf"))


class _Scores(LogitsProcessor):  # type: ignore[misc]
    def __init__(self, watch: _Watch) -> None:
        self._watch = watch

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return self._watch.see_scores(scores)


class _Stop(StoppingCriteria):  # type: ignore[misc]
    def __init__(self, watch: _Watch) -> None:
        self._watch = watch

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        done = self._watch.see_tokens(input_ids[:, -1].tolist())
        return torch.tensor(done, dtype=torch.bool, device=input_ids.device)
