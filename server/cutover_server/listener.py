"""`cutover-listener`: holds the socket that applications connect to, so that it outlives a gateway that is killed.

It runs beside the gateway (in Kubernetes as a sidecar container, which a gateway out of memory does not take along),
listens, and accepts nothing: a gateway asks for the socket over a Unix socket and gets it (SCM_RIGHTS). When the gateway
is gone without a goodbye, new connections wait in the kernel's backlog for the next one, for some seconds; then the
socket is closed, so that applications are refused and go elsewhere. A gateway that asks later gets a new one. A gateway
that has a socket the holder does not know, because the holder itself was away, gives it the other way round.

It has to be small and to have no reason to fail: it imports next to nothing, and never reads what applications send.
"""

from __future__ import annotations

import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import NoReturn

from cutover.contract import PORT_APP

BACKLOG = 2048
"""Connections that may wait to be accepted."""
HOLD_SECONDS = 20.0
"""Longer than kubelet waits with a container that ended for the second time (10 s), and the gateway's start."""

# What gateway and holder say to each other, one packet each.
TAKE, HOLD, BYE = b"take", b"hold", b"bye"
"""Of the gateway: give me the socket; keep this one; I close it, close yours."""
HERE, HELD, GONE, NONE = b"here", b"held", b"gone", b"none"
"""The answers; `none` to TAKE and HOLD is a refusal, whose reason the holder logs."""
LONGEST_WORD = 16


def listen_on(host: str, port: int) -> socket.socket:
    """A listening socket that does not block. Raises OSError when the port is taken."""
    family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    made = socket.create_server(address, family=family, backlog=BACKLOG)
    made.setblocking(False)
    return made


def say(level: str, message: str) -> None:
    """A line as the gateway's log has them; messages hold neither quotes nor backslashes."""
    now = time.time()
    moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1000):03d}+00:00"
    print(
        f'{{"time":"{moment}","level":"{level}","logger":"cutover_server.listener","message":"{message}"}}',
        file=sys.stderr,
        flush=True,
    )


