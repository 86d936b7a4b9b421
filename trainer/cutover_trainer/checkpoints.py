"""Checkpoints: what a training run needs to continue as if nothing had happened.

A checkpoint counts once its MANIFEST.json is there and every file matches it; the highest that verifies is resumed.
Files of a save that was cut short are ignored and cleared by the next save. The two newest are kept.
"""

from __future__ import annotations

import io
import json
import re
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from cutover.stages import CHECKPOINT_FOLDER
from cutover_trainer.joblog import log
from cutover_trainer.manifest import MANIFEST_FILE, commit_folder, read_manifest, sha256_of
from cutover_trainer.storage import ArtifactStore

KEPT = 2
_NAME = re.compile(rf"{CHECKPOINT_FOLDER}/(step-(\d{{8}}))/")


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

    def save(self, state: TrainingState, parameters: dict[str, Any], optimizer: Any, scaler: Any) -> None:
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
        commit_folder(self._store, f"{CHECKPOINT_FOLDER}/step-{state.step:08d}", files, facts)
        log("checkpoint", step=state.step)
        self._prune()

    def resume(self, parameters: dict[str, Any], optimizer: Any, scaler: Any) -> TrainingState:
        """State of the newest whole checkpoint, loaded into the arguments; a fresh state when there is none."""
        for name in reversed(self._names()):
            files = self._verified(name)
            if files is None:
                log("checkpointIgnored", name=name)
                continue
            weights = load_tensors(files["adapter.safetensors"])
            with torch.no_grad():
                for key, parameter in parameters.items():
                    parameter.copy_(weights[key])
            rest = torch.load(io.BytesIO(files["optimizer.pt"]), weights_only=True)
            optimizer.load_state_dict(rest["optimizer"])
            scaler.load_state_dict(rest["scaler"])
            state = TrainingState(**json.loads(files["state.json"]))
            log("resumed", step=state.step)
            return state
        return TrainingState()

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
        return files

    def _prune(self) -> None:
        names = self._names()
        whole = [name for name in names if self._store.exists(f"{CHECKPOINT_FOLDER}/{name}/{MANIFEST_FILE}")]
        for name in names:
            if name not in whole[-KEPT:]:
                # The manifest goes first: what is left of a cut-short removal is no checkpoint.
                self._store.delete(f"{CHECKPOINT_FOLDER}/{name}/{MANIFEST_FILE}")
                self._store.delete(f"{CHECKPOINT_FOLDER}/{name}")
