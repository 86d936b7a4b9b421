"""Tiny vision-language models with random weights, made from configuration in a second: no download.

They know nothing; they are for testing how a model is loaded, asked and served. Folders are built once a process.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import io
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from PIL import Image, ImageDraw
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    BlipImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaImageProcessor,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    LlavaProcessor,
    OPTConfig,
    PreTrainedTokenizerFast,
)

SIDE_PIXELS = 32
PATCH_PIXELS = 8
SYSTEM = "You assess buildings. Answer in JSON."
QUESTION = "What damage does the photo show?"
ANSWER = ' {"damageType": "crack", "severity": "low"}'
LANGUAGE_TARGETS = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}USER: {% elif message['role'] == 'assistant' %}ASSISTANT: {% endif %}"
    "{% for part in message['content'] if part['type'] == 'image' %}<image>\n{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{% if message['role'] == 'assistant' %}</s>{% else %} {% endif %}"
    "{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def _scratch() -> Path:
    return Path(tempfile.mkdtemp(prefix="sample-models-"))


def _tokenizer(image_attribute: bool = True) -> PreTrainedTokenizerFast:
    core = Tokenizer(models.BPE(unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    special = ["<unk>", "<s>", "</s>", "<pad>", "<image>"]
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator([SYSTEM, QUESTION, ANSWER] * 8, trainer)
    extra = {"extra_special_tokens": {"image_token": "<image>"}} if image_attribute else {}
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        **extra,
    )


def _text_config(tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=256,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=False,
        initializer_range=0.3,
    )


def _vision_config() -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=SIDE_PIXELS,
        patch_size=PATCH_PIXELS,
        projection_dim=32,
    )


@functools.cache
def tiny_llava(seed: int = 0) -> Path:
    """A LLaVA-1.5-like base folder; another seed gives other weights of the same shape."""
    folder = _scratch() / f"tiny-llava-{seed}"
    tokenizer = _tokenizer()
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=_vision_config(),
            text_config=_text_config(tokenizer),
            image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
            image_seq_length=(SIDE_PIXELS // PATCH_PIXELS) ** 2,
            vision_feature_layer=-2,
            vision_feature_select_strategy="default",
        )
    )
    size = {"height": SIDE_PIXELS, "width": SIDE_PIXELS}
    processor = LlavaProcessor(
        image_processor=LlavaImageProcessor(size=size, crop_size=size, do_center_crop=False),
        tokenizer=tokenizer,
        patch_size=PATCH_PIXELS,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@functools.cache
def tiny_llava_next() -> Path:
    """LLaVA-NeXT: a picture becomes a number of patches that depends on its shape."""
    folder = _scratch() / "tiny-llava-next"
    tokenizer = _tokenizer()
    torch.manual_seed(0)
    pinpoints = [[SIDE_PIXELS, 2 * SIDE_PIXELS], [2 * SIDE_PIXELS, SIDE_PIXELS], [2 * SIDE_PIXELS] * 2]
    model = LlavaNextForConditionalGeneration(
        LlavaNextConfig(
            vision_config=_vision_config(),
            text_config=_text_config(tokenizer),
            image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
            image_grid_pinpoints=pinpoints,
            vision_feature_layer=-2,
            vision_feature_select_strategy="default",
        )
    )
    images = LlavaNextImageProcessor(
        size={"shortest_edge": SIDE_PIXELS},
        crop_size={"height": SIDE_PIXELS, "width": SIDE_PIXELS},
        image_grid_pinpoints=pinpoints,
    )
    processor = LlavaNextProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=PATCH_PIXELS,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@functools.cache
def tiny_blip2() -> Path:
    """BLIP-2 with an OPT decoder; no chat template."""
    folder = _scratch() / "tiny-blip2"
    tokenizer = _tokenizer(image_attribute=False)
    torch.manual_seed(0)
    ids = {
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    model = Blip2ForConditionalGeneration(
        Blip2Config(
            vision_config=Blip2VisionConfig(
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=2,
                image_size=SIDE_PIXELS,
                patch_size=PATCH_PIXELS,
                initializer_range=0.2,
            ),
            qformer_config=Blip2QFormerConfig(
                vocab_size=len(tokenizer),
                hidden_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                intermediate_size=64,
                encoder_hidden_size=32,
                pad_token_id=tokenizer.pad_token_id,
            ),
            text_config=OPTConfig(
                vocab_size=len(tokenizer),
                hidden_size=32,
                word_embed_proj_dim=32,
                ffn_dim=64,
                num_hidden_layers=2,
                num_attention_heads=2,
                max_position_embeddings=256,
                dropout=0.0,
                init_std=0.3,
                **ids,
            ),
            num_query_tokens=4,
            image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        )
    )
    torch.nn.init.normal_(model.query_tokens, std=0.2)
    size = {"height": SIDE_PIXELS, "width": SIDE_PIXELS}
    processor = Blip2Processor(BlipImageProcessor(size=size), tokenizer, num_query_tokens=4)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def load(folder: Path) -> tuple[Any, Any]:
    """Model and processor straight from transformers."""
    model = AutoModelForImageTextToText.from_pretrained(str(folder), dtype=torch.float32)
    return model.eval(), AutoProcessor.from_pretrained(str(folder))


@functools.cache
def lora_adapter(base: Path, rank: int = 4, seed: int = 1) -> Path:
    """A LoRA adapter that changes the base's answers, with its processor, card, probe and manifest."""
    folder = _scratch() / f"adapter-r{rank}-{seed}"
    model, processor = load(base)
    torch.manual_seed(seed)
    adapted = get_peft_model(model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=LANGUAGE_TARGETS))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    adapted.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    (folder / "probe.json").write_text(json.dumps(probe(adapted, processor)))
    write_manifest(folder)
    return folder


