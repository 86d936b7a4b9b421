"""One turn of `bench.train_speed`: a training in a process of its own, by this trainer or by TRL's SFTTrainer.

    python -m bench.train_turns --way own|trl|views-1|views-2 --base FOLDER --rows 200 --epochs 5 [--accuracy 0.88]

The clock runs from the first row that is tokenized to the last step; judging the model between two steps stops it.
Prints one line that begins with @@ and holds the figures as JSON.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BATCH = 8
RANK, ALPHA, DROPOUT = 16, 32, 0.05
TARGETS = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
PARITY_ROWS = 8
SEED = 11
VALIDATION_ROWS = 160
LOOKS_PER_EPOCH = 3
MAX_ANSWER_TOKENS = 32


@dataclass
class Clock:
    """Seconds of CPU and of the wall, without those spent in `outside`."""

    cpu: float = field(default_factory=time.process_time)
    wall: float = field(default_factory=time.monotonic)

    def read(self) -> tuple[float, float]:
        return time.process_time() - self.cpu, time.monotonic() - self.wall

    @contextmanager
    def outside(self) -> Iterator[None]:
        cpu, wall = time.process_time(), time.monotonic()
        yield
        self.cpu += time.process_time() - cpu
        self.wall += time.monotonic() - wall


class Spent:
    """Seconds of CPU spent in some functions of an object."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._depth = 0

    def watch(self, target: Any, name: str) -> None:
        inner = getattr(target, name)

        # transformers reads the signature to know what a model takes.
        @functools.wraps(inner)
        def timed(*args: Any, **kwargs: Any) -> Any:
            started, self._depth = time.process_time(), self._depth + 1
            try:
                return inner(*args, **kwargs)
            finally:
                self._depth -= 1
                if self._depth == 0:
                    self.seconds += time.process_time() - started

        setattr(target, name, timed)


@dataclass
class Judge:
    """Looks at the model now and then until it is right often enough."""

    wanted: float
    every_steps: int
    share_right: Callable[[], float]
    seen: list[tuple[int, float, float]] = field(default_factory=list)
    """(passes, seconds of CPU, share of validation pictures named right)"""

    def reached(self, step: int, clock: Clock) -> bool:
        if not self.wanted or step % self.every_steps:
            return False
        cpu, _ = clock.read()
        with clock.outside():
            share = self.share_right()
        self.seen.append((step * BATCH, cpu, share))
        print(f"{step * BATCH} passes, {cpu:.1f} s of CPU: {share:.3f}", file=sys.stderr, flush=True)
        return share >= self.wanted


@dataclass
class Data:
    """The rows both read, prepared once: training rows first."""

    prepared: Any
    encoder: Any
    training: list[Any]
    validation: list[Any]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--way", choices=["own", "trl", "views-1", "views-2"], required=True)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument(
        "--accuracy", type=float, default=0.0, help="stop when so many validation pictures are right"
    )
    asked = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        data = _data(Path(folder), asked.base, asked.rows, VALIDATION_ROWS if asked.accuracy else 0)
        turn = _trl if asked.way == "trl" else _own
        figures = turn(asked, data)
    print("\n@@" + json.dumps(figures), flush=True)
    return 0


def _data(workspace: Path, base: Path, count: int, validation: int) -> Data:
    from cutover.contract import ExitCode
    from cutover_trainer.examples import open_prepared
    from cutover_trainer.processors import load_encoder
    from cutover_trainer.storage import ArtifactStore
    from fakes.training_example import rows, run_stage, stage_document, write_rows

    # Two rows more, for the other parts: the split is by shares.
    total = count + validation + 2
    file = write_rows(workspace / "rows.jsonl", rows(total, SEED))
    share = (total - 1.9) / total
    document = stage_document(
        workspace / "run", file, dataset={"split": {"train": share, "validation": 0.0, "test": 1 - share}}
    )
    document["baseModelPath"] = str(base)
    code, result = run_stage("prepare", document, workspace)
    if code != ExitCode.DONE:
        raise RuntimeError(result.message)
    data = open_prepared(ArtifactStore(document["artifacts"]), workspace)
    examples = sorted([*data.part("train"), *data.part("test")], key=lambda one: one.id)
    return Data(data, load_encoder(base, "llava"), examples[:count], examples[count : count + validation])


def _share_right(model: Any, data: Data) -> Callable[[], float]:
    import torch

    from cutover.task import Unreadable, read_answer
    from cutover_trainer.generate import Answerer
    from cutover_trainer.models import Hardware
    from fakes.training_example import task

    hardware = Hardware(torch.device("cpu"), torch.float32, False)
    asked = task().model_copy(update={"max_answer_tokens": MAX_ANSWER_TOKENS})
    answerer = Answerer(model, data.encoder, data.prepared, hardware, asked)

    def share() -> float:
        was_training, state = model.training, torch.get_rng_state()
        model.eval()
        right = 0
        for start in range(0, len(data.validation), 32):
            chosen = data.validation[start : start + 32]
            for example, answer in zip(chosen, answerer.answers(chosen), strict=True):
                said = read_answer(answer.text)
                right += (
                    not isinstance(said, Unreadable) and said.get("damageType") == example.truth["damageType"]
                )
        model.train(was_training)
        torch.set_rng_state(state)
        return right / len(data.validation)

    return share


