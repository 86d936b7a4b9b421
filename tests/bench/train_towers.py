"""Vision towers and what reusing their features can save: shares of the work reckoned from published sizes, and a base
model whose tower is nearly half of a step."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from fakes.training_example import BASE_MODEL


@dataclass(frozen=True)
class Published:
    """Sizes of a model, in weights and places. Sources: the models' own configurations."""

    name: str
    tower_weights: float
    tower_places: int
    language_weights: float
    picture_places: int
    """Of the language model."""
    text_places: int = 200

    @property
    def tower_share(self) -> float:
        """Of a LoRA step without recomputation: 2 flops a weight and place forward, 4 for the adapted language model
        (forward, and backward to the activations)."""
        tower = 2 * self.tower_weights * self.tower_places
        return tower / (tower + 4 * self.language_weights * (self.picture_places + self.text_places))


PUBLISHED = (
    Published("LLaVA-1.5-7B (CLIP ViT-L/14-336)", 0.304e9, 577, 6.74e9, 576),
    Published("LLaVA-NeXT-7B, five tiles", 0.304e9, 5 * 577, 7.24e9, 2880),
    Published("BLIP-2 OPT-2.7B (ViT-g/14, 32 queries)", 0.99e9 + 0.19e9, 257, 2.65e9, 32),
    Published("LLaVA-OneVision-0.5B, one tile (SigLIP-so400m)", 0.43e9, 729, 0.49e9, 729),
    Published("SmolVLM-256M, one tile (SigLIP-93M, 64 places)", 0.093e9, 1024, 0.135e9, 64),
)


@dataclass(frozen=True)
class Shape:
    """A base whose tower is a larger part of a step than the test base's."""

    name: str
    tower_layers: int
    tower_width: int


SHAPES = (Shape("tower-30", 6, 192), Shape("tower-50", 12, 192), Shape("tower-70", 12, 320))


def base_of(shape: Shape, folder: Path) -> Path:
    """The test base with a deeper and wider tower of random weights: a share of a step as in models that pool a tower's
    features before the language model reads them."""
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(BASE_MODEL)
    vision = config.vision_config
    vision.hidden_size, vision.intermediate_size = shape.tower_width, 4 * shape.tower_width
    vision.num_hidden_layers, vision.num_attention_heads = shape.tower_layers, shape.tower_width // 32
    model = AutoModelForImageTextToText.from_config(config)
    known = AutoModelForImageTextToText.from_pretrained(BASE_MODEL)
    model.model.language_model.load_state_dict(known.model.language_model.state_dict())
    model.lm_head.load_state_dict(known.lm_head.state_dict())
    model.save_pretrained(folder)
    for file in BASE_MODEL.iterdir():
        if file.name not in ("config.json", "model.safetensors", "README.md"):
            shutil.copy(file, folder)
    return folder
