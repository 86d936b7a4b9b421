"""Runs the test tiers in order and says how long each took.

    python tests/tiers.py [lint] [unit] [api] [chart] [node]

Every tier runs even when an earlier one failed, so that one run shows everything; the exit code is that of the
first tier that failed.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUDGET_MINUTES = {"lint": 5, "unit": 15, "api": 10, "chart": 5, "node": 45}
PYTEST = [sys.executable, "-m", "pytest", "-q", "--durations=5"]
COMMANDS = {
    "lint": ["make", "--no-print-directory", "lint"],
    "unit": [*PYTEST, "tests/unit", "tests/chaos"],
    "api": [*PYTEST, "tests/api"],
    "chart": [*PYTEST, "tests/chart"],
    "node": [*PYTEST, "-s", "tests/node"],
}


def main(tiers: list[str]) -> int:
    rows: list[tuple[str, int, float]] = []
    for tier in tiers:
        print(f"\n=== {tier} (budget {BUDGET_MINUTES[tier]} min)", flush=True)
        start = time.monotonic()
        code = subprocess.run(COMMANDS[tier], cwd=ROOT, check=False).returncode
        rows.append((tier, code, time.monotonic() - start))
    print("\ntier    result   minutes  budget")
    for tier, code, seconds in rows:
        verdict = "passed" if code == 0 else f"exit {code}"
        print(f"{tier:7} {verdict:8} {seconds / 60:7.1f} {BUDGET_MINUTES[tier]:7d}")
    failed = sum(code != 0 for _, code, _ in rows)
    print(f"tiers: {len(rows) - failed} passed, {failed} failed")
    return next((code for _, code, _ in rows if code), 0)


if __name__ == "__main__":
    unknown = [tier for tier in sys.argv[1:] if tier not in COMMANDS]
    if unknown or not sys.argv[1:]:
        sys.exit(f"usage: tiers.py {' '.join(COMMANDS)}" + (f"; unknown: {unknown}" if unknown else ""))
    sys.exit(main(sys.argv[1:]))
