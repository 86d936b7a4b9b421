"""Samples per second, loss and time to accuracy beside TRL's SFTTrainer: same model, rows, LoRA, batch and machine.

    python -m bench.train_speed [--rounds 2] [--rows 96] [--epochs 5] [--accuracy-rows 1200]

The trainers take turns in processes of their own, in the order A B B A from round to round. Features are reused on four
bases whose tower is a smaller or larger part of a step; what that can save at most is printed beside what it saved, and
the goal for it is judged on one base named beforehand. One thread each: what is
compared is seconds of CPU, which other work on the machine changes least; seconds of the wall stand beside them. TRL is
installed into build/trl by `make bench-train`, not into the project.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.train_report import Goal, finish
from bench.train_towers import PUBLISHED, SHAPES, base_of
from fakes.training_example import BASE_MODEL

ROOT = Path(__file__).resolve().parents[2]
TRL_FOLDER = ROOT / "build/trl"
WAYS = {
    "trl": "TRL SFTTrainer, no augmentation",
    "own": "this trainer, no reuse, no augmentation",
    "views-2": "this trainer, 2 fixed views",
    "views-1": "this trainer, 1 fixed view",
}
SMALL = "test base"
JUDGED = SHAPES[-1].name
"""The goal for reuse is out of reach of any trainer where the tower is a small part of a step."""
TURNS = {
    SMALL: ("trl", "own", "views-1"),
    **{shape.name: ("trl", "own", "views-1") for shape in SHAPES},
    JUDGED: ("trl", "own", "views-2", "views-1"),
}
ACCURACY = 0.88
ACCURACY_RATE = 2e-3
ACCURACY_EPOCHS = 4
PARITY_ROWS = 8
PASSES = {"10,000 x 5": 50_000, "80 % of 10,000 x 5": 40_000}
KNOWN_SPEEDS = {
    "A100, 4N flops at 312 TFLOP/s (limit)": 50_000 / (0.96 * 3600),
    "A100, LLaVA-1.5 7B as published": 2.31,
    "A100, Qwen-VL LoRA at 776 tokens, interpolated": 2.74,
    "what a budget of 50 GPU-hours needs": 50_000 / (50 * 3600),
}
Turns = dict[str, dict[str, list[dict[str, Any]]]]
"""By base and way."""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--rows", type=int, default=96)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--accuracy-rows", type=int, default=1200, help="0 leaves the time to accuracy out")
    asked = parser.parse_args()
    started = time.monotonic()
    turns: Turns = {base: {way: [] for way in ways} for base, ways in TURNS.items()}
    reached: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        bases = {SMALL: BASE_MODEL} | {
            shape.name: base_of(shape, Path(folder) / shape.name) for shape in SHAPES
        }
        size = [f"--rows={asked.rows}", f"--epochs={asked.epochs}"]
        for number in range(asked.rounds):
            for base, place in bases.items():
                for way in TURNS[base] if number % 2 == 0 else reversed(TURNS[base]):
                    one = _turn(way, place, *size)
                    turns[base][way].append(one)
                    _show(number, base, way, one)
        if asked.accuracy_rows:
            size = [f"--rows={asked.accuracy_rows}", f"--epochs={ACCURACY_EPOCHS}"]
            for way in ("own", "trl"):
                reached[way] = _turn(
                    way, BASE_MODEL, *size, f"--rate={ACCURACY_RATE}", f"--accuracy={ACCURACY}"
                )
    print(f"\nmeasured in {(time.monotonic() - started) / 60:.1f} minutes")
    return _judge(turns, reached, asked.epochs)


def _turn(way: str, base: Path, *options: str) -> dict[str, Any]:
    paths = [
        str(ROOT / "tests"),
        *([str(TRL_FOLDER)] if way == "trl" else []),
        os.environ.get("PYTHONPATH", ""),
    ]
    environment = {
        **os.environ,
        "PYTHONPATH": ":".join(paths),
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
    }
    command = [sys.executable, "-m", "bench.train_turns", f"--way={way}", f"--base={base}", *options]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    found = [line for line in done.stdout.splitlines() if line.startswith("@@")]
    if done.returncode != 0 or not found:
        raise RuntimeError(f"{way}: {done.stderr[-3000:]}")
    figures: dict[str, Any] = json.loads(found[-1][2:])
    return figures


def _show(number: int, base: str, way: str, one: dict[str, Any]) -> None:
    print(
        f"round {number + 1}  {base:9} {WAYS[way]:40} {one['perCpuSecond']:6.1f} samples/CPU-s  {one['perSecond']:6.1f}/s"
        f"  loss {one['firstLoss']:.4f} -> {one['lastLoss']:.4f}",
        flush=True,
    )


# ------------------------------------------------------------------ the verdict
def _judge(turns: Turns, reached: dict[str, dict[str, Any]], epochs: int) -> int:
    small = turns[SMALL]
    plain, plain_text = _compared(small, "own")
    reuse, reuse_text = _compared(turns[JUDGED], "views-1")
    two_views = _compared(turns[JUDGED], "views-2")[1]
    bounds = _bounds(turns, epochs)
    (bound,) = (one["besideTrlAtMost"] for one in bounds if (one["base"], one["views"]) == (JUDGED, 1))
    mine, theirs = small["own"][0], small["trl"][0]
    gap = abs(mine["lossBefore"] - theirs["lossBefore"])
    tokens = sum(len(one) for one in mine["trainedTokens"])
    last = {way: _median(small[way], "lastLoss") for way in small}
    goals = [
        Goal("at least 1.2 times TRL's samples per second", plain >= 1.2, plain_text),
        Goal(
            f"at least 2 times TRL's with features of 1 fixed view reused, judged on {JUDGED} alone",
            reuse >= 2.0,
            f"{reuse_text}; at most {bound:.2f} there; of 2 fixed views {two_views}",
        ),
        Goal(
            "same trained tokens as TRL",
            mine["trainedTokens"] == theirs["trainedTokens"],
            f"{tokens} in {PARITY_ROWS} rows",
        ),
        Goal(
            "same loss as TRL before the first step",
            gap < 1e-5,
            f"{mine['lossBefore']:.6f} and {theirs['lossBefore']:.6f}",
        ),
        Goal(
            "loss after training not above TRL's by more than 5 %",
            last["own"] <= 1.05 * last["trl"],
            f"{last['own']:.4f} and {last['trl']:.4f}",
        ),
    ]
    if reached:
        goals.append(_time_to_accuracy(reached))
        _show_looks(reached)
    _show_bounds(bounds, epochs)
    speeds = {f"this machine, tiny model: {WAYS[way]}": _median(small[way], "perCpuSecond") for way in small}
    _show_hours(speeds | KNOWN_SPEEDS)
    for runs in (one for of_base in turns.values() for one in of_base.values()):
        for run in runs:
            del run["trainedTokens"]
    return finish(
        "train",
        goals,
        {"turns": turns, "timeToAccuracy": reached, "bounds": bounds, "speeds": speeds | KNOWN_SPEEDS},
    )


def _median(turns: list[dict[str, Any]], name: str) -> float:
    return float(statistics.median(one[name] for one in turns))


def _ratios(turns: dict[str, list[dict[str, Any]]], way: str, name: str) -> list[float]:
    return [mine[name] / trl[name] for mine, trl in zip(turns[way], turns["trl"], strict=True)]


def _compared(turns: dict[str, list[dict[str, Any]]], way: str) -> tuple[float, str]:
    cpu, wall = _ratios(turns, way, "perCpuSecond"), _ratios(turns, way, "perSecond")
    each = ", ".join(f"{value:.2f}" for value in cpu)
    return statistics.median(cpu), (
        f"{statistics.median(cpu):.2f} times by CPU seconds ({each}), {statistics.median(wall):.2f} by the wall"
    )


def _time_to_accuracy(reached: dict[str, dict[str, Any]]) -> Goal:
    first = {
        way: next((look for look in one["looks"] if look[2] >= ACCURACY), None)
        for way, one in reached.items()
    }
    text = "; ".join(
        f"{way}: {look[1]:.0f} s of CPU, {look[0]} passes, {look[2]:.3f}"
        if look
        else f"{way}: not within {one['looks'][-1][1]:.0f} s of CPU, {one['looks'][-1][2]:.3f} at the end"
        for (way, look), one in zip(first.items(), reached.values(), strict=True)
    )
    own, trl = first["own"], first["trl"]
    sooner = own is not None and (trl is None or own[1] <= trl[1])
    return Goal(f"{ACCURACY:g} of unseen pictures right no later than TRL", sooner, text)


def _show_looks(reached: dict[str, dict[str, Any]]) -> None:
    print(f"\nTime to accuracy, {ACCURACY:g} of unseen pictures\n{'':42} passes  s of CPU  right")
    for way, one in reached.items():
        for passes, seconds, share in one["looks"]:
            print(f"{WAYS[way]:42} {passes:6}  {seconds:8.1f}  {share:.3f}")


def most(share: float, views: int, epochs: int) -> float:
    """How many times as fast reuse can make a run whose step is `share` pictures and tower: the features of every view
    are still reckoned once."""
    return 1 / (1 - share * (1 - min(views, epochs) / epochs))


def _bounds(turns: Turns, epochs: int) -> list[dict[str, Any]]:
    """A line for each base and number of views: what reuse could save and what it saved, alone and beside TRL."""
    lines = []
    for base, ways in turns.items():
        share = _median(ways["own"], "pictureShare")
        plain = statistics.median(_ratios(ways, "own", "perCpuSecond"))
        for way in (name for name in ways if name.startswith("views-")):
            views = int(way.removeprefix("views-"))
            alone = [
                one["perCpuSecond"] / own["perCpuSecond"]
                for one, own in zip(ways[way], ways["own"], strict=True)
            ]
            lines.append(
                {
                    "base": base,
                    "views": views,
                    "towerShare": share,
                    "withoutReuseBesideTrl": plain,
                    "reuseAloneAtMost": most(share, views, epochs),
                    "reuseAlone": statistics.median(alone),
                    "besideTrlAtMost": plain * most(share, views, epochs),
                    "besideTrl": statistics.median(_ratios(ways, way, "perCpuSecond")),
                }
            )
    return lines


def _show_bounds(bounds: list[dict[str, Any]], epochs: int) -> None:
    print(
        f"\nReused features over {epochs} epochs: times the samples a second of CPU, and what is possible at most"
    )
    print(
        f"{'':11} {'views':>5} {'tower':>7}   {'of this trainer without reuse':>30}   {'of TRL':>22}   without reuse, of TRL"
    )
    for one in bounds:
        alone = f"{one['reuseAlone']:.2f} (at most {one['reuseAloneAtMost']:.2f})"
        beside = f"{one['besideTrl']:.2f} (at most {one['besideTrlAtMost']:.2f})"
        print(
            f"{one['base']:11} {one['views']:5} {one['towerShare']:7.1%}   {alone:>30}   {beside:>22}"
            f"   {one['withoutReuseBesideTrl']:.2f}"
        )
    print(
        f"\nReckoned from published sizes{'':19} {'tower':>7}   reuse at most, 1 view in {epochs} epochs; for ever"
    )
    for known in PUBLISHED:
        share = known.tower_share
        print(f"{known.name:48} {share:7.1%}   {most(share, 1, epochs):.2f}; {1 / (1 - share):.2f}")


def _show_hours(speeds: dict[str, float]) -> None:
    print(f"\n{'samples/s and what they make of':66} " + "  ".join(f"{name:>18}" for name in PASSES))
    for name, speed in speeds.items():
        hours = "  ".join(f"{passes / speed / 3600:16.2f} h" for passes in PASSES.values())
        print(f"{name:58} {speed:7.2f} {hours}")
    print("A tiny model's figure says nothing about an A100; put in what your own run's status reports.\n")


if __name__ == "__main__":
    sys.exit(main())
