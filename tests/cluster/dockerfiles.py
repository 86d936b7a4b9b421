"""Which files a Dockerfile copies from its context: they, and no others, decide what the image holds."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

# By-products that no image should depend on; the .dockerignore keeps them out as well.
IGNORED = {"__pycache__", ".git", ".venv", ".mypy_cache", ".ruff_cache", ".pytest_cache", "node_modules"}


def sources(dockerfile: Path, context: Path) -> list[Path]:
    """The files below `context` that the Dockerfile's COPY, ADD and bind mounts name, and the .dockerignore."""
    found: set[Path] = set()
    for pattern in _patterns(dockerfile.read_text()):
        matches = list(context.glob(pattern.strip("/") or "."))
        if not matches:
            raise FileNotFoundError(f"{dockerfile} copies {pattern}, which is not below {context}")
        for match in matches:
            found.update(_files(match))
    ignore = context / ".dockerignore"
    return sorted(found | ({ignore} if ignore.exists() else set()))


def _patterns(text: str) -> Iterator[str]:
    for line in re.sub(r"\\\s*\n", " ", text).splitlines():
        words = line.split(maxsplit=1)
        instruction = words[0].upper() if len(words) == 2 else ""
        if instruction in {"COPY", "ADD"}:
            parts = shlex.split(words[1])
            if any(part.startswith("--from=") for part in parts):
                continue  # from another stage or image, which has its own sources
            yield from [part for part in parts if not part.startswith("--")][:-1]
        elif instruction == "RUN":
            for mount in re.findall(r"--mount=(\S+)", words[1]):
                options = dict(option.partition("=")[::2] for option in mount.split(","))
                if options.get("type", "bind") == "bind" and "from" not in options:
                    yield options.get("source") or options.get("src") or "."


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
        return
    for entry in path.rglob("*"):
        inside = entry.relative_to(path).parts
        if entry.is_file() and not IGNORED.intersection(inside) and entry.suffix != ".pyc":
            yield entry
