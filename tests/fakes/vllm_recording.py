"""Answers of a real vLLM, kept as files: tests/fixtures/vllm/NAME.json, written by `make soak-vllm`.

A file holds one request and its answer as they were, save for what another run would tell otherwise: ids, times,
ports, and the folder that stood for the pod's file system.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent.parent / "fixtures" / "vllm"
SETUP = "setup"
"""Versions, command line, environment."""
METRICS = "metrics"
"""Names, kinds and labels of vLLM's metrics."""
_CHANGING = (
    (r"chatcmpl-[0-9a-f-]+", "chatcmpl-0"),
    (r"modelperm-[0-9a-f-]+", "modelperm-0"),
    (r'("created":\s*)\d+', r"\g<1>0"),
    (r'("system_fingerprint":\s*)"[^"]+"', r'\g<1>"0"'),
    (r"127\.0\.0\.1:\d+", "vllm:8000"),
    (r"\b0x[0-9a-f]+", "0x0"),
)


@dataclass(frozen=True, slots=True)
class Exchange:
    name: str
    method: str
    path: str
    body: Any
    """The request's JSON; text when it was none; null without a body."""
    status: int
    content_type: str
    reply: Any
    """The answer's JSON, or its text."""

    @property
    def reply_bytes(self) -> bytes:
        """The answer as vLLM sent it, up to white space."""
        return self.reply.encode() if isinstance(self.reply, str) else json.dumps(self.reply).encode()

    @property
    def events(self) -> list[dict[str, Any]]:
        """The chunks of a stream, without its end marker."""
        lines = [line[6:] for line in self.reply.splitlines() if line.startswith("data: ")]
        assert lines[-1] == "[DONE]"
        return [json.loads(line) for line in lines[:-1]]


def settled(text: str, root: str = "") -> str:
    """The text without what differs from run to run; paths under `root` as the pod would name them."""
    if root:
        text = text.replace(root, "")
    for pattern, instead in _CHANGING:
        text = re.sub(pattern, instead, text)
    return text


def read(name: str) -> Exchange:
    document = json.loads((FOLDER / f"{name}.json").read_text())
    return Exchange(name=name, **document["request"], **document["answer"])


def names() -> list[str]:
    """Of all exchanges."""
    return sorted(path.stem for path in FOLDER.glob("*.json") if path.stem not in (SETUP, METRICS))


def read_document(name: str) -> dict[str, Any]:
    """`SETUP` or `METRICS`."""
    document: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text())
    return document


def write(folder: Path, exchange: Exchange) -> None:
    request = {"method": exchange.method, "path": exchange.path, "body": exchange.body}
    answer = {
        "status": exchange.status,
        "content_type": exchange.content_type,
        "reply": exchange.reply,
    }
    write_document(folder, exchange.name, {"request": request, "answer": answer})


def write_document(folder: Path, name: str, document: Any) -> None:
    (folder / f"{name}.json").write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
