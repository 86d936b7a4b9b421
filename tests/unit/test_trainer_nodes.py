"""Launchers of several nodes: they meet, end alike, and notice who is lost. Each node is a process of its own."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutover.api.trainingrun import Compute
from cutover.contract import ExitCode
from cutover.stages import StageResult
from cutover_trainer import node_link
from cutover_trainer.ends import End, agreed
from cutover_trainer.node_link import meet
from cutover_trainer.outcome import BadInput, Interrupted
from cutover_trainer.place import Place, place_here
from cutover_trainer.stopping import Stop
from cutover_trainer.workers import run_workers
from fakes.free_ports import two_in_a_row

DEADLINE_SECONDS = 60.0
WORDS = "import os, sys, time; rank = os.environ['RANK']; open(os.environ['CUTOVER_TERMINATION_LOG'], 'w').write(rank); "
LISTENS = "import signal; signal.signal(signal.SIGTERM, lambda *_: sys.exit(75)); "
STAYS = "time.sleep(120)"
TCP_CLOSE = 7
"""State of a connection that was reset, as Linux counts them."""

DONE, REFUSED, FAILED = End(0, "done"), End(65, "refused"), End(1, "failed")
STOPPED, LOST = End(75, "stopped"), End(75, "lost", lost=True)


@given(st.permutations([DONE, REFUSED, FAILED, STOPPED, LOST, DONE]))
def test_a_refusal_explains_everything(ends: list[End]) -> None:
    assert agreed(dict(enumerate(ends))) == REFUSED


@given(st.permutations([DONE, FAILED, STOPPED, LOST, DONE]))
def test_a_lost_node_costs_no_attempt(ends: list[End]) -> None:
    assert agreed(dict(enumerate(ends))).code == ExitCode.INTERRUPTED


@given(st.permutations([DONE, FAILED, STOPPED, DONE]))
def test_of_failures_the_first_is_the_cause(ends: list[End]) -> None:
    assert agreed(dict(enumerate(ends))) == next(end for end in ends if end.code)


@given(st.permutations(range(4)))
def test_done_is_said_by_the_first_node(order: list[int]) -> None:
    assert agreed({node: End(0, str(node)) for node in order}) == End(0, "0")


def test_a_pod_knows_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    assert place_here(Compute(gpus=4)) == Place(workers=4)
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "1")
    monkeypatch.setenv("CUTOVER_LEADER", "run-train-1-0.nodes-run:29500")
    place = place_here(Compute(gpus=4, nodes=2))
    assert (place.host, place.port, place.first_rank, place.size) == ("run-train-1-0.nodes-run", 29500, 4, 8)
    assert place_here(Compute(gpus=0, nodes=2)).size == 2


@pytest.mark.parametrize(
    ("index", "leader", "word"),
    [
        ("", "a:1", "JOB_COMPLETION_INDEX"),
        ("2", "a:1", "0 to 1"),
        ("1", "", "empty"),
        ("1", "a", "host:port"),
    ],
)
def test_a_process_that_is_not_told_its_place_is_refused(
    index: str, leader: str, word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JOB_COMPLETION_INDEX", index)
    monkeypatch.setenv("CUTOVER_LEADER", leader)
    with pytest.raises(BadInput, match=word):
        place_here(Compute(gpus=0, nodes=2))


class Nodes:
    """`count` launchers, forked, with `workers` workers each that run `code`."""

    def __init__(self, folder: Path, code: str, count: int = 2, workers: int = 1) -> None:
        self._folder = folder
        port = two_in_a_row()

        def launch(node: int) -> None:
            place = Place(node, count, workers, "127.0.0.1", port)
            scratch = folder / f"node-{node}"
            scratch.mkdir()
            stop = Stop()
            stop.listen()
            try:
                others = meet(place, "run/1", "train", stop)
            except Interrupted:
                os._exit(ExitCode.INTERRUPTED)
            command = [sys.executable, "-c", f"folder = {str(folder)!r}; {WORDS}{code}"]
            os._exit(run_workers(command, place, stop, scratch, folder / f"words-{node}", others))

        fork = multiprocessing.get_context("fork")
        self.processes = [fork.Process(target=launch, args=(node,)) for node in range(count)]
        for process in self.processes:
            process.start()

    def send(self, node: int, number: signal.Signals) -> None:
        pid = self.processes[node].pid
        assert pid is not None
        os.kill(pid, number)

    def ends(self, but: int | None = None) -> list[int | None]:
        waited = [process for node, process in enumerate(self.processes) if node != but]
        for process in waited:
            process.join(DEADLINE_SECONDS)
        codes = [process.exitcode for process in waited]
        for process in self.processes:
            process.kill()
            process.join()
        return codes

    def words(self, node: int) -> str:
        return (self._folder / f"words-{node}").read_text()


def wait(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def listening(folder: Path, count: int) -> Callable[[], bool]:
    return lambda: len(list(folder.glob("listens-*"))) == count


def listens(then: str = STAYS) -> str:
    return f"{LISTENS}open(folder + '/listens-' + rank, 'w'); {then}"


def test_all_nodes_say_what_rank_0_has_said(tmp_path: Path) -> None:
    nodes = Nodes(tmp_path, "sys.exit(0)", count=3, workers=2)
    assert nodes.ends() == [0, 0, 0]
    assert [nodes.words(node) for node in range(3)] == ["0", "0", "0"]


def test_a_slow_node_is_waited_for_while_nothing_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_link, "SETTLE_SECONDS", 0.1)
    assert Nodes(tmp_path, "time.sleep(1.5 if rank == '1' else 0); sys.exit(0)").ends() == [0, 0]


def test_a_node_that_does_not_end_is_not_waited_for_when_something_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker of the second node is deaf to requests; its launcher would kill it after its grace."""
    monkeypatch.setattr(node_link, "SETTLE_SECONDS", 0.5)
    deaf = f"import signal; signal.signal(15, signal.SIG_IGN); open(folder + '/deaf', 'w'); {STAYS}"
    fails = "[time.sleep(0.01) for _ in iter(lambda: os.path.exists(folder + '/deaf'), True)]; sys.exit(1)"
    nodes = Nodes(tmp_path, f"exec({deaf!r} if rank == '1' else {fails!r})")
    assert nodes.ends(but=1) == [ExitCode.INTERRUPTED]
    assert "node 1 of 2 did not end" in nodes.words(0)


