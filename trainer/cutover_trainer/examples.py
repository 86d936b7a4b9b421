"""The prepared data: one JSON line per row, pictures beside it by SHA-256. Written by prepare, read by every later stage."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson
from PIL import Image
from pydantic import BaseModel, ConfigDict

from cutover.stages import DATA_FOLDER
from cutover_trainer.manifest import fetch_folder
from cutover_trainer.outcome import BadInput
from cutover_trainer.picture import load
from cutover_trainer.split import Part
from cutover_trainer.storage import ArtifactStore

PICTURES_FOLDER = "pictures"
KEPT_PICTURE_URL = "sha256:"


class Example(BaseModel):
    """A row that has passed every check."""

    model_config = ConfigDict(frozen=True)

    id: str
    group: str
    picture: str
    """SHA-256 of the kept bytes."""
    width: int
    height: int
    question: Sequence[Mapping[str, Any]]
    """Messages; the picture's URL is `sha256:<hex>`."""
    answer: str
    truth: Mapping[str, str]
    control: Mapping[str, Any] | None
    people: Sequence[Mapping[str, str]] = ()
    """What each person said who labelled it."""
    synthetic: bool = False
    """Made up; in the training part only."""

    @property
    def size(self) -> tuple[int, int]:
        return self.width, self.height


def encode_lines(examples: Iterable[Example]) -> bytes:
    return b"".join(orjson.dumps(example.model_dump()) + b"\n" for example in examples)


class PreparedData:
    """A committed data folder on this machine."""

    def __init__(self, folder: Path, digest: str) -> None:
        self._folder = folder
        self.digest = digest

    def part(self, part: Part) -> list[Example]:
        """Raises BadInput when a part that judges holds made-up rows."""
        examples = list(self._lines(part))
        made_up = [example.id for example in examples if example.synthetic]
        if made_up and part != "train":
            raise BadInput(
                "SyntheticHeldOut",
                f"artifacts: {DATA_FOLDER}/{part}.jsonl holds {len(made_up)} synthetic rows ({made_up[0]}); only the "
                "training part may: prepare the data in a new TrainingRun",
            )
        return examples

    def _lines(self, part: Part) -> Iterator[Example]:
        with (self._folder / f"{part}.jsonl").open("rb") as lines:
            for line in lines:
                yield Example.model_validate(orjson.loads(line))

    def picture(self, example: Example) -> Image.Image:
        return load((self._folder / PICTURES_FOLDER / example.picture).read_bytes())


def open_prepared(store: ArtifactStore, scratch: Path) -> PreparedData:
    found = fetch_folder(store, DATA_FOLDER, scratch)
    if found is None:
        raise BadInput(
            "DataNotPrepared",
            f"artifacts: {store.uri}/{DATA_FOLDER} holds no complete data set; run the stage prepare first",
        )
    folder, manifest = found
    return PreparedData(folder, manifest.digest)
