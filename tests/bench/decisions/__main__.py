"""`python -m bench.decisions [--runs 300] [--only grid,streams,troubles]`."""

from __future__ import annotations

import argparse

from bench.decisions import grid, streams, troubles
from bench.decisions.report import Report

PARTS = {"grid": grid.run, "streams": streams.run, "troubles": troubles.run}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=300, help="simulated rollouts a cell")
    parser.add_argument("--only", default=",".join(PARTS), help=f"parts of {', '.join(PARTS)}")
    arguments = parser.parse_args()
    report = Report(arguments.runs)
    print(f"decisions bench: {arguments.runs} runs a cell, fixed seeds, ± is one standard error")
    for part in arguments.only.split(","):
        PARTS[part](report)
    report.close()


if __name__ == "__main__":
    main()
