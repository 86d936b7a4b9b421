"""Liger's kernels run by Triton's interpreter on the CPU. For a process of its own, in which TRITON_INTERPRET is 1 before
triton is imported.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
import triton.runtime.interpreter as interpreter

from cutover.api.trainingrun import FineTune
from cutover_trainer import adapted_linear, fused_kernels, row_dropout
from cutover_trainer.models import Hardware, trainable, with_new_adapter
from cutover_trainer.quantized_base import load_frozen
from fakes import sample_models

CPU = Hardware(torch.device("cpu"), torch.float32, False)
SETTINGS = FineTune.model_validate({"lora": {"rank": 4, "dropout": 0.3}})
ROWS, PLACES = 2, 4


@triton.jit  # type: ignore[untyped-decorator]
def _rsqrt(x: Any) -> Any:
    return tl.rsqrt(x)


def teach_the_interpreter() -> None:
    """Two things it lacks in triton 3.9: a scalar float as a tensor, and CUDA's rsqrt."""
    import liger_kernel.ops.rms_norm

    known = interpreter._implicit_cvt

    def converted(argument: Any) -> Any:
        if not isinstance(argument, float):
            return known(argument)
        return tl.tensor(interpreter.TensorHandle(np.array([argument], np.float32), tl.float32), tl.float32)

    interpreter._implicit_cvt = converted
    liger_kernel.ops.rms_norm.rsqrt = _rsqrt


def adapted(quantization: Any, fused: bool) -> tuple[Any, int]:
    """The model in training, and how many of its layers are in one piece."""
    base = load_frozen(sample_models.tiny_llava(), CPU, quantization)
    if fused:
        fused_kernels.install(base)
    model = with_new_adapter(base, SETTINGS, "base")
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    draw = row_dropout.install(model)
    draw.seed, draw.rows, draw.count, draw.places = (3, 1), ROWS, ROWS, PLACES
    return model.train(), adapted_linear.install(model)


def passed(model: Any) -> list[Any]:
    """Logits and the gradient of every adapter weight."""
    torch.manual_seed(0)
    ids = torch.randint(6, 200, (ROWS, PLACES))
    logits = model(input_ids=ids).logits
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids.flatten()).backward()
    return [logits.detach(), *(parameter.grad for parameter in trainable(model).values())]


def report() -> dict[str, Any]:
    """For a base as it is and one in 4 bits: which classes the language model's operators have, and how far output and
    adapter gradients are from those of torch's operators (relative norms)."""
    torch.set_num_threads(1)
    teach_the_interpreter()
    # Both with torch's operators first: RoPE is exchanged for good.
    kinds = ("none", "nf4")
    wanted = {kind: passed(adapted(kind, fused=False)[0]) for kind in kinds}
    found: dict[str, Any] = {}
    for kind in kinds:
        model, in_one_piece = adapted(kind, fused=True)
        pairs = zip(passed(model), wanted[kind], strict=True)
        layer = model.get_base_model().model.language_model.layers[0]
        operators = (layer.mlp, layer.input_layernorm, layer.post_attention_layernorm)
        found[kind] = {
            "operators": [operator._get_name() for operator in operators],
            "rope": layer.self_attn.forward.__globals__["apply_rotary_pos_emb"].__name__,
            "inOnePiece": in_one_piece,
            "distances": [float((mine - theirs).norm() / theirs.norm()) for mine, theirs in pairs],
        }
    return found
