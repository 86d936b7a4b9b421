"""Runs other programs to their end; a failure carries what they printed last."""

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

TAIL = 4000


class CommandError(RuntimeError):
    """A program ended with another code than zero."""


def run(
    argv: Sequence[str | Path],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    given: str | None = None,
    log: Path | None = None,
) -> str:
    """What the program printed on standard output; with `log`, both streams go to that file instead."""
    words = [str(word) for word in argv]
    environment = {**os.environ, **(env or {})}
    if log is None:
        done = subprocess.run(words, env=environment, cwd=cwd, input=given, capture_output=True, text=True)
        output, told = done.stdout, done.stdout + done.stderr
    else:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w") as stream:
            done = subprocess.run(
                words,
                env=environment,
                cwd=cwd,
                input=given,
                stdout=stream,
                stderr=subprocess.STDOUT,
                text=True,
            )
        output, told = "", f"(whole log: {log})\n{log.read_text(errors='replace')}"
    if done.returncode != 0:
        raise CommandError(f"{' '.join(words)} ended with {done.returncode}:\n{told[-TAIL:]}")
    return output


def attempt(argv: Sequence[str | Path]) -> str | None:
    """Like `run`, but None when the program fails or does not exist: for questions and for clearing away."""
    try:
        return run(argv)
    except (CommandError, OSError):
        return None