def test_ranks_are_counted_through_and_meet_at_the_first_node(tmp_path: Path) -> None:
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "CUTOVER_RENDEZVOUS")
    code = f"open(folder + '/seen-' + rank, 'w').write(' '.join(os.environ[name] for name in {names!r}))"
    assert Nodes(tmp_path, code, workers=2).ends() == [0, 0]
    seen = [(tmp_path / f"seen-{rank}").read_text().split() for rank in range(4)]
    assert [one[:3] for one in seen] == [[str(rank), str(rank % 2), "4"] for rank in range(4)]
    places = [one[3].rpartition(":") for one in seen]
    assert {port for _, _, port in places} == {places[0][2]}
    assert [host for host, _, _ in places] == ["tcp://localhost"] * 2 + ["tcp://127.0.0.1"] * 2


@pytest.mark.parametrize("node", [0, 1])
def test_a_node_that_is_killed_interrupts_the_others(tmp_path: Path, node: int) -> None:
    nodes = Nodes(tmp_path, listens(), count=3)
    wait(listening(tmp_path, 3))
    nodes.send(node, signal.SIGKILL)
    assert nodes.ends(but=node) == [ExitCode.INTERRUPTED] * 2
    for left in {0, 1, 2} - {node}:
        result = StageResult.model_validate_json(nodes.words(left))
        assert (result.outcome, result.reason) == ("interrupted", "NodeLost")
        assert f"node {node} of 3" in result.message