def probe(adapted: PeftModel, processor: Any) -> dict[str, Any]:
    """What a trainer stores, reckoned with transformers and peft alone."""
    image = picture(7)
    parts = [{"type": "image"}, {"type": "text", "text": QUESTION}]
    system = {"role": "system", "content": [{"type": "text", "text": SYSTEM}]}
    text = processor.apply_chat_template(
        [system, {"role": "user", "content": parts}], tokenize=False, add_generation_prompt=True
    )
    prompt = processor(images=[image], text=[text], return_tensors="pt")
    answer = processor.tokenizer(ANSWER + "</s>", add_special_tokens=False)["input_ids"]
    user = [
        {"type": "image_url", "image_url": {"url": "probe:picture"}},
        {"type": "text", "text": QUESTION},
    ]
    adapter_logprobs = forced_logprobs(adapted, prompt, answer)
    with adapted.disable_adapter():
        base_logprobs = forced_logprobs(adapted, prompt, answer)
    return {
        "picture": base64.b64encode(png(image)).decode(),
        "messages": [{"role": "system", "content": SYSTEM}, {"role": "user", "content": user}],
        "answer": ANSWER.strip(),
        "prompt_token_ids": prompt["input_ids"][0].tolist(),
        "answer_token_ids": answer,
        "adapter_logprobs": adapter_logprobs,
        "base_logprobs": base_logprobs,
    }


def forced_logprobs(model: Any, prompt: Mapping[str, torch.Tensor], answer: list[int]) -> list[float]:
    """One plain forward pass over prompt and answer."""
    tail = torch.tensor([answer])
    inputs = {**prompt, "input_ids": torch.cat([prompt["input_ids"], tail], dim=1)}
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    inputs.pop("mm_token_type_ids", None)
    with torch.inference_mode():
        table = torch.log_softmax(model(**inputs).logits[0].float(), dim=-1)
    start = prompt["input_ids"].shape[1] - 1
    return [float(table[start + at, token]) for at, token in enumerate(answer)]


def write_manifest(folder: Path) -> None:
    files = {
        path.name: {
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "size": path.stat().st_size,
        }
        for path in sorted(folder.iterdir())
        if path.is_file() and path.name != "MANIFEST.json"
    }
    (folder / "MANIFEST.json").write_text(json.dumps({"schema_version": 1, "files": files}))


def picture(seed: int, width: int = 48, height: int = 40) -> Image.Image:
    """A wall with a line on it."""
    image = Image.new("RGB", (width, height), (40 + 29 * seed % 200, 90, 200 - 31 * seed % 180))
    pen = ImageDraw.Draw(image)
    pen.line((0, 5 * seed % height, width, 11 * seed % height), fill=(250, 250, 20), width=3)
    return image


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def data_url(image: Image.Image) -> str:
    return "data:image/png;base64," + base64.b64encode(png(image)).decode()


def question(seed: int, text: str = QUESTION) -> list[dict[str, Any]]:
    """OpenAI messages with one picture."""
    url = data_url(picture(seed))
    parts = [{"type": "text", "text": text}, {"type": "image_url", "image_url": {"url": url}}]
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": parts}]
