"""The gateway's side of `cutover-listener`: gets the socket applications connect to, and sees that the holder has it.

Without a holder that answers, the gateway listens by itself; when one comes (again), it is given the socket, so that the
next kill finds it prepared. Where no holder is named, nothing of this happens. See `cutover_server.listener` for what is
said.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from pathlib import Path

from cutover_server.listener import BYE, HELD, HERE, HOLD, LONGEST_WORD, TAKE, listen_on

log = logging.getLogger(__name__)
_ANSWER_SECONDS = 1.0
_PATIENCE_SECONDS = 3.0
"""How long a holder that starts together with the gateway is waited for."""
_TAKEN_SECONDS = 25.0
"""After that: longer than a holder that cannot be asked, but has the port, keeps it."""
_AGAIN_SECONDS = 0.5


class Listening:
    """One socket for applications, shared with the holder at `holder` (a Unix socket), if there is to be one."""

    def __init__(self, holder: Path | None, host: str, port: int) -> None:
        self._holder, self._host, self._port = holder, host, port
        self._connection: socket.socket | None = None
        """To the holder, which takes its end for ours."""
        self._copy: socket.socket | None = None
        """To give to another holder; the server closes its own."""
        self._offering: asyncio.Future[None] | None = None

    async def open(self) -> socket.socket | None:
        """The listening socket, of the holder or of our own; None when no holder is named.

        Raises OSError when the port is somebody else's.
        """
        if self._holder is None:
            return None
        now = asyncio.get_running_loop().time
        alone_at = now() + _PATIENCE_SECONDS
        while True:
            try:
                found = await asyncio.to_thread(self._take)
                break
            except OSError as error:
                missing = error
            if now() >= alone_at:
                try:
                    found = listen_on(self._host, self._port)
                    log.warning(
                        "no listener at %s (%s): a kill will refuse connections", self._holder, missing
                    )
                    break
                except (
                    OSError
                ):  # the holder has the port: it has just come, or cannot be asked and will give it up
                    if now() >= alone_at + _TAKEN_SECONDS:
                        raise
            await asyncio.sleep(0.1)
        self._copy = found.dup()
        return found

    async def keep(self) -> None:
        """Until cancelled: gives the socket to every new holder."""
        if self._copy is None:
            return
        loop = asyncio.get_running_loop()
        while True:
            if self._connection is not None:
                self._connection.setblocking(False)
                with contextlib.suppress(OSError):
                    while await loop.sock_recv(self._connection, LONGEST_WORD):
                        pass
                self._connection.close()
                self._connection = None
                log.warning("the listener is gone; the socket stays, and the next one gets it")
            self._offering = asyncio.ensure_future(asyncio.to_thread(self._offer))
            with contextlib.suppress(OSError):
                await asyncio.shield(self._offering)
                log.info("the listener has the socket")
                continue
            await asyncio.sleep(_AGAIN_SECONDS)

    async def goodbye(self) -> None:
        """Has the holder close its copy, so that the server's is the last. To be called after `keep` was cancelled."""
        if self._offering is not None:  # a thread is not cancelled
            await asyncio.gather(self._offering, return_exceptions=True)
        if self._connection is not None:
            with contextlib.suppress(OSError):
                await asyncio.to_thread(self._take_leave, self._connection)
        self.close()

    def close(self) -> None:
        """Without a goodbye, as a kill would."""
        for mine in (self._connection, self._copy):
            if mine is not None:
                mine.close()
        self._connection = self._copy = None

    # ------------------------------------------------------------------ what is said; blocks, but never for long

    def _ask(self, word: bytes, given: socket.socket | None = None) -> tuple[socket.socket, bytes, list[int]]:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            connection.settimeout(_ANSWER_SECONDS)
            connection.connect(str(self._holder))
            socket.send_fds(connection, [word], [] if given is None else [given.fileno()])
            answer, descriptors, _, _ = socket.recv_fds(connection, LONGEST_WORD, 1)
        except BaseException:
            connection.close()
            raise
        return connection, answer, descriptors

    def _take(self) -> socket.socket:
        connection, answer, descriptors = self._ask(TAKE)
        if answer != HERE or not descriptors:
            connection.close()
            raise OSError("the listener has no socket")
        found = socket.socket(fileno=descriptors[0])
        if found.getsockname()[1] != self._port:
            connection.close()
            found.close()
            raise OSError(f"the listener has another port than CUTOVER_PORT_APP, {self._port}")
        found.setblocking(False)
        self._connection = connection
        return found

    def _offer(self) -> None:
        connection, answer, _ = self._ask(HOLD, self._copy)
        if answer != HELD:
            connection.close()
            raise OSError("the listener refuses the socket")
        self._connection = connection

    def _take_leave(self, connection: socket.socket) -> None:
        connection.settimeout(_ANSWER_SECONDS)
        connection.send(BYE)
        connection.recv(LONGEST_WORD)