@pytest.mark.parametrize("node", [0, 1])
def test_a_node_that_falls_silent_is_lost(tmp_path: Path, node: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without power closes no connection."""
    monkeypatch.setattr(node_link, "SILENCE_SECONDS", 3.0)
    monkeypatch.setattr(node_link, "BEAT_SECONDS", 0.2)
    nodes = Nodes(tmp_path, listens())
    wait(listening(tmp_path, 2))
    nodes.send(node, signal.SIGSTOP)
    assert nodes.ends(but=node) == [ExitCode.INTERRUPTED]
    assert "does not answer any more" in nodes.words(1 - node)


def test_a_broken_connection_is_not_taken_for_a_failure(tmp_path: Path) -> None:
    """The worker of a node that lives fails because of one that does not."""
    breaks = "[time.sleep(0.01) for _ in iter(lambda: os.path.exists(folder + '/killed'), True)]; sys.exit(1)"
    nodes = Nodes(tmp_path, listens(breaks))
    wait(listening(tmp_path, 2))
    nodes.send(1, signal.SIGKILL)
    (tmp_path / "killed").touch()
    assert nodes.ends(but=1) == [ExitCode.INTERRUPTED]


@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_failure_counts_on_every_node(tmp_path: Path, rank: str) -> None:
    nodes = Nodes(tmp_path, f"sys.exit(3) if rank == '{rank}' else None; {listens()}")
    assert nodes.ends() == [3, 3]
    assert [nodes.words(node) for node in range(2)] == [rank, rank]


def test_a_refusal_outweighs_the_failures_it_causes(tmp_path: Path) -> None:
    refuses = (
        "signal.signal(15, signal.SIG_IGN); open(folder + '/refuses', 'w'); time.sleep(0.5); sys.exit(65)"
    )
    breaks = (
        "[time.sleep(0.01) for _ in iter(lambda: os.path.exists(folder + '/refuses'), True)]; sys.exit(1)"
    )
    nodes = Nodes(tmp_path, f"import signal; exec({refuses!r} if rank == '1' else {breaks!r})")
    assert nodes.ends() == [ExitCode.BAD_INPUT] * 2
    assert [nodes.words(node) for node in range(2)] == ["1", "1"]


@pytest.mark.parametrize("node", [0, 1])
def test_what_breaks_on_another_node_because_one_leaves_is_no_failure(tmp_path: Path, node: int) -> None:
    """And if the first node hears of it before its own workers have ended."""
    leaves = "sys.exit(1) if rank == '2' else (time.sleep(0.5), sys.exit(75))"
    code = f"import signal; signal.signal(signal.SIGTERM, lambda *_: {leaves}); "
    nodes = Nodes(tmp_path, f"{code}open(folder + '/listens-' + rank, 'w'); {STAYS}", workers=2)
    wait(listening(tmp_path, 4))
    nodes.send(node, signal.SIGTERM)
    assert nodes.ends() == [ExitCode.INTERRUPTED] * 2


@pytest.mark.parametrize("node", [0, 2])
def test_a_request_to_stop_one_reaches_all(tmp_path: Path, node: int) -> None:
    nodes = Nodes(tmp_path, listens(), count=3)
    wait(listening(tmp_path, 3))
    nodes.send(node, signal.SIGTERM)
    assert nodes.ends() == [ExitCode.INTERRUPTED] * 3


def test_a_node_that_is_done_waits_for_the_word_of_the_first(tmp_path: Path) -> None:
    """Exit code 0 stands for the DONE manifest, which rank 0 is still to write."""
    nodes = Nodes(tmp_path, f"sys.exit(0) if rank == '1' else None; {listens()}")
    wait(listening(tmp_path, 1))
    wait((tmp_path / "node-1/worker-0.json").exists)
    nodes.send(0, signal.SIGKILL)
    assert nodes.ends(but=0) == [ExitCode.INTERRUPTED]


def test_what_was_said_before_the_line_broke_is_heard() -> None:
    """A node that is slow to listen finds the others gone: that it can say nothing any more takes no word from it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        peer = node_link.Peer(socket.create_connection(listener.getsockname()))
        other, _ = listener.accept()
    peer.send({"unread": True})
    other.sendall(b'{"verdict": 0, "words": "done"}\n')
    other.close()
    wait(lambda: _broken(peer))
    assert list(peer.receive()) == [{"verdict": 0, "words": "done"}]
    assert peer.gone


def _broken(peer: node_link.Peer) -> bool:
    """Whether the other side's reset has come; looked at without taking what it left or the error."""
    state = peer._connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
    peer._beat_at = 0.0
    return bool(state == TCP_CLOSE)


@pytest.mark.parametrize(
    ("said", "broken"),
    [(b'{"stop": true}', False), (b'{"broken": true}', True), (b'{"verdict": 75, "words": ""}', True)],
)
def test_what_comes_together_with_the_welcome_is_heard(said: bytes, broken: bool) -> None:
    """The first node may be asked to stop, or lose another one, as soon as it has let all in."""
    port = two_in_a_row()
    with socket.create_server(("127.0.0.1", port)) as listener, ThreadPoolExecutor(1) as pool:
        accepted = pool.submit(lambda: listener.accept()[0])
        accepted.add_done_callback(lambda done: done.result().sendall(b'{"welcome": true}\n' + said + b"\n"))
        follower = meet(Place(1, 2, 1, "127.0.0.1", port), "run/1", "train", Stop())
        with accepted.result():
            assert (follower.leaving, follower.broken) == (True, broken)


def test_who_waits_for_the_others_can_be_stopped(tmp_path: Path) -> None:
    port = two_in_a_row()
    stop = Stop()
    stop._signalled = True
    for node in range(2):
        with pytest.raises(Interrupted, match="asked to stop"):
            meet(Place(node, 2, 1, "127.0.0.1", port), "run/1", "train", stop)


@pytest.mark.parametrize(("node", "word"), [(0, "1 of 2 pods"), (1, "127.0.0.1")])
def test_a_card_does_not_wait_for_ever_for_a_partner(
    node: int, word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_link, "MEET_SECONDS", 0.3)
    with pytest.raises(Interrupted, match=word) as raised:
        meet(Place(node, 2, 1, "127.0.0.1", two_in_a_row()), "run/1", "train", Stop())
    assert raised.value.reason == "NodesMissing"


@pytest.mark.parametrize(
    "said",
    [
        b'{"hello": "run/0", "node": 1}\n',
        b'{"hello": "run/1", "node": 7}\n',
        b"GET / HTTP/1.1\r\n\r\n",
        b"[]\n",
    ],
)
def test_a_stranger_is_not_taken_for_a_node(said: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_link, "MEET_SECONDS", 1.0)
    port = two_in_a_row()

    def knock() -> None:
        wait(lambda: _spoken(port, said))
        os._exit(0)

    stranger: Any = multiprocessing.get_context("fork").Process(target=knock)
    stranger.start()
    with pytest.raises(Interrupted, match="1 of 2 pods came"):
        meet(Place(0, 2, 1, "", port), "run/1", "train", Stop())
    stranger.join(DEADLINE_SECONDS)
    assert stranger.exitcode == 0


def _spoken(port: int, said: bytes) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), 5) as connection:
            connection.sendall(said)
            connection.settimeout(5)
            # Until the first node has given up: what it says meanwhile is that it lives.
            while data := connection.recv(1024):
                assert b"welcome" not in data
            return True
    except ConnectionRefusedError:
        return False
    except ConnectionResetError:
        return True
