"""Build the tiny LLaVA base model of the example: `python base_model.py OUT`.

The classes are those of the real thing (LlavaForConditionalGeneration, LlavaProcessor), the size is 0.6 million
parameters. It is pretrained on neutral pictures (shapes on surfaces), and on the surveyor's prompt with *random*
answers: so it knows the words and the JSON, and nothing about which damage looks like what. Before fine-tuning its
accuracy is chance; what a training run adds is therefore visible. Fixed seeds; no network.

1. the vision tower learns shape, surface, colour and size through heads that are thrown away (CLIP's part)
2. projector and language model learn to caption (LLaVA's alignment), every fourth batch is a random JSON answer
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from pictures import (
    COLOURS,
    DAMAGE_TYPES,
    SEVERITIES,
    SHAPES,
    SIZE_PIXELS,
    SIZES,
    SURFACES,
    NeutralPicture,
    neutral_picture,
    task_document,
)
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaImageProcessor,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

PATCH_PIXELS = 8
IMAGE_TOKEN = "<image>"  # noqa: S105
CAPTION_PROMPT = "Describe the picture."
IGNORED = -100
BATCH = 8
TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message.role != 'system' -%}{{ message.role | upper }}: {% endif -%}"
    "{%- for part in message.content if part.type == 'image' -%}{{ '<image>\n' }}{%- endfor -%}"
    "{%- for part in message.content if part.type == 'text' -%}{{ part.text }} {% endfor -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}ASSISTANT:{%- endif -%}"
)
"""Vicuna's layout as LLaVA 1.5 uses it: pictures first, the answer follows `ASSISTANT:`."""


# ------------------------------------------------------------------ tokenizer, processor, model
def answer_text(damage_type: str, severity: str) -> str:
    return json.dumps({"damageType": damage_type, "severity": severity})


