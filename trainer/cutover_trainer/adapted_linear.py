"""An adapted linear layer in one piece: y = W x + s B A (m x), forward and backward.

PEFT composes it of five operations, and autograd keeps and walks each. Here the base weight asks for no gradient, the two
sums go into the matrix products that make them, and of the input only its masked copy is kept. Same mathematics, same
parameters and files; whatever PEFT can do beyond a plain adapter of a plain layer is left to PEFT.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora.layer import Linear as AdaptedLinear

from cutover_trainer.row_dropout import RowDropout


class _Pass(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(ctx: Any, x: Any, weight: Any, bias: Any, a: Any, b: Any, mask: Any, scale: float) -> Any:
        """`x` [..., in], `weight` [out, in], `a` [rank, in], `b` [out, rank], `mask` of 0 and 1 like `x` or None. Answers
        [..., out] in the weight's type; a and b stay in their own, and so do their gradients."""
        rows = x.reshape(-1, x.shape[-1]).to(weight.dtype)
        masked = rows if mask is None else rows * mask.reshape(rows.shape)
        down, up = a.to(weight.dtype), (b * scale).to(weight.dtype)
        inner = masked @ down.t()
        y = torch.nn.functional.linear(rows, weight, bias).addmm_(inner, up.t())
        ctx.save_for_backward(masked, weight, down, up, inner, mask)
        ctx.scale, ctx.input, ctx.adapter_type = scale, (x.shape, x.dtype), a.dtype
        return y.view(*x.shape[:-1], weight.shape[0])

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        masked, weight, down, up, inner, mask = ctx.saved_tensors
        of_y = gradients[0].reshape(-1, weight.shape[0])
        of_inner = of_y @ up
        of_a = (of_inner.t() @ masked).to(ctx.adapter_type)
        of_b = (of_y.t() @ inner).to(ctx.adapter_type).mul_(ctx.scale)
        of_x = None
        if ctx.needs_input_grad[0]:
            shape, dtype = ctx.input
            of_x = of_inner @ down
            if mask is not None:
                of_x.mul_(mask.reshape(of_x.shape))
            of_x = of_x.addmm_(of_y, weight).view(shape).to(dtype)
        return of_x, None, None, of_a, of_b, None, None


def install(model: Any) -> int:
    """Takes the place of PEFT's forward in every layer it fits; answers how many. After `row_dropout.install`."""
    found = [module for module in model.modules() if _fits(module)]
    for module in found:
        module.forward = _forward_of(module, module.forward)
    return len(found)


def _fits(module: Any) -> bool:
    """Quantized and tied base layers, variants such as DoRA, and biases of the adapter stay with PEFT."""
    if not isinstance(module, AdaptedLinear) or type(module.base_layer) is not torch.nn.Linear:
        return False
    names = list(module.lora_A)
    if (
        len(names) != 1
        or module.fan_in_fan_out
        or module.lora_variant
        or module.base_layer.weight.requires_grad
    ):
        return False
    dropout = module.lora_dropout[names[0]]
    return isinstance(dropout, RowDropout | torch.nn.Identity) and not module.lora_bias[names[0]]


def _forward_of(module: Any, by_peft: Any) -> Any:
    (name,) = module.lora_A
    base, dropout = module.base_layer, module.lora_dropout[name]
    a, b = module.lora_A[name], module.lora_B[name]

    def forward(x: Any, *more: Any, **named: Any) -> Any:
        if module.disable_adapters or module.merged or more or named:
            return by_peft(x, *more, **named)
        mask, kept = None, 1.0
        if isinstance(dropout, RowDropout) and dropout.drops:
            mask, kept = dropout.mask(x, base.weight.dtype), dropout.kept_share
        scale = module.scaling[name] / kept
        return _Pass.apply(x, base.weight, base.bias, a.weight, b.weight, mask, scale)

    return forward
