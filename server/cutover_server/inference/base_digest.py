"""The digest of a base model, as the trainer records it in an adapter's `cutover.json`."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from cutover_server.inference.content import sha256_of_file
from cutover_server.inference.sources import HUB_FILES


def base_digest(folder: Path) -> str:
    """SHA-256 of everything that shapes an answer: weights, configuration, tokenizer, template."""
    paths = {path for pattern in HUB_FILES for path in folder.glob(pattern)}
    files = {path.name: sha256_of_file(path) for path in paths}
    return hashlib.sha256(json.dumps(files, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
