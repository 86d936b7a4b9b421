"""Liger's fused kernels (Hsu et al. 2024, arXiv:2410.10989) in the language model: RMSNorm, RoPE and SwiGLU.

Triton kernels, for a card. Not its fused cross entropy: the loss here asks for logits only where labels are, so there is
no large matrix of logits to save. The kernels write gradients over what they have read; nothing else here keeps those
tensors (the adapted layers keep their input's masked copy, never their output).
"""

from __future__ import annotations

from typing import Any

from cutover.api.trainingrun import TrainingRunSpec
from cutover_trainer.joblog import log
from cutover_trainer.models import Hardware
from cutover_trainer.outcome import BadInput, StageFailed

LANGUAGE_MODELS = ("llama", "mistral", "qwen2")
"""Of Liger's, those with all three operators and the module names that are patched here."""


def check(spec: TrainingRunSpec, hardware: Hardware) -> None:
    """Before anything is loaded. Raises BadInput, or StageFailed when another node may have the card."""
    if spec.fine_tune.kernels == "torch" or hardware.device.type == "cuda":
        return
    if spec.compute.gpus > 0:
        raise StageFailed(
            "NoGpu",
            f"fineTune.kernels: liger runs on a card, and of the {spec.compute.gpus} of compute.gpus the pod sees none; "
            "the next attempt may get a sound node",
        )
    raise BadInput(
        "KernelsUnsupported",
        "fineTune.kernels: liger's kernels run on a card only; set compute.gpus above 0, or torch",
    )


def install(base: Any) -> None:
    """Takes the place of the language model's own operators, before the adapter is added. Raises BadInput.

    RoPE is a function of the model's module: until the process ends it is exchanged for every model of that kind.
    """
    text = base.config.get_text_config().model_type
    if text not in LANGUAGE_MODELS:
        raise BadInput(
            "KernelsUnsupported",
            f"fineTune.kernels: liger is used for the language models {', '.join(LANGUAGE_MODELS)}, and baseModel.uri "
            f"has {text}; set torch",
        )
    try:
        from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN
    except ImportError as error:
        raise BadInput(
            "KernelsUnsupported",
            f"fineTune.kernels: liger needs the packages liger-kernel and triton ({error}); leave compute.image empty, "
            "add them to your image, or set torch",
        ) from None
    MODEL_TYPE_TO_APPLY_LIGER_FN[text](
        model=base.model.language_model,
        rope=True,
        rms_norm=True,
        swiglu=True,
        cross_entropy=False,
        fused_linear_cross_entropy=False,
    )
    log("kernels", fused="rmsNorm, rope, swiglu", languageModel=text)
