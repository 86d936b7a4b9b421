"""Ports of this machine that nobody listens on, outside the range that outgoing connections are given (32768 and up on
Linux): one that is free now is not taken by some caller before its server binds it."""

from __future__ import annotations

import contextlib
import random
import socket

_PORTS = range(20000, 30000, 2)
"""Below a cluster's NodePorts, too."""
_chance = random.SystemRandom()
"""Tests run side by side, some of them with the same seed."""


def free_port() -> int:
    for port in _chance.sample(_PORTS, 200):
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise OSError("no free port")


def two_in_a_row() -> int:
    """The lower of two neighbours."""
    for port in _chance.sample(_PORTS, 200):
        with (
            contextlib.suppress(OSError),
            socket.create_server(("", port)),
            socket.create_server(("", port + 1)),
        ):
            return port
    raise OSError("no two free ports beside each other")