def tokenizer(captions: list[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE that keeps a word such as `water_damage` whole."""
    task = task_document()
    prompts = [task["systemPrompt"], task["userPrompt"], CAPTION_PROMPT, "USER: \nASSISTANT: "]
    answers = [answer_text(damage_type, severity) for damage_type in DAMAGE_TYPES for severity in SEVERITIES]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r" ?\w+| ?[^\s\w]+|\s+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=768,
        special_tokens=["<unk>", "<s>", "</s>", "<pad>", IMAGE_TOKEN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(prompts * 50 + answers * 5 + captions, trainer)
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        padding_side="right",
        extra_special_tokens={"image_token": IMAGE_TOKEN},
        **special,
    )


def processor(words: PreTrainedTokenizerFast) -> LlavaProcessor:
    side = {"height": SIZE_PIXELS, "width": SIZE_PIXELS}
    return LlavaProcessor(
        image_processor=LlavaImageProcessor(size=side, crop_size=side, do_center_crop=False),
        tokenizer=words,
        patch_size=PATCH_PIXELS,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )


def untrained(words: PreTrainedTokenizerFast) -> LlavaForConditionalGeneration:
    vision = CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=SIZE_PIXELS,
        patch_size=PATCH_PIXELS,
        projection_dim=64,
    )
    text = LlamaConfig(
        vocab_size=len(words),
        hidden_size=96,
        intermediate_size=264,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        pad_token_id=words.pad_token_id,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        tie_word_embeddings=False,
    )
    return LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=vision,
            text_config=text,
            image_token_index=words.convert_tokens_to_ids(IMAGE_TOKEN),
            image_seq_length=(SIZE_PIXELS // PATCH_PIXELS) ** 2,
            vision_feature_layer=-2,
            vision_feature_select_strategy="default",
        )
    )


# ------------------------------------------------------------------ pretraining
def optimise(
    name: str,
    parameters: list[torch.nn.Parameter],
    steps: int,
    learning_rate: float,
    loss_of: Callable[[int], torch.Tensor],
) -> None:
    """AdamW, short warm-up, cosine; `loss_of(step)` draws its own batch."""
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.01, betas=(0.9, 0.98))
    started, recent = time.monotonic(), 0.0
    for step in range(steps):
        rise = min(1.0, (step + 1) / (0.06 * steps))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * min(rise, 0.02 + 0.5 * (1 + math.cos(math.pi * step / steps)))
        loss = loss_of(step)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        recent += loss.item()
        if (step + 1) % 500 == 0 or step + 1 == steps:
            mean = recent / (step % 500 + 1)
            print(f"{name} {step + 1}/{steps} loss {mean:.3f} {time.monotonic() - started:.0f} s", flush=True)
            recent = 0.0


def order(seed: int, epoch: int, count: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng([seed, epoch]).permutation(count))


def batch_rows(seed: int, step: int, count: int) -> torch.Tensor:
    per_epoch = count // BATCH
    start = (step % per_epoch) * BATCH
    return order(seed, step // per_epoch, count)[start : start + BATCH]


def attributes(picture: NeutralPicture) -> list[int]:
    plain = picture.shape == "nothing"
    return [
        SHAPES.index(picture.shape),
        tuple(SURFACES).index(picture.surface),
        IGNORED if plain else tuple(COLOURS).index(picture.colour),
        IGNORED if plain else SIZES.index(picture.size),
    ]


def pretrain_tower(
    model: LlavaForConditionalGeneration, pixels: torch.Tensor, truth: torch.Tensor, epochs: int
) -> None:
    widths = [len(SHAPES), len(SURFACES), len(COLOURS), len(SIZES)]
    tower = model.model.vision_tower
    heads = torch.nn.Linear(tower.config.hidden_size, sum(widths))

    def loss_of(step: int) -> torch.Tensor:
        rows = batch_rows(3, step, len(pixels))
        seen = pixels[rows].flip(3) if step % 2 else pixels[rows]
        hidden = tower(pixel_values=seen, output_hidden_states=True).hidden_states[-2]
        outputs = heads(hidden[:, 1:].mean(1)).split(widths, 1)
        losses = [
            torch.nn.functional.cross_entropy(output, truth[rows, column], ignore_index=IGNORED)
            for column, output in enumerate(outputs)
        ]
        return torch.stack(losses).sum()

    parameters = [*tower.parameters(), *heads.parameters()]
    optimise("tower", parameters, epochs * len(pixels) // BATCH, 2e-3, loss_of)


def rendered(chat: LlavaProcessor, system: str, user: str) -> str:
    content = [{"type": "image"}, {"type": "text", "text": user}]
    messages = [{"role": "user", "content": content}]
    if system:
        messages.insert(0, {"role": "system", "content": [{"type": "text", "text": system}]})
    return str(chat.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


def pretrain_language(
    model: LlavaForConditionalGeneration,
    chat: LlavaProcessor,
    pixels: torch.Tensor,
    captions: list[str],
    epochs: int,
) -> None:
    task = task_document()
    image_tokens = IMAGE_TOKEN * (SIZE_PIXELS // PATCH_PIXELS) ** 2
    caption_prompt = rendered(chat, "", CAPTION_PROMPT)
    task_prompt = rendered(chat, task["systemPrompt"], task["userPrompt"])

    def text_batch(prompt: str, answers: list[str]) -> dict[str, torch.Tensor]:
        expanded = prompt.replace(IMAGE_TOKEN, image_tokens)
        texts = [f"{expanded} {answer}{chat.tokenizer.eos_token}" for answer in answers]
        batch = chat.tokenizer(texts, return_tensors="pt", padding=True)
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, IGNORED)
        labels[:, : len(chat.tokenizer(expanded)["input_ids"])] = IGNORED
        return {**batch, "labels": labels}

    def loss_of(step: int) -> torch.Tensor:
        rows = batch_rows(4, step, len(pixels))
        if step % 4 == 3:
            random = np.random.default_rng([8, step])
            answers = [
                answer_text(DAMAGE_TYPES[int(random.integers(8))], SEVERITIES[int(random.integers(3))])
                for _ in rows
            ]
            batch = text_batch(task_prompt, answers)
        else:
            batch = text_batch(caption_prompt, [captions[row] for row in rows.tolist()])
        loss = model(**batch, pixel_values=pixels[rows]).loss
        assert isinstance(loss, torch.Tensor)
        return loss

    optimise("language", list(model.parameters()), epochs * len(pixels) // BATCH, 1.5e-3, loss_of)


def build(
    out: Path, tower_pictures: int, tower_epochs: int, caption_pictures: int, caption_epochs: int
) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    words = tokenizer([neutral_picture(9, index).caption for index in range(400)])
    chat = processor(words)
    model = untrained(words)
    pictures = [neutral_picture(5, index) for index in range(max(tower_pictures, caption_pictures))]
    pixels = torch.cat(
        [
            chat.image_processor(
                images=[picture.image for picture in pictures[start : start + 500]], return_tensors="pt"
            )["pixel_values"]
            for start in range(0, len(pictures), 500)
        ]
    )
    truth = torch.tensor([attributes(picture) for picture in pictures])
    pretrain_tower(model, pixels[:tower_pictures], truth[:tower_pictures], tower_epochs)
    captions = [picture.caption for picture in pictures[:caption_pictures]]
    pretrain_language(model, chat, pixels[:caption_pictures], captions, caption_epochs)
    model.eval()
    model.save_pretrained(out)
    chat.save_pretrained(out)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--tower-pictures", type=int, default=8000)
    parser.add_argument("--tower-epochs", type=int, default=3)
    parser.add_argument("--caption-pictures", type=int, default=6000)
    parser.add_argument("--caption-epochs", type=int, default=1)
    arguments = parser.parse_args()
    build(
        arguments.out,
        arguments.tower_pictures,
        arguments.tower_epochs,
        arguments.caption_pictures,
        arguments.caption_epochs,
    )


if __name__ == "__main__":
    main()
