"""Which part of a training this pod is: its number among the nodes, and where the first of them is found."""

from __future__ import annotations

import os
from dataclasses import dataclass

from cutover.api.trainingrun import Compute
from cutover.contract import ENV_LEADER, PORT_NODES
from cutover_trainer.outcome import BadInput

NODE = "JOB_COMPLETION_INDEX"
"""Set by Kubernetes in the pods of an Indexed Job."""


@dataclass(frozen=True, slots=True)
class Place:
    node: int = 0
    nodes: int = 1
    workers: int = 1
    """Of each node."""
    host: str = ""
    """Of the first node."""
    port: int = PORT_NODES
    """Where the launchers meet; their workers meet at the next one."""

    @property
    def leads(self) -> bool:
        return self.node == 0

    @property
    def first_rank(self) -> int:
        return self.node * self.workers

    @property
    def size(self) -> int:
        """Workers of all nodes."""
        return self.nodes * self.workers


def place_here(compute: Compute) -> Place:
    """From the environment. Raises BadInput where it does not say what a training on several nodes needs."""
    workers = max(1, compute.gpus)
    if compute.nodes == 1:
        return Place(workers=workers)
    node, leader = os.environ.get(NODE, ""), os.environ.get(ENV_LEADER, "")
    if not node.isdecimal() or int(node) >= compute.nodes:
        raise BadInput(
            "NodeUnknown",
            f"compute.nodes: {compute.nodes}, and {NODE} is {node or 'empty'}; start the stage {compute.nodes} times with "
            f"{NODE} from 0 to {compute.nodes - 1}, as an Indexed Job does, or set nodes to 1",
        )
    host, _, port = leader.rpartition(":")
    if not host or not port.isdecimal():
        raise BadInput(
            "NodeUnknown",
            f"{ENV_LEADER}: {leader or 'empty'}; compute.nodes is {compute.nodes}: set it to host:port of the first node",
        )
    return Place(int(node), compute.nodes, workers, host.strip("[]"), int(port))
