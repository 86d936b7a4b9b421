"""What stands in the place of kube-proxy and the endpoints when the soak runs on local processes."""

from __future__ import annotations

import asyncio
import contextlib


class Balancer:
    """Hands every new connection to the next gateway that says it is ready, as kube-proxy and the endpoints do."""

    def __init__(self, gateways: dict[str, tuple[int, int]]) -> None:
        self._gateways = gateways
        """Ports of the application and of operations."""
        self._turn = 0
        self._ready: list[int] = []
        self._server: asyncio.Server
        self._watching: asyncio.Task[None]
        self._pipes: set[asyncio.Task[None]] = set()

    async def start(self, port: int) -> None:
        self._ready = [app for app, _ in self._gateways.values()]
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", port)
        self._watching = asyncio.create_task(self._watch())

    async def stop(self) -> None:
        self._server.close()
        tasks = [self._watching, *self._pipes]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _watch(self) -> None:
        while True:
            self._ready = [app for app, ops in self._gateways.values() if await _says_ready(ops)]
            await asyncio.sleep(0.1)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._pipes.add(task)
        task.add_done_callback(self._pipes.discard)
        try:
            for _ in range(2 * len(self._gateways)):
                ready = self._ready or [app for app, _ in self._gateways.values()]
                self._turn += 1
                try:
                    # A refused connection has carried nothing: the next gateway gets it.
                    there, back = await asyncio.open_connection("127.0.0.1", ready[self._turn % len(ready)])
                except OSError:
                    continue
                # Cancelled at the end only, and Python 3.11's streams would call that an error.
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.gather(_pipe(reader, back), _pipe(there, writer))
                return
        finally:
            writer.close()


async def _pipe(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await source.read(65536):
            sink.write(data)
            await sink.drain()
    # Whichever side ends first ends the other: HTTP needs no half-open connections.
    sink.close()


async def _says_ready(port: int) -> bool:
    try:
        async with asyncio.timeout(1.0):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET /readyz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            head = await reader.readline()
            writer.close()
    except (OSError, TimeoutError):
        return False
    return b" 200 " in head
