"""The holder of the gateway's socket, with real processes: whoever is killed, who connects meanwhile is answered."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import aiohttp
import pytest

from cutover_server.gateway.listening import Listening
from cutover_server.listener import BYE, GONE, HELD, HERE, HOLD, NONE, TAKE, listen_on
from fakes.free_ports import free_port
from fakes.gateway_rig import Rig, running, until

MODELS = b"GET /v1/models HTTP/1.1\r\nhost: gateway\r\nconnection: close\r\n\r\n"
START_SECONDS = 60.0


class Pod:
    """A holder and a gateway as processes, started and killed apart."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.port = rig.ports["app"]
        self.control = rig.folder / "listener"
        self.holder: subprocess.Popen[bytes]
        self.gateway: subprocess.Popen[bytes]
        self.hold_seconds = 60.0
        """Longer than any test: what is held is not let go for want of time."""
        self._started: list[subprocess.Popen[bytes]] = []

    def _start(self, module: str, log: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
        with log.open("ab") as sink:
            started = subprocess.Popen(
                [sys.executable, "-m", module],
                env={**os.environ, **environment, "CUTOVER_LISTENER_SOCKET": str(self.control)},
                stdout=sink,
                stderr=sink,
            )
        self._started.append(started)
        return started

    def start_holder(self) -> None:
        self.holder = self._start(
            "cutover_server.listener",
            self.rig.folder / "listener.log",
            {
                "CUTOVER_HOST": "127.0.0.1",
                "CUTOVER_PORT_APP": str(self.port),
                "CUTOVER_LISTENER_HOLD_SECONDS": str(self.hold_seconds),
            },
        )

    def start_gateway(self) -> None:
        rig = self.rig
        self.gateway = self._start(
            "cutover_server.gateway.main",
            rig.folder / "gateway.log",
            rig.environment(drain_delay_seconds=0.2),
        )

    async def serves(self) -> None:
        await until(self.rig.ready, START_SECONDS)

    async def told(self, words: str, times: int = 1) -> None:
        """Until the holder has said this so often."""
        await until(lambda: self.said(words) >= times, START_SECONDS)

    def said(self, words: str) -> int:
        log = self.rig.folder / "listener.log"
        return log.read_text().count(words) if log.exists() else 0

    def connect(self) -> socket.socket:
        """A connection that has asked for something already; raises ConnectionRefusedError."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=START_SECONDS)
        connection.sendall(MODELS)
        return connection

    def refuses(self) -> bool:
        try:
            self.connect().close()
        except ConnectionError:
            return True
        return False

    def close(self) -> None:
        for process in self._started:
            process.kill()
            process.wait()


def kill(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()


async def assert_answered(connections: list[socket.socket]) -> None:
    for connection in connections:
        with connection:
            reply = await asyncio.to_thread(connection.recv, 65536)
            assert reply.startswith(b"HTTP/1.1 200"), reply


@pytest.fixture
async def pod(tmp_path: Path) -> AsyncIterator[Pod]:
    async with aiohttp.ClientSession() as session:
        rig = Rig(tmp_path, session)
        rig.write_route(rig.route())
        made = Pod(rig)
        with contextlib.closing(made):
            yield made


async def test_whoever_connects_while_a_killed_gateway_is_away_is_answered_by_the_next(pod: Pod) -> None:
    """Killed twice in a row, the second time before it served; and a request with a picture is among the waiting."""
    pod.start_holder()
    pod.start_gateway()
    async with pod.rig.models(), running(pod.rig.assessments.app(), pod.rig.ports["assessments"]):
        await pod.serves()
        kill(pod.gateway)
        waiting = [pod.connect() for _ in range(20)]
        # Whoever reads this route waits for it, and a gateway that has heard of no route does not serve yet.
        route = pod.rig.folder / "route.json"
        route.unlink()
        os.mkfifo(route)
        pod.start_gateway()
        await pod.told("a gateway has the socket", 2)
        kill(pod.gateway)
        pod.rig.write_route(pod.rig.route())
        waiting += [pod.connect() for _ in range(20)]
        asking = asyncio.create_task(pod.rig.ask(1, "house-1"))
        await asyncio.sleep(0)
        pod.start_gateway()
        await pod.serves()
        await assert_answered(waiting)
        assert (await asking).status == 200
        await assert_answered([pod.connect()])


async def test_a_gateway_outlives_its_holder_and_gives_the_next_one_the_socket(pod: Pod) -> None:
    pod.start_holder()
    pod.start_gateway()
    await pod.serves()
    kill(pod.holder)
    await assert_answered([pod.connect()])
    pod.start_holder()
    await pod.told("a gateway gave its socket")
    await assert_answered([pod.connect()])
    kill(pod.gateway)
    waiting = [pod.connect() for _ in range(5)]
    # Both are gone, and what waited with them. Who comes once the holder is back waits for the gateway.
    kill(pod.holder)
    assert pod.refuses()
    for connection in waiting:
        connection.close()
    pod.start_holder()
    await pod.told("listening before the first gateway is there", 2)
    waiting = [pod.connect() for _ in range(5)]
    pod.start_gateway()
    await assert_answered(waiting)


async def test_without_a_holder_the_gateway_listens_itself_and_a_late_holder_gets_the_socket(
    pod: Pod,
) -> None:
    pod.start_gateway()
    await pod.serves()
    await assert_answered([pod.connect()])
    assert "no listener at" in (pod.rig.folder / "gateway.log").read_text()
    pod.start_holder()
    await pod.told("a gateway gave its socket")
    kill(pod.gateway)
    waiting = [pod.connect() for _ in range(5)]
    pod.start_gateway()
    await assert_answered(waiting)


async def test_when_no_gateway_comes_connections_are_refused_until_one_does(pod: Pod) -> None:
    pod.hold_seconds = 0.5
    pod.start_holder()
    pod.start_gateway()
    await pod.serves()
    before = pod.said("no gateway came within 0.5 s")  # perhaps while the first one started
    kill(pod.gateway)
    waiting = pod.connect()
    await pod.told("no gateway came within 0.5 s", before + 1)
    assert pod.refuses()
    with waiting, pytest.raises(ConnectionResetError):  # at once, not when the client has lost its patience
        waiting.recv(1)
    pod.start_gateway()
    await pod.serves()
    await assert_answered([pod.connect()])


async def test_a_gateway_that_leaves_in_order_leaves_no_socket_behind(pod: Pod) -> None:
    pod.rig.control.behaviour.latency_mean_seconds = 1.0
    pod.start_holder()
    pod.start_gateway()
    async with pod.rig.models(), running(pod.rig.assessments.app(), pod.rig.ports["assessments"]):
        await pod.serves()
        asking = asyncio.create_task(pod.rig.ask(1, "house-1"))
        await until(lambda: pod.rig.control.in_flight)
        pod.gateway.send_signal(signal.SIGTERM)

        async def draining() -> bool:
            return not await pod.rig.ready()

        await until(draining)
        # Accepts on while endpoints still name it, and refuses afterwards, with the request still in flight.
        await assert_answered([pod.connect()])
        await pod.told("the gateway has said goodbye")
        await until(pod.refuses)
        assert not asking.done()
        assert (await asking).status == 200
        assert await asyncio.to_thread(pod.gateway.wait, 30) == 0
    assert pod.refuses()
    pod.start_gateway()
    await pod.serves()
    await assert_answered([pod.connect()])


async def test_a_port_that_is_taken_is_waited_for_and_given_up_on_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a holder that cannot be asked: it lets go when no gateway comes."""
    monkeypatch.setattr("cutover_server.gateway.listening._PATIENCE_SECONDS", 0.0)
    port = free_port()
    mine = Listening(tmp_path / "nobody", "127.0.0.1", port)
    with listen_on("127.0.0.1", port):
        opening = asyncio.create_task(mine.open())
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(opening), 0.5)
    with contextlib.closing(mine):
        made = await opening
        assert made is not None
        with made:
            assert made.getsockname()[1] == port
            monkeypatch.setattr("cutover_server.gateway.listening._TAKEN_SECONDS", 0.2)
            with pytest.raises(OSError, match="in use"):
                await Listening(tmp_path / "nobody", "127.0.0.1", port).open()


