"""Says what is being done and how long it took, on standard error, also when steps run side by side."""

import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

_START = time.monotonic()


def say(text: str) -> None:
    """One line, after the seconds since the start."""
    print(f"[{time.monotonic() - _START:6.1f} s] {text}", file=sys.stderr, flush=True)


@contextmanager
def step(what: str) -> Iterator[None]:
    """Name a piece of work at its start, and its duration at its end."""
    say(f"{what} ...")
    begin = time.monotonic()
    try:
        yield
    except BaseException:
        say(f"{what}: FAILED after {time.monotonic() - begin:.1f} s")
        raise
    say(f"{what}: {time.monotonic() - begin:.1f} s")


def together(*work: Callable[[], object]) -> None:
    """Do all of it side by side; the first failure is raised once all have ended."""
    with ThreadPoolExecutor(max_workers=len(work)) as pool:
        for future in [pool.submit(one) for one in work]:
            future.result()


def wait_until(what: str, ready: Callable[[], bool], seconds: float, every: float = 0.1) -> None:
    """Ask until it is so; past the deadline a TimeoutError says what was waited for."""
    end = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > end:
            raise TimeoutError(f"after {seconds:.0f} s still not: {what}")
        time.sleep(every)
