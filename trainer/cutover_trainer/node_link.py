"""What the launchers of a training on several nodes tell one another: that they are here, that they leave, how it ended.

torch's process group knows none of it: a worker whose partner's machine lost its power waits for half an hour. Here each
launcher says every two seconds that it lives, and one that is silent for half a minute is lost. The first node hears how
each has ended and answers with the end of all, so that every pod leaves with one exit code. A node that has lost the
first one ends as interrupted. One connection a node, JSON lines; nothing is believed of whoever does not name the attempt.
"""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Iterator
from typing import Any, Protocol

from cutover.contract import ExitCode
from cutover.stages import StageName, StageResult
from cutover_trainer.ends import End, agreed
from cutover_trainer.joblog import log
from cutover_trainer.outcome import Interrupted
from cutover_trainer.place import Place
from cutover_trainer.stopping import Stop

BEAT_SECONDS = 2.0
SILENCE_SECONDS = 30.0
MEET_SECONDS = 600.0
"""For all nodes to come; a card that waits longer for a partner is better given back."""
SETTLE_SECONDS = 60.0
"""For the other nodes' ends when this one has ended and something is wrong; above the grace they give their workers."""
GOODBYE_SECONDS = 5.0
POLL_SECONDS = 0.05
CONNECT_SECONDS = 5.0
LINE_LIMIT_BYTES = 65536


class Others(Protocol):
    """The other nodes, as a launcher sees them."""

    def turn(self) -> None:
        """Hears and is heard; to be called several times a second."""
        ...

    @property
    def leaving(self) -> bool:
        """One of them was asked to stop, has failed, or is lost."""
        ...

    @property
    def broken(self) -> bool:
        """One of them has failed or is lost: the training cannot go on."""
        ...

    def asked_to_stop(self) -> None:
        """This node was: the others are to stop with it."""
        ...

    def in_trouble(self) -> None:
        """A worker of this node has failed."""
        ...

    def settle(self, end: End) -> End:
        """This node's workers have ended; waits for the end of all."""
        ...


class Alone:
    """Where there is one node."""

    leaving = False
    broken = False

    def turn(self) -> None:
        return

    def asked_to_stop(self) -> None:
        return

    def in_trouble(self) -> None:
        return

    def settle(self, end: End) -> End:
        return end


