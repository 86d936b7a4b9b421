"""An adapted layer in one piece gives what PEFT's five operations give, and leaves to PEFT what it does not know."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils.checkpoint import checkpoint

from cutover_trainer import adapted_linear, row_dropout

ROWS, PLACES, WIDTH = 3, 5, 12


def adapted(
    dropout: float, dtype: Any = torch.float32, dora: bool = False
) -> tuple[Any, Any, row_dropout.Draw]:
    """(model, its adapted layer, the draw), the same weights at each call."""
    torch.manual_seed(5)
    base = torch.nn.Sequential(torch.nn.Linear(WIDTH, 7, dtype=dtype))
    config = LoraConfig(r=4, lora_alpha=8, lora_dropout=dropout, target_modules=["0"], use_dora=dora)
    model = get_peft_model(base, config)
    layer = model.base_model.model[0]
    torch.nn.init.normal_(layer.lora_B["default"].weight)
    draw = row_dropout.install(model)
    draw.seed, draw.rows, draw.count, draw.places = (3, 1), ROWS, ROWS, PLACES
    return model.train(), layer, draw


def passed(model: Any, layer: Any, dtype: Any, recomputed: bool = False) -> list[Any]:
    """Output and gradients of the input and of both adapter weights."""
    torch.manual_seed(6)
    x = torch.randn(ROWS, PLACES, WIDTH, dtype=dtype, requires_grad=True)
    with torch.autocast("cpu", dtype, enabled=dtype is not torch.float32):
        y = checkpoint(model, x, use_reentrant=False) if recomputed else model(x)
    (y.float() * torch.arange(7.0)).sum().backward()
    return [y, x.grad, layer.lora_A["default"].weight.grad, layer.lora_B["default"].weight.grad]


@pytest.mark.parametrize("recomputed", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 1e-5), (torch.bfloat16, 0.03)])
def test_output_and_gradients_are_those_of_peft(
    dtype: Any, near: float, dropout: float, recomputed: bool
) -> None:
    model, layer, _ = adapted(dropout, dtype)
    wanted = passed(model, layer, dtype)
    model, layer, _ = adapted(dropout, dtype)
    assert adapted_linear.install(model) == 1
    found = passed(model, layer, dtype, recomputed)
    for mine, theirs in zip(found, wanted, strict=True):
        assert mine.dtype == theirs.dtype
        assert float((mine - theirs).detach().float().norm() / theirs.detach().float().norm()) < near


def test_without_training_and_without_the_adapter_it_answers_as_before() -> None:
    model, layer, _ = adapted(0.4)
    model.eval()
    x = torch.randn(2, WIDTH)
    by_peft = model(x)
    adapted_linear.install(model)
    assert torch.allclose(model(x), by_peft, atol=1e-6)
    with model.disable_adapter():
        assert torch.equal(model(x), layer.base_layer(x))


def test_what_it_does_not_know_stays_with_peft() -> None:
    model, _, _ = adapted(0.0, dora=True)
    assert adapted_linear.install(model) == 0