# ---------------------------------------------------------------------- the holder alone


@contextlib.contextmanager
def holder(
    folder: Path, **variables: str
) -> Iterator[tuple[subprocess.Popen[bytes], int, Callable[..., bytes]]]:
    """The process, its port, and a way to say something to it over a connection of one's own."""
    port, control = free_port(), folder / "listener"
    environment = {
        "CUTOVER_HOST": "127.0.0.1",
        "CUTOVER_PORT_APP": str(port),
        "CUTOVER_LISTENER_SOCKET": str(control),
        **variables,
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "cutover_server.listener"], env={**os.environ, **environment}
    )
    end = time.monotonic() + START_SECONDS
    while not control.exists():
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.02)

    def say(gateway: socket.socket, word: bytes, given: list[int] | None = None) -> bytes:
        socket.send_fds(gateway, [word], given or [])
        answer, descriptors, _, _ = socket.recv_fds(gateway, 16, 1)
        for descriptor in descriptors:
            os.close(descriptor)
        return answer

    try:
        yield process, port, say
    finally:
        process.kill()
        process.wait()


def gateway_at(folder: Path) -> socket.socket:
    end = time.monotonic() + START_SECONDS
    while True:
        made = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        made.settimeout(START_SECONDS)
        try:
            made.connect(str(folder / "listener"))
            return made
        except OSError:
            made.close()
            assert time.monotonic() < end
            time.sleep(0.02)


