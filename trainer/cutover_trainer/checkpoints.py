"""Checkpoints: what a training run needs to continue as if nothing had happened.

A checkpoint counts once its MANIFEST.json is there and every file matches it; the highest that verifies is resumed.
A manifest is put once and never again: of two pods that save one step, one wins and the other leaves. A folder found
damaged is passed over for good, its step is saved beside it. The two newest whole ones are kept, older folders cleared.
"""

from __future__ import annotations

import io
import json
import re
import uuid
from dataclasses import asdict, dataclass, field
from pathlib import PurePosixPath
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from cutover.stages import CHECKPOINT_FOLDER
from cutover_trainer.joblog import log
from cutover_trainer.manifest import MANIFEST_FILE, commit_once, read_manifest, sha256_of
from cutover_trainer.outcome import Interrupted, StageFailed
from cutover_trainer.storage import ArtifactStore
from cutover_trainer.team import Team

KEPT = 2
_NAME = re.compile(rf"{CHECKPOINT_FOLDER}/(step-\d{{8}}(?:\.\d+)?)/")
"""`step-00000012`; `step-00000012.1` where the first was found damaged."""


@dataclass(slots=True)
class TrainingState:
    """Where the run is. Everything drawn by chance follows from `step`."""

    step: int = 0
    """Steps done."""
    losses: list[list[float]] = field(default_factory=list)
    """[step, mean training loss since the last entry]"""
    validation_losses: list[list[float]] = field(default_factory=list)
    """[epoch, loss]"""
    open_loss: float = 0.0
    open_steps: int = 0
    """Sum and number of the losses since the last entry of `losses`."""
    seconds: float = 0.0
    """Time spent in steps, over all attempts that were committed."""
    samples: int = 0


class Checkpoints:
    """`fingerprint` names what is trained on what: checkpoints of another run are never resumed."""

    def __init__(self, store: ArtifactStore, fingerprint: str) -> None:
        self._store = store
        self._fingerprint = fingerprint
        self._writer = uuid.uuid4().hex[:8]
        self._passed_over: set[str] = set()
        """Names of folders that hold no checkpoint of this run and never will."""

    def save(self, state: TrainingState, parameters: dict[str, Any], optimizer: Any, scaler: Any) -> None:
        """Raises Interrupted when another pod has saved this step: it trains the same, and one is enough."""
        buffer = io.BytesIO()
        torch.save({"optimizer": optimizer.state_dict(), "scaler": scaler.state_dict()}, buffer)
        files = {
            "adapter.safetensors": save_tensors(
                {name: value.detach().cpu().contiguous() for name, value in parameters.items()}
            ),
            "optimizer.pt": buffer.getvalue(),
            "state.json": json.dumps(asdict(state)).encode(),
        }
        facts = {"step": state.step, "fingerprint": self._fingerprint, "torch": str(torch.__version__)}
        while True:
            name = self._free_name(state.step)
            if (
                commit_once(self._store, f"{CHECKPOINT_FOLDER}/{name}", self._writer, files, facts)
                is not None
            ):
                break
            if self._verified(name) is not None:
                raise Interrupted(
                    "AnotherPodTrains",
                    f"another pod of this run has saved step {state.step}; this one leaves the training to it",
                )
            self._passed_over.add(name)
        log("checkpoint", step=state.step)
        self._prune(name)

    def resume(
        self, parameters: dict[str, Any], optimizer: Any, scaler: Any, team: Team | None = None
    ) -> TrainingState:
        """State of the newest whole checkpoint, loaded into the arguments; a fresh state when there is none. The leader
        of a team chooses for all."""
        team = team or Team()
        name, files = self._newest() if team.leads else ("", {})
        name = team.told(name)
        if not name:
            return TrainingState()
        found = files or self._verified(name)
        if found is None:
            raise StageFailed(
                "CheckpointUnreadable", f"checkpoint {name} was whole for one worker and is not for another"
            )
        weights = load_tensors(found["adapter.safetensors"])
        with torch.no_grad():
            for key, parameter in parameters.items():
                parameter.copy_(weights[key])
        rest = torch.load(io.BytesIO(found["optimizer.pt"]), weights_only=True)
        optimizer.load_state_dict(rest["optimizer"])
        if rest["scaler"]:
            # Saved on a card that needs none, it begins anew.
            scaler.load_state_dict(rest["scaler"])
        state = TrainingState(**json.loads(found["state.json"]))
        log("resumed", step=state.step)
        return state

    def _newest(self) -> tuple[str, dict[str, bytes]]:
        """Name and files of the newest whole checkpoint; empty when there is none."""
        for name in reversed(self._names()):
            files = self._verified(name)
            if files is not None:
                return name, files
            log("checkpointIgnored", name=name)
            if self._committed(name):
                self._passed_over.add(name)
        return "", {}

    def _free_name(self, step: int) -> str:
        """The first folder of the step that was not passed over."""
        name, again = f"step-{step:08d}", 0
        while name in self._passed_over:
            again += 1
            name = f"step-{step:08d}.{again}"
        return name

    def _committed(self, name: str) -> bool:
        return self._store.exists(f"{CHECKPOINT_FOLDER}/{name}/{MANIFEST_FILE}")

    def _names(self) -> list[str]:
        found = (_NAME.match(name) for name in self._store.list(CHECKPOINT_FOLDER))
        return sorted({match.group(1) for match in found if match})

    def _verified(self, name: str) -> dict[str, bytes] | None:
        folder = f"{CHECKPOINT_FOLDER}/{name}"
        manifest = read_manifest(self._store, folder)
        if manifest is None or manifest.facts.get("fingerprint") != self._fingerprint:
            return None
        files: dict[str, bytes] = {}
        for file, entry in manifest.files.items():
            try:
                files[file] = self._store.get(f"{folder}/{file}")
            except FileNotFoundError:
                return None
            if sha256_of(files[file]) != entry.sha256:
                return None
        return {PurePosixPath(file).name: data for file, data in files.items()}

    def _prune(self, newest: str) -> None:
        """Clears what is older than the checkpoints kept. What is newer may be in the hands of another pod."""
        older = [name for name in self._names() if name <= newest]
        whole = [name for name in older if name not in self._passed_over and self._committed(name)]
        for name in older:
            if name not in whole[-KEPT:]:
                # The manifest goes first: what is left of a cut-short removal is no checkpoint.
                self._store.delete(f"{CHECKPOINT_FOLDER}/{name}/{MANIFEST_FILE}")
                self._store.delete(f"{CHECKPOINT_FOLDER}/{name}")
