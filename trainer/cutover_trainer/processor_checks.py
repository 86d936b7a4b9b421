"""Does a model's processor fit its weights? Found before a row is read; transformers says it at the first step, or never.

Pure: a processor and a configuration in, sentences out. What is wrong here puts a picture's features beside the places
kept for them: LLaVA stops with a count that is no count, BLIP-2 trains on without a word.
"""

from __future__ import annotations

from typing import Any

from PIL import Image

from cutover.api.trainingrun import Family

_CLASS_TOKENS = {"clip_vision_model": 1, "siglip_vision_model": 0}
"""Features beyond the patches, by kind of vision tower; other kinds are not checked for it."""
_PROBE_SIZE = (96, 64)


def processor_mistakes(processor: Any, config: Any, family: Family) -> list[str]:
    """What the processor says otherwise than the model; empty when they fit."""
    tokenizer = processor.tokenizer
    found = [_image_token(tokenizer, config)]
    if tokenizer.eos_token_id is None:
        found.append("the tokenizer has no end token, so an answer would never end")
    if family == "blip2":
        found.append(_differs("num_query_tokens", processor.num_query_tokens, config.num_query_tokens))
    else:
        found += _places(processor, config)
        if not getattr(processor, "chat_template", None):
            found.append("there is no chat template, so a question cannot be written as the model knows it")
    if not any(found):
        found.append(_picture_size(processor, config))
    return [one for one in found if one is not None]


def _image_token(tokenizer: Any, config: Any) -> str | None:
    wanted = getattr(config, "image_token_id", None)
    if wanted is None:
        return "config.json names no image_token_index, so nothing says where a picture stands"
    if not 0 <= int(wanted) < len(tokenizer):
        return f"config.json's image_token_index {wanted} is not in the tokenizer's {len(tokenizer)} tokens"
    text_config = config.get_text_config()
    if int(wanted) >= int(text_config.vocab_size):
        return f"image_token_index {wanted} is beyond the model's {text_config.vocab_size} embeddings"
    return None


def _places(processor: Any, config: Any) -> list[str | None]:
    vision = config.vision_config
    found = [
        _differs("patch_size", processor.patch_size, vision.patch_size),
        _differs(
            "vision_feature_select_strategy",
            processor.vision_feature_select_strategy,
            config.vision_feature_select_strategy,
        ),
    ]
    extra = _CLASS_TOKENS.get(str(vision.model_type))
    if extra is not None:
        found.append(_differs("num_additional_image_tokens", processor.num_additional_image_tokens, extra))
    return found


def _picture_size(processor: Any, config: Any) -> str | None:
    pixels = processor.image_processor(images=[Image.new("RGB", _PROBE_SIZE)], return_tensors="np")
    height, width = pixels["pixel_values"].shape[-2:]
    side = int(config.vision_config.image_size)
    if (height, width) == (side, side):
        return None
    return f"the processor makes pictures of {width} x {height} pixels, the model reads {side} x {side}"


def _differs(name: str, said: Any, wanted: Any) -> str | None:
    return None if said == wanted else f"processor_config.json's {name} is {said}, the model's {wanted}"
