"""One command at a time does one kind of work; the others wait and say so. A killed one's lock is free at once."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager

from cluster.paths import CACHE
from cluster.steps import say


@contextmanager
def exclusive(what: str) -> Iterator[None]:
    """Hold the lock of this name. Daemons that are started meanwhile do not inherit it."""
    folder = CACHE / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / what).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another command that holds the lock {what!r}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
