"""The vLLM pod of the contract: what the operator renders for it, and the model files it finds.

One base, the tests' LLaVA in the layout that llava-hf's models have on the hub, and three adapters of the trainer:
`damage` as it should be, `bare` with the prefix of another architecture, `vision` that adapts the vision tower as well.
"""

from __future__ import annotations

import functools
import json
import math
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from cutover.api.modelrollout import ModelRolloutSpec
from cutover.api.trainingrun import Lora
from cutover.task import Task
from cutover_operator.rollout.candidate import ServedModel, served_model
from cutover_operator.rollout.resources import Images, Owner, deployment
from cutover_trainer.examples import Example
from fakes.rollout_town import rollout_spec
from fakes.trained_adapter import example, write
from fakes.training_example import BASE_MODEL, task

BASE_PATH = "/models/models/tiny-llava"
ADAPTERS_PATH = "/models/artifacts"
ADAPTERS = ("damage", "bare", "vision")
NAME = "damage-7"
"""What the adapter is served under."""
SEED, SPREAD = 30, 0.02
"""Of the drawn weights, found by trying: another answer than the base's, and still JSON."""
WEIGHTS = "model.safetensors"
HEAD_WIDTH = 32
ADAPTER_WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True, slots=True)
class Rendered:
    """How the operator starts the engine."""

    command: list[str]
    args: list[str]
    environment: dict[str, str]


def rendered(adapter: str = "damage") -> Rendered:
    model = {
        "version": NAME,
        "uri": f"claim://{BASE_PATH.removeprefix('/models/')}",
        "adapterUri": f"claim://artifacts/{adapter}",
        "family": "llava",
    }
    spec = ModelRolloutSpec.model_validate(
        rollout_spec(serving={"engine": "vllm"}, candidate={"model": model})
    )
    served = served_model(spec, None)
    assert isinstance(served, ServedModel), served
    made = deployment(spec, served, Owner("cut", "claims", "uid-1"), Images("engine", "vllm", "tgi"))
    containers = made["spec"]["template"]["spec"]["containers"]
    engine = next(one for one in containers if one["name"] == "engine")
    return Rendered(engine["command"], engine["args"], {one["name"]: one["value"] for one in engine["env"]})


def question(seed: int, folder: Path) -> Example:
    asked: Task = task()
    answer = json.dumps({"damageType": "crack", "severity": "moderate"})
    return example(folder, seed, asked.system_prompt, asked.user_prompt, answer)


def make_base(target: Path) -> None:
    """The tests' LLaVA as vLLM can load it: the same function of its inputs, in other files.

    The vision tower's weights get the names they have in llava-hf's models on the hub. The heads of the language model
    are widened from 24 to 32 with zeros, since vLLM has no attention for 24 on a CPU.
    """
    shutil.copytree(BASE_MODEL, target)
    config = json.loads((target / "config.json").read_text())
    text = config["text_config"]
    heads, width = text["num_attention_heads"], text["head_dim"]
    text["head_dim"] = HEAD_WIDTH
    # Pair i of a head turns by theta^(-2i/width) per position; this keeps the angles.
    rope = text["rope_parameters"]
    rope["rope_theta"] **= HEAD_WIDTH / width
    (target / "config.json").write_text(json.dumps(config, indent=1))
    weights = {}
    for name, tensor in load_file(target / WEIGHTS).items():
        renamed = name.replace("vision_tower.", "vision_tower.vision_model.", 1)
        if name.startswith("language_model.") and re.search(r"\.[qkv]_proj\.", name):
            tensor = _widened(tensor, heads, width)
        elif name.startswith("language_model.") and ".o_proj." in name:
            tensor = _widened(tensor.T, heads, width).T.contiguous()
        if name.startswith("language_model.") and ".q_proj." in name:
            # Scores are divided by the root of the width.
            tensor = tensor * math.sqrt(HEAD_WIDTH / width)
        weights[renamed] = tensor
    save_file(weights, target / WEIGHTS, metadata={"format": "pt"})


def _widened(weight: torch.Tensor, heads: int, width: int) -> torch.Tensor:
    """[heads * width, n] to [heads * HEAD_WIDTH, n]; the halves that are turned together stay half a head apart."""
    old = weight.reshape(heads, 2, width // 2, -1)
    new = torch.zeros(heads, 2, HEAD_WIDTH // 2, old.shape[-1], dtype=weight.dtype)
    new[:, :, : width // 2] = old
    return new.reshape(heads * HEAD_WIDTH, -1)


@functools.cache
def files() -> Path:
    """The pod's root with all model files; made once a process."""
    root = Path(tempfile.mkdtemp(prefix="vllm-pod-"))
    make_files(root)
    return root


def make_files(root: Path) -> None:
    base = under(root, BASE_PATH)
    base.parent.mkdir(parents=True)
    make_base(base)
    for kind in ADAPTERS:
        folder = under(root, f"{ADAPTERS_PATH}/{kind}")
        folder.parent.mkdir(parents=True, exist_ok=True)
        make_adapter(kind, base, folder, root / "scratch" / kind)


def under(root: Path, path: str) -> Path:
    """Where a path of the pod lies here."""
    return root / path.lstrip("/")


def make_adapter(kind: str, base: Path, target: Path, scratch: Path) -> None:
    targets: Any = "language_model_and_vision" if kind == "vision" else "language_model"
    scratch.mkdir(parents=True)
    folder = write(
        scratch,
        base,
        "llava",
        Lora(rank=4, targets=targets),
        seed=SEED,
        spread=SPREAD,
        examples=[question(seed, scratch) for seed in range(4)],
    )
    shutil.copytree(folder, target)
    if kind == "bare":
        _strip_prefix(target)


def _strip_prefix(folder: Path) -> None:
    """As if trained on the bare language model: the right numbers under names this architecture does not have."""
    weights = load_file(folder / ADAPTER_WEIGHTS)
    renamed = {name.replace("language_model.", "", 1): tensor for name, tensor in weights.items()}
    assert renamed.keys().isdisjoint(weights)
    save_file(renamed, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    config = json.loads((folder / "adapter_config.json").read_text())
    config["target_modules"] = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    (folder / "adapter_config.json").write_text(json.dumps(config))
