"""Brings the rows from where they are into the run's folder, once: export/rows.jsonl, then its manifest.

From an HTTP export (JSON lines, bearer token), an object-store URI, or a mounted claim; the rows of `dataset.synthetic`
follow, and the manifest says how many they are. Bounded in rows and bytes; a transfer that breaks off is never taken for
a complete one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Literal

import fsspec
from yarl import URL

from cutover.fetch import FetchFailed, FetchPolicy, FetchRefused, guarded_session, open_stream
from cutover.stages import EXPORT_FOLDER, StageConfig, StageResult
from cutover_trainer.joblog import log
from cutover_trainer.manifest import (
    MANIFEST_FILE,
    SYNTHETIC_ROWS,
    FileEntry,
    Manifest,
    build_manifest,
    read_manifest,
    sha256_of_file,
    synthetic_rows,
)
from cutover_trainer.outcome import BadInput, StageFailed
from cutover_trainer.storage import ArtifactStore

ROWS_FILE = "rows.jsonl"
MAX_LINE_BYTES = 32_000_000
MAX_EXPORT_BYTES = 64_000_000_000
SILENCE_SECONDS = 60.0
"""A source that sends nothing for this long has failed."""


def run(config: StageConfig, store: ArtifactStore, scratch: Path) -> StageResult:
    manifest = export_rows(config, store, scratch)
    rows = manifest.facts["rows"]
    made = synthetic_rows(manifest)
    more = f", and {made} synthetic ones" if made else ""
    return StageResult(stage="export", outcome="done", message=f"{rows} rows exported{more}")


def export_rows(config: StageConfig, store: ArtifactStore, scratch: Path) -> Manifest:
    """The manifest of the exported rows; exports them if that was not done before."""
    present = read_manifest(store, EXPORT_FOLDER)
    if present is not None:
        return present
    target = scratch / ROWS_FILE
    count = _write_rows(config, target)
    if count == 0:
        raise BadInput("EmptyDataset", "dataset.source: it has no rows; check the source and its filters")
    made = _append_synthetic(config, target)
    entry = FileEntry(sha256=sha256_of_file(target), size=target.stat().st_size)
    manifest = build_manifest({ROWS_FILE: entry}, {"rows": count, SYNTHETIC_ROWS: made})
    staged = scratch / EXPORT_FOLDER
    staged.mkdir(exist_ok=True)
    target.replace(staged / ROWS_FILE)
    store.upload(staged, EXPORT_FOLDER)
    store.put(f"{EXPORT_FOLDER}/{MANIFEST_FILE}", manifest.to_bytes())
    log("exported", rows=count, synthetic=made, bytes=entry.size)
    return manifest


def source_token(config: StageConfig) -> str | None:
    if config.source_token_file is None:
        return None
    path = Path(config.source_token_file)
    if not path.is_file():
        raise BadInput("SourceTokenMissing", f"dataset.source.http.secretRef: no token at {path}")
    return path.read_text().strip()


def authorization(token: str | None) -> dict[str, str]:
    return {} if token is None else {"Authorization": f"Bearer {token}"}


def _write_rows(config: StageConfig, target: Path) -> int:
    source = config.spec.dataset.source
    if source.http is not None:
        return asyncio.run(_write_http_rows(config, source.http.url, target))
    if config.source_path is not None:
        lines = _file_lines(Path(config.source_path), "dataset.source.claim")
        return _write_lines(lines, target, config.spec.dataset.limit)
    if source.uri is not None:
        lines = _object_lines(source.uri, "dataset.source.uri")
        return _write_lines(lines, target, config.spec.dataset.limit)
    raise BadInput("NoSource", "dataset.source: give http, uri or claim")


def _append_synthetic(config: StageConfig, target: Path) -> int:
    wanted = config.spec.dataset.synthetic
    if wanted is None or (config.synthetic_path is None and wanted.uri is None):
        return 0
    field = "dataset.synthetic.uri" if wanted.uri is not None else "dataset.synthetic.claim"
    if wanted.uri is not None:
        lines = _object_lines(wanted.uri, field)
    else:
        lines = _file_lines(Path(str(config.synthetic_path)), field)
    count = _write_lines(lines, target, config.spec.dataset.limit, "ab", "dataset.synthetic")
    if count == 0:
        raise BadInput("EmptyDataset", f"{field}: it has no rows; correct it or remove dataset.synthetic")
    return count


# ------------------------------------------------------------------ HTTP
async def _write_http_rows(config: StageConfig, url: str, target: Path) -> int:
    limit = _rows_wanted(url, config.spec.dataset.limit)
    asked = URL(url).update_query(limit=str(limit))
    policy = FetchPolicy(allowed_origins=config.allowed_origins)
    headers = {
        "Accept": "application/x-ndjson, application/jsonl, */*",
        **authorization(source_token(config)),
    }
    written = count = 0
    try:
        async with (
            guarded_session(policy) as session,
            open_stream(str(asked), policy, session, headers, SILENCE_SECONDS) as response,
        ):
            _check_status(response.status, url)
            with target.open("wb") as file:
                async for line in _lines(response.content.iter_chunked(1 << 16)):
                    written += len(line) + 1
                    count += 1
                    _check_size(line, count, written)
                    file.write(line + b"\n")
                    if count >= limit:
                        break
    except FetchRefused as error:
        raise BadInput(
            "SourceRefused",
            f"dataset.source.http.url: {error}; a service inside the cluster must be on the chart's allow list",
        ) from None
    except FetchFailed as error:
        raise StageFailed("SourceUnavailable", f"dataset.source.http.url: {error}") from None
    return count


def _rows_wanted(url: str, limit: int) -> int:
    """The smaller of `dataset.limit` and the URL's own `limit`: neither is silently overruled."""
    own = URL(url).query.get("limit")
    if own is None:
        return limit
    if not (own.isascii() and own.isdigit() and int(own) > 0):
        raise BadInput(
            "SourceRefused",
            f"dataset.source.http.url: its limit {own[:32]!r} is no positive number; "
            "remove it and set dataset.limit",
        )
    return min(limit, int(own))