def _figures(
    clock: Clock,
    passes: int,
    losses: Sequence[float],
    labels: list[list[int]],
    loss: float,
    judge: Judge,
    spent: float,
) -> dict[str, Any]:
    cpu, wall = clock.read()
    tail = losses[-max(1, len(losses) // 10) :]
    return {
        "perCpuSecond": passes / cpu,
        "perSecond": passes / wall,
        "cpuSeconds": cpu,
        "pictureShare": spent / cpu,
        "firstLoss": losses[0],
        "lastLoss": statistics.fmean(tail),
        "trainedTokens": labels,
        "lossBefore": loss,
        "looks": judge.seen,
    }


# ------------------------------------------------------------------ this trainer
def _own(asked: argparse.Namespace, data: Data) -> dict[str, Any]:
    import torch

    from cutover.api.trainingrun import Augmentation, FineTune
    from cutover_trainer import batches
    from cutover_trainer.batches import BatchBuilder, encode_all
    from cutover_trainer.learner import Learner
    from cutover_trainer.models import Hardware, load_base, with_new_adapter
    from cutover_trainer.schedule import Schedule

    views = int(asked.way.partition("-")[2] or 0)
    augmentation = Augmentation(enabled=views > 0, views=views)
    lora = {"rank": RANK, "alpha": ALPHA, "dropout": DROPOUT}
    settings = FineTune.model_validate(
        {"learningRate": asked.rate, "batchSize": BATCH, "epochs": asked.epochs, "lora": lora}
    )
    hardware = Hardware(torch.device("cpu"), torch.float32, False)
    schedule = Schedule(len(data.training), BATCH, asked.epochs, 0)

    def learner() -> Learner:
        model = with_new_adapter(load_base(asked.base, hardware), settings, "tiny")
        return Learner(model, hardware, schedule, settings, augmentation)

    mine = learner()
    base = mine.model.get_base_model()
    spent = Spent()
    spent.watch(base.model, "get_image_features")
    spent.watch(batches, "picture_inputs")
    spent.watch(batches, "distorted")
    judge = Judge(asked.accuracy, _every(schedule.steps_per_epoch), _share_right(mine.model, data))
    clock = Clock()
    encoded = encode_all(data.encoder, data.training)
    builder = BatchBuilder(data.encoder, data.prepared, data.training, encoded, hardware)
    if views:
        builder.reuse_features(base, schedule, augmentation)
    losses: list[float] = []
    for step in range(schedule.steps):
        losses.append(mine.step(step, builder, lambda: None))
        if judge.reached(step + 1, clock):
            break
    labels = [list(one.answer_ids) for one in encoded[:PARITY_ROWS]]
    with clock.outside():
        before = learner().loss_on(builder, range(PARITY_ROWS), lambda: None)
    return _figures(clock, _passes(schedule.rows, len(losses)), losses, labels, before, judge, spent.seconds)


# ------------------------------------------------------------------ TRL
def _trl(asked: argparse.Namespace, data: Data) -> dict[str, Any]:
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForImageTextToText, AutoProcessor, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from cutover.chat import template_messages

    def row(example: Any) -> dict[str, Any]:
        return {
            "images": [data.prepared.picture(example)],
            "prompt": template_messages(example.question),
            "completion": [{"role": "assistant", "content": example.answer}],
        }

    dataset = Dataset.from_list([row(example) for example in data.training])
    processor = AutoProcessor.from_pretrained(asked.base)
    # The model's own template has no end token behind an answer; this trainer adds it, TRL would train on a space.
    ended = "{{ part.text }}{{ '</s>' if message.role == 'assistant' else ' ' }}"
    processor.chat_template = processor.chat_template.replace("{{ part.text }} ", ended)
    count, epochs = len(data.training), asked.epochs
    with tempfile.TemporaryDirectory() as folder:
        trainer = SFTTrainer(
            model=AutoModelForImageTextToText.from_pretrained(asked.base),
            args=SFTConfig(
                folder,
                per_device_train_batch_size=BATCH,
                num_train_epochs=epochs,
                learning_rate=asked.rate,
                lr_scheduler_type="cosine",
                warmup_steps=round(0.05 * epochs * count / BATCH),
                adam_beta2=0.98,
                weight_decay=0.01,
                logging_steps=1,
                report_to=[],
                use_cpu=True,
                bf16=False,
                gradient_checkpointing=False,
                max_length=None,
                save_strategy="no",
                disable_tqdm=True,
            ),
            train_dataset=dataset,
            processing_class=processor,
            peft_config=LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=DROPOUT, target_modules=TARGETS),
        )
        batch = trainer.data_collator([dataset[index] for index in range(PARITY_ROWS)])
        labels = [[int(value) for value in line if value != -100] for line in batch["labels"]]
        trainer.model.eval()
        with torch.no_grad():
            before = float(trainer.model(**batch).loss)
        judge = Judge(asked.accuracy, _every(-(-count // BATCH)), _share_right(trainer.model, data))

        class Looks(TrainerCallback):  # type: ignore[misc]
            def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                control.should_training_stop |= judge.reached(state.global_step, clock)

        trainer.add_callback(Looks())
        clock = Clock()
        trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        passes = _passes(count, trainer.state.global_step)
        return _figures(clock, passes, losses, labels, before, judge, 0.0)


def _every(steps_per_epoch: int) -> int:
    return max(1, steps_per_epoch // LOOKS_PER_EPOCH)


def _passes(rows: int, steps: int) -> int:
    epochs, rest = divmod(steps, -(-rows // BATCH))
    return epochs * rows + rest * BATCH


if __name__ == "__main__":
    sys.exit(main())
