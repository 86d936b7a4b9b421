"""What trainer tests share: the building-damage example, the tiny base model, and running a stage in this process."""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import yaml

from cutover.stages import StageResult
from cutover.task import Task

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples/building-damage"
BASE_MODEL = ROOT / "tests/fixtures/tiny-llava"


def pictures() -> Any:
    """The example's picture generator."""
    if str(EXAMPLE) not in sys.path:
        sys.path.insert(0, str(EXAMPLE))
    return importlib.import_module("pictures")


def task() -> Task:
    return Task.model_validate(pictures().task_document())


def rows(count: int, seed: int = 1, **options: Any) -> list[dict[str, Any]]:
    return list(pictures().rows(seed, count, **options))


def write_rows(path: Path, documents: Iterable[Any]) -> Path:
    """JSON lines; a string stands for itself, to write what is no JSON."""
    lines = (document if isinstance(document, str) else json.dumps(document) for document in documents)
    path.write_text("".join(line + "\n" for line in lines))
    return path


def stage_document(folder: Path, rows_file: Path | None = None, **spec: Any) -> dict[str, Any]:
    """A StageConfig for a run whose artifacts lie in `folder`; `spec` replaces parts of the TrainingRun's."""
    quality = {"minExamples": 8, "minPerClass": 0}
    dataset = {"source": {"claim": {"name": "data"}}, "quality": quality, **spec.pop("dataset", {})}
    dataset["quality"] = {**quality, **dataset["quality"]}
    return {
        "run": {"name": "damage", "namespace": "test", "uid": "6f1c2d0a-0000-4000-8000-000000000001"},
        "artifacts": f"file://{folder}",
        "publishedArtifacts": "claim://artifacts/damage",
        "task": pictures().task_document(),
        "spec": {
            "task": {"configMap": "building-damage"},
            "dataset": dataset,
            "baseModel": {"uri": "claim://models/tiny-llava"},
            "compute": {"gpus": 0},
            "output": {"claim": {"name": "artifacts"}},
            **spec,
        },
        "baseModelPath": str(BASE_MODEL),
        "sourcePath": None if rows_file is None else str(rows_file),
    }


def run_stage(stage: str, document: dict[str, Any], workspace: Path) -> tuple[int, StageResult]:
    """Run a stage here; its exit code and what it left in the termination log."""
    from cutover_trainer.__main__ import main

    config = workspace / "stage.yaml"
    config.write_text(yaml.safe_dump(document))
    log = workspace / "termination.json"
    log.unlink(missing_ok=True)
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    os.environ["CUTOVER_TERMINATION_LOG"] = str(log)
    try:
        code = main([stage, "--config", str(config)])
    finally:
        del os.environ["CUTOVER_TERMINATION_LOG"]
        for number, handler in kept.items():
            signal.signal(number, handler)
    assert len(log.read_bytes()) < 4096
    return code, StageResult.model_validate_json(log.read_text())


Answer = Callable[[str, dict[str, str]], tuple[int, bytes]]
"""Path with query and headers in, status and body out."""


@contextmanager
def http_service(answer: Answer, redirects: Mapping[str, str] | None = None) -> Iterator[str]:
    """A service on the loopback address; yields its origin. `redirects`: where a path is sent on to."""
    elsewhere = redirects or {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path in elsewhere:
                self.send_response(302)
                self.send_header("Location", elsewhere[self.path])
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            status, body = answer(self.path, {name.lower(): value for name, value in self.headers.items()})
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
