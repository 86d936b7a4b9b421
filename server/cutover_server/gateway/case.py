"""What is fixed about a request once its arm is chosen, and the time it has left."""

from __future__ import annotations

import time
from dataclasses import dataclass

from cutover.records import ArmName
from cutover.route import Arm, Route
from cutover_server.gateway.chat_request import ChatRequest, body_for_arm
from cutover_server.gateway.pictures import Picture
from cutover_server.gateway.route_board import InForce


@dataclass(frozen=True, slots=True)
class Case:
    request: ChatRequest
    request_id: str
    in_force: InForce
    chosen: ArmName
    arm: Arm
    pictures: list[Picture]
    messages: bytes
    """As they are written down."""
    headers: dict[str, str]
    """Of the answer: which arm was chosen, under which id the answer is kept."""
    received: float
    """Unix time."""
    started: float
    deadline: float
    """Both on the monotonic clock."""

    @property
    def route(self) -> Route:
        return self.in_force.route

    @property
    def seconds_left(self) -> float:
        return self.deadline - time.monotonic()

    @property
    def key(self) -> str:
        """What the assignment depends on."""
        return self.request.assessment_id or self.request_id

    @property
    def digests(self) -> list[str]:
        return list(dict.fromkeys(picture.digest for picture in self.pictures))

    def body_for(self, arm: Arm, stream: bool = False) -> list[bytes | memoryview]:
        # Log-probabilities are asked of the candidate alone: a hosted model may refuse the parameter.
        measured = arm is self.route.candidate or arm == self.route.candidate
        pictures = [(picture.digest, picture.url) for picture in self.pictures]
        return body_for_arm(self.request, self.messages, pictures, arm, self.route.task, measured, stream)
