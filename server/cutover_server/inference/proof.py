"""The adapter proof of the built-in engine: the stored probe asked of the model in memory (see `probe`)."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from typing import Any

import torch

from cutover.chat import template_messages
from cutover.probe import Probe
from cutover_server.inference.generation import collate
from cutover_server.inference.picture import open_picture
from cutover_server.inference.probe import Proof, check_prompt, disproof, judge
from cutover_server.inference.prompt import Inputs, PromptBuilder
from cutover_server.inference.refusal import Refusal, Unservable


def probe_inputs(probe: Probe, prompts: PromptBuilder) -> Inputs:
    """The probe's question as this engine puts it. Raises Unservable when the trainer put it otherwise."""
    try:
        picture = open_picture(base64.b64decode(probe.picture, validate=True))
        inputs = prompts.inputs(template_messages(probe.messages), [picture])
    except (Refusal, ValueError, binascii.Error) as error:
        raise Unservable("ProbeUnreadable", f"the probe's question cannot be put: {error}"[:500]) from error
    asked = inputs["input_ids"][0].tolist()
    check_prompt(asked, probe.prompt_token_ids)
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
    with model.disable_adapter():
        bare = ask(model, inputs, probe.answer_token_ids, pad_id)
    raise disproof(proof, probe.base_logprobs, bare)
