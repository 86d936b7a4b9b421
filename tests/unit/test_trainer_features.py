"""Features of a frozen tower, reckoned once: the same bits in whatever order they are asked for, the same loss."""

from __future__ import annotations

import pytest
import torch

from cutover.api.trainingrun import Augmentation, FineTune
from cutover.contract import ExitCode
from cutover_trainer.batches import BatchBuilder, encode_all
from cutover_trainer.encoding import Encoder
from cutover_trainer.examples import PreparedData, open_prepared
from cutover_trainer.frozen_features import reusable
from cutover_trainer.learner import Learner
from cutover_trainer.models import Hardware, load_base, with_new_adapter
from cutover_trainer.processors import load_encoder
from cutover_trainer.schedule import Schedule
from cutover_trainer.storage import ArtifactStore
from fakes.training_example import BASE_MODEL, rows, run_stage, stage_document, write_rows

CPU = Hardware(torch.device("cpu"), torch.float32, False)
VIEWS = Augmentation(views=2)
SETTINGS = FineTune.model_validate({"learningRate": 2e-3, "batchSize": 5, "epochs": 3})


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    torch.set_num_threads(1)
    workspace = tmp_path_factory.mktemp("features")
    file = write_rows(workspace / "rows.jsonl", rows(32))
    document = stage_document(workspace / "run", file)
    assert run_stage("prepare", document, workspace)[0] == ExitCode.DONE
    return open_prepared(ArtifactStore(document["artifacts"]), workspace)


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return load_encoder(BASE_MODEL, "llava")


def training(data: PreparedData, encoder: Encoder, reuse: bool) -> tuple[Learner, BatchBuilder, Schedule]:
    examples = data.part("train")
    schedule = Schedule(len(examples), SETTINGS.batch_size, SETTINGS.epochs, 0)
    model = with_new_adapter(load_base(BASE_MODEL, CPU), SETTINGS, "tiny")
    builder = BatchBuilder(encoder, data, examples, encode_all(encoder, examples), CPU)
    if reuse:
        builder.reuse_features(model.get_base_model(), schedule, VIEWS)
    return Learner(model, CPU, schedule, SETTINGS, VIEWS), builder, schedule


def test_training_with_reused_features_pays_the_same_losses(data: PreparedData, encoder: Encoder) -> None:
    losses = []
    for reuse in (False, True):
        learner, builder, schedule = training(data, encoder, reuse)
        losses.append([learner.step(step, builder, lambda: None) for step in range(schedule.steps)])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert losses[1][-1] < losses[1][0]


def test_features_do_not_depend_on_what_was_asked_before(data: PreparedData, encoder: Encoder) -> None:
    """A resumed run begins with an empty store in the middle of an epoch."""
    kept = []
    for first_step in (0, 7):
        _, builder, schedule = training(data, encoder, reuse=True)
        batches = [
            builder.distorted(schedule.batch(step), step, schedule, VIEWS)
            for step in range(first_step, schedule.steps)
        ]
        kept.append(batches[-1].inputs["mm_encoder_outputs"]["image"].pooler_output)
    assert all(torch.equal(one, other) for one, other in zip(*kept, strict=True))


@pytest.mark.parametrize(
    ("family", "targets", "views", "places", "wanted"),
    [
        ("llava", "language_model", 2, 36, True),
        ("llava", "language_model", 0, 36, False),
        ("llava", "language_model", 3, 36, False),
        ("llava", "language_model_and_vision", 2, 36, False),
        ("blip2", "language_model", 2, 36, False),
        ("llava", "language_model", 2, 10_000_000, False),
    ],
)
def test_when_features_are_reused(family: str, targets: str, views: int, places: int, wanted: bool) -> None:
    from transformers import AutoConfig

    settings = FineTune.model_validate({"epochs": 3, "lora": {"targets": targets}})
    config = AutoConfig.from_pretrained(BASE_MODEL)
    schedule = Schedule(25, 8, 3, 0)
    assert reusable(family, settings, schedule, views, places, config) is wanted  # type: ignore[arg-type]


def test_the_workers_of_a_pod_share_its_memory() -> None:
    """Each holds the features of all rows: 1.4 GB here."""
    from transformers import AutoConfig

    settings = FineTune.model_validate({"epochs": 3})
    config = AutoConfig.from_pretrained(BASE_MODEL)
    schedule = Schedule(50_000, 8, 3, 0)
    found = [reusable("llava", settings, schedule, 2, 36, config, workers) for workers in (1, 2, 3)]
    assert found == [True, True, False]