class Peer:
    """One connection: whole lines in and out, never waiting."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self._connection = connection
        self._in = b""
        self._out = b""
        self._closed = False
        self._heard_at = self._beat_at = time.monotonic()

    def send(self, message: dict[str, Any]) -> None:
        self._out += json.dumps(message).encode() + b"\n"
        self._flush()

    def receive(self) -> Iterator[dict[str, Any]]:
        """What has come since; says that this side lives."""
        now = time.monotonic()
        if now - self._beat_at >= BEAT_SECONDS:
            self._beat_at = now
            self.send({})
        self._flush()
        while not self._closed:
            try:
                data = self._connection.recv(LINE_LIMIT_BYTES)
            except BlockingIOError:
                break
            except OSError:
                data = b""
            self._closed = not data
            self._heard_at = now
            self._in += data
            if len(self._in) > LINE_LIMIT_BYTES:
                break
        *lines, self._in = self._in.split(b"\n")
        if len(self._in) > LINE_LIMIT_BYTES:
            self.close()
        for line in lines:
            with contextlib.suppress(ValueError):
                said = json.loads(line)
                if isinstance(said, dict):
                    yield said

    def _flush(self) -> None:
        if self._out and not self._closed:
            try:
                self._out = self._out[self._connection.send(self._out) :]
            except BlockingIOError:
                return
            except OSError:
                # What the other side had said before is still to be read; reading finds the end.
                self._out = b""

    @property
    def gone(self) -> bool:
        return self._closed or time.monotonic() - self._heard_at > SILENCE_SECONDS

    def close(self) -> None:
        self._closed = True
        self._connection.close()


class Leader:
    """The first node's side."""

    def __init__(self, place: Place, peers: dict[int, Peer], stage: StageName) -> None:
        self._place = place
        self._peers = peers
        self._stage = stage
        self._ends: dict[int, End] = {}
        self._order: list[int] = []
        """Nodes in trouble, the first one first."""
        self.leaving = False

    @classmethod
    def meet(cls, place: Place, token: str, stage: StageName, stop: Stop) -> Leader:
        """Waits for all nodes. Raises Interrupted or BudgetExceeded."""
        deadline = time.monotonic() + MEET_SECONDS
        strangers: list[Peer] = []
        peers: dict[int, Peer] = {}
        with _listening(place.port) as listener:
            while len(peers) < place.nodes - 1:
                stop.check()
                if time.monotonic() > deadline:
                    raise _missing(place, f"{len(peers) + 1} of {place.nodes} pods came")
                with contextlib.suppress(BlockingIOError):
                    strangers.append(Peer(listener.accept()[0]))
                for peer in list(strangers):
                    for said in peer.receive():
                        node = said.get("node")
                        if said.get("hello") == token and isinstance(node, int) and 0 < node < place.nodes:
                            # Who comes a second time has lost the first connection.
                            peers[node] = peer
                            strangers.remove(peer)
                            break
                for peer in peers.values():
                    list(peer.receive())
                peers = {node: peer for node, peer in peers.items() if not peer.gone}
                strangers = [peer for peer in strangers if not peer.gone]
                time.sleep(POLL_SECONDS)
        for peer in strangers:
            peer.close()
        for peer in peers.values():
            peer.send({"welcome": True})
        return cls(place, peers, stage)

    @property
    def broken(self) -> bool:
        return bool(self._order)

    def turn(self) -> None:
        for node, peer in self._peers.items():
            for said in peer.receive():
                if said.get("stop") and not self.leaving:
                    self.asked_to_stop()
                if said.get("trouble"):
                    self._trouble(node)
                if "end" in said:
                    self._ends[node] = End(int(said["end"]), str(said["words"]))
                    if said["end"]:
                        self._trouble(node)
            if peer.gone and node not in self._ends:
                text = f"node {node} of {self._place.nodes} does not answer any more"
                self._ends[node] = End(
                    ExitCode.INTERRUPTED, _interrupted(self._stage, "NodeLost", text), lost=True
                )
                self._trouble(node)

    def asked_to_stop(self) -> None:
        self.leaving = True
        self._tell({"stop": True})

    def in_trouble(self) -> None:
        self._trouble(0)

    def settle(self, end: End) -> End:
        self._ends[0] = end
        if end.code:
            self._trouble(0)
        deadline = float("inf")
        while len(self._ends) < self._place.nodes and time.monotonic() < deadline:
            self.turn()
            if self.broken and deadline == float("inf"):
                # Without trouble there is no hurry: a node that lives comes to its end.
                deadline = time.monotonic() + SETTLE_SECONDS
            time.sleep(POLL_SECONDS)
        for node in self._peers:
            if node not in self._ends:
                text = f"node {node} of {self._place.nodes} did not end within {SETTLE_SECONDS:.0f} s"
                self._ends[node] = End(
                    ExitCode.INTERRUPTED, _interrupted(self._stage, "NodeLost", text), lost=True
                )
        rest = [node for node in self._ends if node not in self._order]
        verdict = agreed({node: self._ends[node] for node in (*self._order, *rest)})
        self._tell({"verdict": verdict.code, "words": verdict.words})
        self._part()
        return verdict

    def _trouble(self, node: int) -> None:
        if node in self._order:
            return
        self._order.append(node)
        self.leaving = True
        self._tell({"broken": True})

    def _tell(self, message: dict[str, Any]) -> None:
        for peer in self._peers.values():
            peer.send(message)

    def _part(self) -> None:
        """The others hang up once they have heard."""
        deadline = time.monotonic() + GOODBYE_SECONDS
        while time.monotonic() < deadline and not all(peer.gone for peer in self._peers.values()):
            for peer in self._peers.values():
                list(peer.receive())
            time.sleep(POLL_SECONDS)
        for peer in self._peers.values():
            peer.close()


