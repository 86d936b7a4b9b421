"""The adapter an evaluation compares with: fetched whole, of the same base, and asked only what it has not learnt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson

from cutover.stages import DATA_FOLDER, StageConfig
from cutover_trainer.adapter_facts import FACTS_FILE, AdapterFacts
from cutover_trainer.examples import Example
from cutover_trainer.manifest import fetch_folder
from cutover_trainer.outcome import BadInput
from cutover_trainer.storage import ArtifactStore

REMEDY = "correct evaluation.previousAdapter or remove it; what is trained is kept"


@dataclass(frozen=True, slots=True)
class PreviousModel:
    uri: str
    digest: str
    folder: Path
    learnt: frozenset[str] | None
    """Ids and picture digests of the rows it was trained on; None when its run left no data beside it."""

    def unseen(self, examples: Sequence[Example]) -> list[int]:
        """Indices of the rows the comparison is fair on."""
        learnt = self.learnt or frozenset()
        return [
            number
            for number, example in enumerate(examples)
            if example.id not in learnt and example.picture not in learnt
        ]


def fetch_previous(config: StageConfig, adapter: Path, scratch: Path) -> PreviousModel | None:
    """None when the run names none. `adapter` is the folder of the new one. Raises BadInput."""
    path, uri = config.previous_adapter_path, config.spec.evaluation.previous_adapter
    if path is None or uri is None:
        return None
    root, _, name = path.rstrip("/").rpartition("/")
    store = ArtifactStore(root)
    found = fetch_folder(store, name, scratch / "previous")
    if found is None:
        raise BadInput(
            "PreviousModelNotFound",
            f"evaluation.previousAdapter: {uri} holds no whole adapter; write it as status.model.adapterUri of the "
            f"earlier TrainingRun has it: {REMEDY}",
        )
    folder, manifest = found
    was, is_now = (_base(one, uri) for one in (folder, adapter))
    if was.base_digest != is_now.base_digest:
        raise BadInput(
            "PreviousModelOfAnotherBase",
            f"evaluation.previousAdapter: {uri} belongs to {was.base_uri} ({was.base_digest[:12]}), this run's base is "
            f"{is_now.base_uri} ({is_now.base_digest[:12]}); only adapters of one base can be compared: {REMEDY}",
        )
    return PreviousModel(uri, manifest.digest, folder, _learnt(store))


def _base(folder: Path, uri: str) -> AdapterFacts:
    try:
        return AdapterFacts.model_validate_json((folder / FACTS_FILE).read_bytes())
    except (OSError, ValueError):
        raise BadInput(
            "PreviousModelNotFound",
            f"evaluation.previousAdapter: {uri} has no readable {FACTS_FILE}, so it is no adapter of a TrainingRun: "
            f"{REMEDY}",
        ) from None


def _learnt(store: ArtifactStore) -> frozenset[str] | None:
    """From the data folder beside the adapter."""
    try:
        lines = store.get(f"{DATA_FOLDER}/train.jsonl").splitlines()
        rows = [orjson.loads(line) for line in lines]
        return frozenset(str(row[key]) for row in rows for key in ("id", "picture"))
    except (OSError, ValueError, KeyError, TypeError):
        return None
