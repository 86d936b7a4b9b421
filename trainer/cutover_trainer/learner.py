"""One optimiser step after another on the adapter, exactly repeatable from any step.

The loss is the mean over the answer tokens of the whole batch, whatever the micro-batches. On a card that runs out of
memory the micro-batch is halved, then activations are recomputed; only when one row does not fit is the run refused.
A step is the same whoever takes part in it: each worker of the team computes its rows of the batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from cutover.api.trainingrun import Augmentation, FineTune
from cutover_trainer import adapted_linear, row_dropout
from cutover_trainer.batches import Batch, BatchBuilder
from cutover_trainer.joblog import log
from cutover_trainer.models import Hardware, trainable
from cutover_trainer.outcome import BadInput
from cutover_trainer.schedule import Schedule
from cutover_trainer.team import Team

MAX_GRADIENT_NORM = 1.0
BETAS = (0.9, 0.98)
WEIGHT_DECAY = 0.01


class Learner:
    def __init__(
        self,
        model: Any,
        hardware: Hardware,
        schedule: Schedule,
        settings: FineTune,
        augmentation: Augmentation,
        team: Team | None = None,
    ) -> None:
        self.model = model
        self._team = team or Team()
        self._draw = row_dropout.install(model)
        adapted_linear.install(model)
        self.parameters = trainable(model)
        self.optimizer = torch.optim.AdamW(
            list(self.parameters.values()),
            lr=settings.learning_rate,
            betas=BETAS,
            weight_decay=WEIGHT_DECAY,
            fused=True,
        )
        self.scaler = torch.amp.GradScaler(hardware.device.type, enabled=hardware.scaled)
        self._hardware = hardware
        self._schedule = schedule
        self._settings = settings
        self._augmentation = augmentation
        self._micro_batch = settings.batch_size
        self.learning_rate = settings.learning_rate
        self._recomputes = False

    def step(self, step: int, builder: BatchBuilder, check: Callable[[], None]) -> float:
        """Take a step and return its loss. `check` is called before each micro-batch and may raise: nothing changed then.
        In a team it must not: the others would wait."""
        rows = self._schedule.batch(step)
        while True:
            try:
                loss = self._gradients(step, rows, builder, check)
                break
            except torch.OutOfMemoryError:
                self._shrink()
        self._team.sum_gradients(self.parameters.values())
        (loss,) = self._team.sums([loss])
        if not math.isfinite(loss):
            raise BadInput(
                "TrainingDiverged",
                f"fineTune.learningRate: the loss is {loss} at step {step} with {self._settings.learning_rate:g}; lower it",
            )
        for group in self.optimizer.param_groups:
            group["lr"] = self._schedule.learning_rate(step, self._settings.learning_rate)
        self.scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(list(self.parameters.values()), MAX_GRADIENT_NORM)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss

    def loss_on(self, builder: BatchBuilder, rows: Sequence[int], check: Callable[[], None]) -> float:
        """Mean loss over the answer tokens without augmentation and dropout."""
        self.model.eval()
        total, tokens = 0.0, 0
        _, mine = self._team.part(rows)
        with torch.no_grad():
            for start in range(0, len(mine), self._micro_batch):
                check()
                batch = builder.plain(mine[start : start + self._micro_batch])
                total += float(self._summed_loss(batch))
                tokens += batch.tokens
        total, all_tokens = self._team.sums([total, tokens])
        return total / max(1.0, all_tokens)

    def _gradients(
        self, step: int, rows: Sequence[int], builder: BatchBuilder, check: Callable[[], None]
    ) -> float:
        if not self.model.training:  # it walks through every module
            self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        tokens = builder.answer_tokens(rows)
        total = 0.0
        draw = self._draw
        draw.seed, draw.rows, draw.places = self._schedule.dropout_seed(step), len(rows), builder.places(rows)
        first, mine = self._team.part(rows)
        if not mine:
            # A worker without a row scales no loss, and the scaler is made by its first use.
            self.scaler.scale(torch.zeros((), device=self._hardware.device))
        for start in range(0, len(mine), self._micro_batch):
            check()
            chosen = mine[start : start + self._micro_batch]
            draw.first, draw.count = first + start, len(chosen)
            batch = builder.distorted(chosen, step, self._schedule, self._augmentation)
            # For dropout of the base model's own, where a family has any.
            self._seed(draw.own_seed())
            loss = self._summed_loss(batch) / tokens
            self.scaler.scale(loss).backward()
            total += float(loss.detach())
        return total

    def _seed(self, seed: int) -> None:
        """Of this worker's device. `torch.manual_seed` asks after every kind of device there is, in milliseconds."""
        torch.default_generator.manual_seed(seed)
        if self._hardware.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def _summed_loss(self, batch: Batch) -> Any:
        hardware = self._hardware
        mixed = hardware.dtype is not torch.float32
        with torch.autocast(hardware.device.type, hardware.dtype, enabled=mixed):
            logits = self.model(**batch.inputs, logits_to_keep=batch.kept).logits[:, -batch.kept :]
        flat = logits.float().flatten(0, 1)
        return torch.nn.functional.cross_entropy(
            flat, batch.targets.flatten(), ignore_index=-100, reduction="sum"
        )

    def _shrink(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
        if self._micro_batch > 1:
            self._micro_batch = (self._micro_batch + 1) // 2
            log("memory", microBatch=self._micro_batch)
        elif not self._recomputes:
            self._recomputes = True
            self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            self.model.enable_input_require_grads()
            log("memory", microBatch=1, activations="recomputed")
        else:
            raise BadInput(
                "OutOfMemory",
                "compute.gpuProduct: one row does not fit into the card's memory even with recomputed activations; "
                "use a larger card or a smaller base model",
            )