def is_refused(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=START_SECONDS).close()
    except ConnectionRefusedError:
        return True
    return False


def test_a_goodbye_closes_the_socket_only_when_nobody_else_uses_it(tmp_path: Path) -> None:
    with holder(tmp_path) as (process, port, say):
        with gateway_at(tmp_path) as leaves, gateway_at(tmp_path) as stays, gateway_at(tmp_path) as stranger:
            assert say(leaves, TAKE) == HERE
            assert say(stays, TAKE) == HERE
            assert say(leaves, BYE) == GONE
            assert say(stranger, BYE) == GONE
            assert not is_refused(port)
            assert say(stays, BYE) == GONE
            assert is_refused(port)
            assert say(stranger, TAKE) == HERE
            assert not is_refused(port)
        assert not is_refused(port), "gone without a goodbye"
        assert (tmp_path / "listener").stat().st_mode & 0o077 == 0
        process.terminate()
        assert process.wait(START_SECONDS) == 0


def test_a_taken_port_and_a_socket_of_another_port_are_refused(tmp_path: Path) -> None:
    with holder(tmp_path) as (process, port, say), gateway_at(tmp_path) as gateway:
        with listen_on("127.0.0.1", free_port()) as other:
            assert say(gateway, HOLD, [other.fileno()]) == NONE
        with socket.socket() as idle:
            idle.bind(("127.0.0.1", 0))
            assert say(gateway, HOLD, [idle.fileno()]) == NONE
        assert say(gateway, TAKE) == HERE
        assert say(gateway, BYE) == GONE
        with listen_on("127.0.0.1", port) as mine:
            assert say(gateway, TAKE) == NONE
            assert say(gateway, HOLD, [mine.fileno()]) == HELD
        assert not is_refused(port), "the holder has it"
        assert process.poll() is None


def test_it_is_small(tmp_path: Path) -> None:
    with holder(tmp_path) as (process, _, say), gateway_at(tmp_path) as gateway:
        assert say(gateway, TAKE) == HERE
        status = Path(f"/proc/{process.pid}/status").read_text()
    (resident,) = (line.split()[1] for line in status.splitlines() if line.startswith("VmRSS"))
    assert int(resident) < 24_000, "KiB; the chart allows it 32 MiB"
    heavy = "{'asyncio', 'logging', 'json', 'pydantic', 'yaml', 'ssl'}"
    code = f"import sys, cutover_server.listener as l; sys.exit(str({heavy} & sys.modules.keys()) if {heavy} & sys.modules.keys() else 0)"
    subprocess.run([sys.executable, "-S", "-c", code], env=_path_to_the_sources(), check=True)


def _path_to_the_sources() -> dict[str, str]:
    import cutover
    import cutover_server

    folders = {str(Path(module.__path__[0]).parent) for module in (cutover, cutover_server)}
    return {**os.environ, "PYTHONPATH": ":".join(sorted(folders))}


@pytest.mark.parametrize(
    ("variables", "word"),
    [
        ({"CUTOVER_LISTENER_SOCKET": ""}, "CUTOVER_LISTENER_SOCKET is not set"),
        ({"CUTOVER_LISTENER_SOCKET": "/nowhere/at/all"}, "/nowhere/at/all cannot be made"),
        ({"CUTOVER_PORT_APP": "http"}, "CUTOVER_PORT_APP: 'http' is not a number"),
        ({"CUTOVER_LISTENER_HOLD_SECONDS": "0"}, "CUTOVER_LISTENER_HOLD_SECONDS: 0 is not between 0.1 and"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path: Path, variables: dict[str, str], word: str) -> None:
    environment = {**os.environ, "CUTOVER_LISTENER_SOCKET": str(tmp_path / "listener"), **variables}
    done = subprocess.run(
        [sys.executable, "-m", "cutover_server.listener"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert word in done.stderr