class Follower:
    """Every other node's side."""

    def __init__(self, place: Place, peer: Peer, stage: StageName) -> None:
        self._place = place
        self._peer = peer
        self._stage = stage
        self._verdict: End | None = None
        self.leaving = False
        self.broken = False

    @classmethod
    def meet(cls, place: Place, token: str, stage: StageName, stop: Stop) -> Follower:
        """Waits until all nodes are there. Raises Interrupted or BudgetExceeded."""
        deadline = time.monotonic() + MEET_SECONDS
        peer: Peer | None = None
        try:
            while True:
                stop.check()
                if time.monotonic() > deadline:
                    raise _missing(place, f"{place.host}:{place.port} did not say that all are there")
                if peer is None or peer.gone:
                    peer = _connected(place)
                    if peer is not None:
                        peer.send({"hello": token, "node": place.node})
                heard = [] if peer is None else list(peer.receive())
                if peer is not None and any(said.get("welcome") for said in heard):
                    follower, peer = cls(place, peer, stage), None
                    for said in heard:
                        follower._hear(said)
                    return follower
                time.sleep(POLL_SECONDS)
        finally:
            if peer is not None:
                peer.close()

    def turn(self) -> None:
        for said in self._peer.receive():
            self._hear(said)
        if self._peer.gone:
            self.leaving = self.broken = True

    def _hear(self, said: dict[str, Any]) -> None:
        if said.get("stop"):
            self.leaving = True
        if said.get("broken"):
            self.leaving = self.broken = True
        if "verdict" in said:
            self._verdict = End(int(said["verdict"]), str(said["words"]))
            # It may come while this node's workers are at work: the first node has given up waiting for them.
            self.leaving = self.broken = True

    def asked_to_stop(self) -> None:
        self._peer.send({"stop": True})

    def in_trouble(self) -> None:
        self._peer.send({"trouble": True})

    def settle(self, end: End) -> End:
        self._peer.send({"end": end.code, "words": end.words})
        while True:
            self.turn()
            if self._verdict is not None or self._peer.gone:
                break
            time.sleep(POLL_SECONDS)
        self._peer.close()
        if self._verdict is not None:
            return self._verdict
        text = f"node 0 of {self._place.nodes} does not answer any more"
        lost = End(ExitCode.INTERRUPTED, _interrupted(self._stage, "NodeLost", text), lost=True)
        return agreed({0: lost, self._place.node: end})


def meet(place: Place, token: str, stage: StageName, stop: Stop) -> Others:
    """`token` names the attempt: whoever is left of an earlier one is not heard."""
    if place.nodes == 1:
        return Alone()
    log("nodes", node=place.node, nodes=place.nodes, leader=f"{place.host}:{place.port}")
    return (Leader if place.leads else Follower).meet(place, token, stage, stop)


def _listening(port: int) -> socket.socket:
    if socket.has_dualstack_ipv6():
        listener = socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    else:
        listener = socket.create_server(("", port))
    listener.setblocking(False)
    return listener


def _connected(place: Place) -> Peer | None:
    """None while the first node's pod has no name, no address, or is not listening yet."""
    try:
        return Peer(socket.create_connection((place.host, place.port), CONNECT_SECONDS))
    except OSError:
        time.sleep(10 * POLL_SECONDS)
        return None


def _missing(place: Place, how: str) -> Interrupted:
    return Interrupted(
        "NodesMissing",
        f"compute.nodes: {place.nodes}, but {how} within {MEET_SECONDS:.0f} s; the run tries again. See what the other pods "
        "wait for, or name a Kueue queue in compute.queueName, which starts all or none",
    )


def _interrupted(stage: StageName, reason: str, what: str) -> str:
    message = f"{what}; the next attempt goes on from the newest whole checkpoint"
    result = StageResult(stage=stage, outcome="interrupted", reason=reason, message=message)
    return result.model_dump_json(by_alias=True, exclude_none=True)
