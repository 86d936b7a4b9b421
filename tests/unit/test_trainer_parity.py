"""The trained tokens and the loss, reckoned a second time by another way: transformers' own, with a label mask found by
comparing texts. `make bench-train` compares both with TRL's SFTTrainer itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from cutover.api.trainingrun import Augmentation, FineTune
from cutover.chat import template_messages
from cutover.contract import ExitCode
from cutover_trainer.batches import BatchBuilder, encode_all
from cutover_trainer.examples import PreparedData, open_prepared
from cutover_trainer.learner import Learner
from cutover_trainer.models import Hardware, load_base, with_new_adapter
from cutover_trainer.processors import load_encoder
from cutover_trainer.schedule import Schedule
from cutover_trainer.storage import ArtifactStore
from fakes.training_example import BASE_MODEL, rows, run_stage, stage_document, write_rows

CPU = Hardware(torch.device("cpu"), torch.float32, False)
IGNORED = -100
ROWS = 8


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    torch.set_num_threads(1)
    workspace = tmp_path_factory.mktemp("parity")
    document = stage_document(workspace / "run", write_rows(workspace / "rows.jsonl", rows(ROWS + 6)))
    code, result = run_stage("prepare", document, workspace)
    assert code == ExitCode.DONE, result.message
    return open_prepared(ArtifactStore(document["artifacts"]), Path(workspace))


@pytest.fixture(scope="module")
def reference(data: PreparedData) -> dict[str, Any]:
    """The batch as transformers makes it; labels where the text after the prompt's stands."""
    processor = AutoProcessor.from_pretrained(BASE_MODEL)
    examples = data.part("train")[:ROWS]
    prompts = [
        processor.apply_chat_template(
            template_messages(one.question), tokenize=False, add_generation_prompt=True
        )
        for one in examples
    ]
    wholes = [
        f"{prompt} {one.answer}{processor.tokenizer.eos_token}"
        for prompt, one in zip(prompts, examples, strict=True)
    ]
    images = [data.picture(one) for one in examples]
    processor.tokenizer.padding_side = "right"
    batch = processor(text=wholes, images=images, padding=True, return_tensors="pt")
    labels = batch["input_ids"].clone()
    for row, (prompt, image) in enumerate(zip(prompts, images, strict=True)):
        labels[row, : len(processor(text=[prompt], images=[image])["input_ids"][0])] = IGNORED
    labels[batch["attention_mask"] == 0] = IGNORED
    return {**batch, "labels": labels}


def test_the_trained_tokens_are_the_answer_and_nothing_else(
    data: PreparedData, reference: dict[str, Any]
) -> None:
    encoded = encode_all(load_encoder(BASE_MODEL, "llava"), data.part("train")[:ROWS])
    for one, ids, labels in zip(encoded, reference["input_ids"], reference["labels"], strict=True):
        assert list(one.answer_ids) == [int(value) for value in labels if value != IGNORED]
        places = [place for place, value in enumerate(labels) if value != IGNORED]
        assert places == list(range(len(one.prompt_ids), len(one.prompt_ids) + len(one.answer_ids)))
        assert list(one.prompt_ids) == [int(value) for value in ids[: len(one.prompt_ids)]]


def test_the_loss_and_its_gradients_are_those_of_transformers(
    data: PreparedData, reference: dict[str, Any]
) -> None:
    """Logits only where labels are, and one micro-batch after another, change neither."""
    settings = FineTune.model_validate({"batchSize": ROWS, "lora": {"dropout": 0.0}})
    schedule = Schedule(ROWS, ROWS, 1, 0)
    examples = data.part("train")[:ROWS]
    encoder = load_encoder(BASE_MODEL, "llava")
    model = with_new_adapter(load_base(BASE_MODEL, CPU), settings, "tiny")
    learner = Learner(model, CPU, schedule, settings, Augmentation(enabled=False))
    builder = BatchBuilder(encoder, data, examples, encode_all(encoder, examples), CPU)

    plain = AutoModelForImageTextToText.from_pretrained(BASE_MODEL)
    with torch.no_grad():
        expected = float(plain(**reference).loss)
    assert learner.loss_on(builder, range(ROWS), lambda: None) == pytest.approx(expected, abs=1e-5)

    model.train()
    model(**reference).loss.backward()
    wanted = {name: value.grad.clone() for name, value in learner.parameters.items()}
    learner._micro_batch = 3
    learner._gradients(0, schedule.batch(0), builder, lambda: None)
    for name, value in learner.parameters.items():
        assert torch.allclose(value.grad, wanted[name], rtol=1e-4, atol=1e-7), name
    assert any(float(value.abs().max()) > 0 for value in wanted.values())
