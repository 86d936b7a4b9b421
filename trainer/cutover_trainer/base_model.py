"""Finds the base model: a local folder, the Hugging Face hub, or an object store, always as a folder in the end.

Says early what is wrong: a model that does not exist, or one of another family than the spec names.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fsspec

from cutover.api.trainingrun import BaseModelRef, Family
from cutover.stages import StageConfig
from cutover_trainer.manifest import digest_of, sha256_of_file
from cutover_trainer.outcome import BadInput, StageFailed

MODEL_TYPES: dict[Family, str] = {"llava": "llava", "llava_next": "llava_next", "blip2": "blip-2"}
_DESCRIPTION_FILES = ("*.json", "*.jinja", "*.model", "*.txt")
_WEIGHT_FILES = ("*.safetensors",)


def base_folder(config: StageConfig, scratch: Path, weights: bool) -> Path:
    """Folder with the model's description and tokenizer, and its weights if asked for. Raises BadInput, StageFailed."""
    path = config.base_model_path
    if path.startswith("hf://"):
        folder = _from_hub(path.removeprefix("hf://"), config.spec.base_model.revision, weights)
    elif path.startswith(("s3://", "gs://")):
        folder = _from_objects(path, scratch / "base-model", weights)
    else:
        folder = Path(path.removeprefix("file://"))
    _check(folder, config.spec.base_model, weights)
    return folder


def base_digest(folder: Path) -> str:
    """Digest of everything that shapes an answer: weights, configuration, tokenizer, template."""
    patterns = (*_DESCRIPTION_FILES, *_WEIGHT_FILES)
    files = sorted({path for pattern in patterns for path in folder.glob(pattern)})
    return digest_of({path.name: sha256_of_file(path) for path in files})


def weights_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for pattern in _WEIGHT_FILES for path in folder.glob(pattern))


def read_config(folder: Path) -> dict[str, Any]:
    document = json.loads((folder / "config.json").read_text())
    return document if isinstance(document, dict) else {}


def _check(folder: Path, wanted: BaseModelRef, weights: bool) -> None:
    if not (folder / "config.json").is_file():
        raise BadInput(
            "BaseModelNotFound",
            f"baseModel.uri: {wanted.uri} (revision {wanted.revision}) has no config.json; "
            "name a folder or a repository with a Hugging Face model",
        )
    try:
        config = read_config(folder)
    except ValueError as error:
        raise BadInput(
            "BaseModelUnreadable", f"baseModel.uri: config.json of {wanted.uri}: {error}"
        ) from None
    found = config.get("model_type")
    if found != MODEL_TYPES[wanted.family]:
        raise BadInput(
            "WrongModelFamily",
            f"baseModel.family: {wanted.uri} is a {found!r} model, {wanted.family} needs "
            f"{MODEL_TYPES[wanted.family]!r}; correct baseModel.family or baseModel.uri",
        )
    if config.get("quantization_config"):
        raise BadInput(
            "BaseModelQuantized",
            f"baseModel.uri: the weights of {wanted.uri} are quantized already; name the model they were made from: "
            "fineTune.quantization nf4 quantizes it while it is loaded",
        )
    if weights and not any(folder.glob("*.safetensors")):
        raise BadInput(
            "BaseModelNotFound",
            f"baseModel.uri: {wanted.uri} has no *.safetensors weights; convert the model or name another revision",
        )


def _from_hub(repository: str, revision: str, weights: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    patterns = [*_DESCRIPTION_FILES, *(_WEIGHT_FILES if weights else ())]
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=patterns))
    except GatedRepoError:
        raise BadInput(
            "BaseModelNotFound",
            f"baseModel.uri: hf://{repository} is gated: accept its licence, download it once and name it as claim:// or s3://",
        ) from None
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError):
        raise BadInput(
            "BaseModelNotFound",
            f"baseModel.uri: the hub has no {repository} at revision {revision} that this pod may read: "
            "check the name and the revision; a private one must be named as claim:// or s3://",
        ) from None
    except (LocalEntryNotFoundError, OSError) as error:
        raise StageFailed(
            "BaseModelUnavailable", f"baseModel.uri: hf://{repository}: {error}"[:500]
        ) from None


def _from_objects(uri: str, folder: Path, weights: bool) -> Path:
    patterns = (*_DESCRIPTION_FILES, *(_WEIGHT_FILES if weights else ()))
    try:
        files, root = fsspec.core.url_to_fs(uri)
        names = {name for pattern in patterns for name in files.glob(f"{root.rstrip('/')}/{pattern}")}
        folder.mkdir(parents=True, exist_ok=True)
        for name in sorted(names):
            target = folder / Path(name).name
            if not target.exists() or target.stat().st_size != files.size(name):
                files.get_file(name, str(target))
    except ImportError as error:
        raise BadInput("UnknownStorage", f"baseModel.uri: {uri}: this image has no client: {error}") from None
    except FileNotFoundError:
        raise BadInput("BaseModelNotFound", f"baseModel.uri: nothing at {uri}; check the path") from None
    except PermissionError as error:
        raise BadInput(
            "BaseModelNotFound", f"baseModel.uri: {uri}: {error}; check the pod's access"
        ) from None
    except OSError as error:
        raise StageFailed("BaseModelUnavailable", f"baseModel.uri: {uri}: {error}"[:500]) from None
    return folder
