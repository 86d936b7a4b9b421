"""Stage train: prepared data and a base model to an adapter, in as many attempts as the machines allow.

Every attempt starts from the newest whole checkpoint and ends in one of: the adapter committed, a checkpoint committed
and exit 75, or a refusal. The weights of a run that was killed anywhere equal those of one that was not.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import orjson

from cutover.api.trainingrun import Progress
from cutover.stages import ADAPTER_FOLDER, StageConfig, StageResult
from cutover_trainer import fused_kernels, trial
from cutover_trainer.adapter import make_probe, versions, write_adapter
from cutover_trainer.adapter_facts import TRAINING_FILE, AdapterFacts
from cutover_trainer.base_model import base_digest, base_folder, weights_bytes
from cutover_trainer.batches import BatchBuilder, encode_all
from cutover_trainer.checkpoints import Checkpoints, TrainingState
from cutover_trainer.encoding import Encoded
from cutover_trainer.examples import Example, open_prepared
from cutover_trainer.frozen_features import reusable
from cutover_trainer.joblog import ProgressReporter, log
from cutover_trainer.learner import Learner
from cutover_trainer.loss_curve import label_entropy, nothing_learnt
from cutover_trainer.manifest import digest_of, fetch_folder
from cutover_trainer.models import (
    adapter_layers,
    choose_hardware,
    chosen_device,
    chosen_dtype,
    with_new_adapter,
)
from cutover_trainer.outcome import BadInput, BudgetExceeded, Interrupted
from cutover_trainer.processors import load_encoder
from cutover_trainer.quantized_base import load_frozen, on_plain_base
from cutover_trainer.schedule import Schedule, views_of
from cutover_trainer.stopping import Stop
from cutover_trainer.storage import ArtifactStore
from cutover_trainer.team import Team

SECONDS_BETWEEN_PREEMPTIONS = 7200.0
LEAST_CHECKPOINT_SECONDS = 10.0
VALIDATION_ROWS = 128
CURVE_POINTS = 100
LAST_POINTS = 5
"""Of the curve, averaged for the verdict on it."""
PROBED_ROWS = 16
"""The probe is the one of them on which adapter and base differ most."""


def run(config: StageConfig, store: ArtifactStore, scratch: Path, stop: Stop) -> StageResult:
    stop.check()
    device = chosen_device(config.spec.compute.gpus)
    numbers = f"{device.type} {chosen_dtype(config.spec.fine_tune.precision, device)}"
    team = Team.join(device, numbers)
    try:
        return _train(config, store, scratch, stop, team)
    finally:
        team.leave()


def _train(config: StageConfig, store: ArtifactStore, scratch: Path, stop: Stop, team: Team) -> StageResult:
    spec = config.spec
    with team.one_a_machine_first():
        # The others find here what it has fetched.
        data = open_prepared(trial.data_store(config, store), scratch)
        folder = base_folder(config, scratch, weights=True)
    encoder = load_encoder(folder, spec.base_model.family)
    hardware = choose_hardware(spec.fine_tune.precision, spec.compute.gpus, weights_bytes(folder))
    fused_kernels.check(spec, hardware)
    held_out_rows = VALIDATION_ROWS if spec.trial is None else trial.OBJECTIVE_ROWS
    examples, held_out = data.part("train"), data.part("validation")[:held_out_rows]
    trial.check(spec, len(held_out))
    encoded = encode_all(encoder, examples)
    training = BatchBuilder(encoder, data, examples, encoded, hardware)
    validation = BatchBuilder(encoder, data, held_out, encode_all(encoder, held_out), hardware)
    schedule = Schedule(len(examples), spec.fine_tune.batch_size, spec.fine_tune.epochs, spec.fine_tune.seed)
    quantization = spec.fine_tune.quantization
    frozen = load_frozen(folder, hardware, quantization)
    if spec.fine_tune.kernels == "liger":
        fused_kernels.install(frozen)
    model = with_new_adapter(frozen, spec.fine_tune, base_name(config))
    if not adapter_layers(model):
        raise BadInput(
            "NoTargets", "fineTune.lora.targets: no layer of the base model matches; name another family"
        )
    augmentation = spec.dataset.augmentation
    places = encoder.image_tokens(examples[0].size)
    workers = max(1, spec.compute.gpus)
    if reusable(
        spec.base_model.family,
        spec.fine_tune,
        schedule,
        views_of(augmentation),
        places,
        model.config,
        workers,
    ):
        log("features", reused=True, views=views_of(augmentation))
        training.reuse_features(model.get_base_model(), schedule, augmentation)
    learner = Learner(model, hardware, schedule, spec.fine_tune, augmentation, team)
    base = base_digest(folder)
    checkpoints = Checkpoints(store, fingerprint(config, data.digest, base))
    state = checkpoints.resume(learner.parameters, learner.optimizer, learner.scaler, team)
    if state.step == 0 and config.resume_artifacts:
        earlier = Checkpoints(ArtifactStore(config.resume_artifacts), fingerprint(config, data.digest, base))
        state = earlier.resume(learner.parameters, learner.optimizer, learner.scaler, team)
    end = trial.end_step(spec, schedule)
    attempt = _Attempt(
        schedule, learner, training, validation, len(held_out), checkpoints, state, stop, team, end
    )
    attempt.judge_by(examples, encoded)
    attempt.to_the_end()
    if spec.trial is not None:
        return attempt.compared(len(held_out))
    if not team.leads:
        return attempt.result(len(examples))
    found = fetch_folder(store, ADAPTER_FOLDER, scratch)
    if found is None:
        if quantization != "none":
            model = on_plain_base(model, folder, hardware, spec.fine_tune, base_name(config))
        probe = make_probe(model, encoder, examples[:PROBED_ROWS], encoded, data, hardware)
        facts = AdapterFacts(
            task=config.task.name,
            base_uri=spec.base_model.uri,
            base_revision=spec.base_model.revision,
            base_digest=base,
            family=spec.base_model.family,
            data_digest=data.digest,
            targets=spec.fine_tune.lora.targets,
            quantization=quantization,
            steps=schedule.steps,
            versions=versions(),
        )
        write_adapter(config, store, scratch, model, encoder, probe, facts)
    store.put(TRAINING_FILE, attempt.curves())
    return attempt.result(len(examples))


def base_name(config: StageConfig) -> str:
    """The base as peft names it in adapter_config.json: a hub name where there is one, never a path of this machine."""
    return config.spec.base_model.uri.removeprefix("hf://")


def fingerprint(config: StageConfig, data: str, base: str) -> str:
    """Two runs with one fingerprint take the same steps."""
    settings = config.spec.fine_tune.to_wire()
    return digest_of(
        {
            "data": data,
            "base": base,
            "fineTune": settings,
            "augmentation": config.spec.dataset.augmentation.to_wire(),
        }
    )


class _Attempt:
    """The loop of one pod."""

    def __init__(
        self,
        schedule: Schedule,
        learner: Learner,
        training: BatchBuilder,
        validation: BatchBuilder,
        validation_rows: int,
        checkpoints: Checkpoints,
        state: TrainingState,
        stop: Stop,
        team: Team,
        end_step: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._schedule = schedule
        self._end_step = end_step
        self._learner = learner
        self._training = training
        self._validation = validation
        self._validation_rows = min(validation_rows, VALIDATION_ROWS)
        self._checkpoints = checkpoints
        self._state = state
        self._stop = stop
        self._team = team
        self._clock = clock
        self._saved_at = clock()
        self._saved_step = state.step
        self._outrun: Interrupted | None = None
        """Set when another pod has saved this worker's step."""
        self._interval_seconds = checkpoint_interval_seconds(0.0)
        self._progress = ProgressReporter("train", end_step)
        self._curve_every = max(1, schedule.steps // CURVE_POINTS)
        self._answer_tokens = 1.0
        self._entropy: float | None = None

    def judge_by(self, examples: Sequence[Example], encoded: Sequence[Encoded]) -> None:
        """What the losses are compared with, see `loss_curve`."""
        self._answer_tokens = sum(len(one.answer_ids) for one in encoded) / len(encoded)
        only_labels = all(len(orjson.loads(one.answer)) == len(one.truth) for one in examples)
        self._entropy = label_entropy([one.truth for one in examples]) if only_labels else None

    def to_the_end(self) -> None:
        """Raises Interrupted or BudgetExceeded after a checkpoint."""
        state = self._state
        try:
            if state.step and state.step % self._schedule.steps_per_epoch == 0:
                # The attempt before may have been stopped between an epoch's last step and its validation.
                self._validate()
            while state.step < self._end_step:
                if self._team.size > 1:
                    self._stop.check_together(self._team.sums, self._outrun)
                self._one_step()
                if state.step % self._schedule.steps_per_epoch == 0:
                    self._end_of_epoch()
                if self._clock() - self._saved_at >= self._interval_seconds:
                    self._save()
        except (Interrupted, BudgetExceeded):
            self._save()
            # Nobody leaves before the checkpoint is there: a worker's end is the end of its team.
            self._team.wait()
            raise
        self._save()
        (outrun,) = self._team.sums([float(self._outrun is not None)])
        if outrun:
            raise self._outrun or Interrupted("AnotherPodTrains", "another pod has finished the training")

    def _check(self) -> None:
        """Inside a step a team has to stay together."""
        if self._team.size == 1:
            self._stop.check()

    def _one_step(self) -> None:
        state = self._state
        started = self._clock()
        loss = self._learner.step(state.step, self._training, self._check)
        state.seconds += self._clock() - started
        state.samples += len(self._schedule.batch(state.step))
        state.step += 1
        state.open_loss += loss
        state.open_steps += 1
        if state.step % self._curve_every == 0 or state.step == self._schedule.steps:
            state.losses.append([state.step, state.open_loss / state.open_steps])
            state.open_loss, state.open_steps = 0.0, 0
        self._progress.report(state.step, loss, self.samples_per_second)

    def _end_of_epoch(self) -> None:
        self._validate()
        doubt = self.doubt()
        if doubt is not None:
            log("warning", epoch=self._epoch, message=doubt)

    def _validate(self) -> None:
        state, epoch = self._state, self._epoch
        if self._validation_rows and all(entry[0] != epoch for entry in state.validation_losses):
            rows = range(self._validation_rows)
            loss = self._learner.loss_on(self._validation, rows, self._check)
            state.validation_losses.append([epoch, loss])
            log("epoch", epoch=epoch, validationLoss=round(loss, 5))

    @property
    def _epoch(self) -> int:
        """Epochs done."""
        return self._state.step // self._schedule.steps_per_epoch

    def doubt(self) -> str | None:
        """Why the adapter is probably useless, by its losses."""
        losses = self._state.losses
        if len(losses) < 2:
            return None
        last = [loss for _, loss in losses[-LAST_POINTS:]]
        return nothing_learnt(
            losses[0][1],
            sum(last) / len(last),
            self._answer_tokens,
            self._entropy,
            self._learner.learning_rate,
        )

    @property
    def samples_per_second(self) -> float | None:
        return self._state.samples / self._state.seconds if self._state.seconds else None

    def _save(self) -> None:
        if (
            not self._team.leads
            or self._outrun is not None
            or (self._saved_step == self._state.step and self._state.step)
        ):
            return
        started = self._clock()
        learner = self._learner
        try:
            self._checkpoints.save(self._state, learner.parameters, learner.optimizer, learner.scaler)
        except Interrupted as outrun:
            self._outrun = outrun
            if self._team.size == 1:
                raise
            # The others would take a broken connection for a failure: all leave at the next step.
            return
        self._saved_at, self._saved_step = self._clock(), self._state.step
        self._interval_seconds = checkpoint_interval_seconds(self._saved_at - started)

    def curves(self) -> bytes:
        """training.json: the losses, for the registry."""
        state = self._state
        return orjson.dumps(
            {
                "loss": state.losses,
                "validationLoss": state.validation_losses,
                "doubt": self.doubt(),
                "samplesPerSecond": self.samples_per_second,
                "secondsInSteps": state.seconds,
            }
        )

    def compared(self, rows: int) -> StageResult:
        """What the search compares trials by. Raises Interrupted; the next attempt measures again."""
        loss = self._learner.loss_on(self._validation, range(rows), self._check)
        state = self._state
        done = Progress(step=state.step, steps=self._end_step, samples_per_second=self.samples_per_second)
        return trial.result(loss, rows, done)

    def result(self, rows: int) -> StageResult:
        state = self._state
        loss = state.losses[-1][1] if state.losses else None
        rate = self.samples_per_second
        message = f"{state.step} steps on {rows} rows"
        if loss is not None:
            message += f", loss {state.losses[0][1]:.3f} to {loss:.3f}"
        if rate:
            message += f", {rate:.1f} samples/s"
        doubt = self.doubt()
        if doubt is not None:
            message += f"; {doubt}"
        progress = Progress(step=state.step, steps=self._schedule.steps, loss=loss, samples_per_second=rate)
        return StageResult(
            stage="train",
            outcome="done",
            reason="" if doubt is None else "LossNotFallen",
            message=message,
            progress=progress,
            samples_per_second=rate,
        )


def checkpoint_interval_seconds(save_seconds: float) -> float:
    """Young's approximation: the interval that loses least to saving and to repeating; set CUTOVER_CHECKPOINT_SECONDS to fix it."""
    fixed = os.environ.get("CUTOVER_CHECKPOINT_SECONDS")
    if fixed is not None:
        return float(fixed)
    return max(LEAST_CHECKPOINT_SECONDS, math.sqrt(2 * save_seconds * SECONDS_BETWEEN_PREEMPTIONS))