class Holder:
    """The socket, who uses it, and until when it waits for somebody who does."""

    def __init__(self, host: str, port: int, hold_seconds: float) -> None:
        self._host, self._port, self._hold_seconds = host, port, hold_seconds
        self._listening: socket.socket | None = None
        self._users: set[socket.socket] = set()
        """Connections of gateways that have the socket."""
        self._until: float | None = None
        """Monotonic time at which an unused socket is closed."""

    def run(self, control: socket.socket) -> NoReturn:
        """Serves gateways that connect to `control`, a listening Unix socket of packets."""
        with selectors.DefaultSelector() as looking:
            looking.register(control, selectors.EVENT_READ)
            # A holder that was killed together with its gateway: who connects now need not wait for the gateway's start.
            if self._listen():
                self._wait_for_a_gateway("listening before the first gateway is there")
            while True:
                for key, _ in looking.select(self._seconds_left()):
                    there = key.fileobj
                    assert isinstance(there, socket.socket)
                    if there is control:
                        looking.register(control.accept()[0], selectors.EVENT_READ)
                    elif not self._hear(there):
                        looking.unregister(there)
                        there.close()
                        self._is_gone(there)
                if self._seconds_left() == 0.0:
                    self._close(
                        f"no gateway came within {self._hold_seconds:g} s; connections are refused now"
                    )

    # ------------------------------------------------------------------ gateways

    def _hear(self, gateway: socket.socket) -> bool:
        """One packet of a gateway. False when the connection has ended."""
        try:
            word, descriptors, _, _ = socket.recv_fds(gateway, LONGEST_WORD, 1)
            given = socket.socket(fileno=descriptors[0]) if descriptors else None
            if word == TAKE:
                self._give(gateway)
            elif word == HOLD and given is not None:
                gateway.send(HELD if self._keep(gateway, given) else NONE)
            elif word == BYE:
                self._bid_farewell(gateway)
                gateway.send(GONE)
            return bool(word)
        except OSError:
            return False

    def _give(self, gateway: socket.socket) -> None:
        self._listen()
        if self._listening is None:
            gateway.send(NONE)
            return
        socket.send_fds(gateway, [HERE], [self._listening.fileno()])
        self._is_used_by(gateway)
        say("info", "a gateway has the socket")

    def _keep(self, gateway: socket.socket, given: socket.socket) -> bool:
        """Whether the socket is what this holder is there for; then it takes the place of the one it had."""
        listens = given.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        if not listens or given.getsockname()[1] != self._port:
            say("error", f"a gateway gave a socket that does not listen on port {self._port}; refused")
            given.close()
            return False
        if self._listening is not None:
            self._listening.close()
        self._listening = given
        self._is_used_by(gateway)
        say("info", "a gateway gave its socket")
        return True

    def _is_used_by(self, gateway: socket.socket) -> None:
        self._users.add(gateway)
        self._until = None

    def _bid_farewell(self, gateway: socket.socket) -> None:
        if self._was_the_last(gateway):
            self._close("the gateway has said goodbye; connections are refused until the next one is there")

    def _is_gone(self, gateway: socket.socket) -> None:
        if self._was_the_last(gateway):
            self._wait_for_a_gateway("the gateway is gone without a goodbye; connections wait for the next")

    def _was_the_last(self, gateway: socket.socket) -> bool:
        if gateway not in self._users:
            return False
        self._users.discard(gateway)
        return not self._users

    # ------------------------------------------------------------------ the socket

    def _listen(self) -> bool:
        if self._listening is None:
            try:
                self._listening = listen_on(self._host, self._port)
            except OSError as error:
                say("warning", f"cannot listen on port {self._port}: {error.strerror}")
        return self._listening is not None

    def _wait_for_a_gateway(self, why: str) -> None:
        self._until = time.monotonic() + self._hold_seconds
        say("info", f"{why}; at most {self._hold_seconds:g} s")

    def _seconds_left(self) -> float | None:
        return None if self._until is None else max(self._until - time.monotonic(), 0.0)

    def _close(self, why: str) -> None:
        self._until = None
        if self._listening is not None:
            self._listening.close()
            self._listening = None
        say("info", why)


def control_socket(path: Path) -> socket.socket:
    """Where gateways ask; for this user alone. What an earlier holder left there is taken away. Raises OSError."""
    path.unlink(missing_ok=True)
    control = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    before = os.umask(0o177)
    try:
        control.bind(str(path))
    finally:
        os.umask(before)
    control.listen()
    return control


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(0)


def _refuse(problem: str) -> NoReturn:
    print(f"cutover-listener: {problem}", file=sys.stderr)
    raise SystemExit(2)


def _number(environment: Mapping[str, str], name: str, default: float, least: float) -> float:
    raw = environment.get(name, "").strip() or str(default)
    try:
        value = float(raw)
    except ValueError:
        _refuse(f"{name}: {raw!r} is not a number")
    if not least <= value < 65_536:
        _refuse(f"{name}: {raw} is not between {least:g} and 65535")
    return value


def main() -> NoReturn:
    environment = os.environ
    where = environment.get("CUTOVER_LISTENER_SOCKET", "").strip()
    if not where:
        _refuse(
            "CUTOVER_LISTENER_SOCKET is not set; name the Unix socket at which the gateway finds the listener"
        )
    holder = Holder(
        environment.get("CUTOVER_HOST", "").strip() or "0.0.0.0",  # noqa: S104
        int(_number(environment, "CUTOVER_PORT_APP", PORT_APP, 1)),
        _number(environment, "CUTOVER_LISTENER_HOLD_SECONDS", HOLD_SECONDS, 0.1),
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _leave)
    try:
        control = control_socket(Path(where))
    except OSError as error:
        _refuse(f"CUTOVER_LISTENER_SOCKET: {where} cannot be made: {error.strerror or error}")
    holder.run(control)


if __name__ == "__main__":
    main()
