"""The adapter proof: does the served model answer the stored probe as the trained one did?

The trainer stores one question with the log-probabilities its adapter, and the bare base, give the answer. The
served model's must be nearer to the trained ones than a tenth of the distance between the two (mean absolute
difference per answer token). `judge` is pure; `ask` runs the model.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from cutover.chat import template_messages
from cutover_server.inference.generation import collate
from cutover_server.inference.picture import open_picture
from cutover_server.inference.prompt import Inputs, PromptBuilder
from cutover_server.inference.refusal import Refusal, Unservable

PROBE_FILE = "probe.json"
TOLERATED_SHARE = 0.1
LEAST_BASE_DISTANCE = 1e-3
"""Below it the probe cannot tell the adapter from the base (nats per token)."""


class Probe(BaseModel):
    """`probe.json` of an adapter folder."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    picture: str
    messages: list[dict[str, Any]]
    prompt_token_ids: list[int]
    answer_token_ids: list[int]
    adapter_logprobs: list[float]
    base_logprobs: list[float]


@dataclass(frozen=True, slots=True)
class Proof:
    """Distances in nats per answer token."""

    distance: float
    base_distance: float

    @property
    def holds(self) -> bool:
        return (
            self.base_distance >= LEAST_BASE_DISTANCE
            and self.distance <= TOLERATED_SHARE * self.base_distance
        )


def judge(served: Sequence[float], trained: Sequence[float], base: Sequence[float]) -> Proof:
    return Proof(distance=_mean_distance(served, trained), base_distance=_mean_distance(base, trained))


def _mean_distance(one: Sequence[float], other: Sequence[float]) -> float:
    return sum(abs(a - b) for a, b in zip(one, other, strict=True)) / len(one)


def read_probe(folder: Path) -> Probe | None:
    """The stored probe; none when the folder has no probe.json. Raises Unservable for an unusable one."""
    path = folder / PROBE_FILE
    if not path.is_file():
        return None
    try:
        probe = Probe.model_validate(json.loads(path.read_bytes()))
    except (ValueError, ValidationError) as error:
        raise Unservable("ProbeUnreadable", f"{PROBE_FILE} of {folder.name}: {error}"[:500]) from error
    lengths = {len(probe.answer_token_ids), len(probe.adapter_logprobs), len(probe.base_logprobs)}
    if lengths == {0} or len(lengths) != 1:
        raise Unservable(
            "ProbeUnreadable", f"{PROBE_FILE} of {folder.name}: answer and log-probabilities differ in length"
        )
    return probe


def probe_inputs(probe: Probe, prompts: PromptBuilder) -> Inputs:
    """The probe's question as this engine puts it. Raises Unservable when the trainer put it otherwise."""
    try:
        picture = open_picture(base64.b64decode(probe.picture, validate=True))
        inputs = prompts.inputs(template_messages(probe.messages), [picture])
    except (Refusal, ValueError, binascii.Error) as error:
        raise Unservable("ProbeUnreadable", f"the probe's question cannot be put: {error}"[:500]) from error
    asked = inputs["input_ids"][0].tolist()
    if asked != probe.prompt_token_ids:
        first = next(
            (i for i, (a, b) in enumerate(zip(asked, probe.prompt_token_ids, strict=False)) if a != b),
            min(len(asked), len(probe.prompt_token_ids)),
        )
        raise Unservable(
            "PromptMismatch",
            f"the prompt differs from the one trained on: {len(asked)} tokens against "
            f"{len(probe.prompt_token_ids)}, first difference at {first}; processor, template or tokenizer is another",
        )
    return inputs


def ask(model: Any, inputs: Inputs, answer_ids: Sequence[int], pad_id: int) -> list[float]:
    """Log-probability the model gives each token of the answer, teacher forced."""
    answer = torch.tensor([list(answer_ids)], dtype=torch.long)
    extended = dict(inputs)
    for name, tensor in inputs.items():
        if name == "input_ids":
            extended[name] = torch.cat([tensor, answer], dim=1)
        elif name in ("attention_mask", "token_type_ids", "mm_token_type_ids"):
            filler = torch.full_like(answer, 1 if name == "attention_mask" else 0)
            extended[name] = torch.cat([tensor, filler], dim=1)
    with torch.inference_mode():
        logits = model(**collate([extended], pad_id, model.device, model.dtype)).logits[0].float().cpu()
    predicting = logits[-len(answer_ids) - 1 : -1]
    table = torch.log_softmax(predicting, dim=-1)
    return [float(value) for value in table.gather(1, answer.T).squeeze(1)]


def prove(model: Any, probe: Probe, prompts: PromptBuilder, pad_id: int) -> Proof:
    """`model` is a PeftModel. Raises Unservable, naming base or adapter as the cause, unless the proof holds."""
    inputs = probe_inputs(probe, prompts)
    served = ask(model, inputs, probe.answer_token_ids, pad_id)
    proof = judge(served, probe.adapter_logprobs, probe.base_logprobs)
    if proof.holds:
        return proof
    if proof.base_distance < LEAST_BASE_DISTANCE:
        raise Unservable(
            "ProbeTellsNothing",
            f"the probe's adapter and base differ by {proof.base_distance:.2g} nats per token only: the adapter "
            "changes nothing there, so nothing can be proven",
        )
    with model.disable_adapter():
        bare = ask(model, inputs, probe.answer_token_ids, pad_id)
    off = _mean_distance(bare, probe.base_logprobs)
    if off > TOLERATED_SHARE * proof.base_distance:
        cause = f"the base is another one: without the adapter it is {off:.3g} off the stored base values"
    else:
        cause = "the base is the right one, the adapter is not applied as trained"
    raise Unservable(
        "AdapterProofFailed",
        f"served log-probabilities are {proof.distance:.3g} nats per token from the trained ones; at most "
        f"{TOLERATED_SHARE * proof.base_distance:.3g} is allowed (a tenth of the base-adapter distance "
        f"{proof.base_distance:.3g}); {cause}",
    )
