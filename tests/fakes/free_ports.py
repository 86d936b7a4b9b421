"""Ports of this machine that nobody listens on."""

from __future__ import annotations

import contextlib
import random
import socket


def two_in_a_row() -> int:
    """The lower of two neighbours outside the range that outgoing connections are given."""
    for port in random.sample(range(20000, 32000, 2), 200):
        with (
            contextlib.suppress(OSError),
            socket.create_server(("", port)),
            socket.create_server(("", port + 1)),
        ):
            return port
    raise OSError("no two free ports beside each other")
