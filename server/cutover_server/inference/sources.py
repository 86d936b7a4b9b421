"""Where a model is: a local folder, an object store behind the cache, or the Hugging Face hub. A folder in the end."""

from __future__ import annotations

import hashlib
from pathlib import Path

from cutover_server.inference.content import fetch
from cutover_server.inference.refusal import Unservable

HUB_FILES = ("*.json", "*.jinja", "*.model", "*.txt", "*.safetensors")


def local_folder(uri: str, revision: str, cache: Path | None) -> Path:
    """Raises Unservable when nothing there can ever be served, OSError when it may be on another try."""
    folder = Path(uri.removeprefix("file://"))
    if folder.is_dir():
        return folder.resolve()
    if uri.startswith(("s3://", "gs://")):
        if cache is None:
            raise Unservable("NoCache", f"{uri}: give --cache, or run `cutover-engine fetch` before")
        return fetch(uri, cache / hashlib.sha256(uri.encode()).hexdigest()[:16])
    name = uri.removeprefix("hf://")
    if "://" in name or name.count("/") != 1 or name.startswith((".", "/")):
        raise Unservable(
            "ModelNotFound", f"{uri} is not a folder here, nor hf://org/name, s3:// or gs://; check the path"
        )
    return _from_hub(name, revision)


def _from_hub(name: str, revision: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(HUB_FILES)))
    except LocalEntryNotFoundError as error:
        raise OSError(f"the hub cannot be reached for {name}: {error}"[:500]) from error
    except GatedRepoError as error:
        raise Unservable(
            "ModelNotFound",
            f"{name} is gated: accept its licence, download it once and name it as claim:// or s3://",
        ) from error
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        raise Unservable(
            "ModelNotFound", f"the hub has no {name} at revision {revision} that this pod may read"
        ) from error
