"""The gateway's soak in short form: arms, database and gateways go and come back under load that counts every id."""

from __future__ import annotations

import pytest

from demo.stack import Stack
from soak.gateway_node import Node
from soak.gateway_phases import FEW, SHORT, Run
from soak.gateway_table import checks, table

pytestmark = [pytest.mark.node, pytest.mark.timeout(600)]


def test_no_answer_fails_and_no_record_is_lost_while_parts_go_and_come_back(stack: Stack) -> None:
    node = Node(stack, print, has_backup=False)
    try:
        node.begin()
        story = Run(node, SHORT, print).go(FEW)
    finally:
        node.end()
    print(table(story))
    assert all(check.kept for check in checks(story)), table(story)
