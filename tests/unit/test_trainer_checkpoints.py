"""Checkpoints on local files, S3 and Google Cloud Storage: one winner a step, whole ones only, two kept."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from cutover_trainer.checkpoints import Checkpoints, TrainingState
from cutover_trainer.outcome import Interrupted
from cutover_trainer.storage import ArtifactStore
from fakes.google_store import gcs_bucket
from fakes.object_store import s3_bucket


class Trained:
    """Two weights, an optimizer and a scaler, as a learner has them."""

    def __init__(self, value: float = 0.0) -> None:
        self.parameters: dict[str, Any] = {"w": torch.nn.Parameter(torch.full((2,), value))}
        self.optimizer = torch.optim.AdamW(self.parameters.values())
        self.scaler = torch.amp.GradScaler("cpu", enabled=False)

    def save(self, to: Checkpoints, step: int) -> None:
        to.save(TrainingState(step=step), self.parameters, self.optimizer, self.scaler)

    def resume(self, source: Checkpoints) -> int:
        return source.resume(self.parameters, self.optimizer, self.scaler).step

    @property
    def value(self) -> float:
        return float(self.parameters["w"].detach()[0])


@pytest.fixture(scope="module")
def buckets() -> Iterator[dict[str, str]]:
    with s3_bucket("checkpoints") as s3, gcs_bucket("checkpoints") as gs:
        yield {"s3": s3, "gs": gs}


def no_link(*_: Any, **__: Any) -> None:
    raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))


@pytest.fixture(params=["file", "file without hard links", "s3", "gs"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ArtifactStore:
    if request.param.startswith("file"):
        if request.param != "file":
            monkeypatch.setattr(os, "link", no_link)
        return ArtifactStore(f"file://{tmp_path}/run")
    return ArtifactStore(f"{request.getfixturevalue('buckets')[request.param]}/{tmp_path.name}")


def folders(store: ArtifactStore) -> list[str]:
    return sorted({name.split("/")[1] for name in store.list("checkpoints")})


def test_the_newest_is_resumed_and_two_are_kept(store: ArtifactStore) -> None:
    checkpoints = Checkpoints(store, "run")
    for step in (1, 2, 3):
        Trained(float(step)).save(checkpoints, step)
    assert folders(store) == ["step-00000002", "step-00000003"]
    fresh = Trained()
    assert fresh.resume(Checkpoints(store, "run")) == 3
    assert fresh.value == 3.0
    assert Trained().resume(Checkpoints(store, "another run")) == 0


def test_of_two_pods_that_save_one_step_one_leaves(store: ArtifactStore) -> None:
    one, other = Checkpoints(store, "run"), Checkpoints(store, "run")
    Trained(1.0).save(one, 5)
    with pytest.raises(Interrupted, match="another pod of this run has saved step 5"):
        Trained(2.0).save(other, 5)
    fresh = Trained()
    assert fresh.resume(Checkpoints(store, "run")) == 5
    assert fresh.value == 1.0


def test_a_damaged_step_is_saved_again_beside_the_damage(store: ArtifactStore) -> None:
    checkpoints = Checkpoints(store, "run")
    for step in (4, 5):
        Trained(float(step)).save(checkpoints, step)
    torn = next(name for name in store.list("checkpoints/step-00000005") if name.endswith("optimizer.pt"))
    store.put(torn, store.get(torn)[:-9])
    again = Checkpoints(store, "run")
    trained = Trained()
    assert trained.resume(again) == 4
    trained.save(again, 5)
    assert folders(store) == ["step-00000004", "step-00000005.1"]
    assert Trained().resume(Checkpoints(store, "run")) == 5


def test_damage_that_came_after_the_start_is_found_when_its_step_is_saved(store: ArtifactStore) -> None:
    ahead, behind = Checkpoints(store, "run"), Checkpoints(store, "run")
    Trained(1.0).save(ahead, 7)
    torn = next(name for name in store.list("checkpoints") if name.endswith("state.json"))
    store.put(torn, b"{")
    Trained(2.0).save(behind, 7)
    fresh = Trained()
    assert fresh.resume(Checkpoints(store, "run")) == 7
    assert fresh.value == 2.0


def test_what_another_pod_is_writing_further_on_is_left_alone(store: ArtifactStore) -> None:
    store.put("checkpoints/step-00000009/other/state.json", b"half a save")
    store.put("checkpoints/step-00000001/other/state.json", b"half of an old one")
    Trained(2.0).save(Checkpoints(store, "run"), 2)
    assert folders(store) == ["step-00000002", "step-00000009"]
    assert Trained().resume(Checkpoints(store, "run")) == 2


def test_an_attempt_may_go_on_on_a_card_that_scales_its_losses(tmp_path: Path) -> None:
    """bf16 on the first attempt's card, fp16 on the next one's, and back."""
    checkpoints = Checkpoints(ArtifactStore(f"file://{tmp_path}/run"), "run")
    trained = Trained(1.0)
    for step, scaled in enumerate((False, True, False), start=1):
        trained.scaler = torch.amp.GradScaler("cpu", enabled=scaled)
        if step > 1:
            assert trained.resume(checkpoints) == step - 1
        trained.save(checkpoints, step)
