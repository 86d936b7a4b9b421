"""Ports of this machine that nobody listens on, outside the range that outgoing connections are given (32768 and up on
Linux): one that is free now is not taken by some caller before its server binds it, nor by another test."""

from __future__ import annotations

import contextlib
import random
import socket
from collections import deque

_PORTS = deque(range(20000, 30000, 2))
"""Below a cluster's NodePorts, too. The longest unused comes next: many are asked for before the first is bound."""
random.SystemRandom().shuffle(_PORTS)


def _next() -> int:
    _PORTS.rotate(-1)
    return _PORTS[-1]


def free_port() -> int:
    for port in (_next() for _ in range(200)):
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise OSError("no free port")


def two_in_a_row() -> int:
    """The lower of two neighbours."""
    for port in (_next() for _ in range(200)):
        with (
            contextlib.suppress(OSError),
            socket.create_server(("", port)),
            socket.create_server(("", port + 1)),
        ):
            return port
    raise OSError("no two free ports beside each other")
