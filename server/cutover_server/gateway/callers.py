"""Who may ask: nobody is asked for a key, one shared token is, or a file of hashed keys, one per application.

The file has a line `<name> <sha256 of the key in hex> [admin]` for each; it is looked at again when it has changed, so
a mounted Secret needs no restart, and a file that makes no sense leaves the last good one in force. Keys are never kept
or logged; digests are compared in constant time.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import time
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger(__name__)
_LOOK_SECONDS = 2.0
_LINE = re.compile(r"(?P<name>[\w.-]{1,64})\s+(?P<digest>[0-9a-f]{64})(?P<admin>\s+admin)?")


@dataclass(frozen=True, slots=True)
class Caller:
    name: str
    admin: bool = False


_ANYBODY = Caller("anybody")


class Callers:
    def __init__(self, token: str | None, keys_file: Path | None) -> None:
        """Raises ValueError, with the line, for a file that makes no sense."""
        self._shared = hashlib.sha256(token.encode()).digest() if token is not None else None
        self._file = keys_file
        self._known: list[tuple[bytes, Caller]] = []
        self._stamp = (0, 0)
        self._looked = time.monotonic()
        if keys_file is not None:
            self._stamp = _stamp(keys_file)
            self._known = read_keys(keys_file.read_text(encoding="utf-8"))

    def of(self, authorization: str) -> Caller | None:
        """The caller with this `Authorization` header; none when it may not ask."""
        if self._shared is None and self._file is None:
            return _ANYBODY
        scheme, _, key = authorization.partition(" ")
        if scheme.lower() != "bearer":
            return None
        self._look_again()
        digest = hashlib.sha256(key.strip().encode("utf-8", "surrogateescape")).digest()
        found = None
        if self._shared is not None and hmac.compare_digest(digest, self._shared):
            found = Caller("shared")
        for known, caller in self._known:  # all of them, whichever matches: the time tells nothing
            if hmac.compare_digest(digest, known):
                found = caller
        return found

    def _look_again(self) -> None:
        now = time.monotonic()
        if self._file is None or now - self._looked < _LOOK_SECONDS:
            return
        self._looked = now
        try:
            stamp = _stamp(self._file)
            if stamp != self._stamp:
                self._known = read_keys(self._file.read_text(encoding="utf-8"))
                self._stamp = stamp
        except (OSError, ValueError) as problem:
            log.error("the client keys stay as they were: %s", problem)


def read_keys(text: str) -> list[tuple[bytes, Caller]]:
    """The keys of a file. Raises ValueError with the number of a line that is none."""
    known = []
    for number, line in enumerate(text.splitlines(), 1):
        line = line.partition("#")[0].strip()
        if not line:
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            raise ValueError(f"line {number}: not '<name> <sha256 in hex> [admin]'")
        known.append((bytes.fromhex(match["digest"]), Caller(match["name"], match["admin"] is not None)))
    return known


def _stamp(file: Path) -> tuple[int, int]:
    told = file.stat()
    return told.st_mtime_ns, told.st_size
