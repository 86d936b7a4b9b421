"""10,000 assessments through the stage prepare: how long, with how much memory, and does it say how far it is?

    python -m bench.train_prepare [--rows 10000] [--side 336]

The rows carry their photographs (JPEG, data URLs), one in twenty-five is broken, one in twenty is a copy. The stage runs
in a process of its own; its memory is the kernel's figure for the whole of its life.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from bench.train_report import Goal, finish
from fakes.training_example import pictures, stage_document

SECONDS = 300.0
MEGABYTES = 1000.0
ORIGINALS = 400
"""Pictures drawn at full size; the others are crops and turns of them, so that drawing does not take an hour."""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument(
        "--side", type=int, default=336, help="picture side in pixels, LLaVA-1.5's own by default"
    )
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        return _measure(Path(folder), asked.rows, asked.side)


def _measure(folder: Path, count: int, side: int) -> int:
    file = folder / "rows.jsonl"
    with file.open("w") as target:
        target.writelines(json.dumps(row) + "\n" for row in _rows(count, side))
    document = stage_document(folder / "run", file, dataset={"quality": {"maxBadRowsShare": 0.1}})
    (folder / "stage.yaml").write_text(yaml.safe_dump(document))
    command = [sys.executable, "-m", "cutover_trainer", "prepare", "--config", str(folder / "stage.yaml")]
    environment = {**os.environ, "CUTOVER_TERMINATION_LOG": str(folder / "termination.json")}
    started = time.monotonic()
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - started
    if status != 0:
        raise RuntimeError((folder / "termination.json").read_text())
    lines = [json.loads(line) for line in (folder / "log").read_text().splitlines()]
    progress = [line for line in lines if line["event"] == "progress"]
    report = json.loads((folder / "run/data/report.json").read_bytes())
    megabytes = usage.ru_maxrss / 1000
    page_bytes = (folder / "run/data/report.html").stat().st_size
    refused = sum(report["badByReason"].values())
    figures = {
        "rows": count,
        "side": side,
        "seconds": seconds,
        "cpuSeconds": usage.ru_utime + usage.ru_stime,
        "megabytes": megabytes,
        "progressLines": len(progress),
        "inputBytes": file.stat().st_size,
        "reportPageBytes": page_bytes,
        "refused": refused,
        "groups": report["groups"],
    }
    longest = max(
        (later["step"] - earlier["step"] for earlier, later in itertools.pairwise(progress)),
        default=0,
    )
    goals = [
        Goal(
            f"{count} rows within {SECONDS:g} s",
            seconds <= SECONDS,
            f"{seconds:.0f} s ({count / seconds:.0f} rows/s, {figures['cpuSeconds']:.0f} s of CPU)",
        ),
        Goal(f"at most {MEGABYTES:g} MB resident", megabytes <= MEGABYTES, f"{megabytes:.0f} MB"),
        Goal(
            "progress shown all the way",
            len(progress) > 5 and progress[-1]["step"] == count,
            f"{len(progress)} lines, at most {longest} rows apart",
        ),
        Goal(
            "broken rows listed",
            refused == count // 25,
            f"{refused} refused, report page {page_bytes / 1e6:.1f} MB",
        ),
    ]
    return finish("prepare", goals, figures)


def _rows(count: int, side: int) -> Iterator[dict[str, Any]]:
    drawn = pictures()
    large = [drawn.damage_picture(31, index, side + 32) for index in range(ORIGINALS)]
    for index in range(count):
        picture = large[index % ORIGINALS]
        turn, shift = divmod(index // ORIGINALS, 8)
        left, top = 4 * (shift % 4), 8 * (shift // 4)
        image = picture.image.crop((left, top, left + side, top + side)).rotate(90 * turn)
        if index % 20 == 7:
            image = large[(index - 7) % ORIGINALS].image.crop((0, 0, side, side))
        yield _row(drawn, index, image, picture.answer)


def _row(drawn: Any, index: int, image: Image.Image, answer: dict[str, str]) -> dict[str, Any]:
    url = drawn.data_url(image) if index % 25 else "data:image/jpeg;base64,broken"
    return {
        "id": f"assessment-{index}",
        "group_id": f"building-{index // 2}",
        "validated": True,
        "messages": [*_question(url), {"role": "assistant", "content": json.dumps(answer)}],
        "control_answer": drawn.mistaken_answer(answer, 31, index, 0.92),
        "labels": [answer],
    }


def _question(url: str) -> list[dict[str, Any]]:
    asked: list[dict[str, Any]] = json.loads(_ASKED)
    asked[1]["content"][1]["image_url"]["url"] = url
    return asked


_ASKED = json.dumps(pictures().question(""))


if __name__ == "__main__":
    sys.exit(main())