def _check_status(status: int, url: str) -> None:
    shown = URL(url).with_query(None)
    if status == 200:
        return
    if status in (401, 403):
        raise BadInput(
            "SourceUnauthorized",
            f"dataset.source.http: {shown} answered {status}: check the token in dataset.source.http.secretRef "
            "and that its role may export",
        )
    if status == 404:
        raise BadInput("SourceNotFound", f"dataset.source.http.url: {shown} answered 404: check the path")
    if status in (408, 425, 429) or status >= 500:
        raise StageFailed("SourceUnavailable", f"dataset.source.http.url: {shown} answered {status}")
    raise BadInput(
        "SourceRefused",
        f"dataset.source.http.url: {shown} answered {status}; it must answer 200 with JSON lines",
    )


async def _lines(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Non-empty lines; a last line without an end counts."""
    rest = bytearray()
    async for chunk in chunks:
        rest += chunk
        if b"\n" in chunk:
            *whole, tail = bytes(rest).split(b"\n")
            rest = bytearray(tail)
            for line in whole:
                if line.strip():
                    yield line
        elif len(rest) > MAX_LINE_BYTES:
            yield bytes(rest)
            return
    if rest.strip():
        yield bytes(rest)


# ------------------------------------------------------------------ files and objects
def _file_lines(path: Path, field: str) -> Iterator[bytes]:
    files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise BadInput("SourceNotFound", f"{field}: no JSON lines (*.jsonl) at {path}; check claim.path")
    for file in files:
        with file.open("rb") as lines:
            yield from _bounded(lines)


def _object_lines(uri: str, field: str) -> Iterator[bytes]:
    try:
        files, root = fsspec.core.url_to_fs(uri)
        names = [root] if not files.isdir(root) else sorted(files.glob(f"{root.rstrip('/')}/*.jsonl"))
        if not names or not files.exists(names[0]):
            raise BadInput("SourceNotFound", f"{field}: {uri} has no JSON lines (*.jsonl)")
        for name in names:
            with files.open(name, "rb") as lines:
                yield from _bounded(lines)
    except PermissionError as error:
        raise BadInput("SourceUnauthorized", f"{field}: {uri}: {error}; check the pod's access") from None
    except ImportError as error:
        raise BadInput("UnknownStorage", f"{field}: {uri}: this image has no client: {error}") from None


def _bounded(file: Any) -> Iterator[bytes]:
    """Lines, but never more of one in memory than `_check_size` needs to refuse it."""
    rest = b""
    while chunk := file.read(1 << 20):
        *whole, rest = (rest + chunk).split(b"\n")
        yield from whole
        if len(rest) > MAX_LINE_BYTES:
            break
    yield rest


def _write_lines(
    lines: Iterator[bytes], target: Path, limit: int, mode: Literal["wb", "ab"] = "wb", field: str = "dataset"
) -> int:
    written = count = 0
    with target.open(mode) as file:
        for line in lines:
            if not line.strip():
                continue
            count += 1
            written += len(line)
            _check_size(line, count, written, field)
            file.write(line.rstrip(b"\r\n") + b"\n")
            if count >= limit:
                break
    return count


def _check_size(line: bytes, number: int, written: int, field: str = "dataset") -> None:
    if len(line) > MAX_LINE_BYTES:
        raise BadInput(
            "RowTooLarge",
            f"{field}: line {number} has more than {MAX_LINE_BYTES} bytes; send pictures by URL or scale them down",
        )
    if written > MAX_EXPORT_BYTES:
        raise BadInput("ExportTooLarge", f"{field}: more than {MAX_EXPORT_BYTES} bytes; lower dataset.limit")
