"""Counts from three sides: what gateway pods say they answered, what the operator's ledger says, what the app saw."""

from __future__ import annotations

import json
import re
import time
from typing import Any

from cutover.contract import REQUESTS, SHADOW_PAIRS, rollout_key
from cutover_operator.evidence.ledger import Ledger
from cutover_operator.evidence.ledger_map import from_config_map, ledger_name
from demo.stack import GATEWAY, Stack

Totals = dict[str, float]
LINE = re.compile(rf"^({REQUESTS}|{SHADOW_PAIRS})\{{(.*)\}} (\S+)$", re.MULTILINE)
LABEL = re.compile(r'(\w+)="([^"]*)"')


def gateway_pods(stack: Stack) -> list[str]:
    pods = stack.kube.items("pods", f"cutover.dev/gateway={GATEWAY}")
    return sorted(str(pod["metadata"]["name"]) for pod in pods)


def pod_totals(stack: Stack, pod: str, rollout: str) -> Totals:
    """One pod's own counters of a rollout under the names the ledger has for them; those that are 0 are left out."""
    name, found = stack.kube.get("modelrollout", rollout), Totals()
    assert name is not None
    key = rollout_key(name["metadata"]["uid"])
    path = f"/api/v1/namespaces/{stack.namespace}/pods/{pod}:9090/proxy/metrics"
    for metric, text, value in LINE.findall(stack.kube.run("get", "--raw", path)):
        labels = dict(LABEL.findall(text))
        if labels["rollout"] != key or float(value) == 0.0:
            continue
        mirrored = metric == SHADOW_PAIRS
        total = (
            f"shadow/{labels['agreement']}" if mirrored else f"requests/{labels['arm']}/{labels['outcome']}"
        )
        found[total] = found.get(total, 0.0) + float(value)
    return found


def gateway_totals(stack: Stack, rollout: str) -> Totals:
    return plus(*(pod_totals(stack, pod, rollout) for pod in gateway_pods(stack)))


def ledger(stack: Stack, rollout: str) -> Ledger:
    """The evidence checkpoint as it is stored."""
    owner = stack.kube.get("modelrollout", rollout)
    assert owner is not None
    found = from_config_map(stack.kube.get("configmap", ledger_name(rollout)), owner["metadata"]["uid"])
    assert found is not None
    return found


def counted(evidence: Ledger) -> Totals:
    """The totals that gateway pods count as well."""
    outcomes = re.compile(r"requests/\w+/\w+|shadow/(agree|disagree|invalid|error)")
    return {key: n for key, n in evidence.totals.items() if n and outcomes.fullmatch(key)}


def plus(*parts: Totals) -> Totals:
    whole = Totals()
    for part in parts:
        for key, n in part.items():
            whole[key] = whole.get(key, 0.0) + n
    return whole


def minus(one: Totals, other: Totals) -> Totals:
    """What is left when it is not nothing."""
    left = {key: one.get(key, 0.0) - other.get(key, 0.0) for key in one | other}
    return {key: n for key, n in left.items() if n}


def quiet(stack: Stack) -> dict[str, Any]:
    """Let the app stop and every request in flight be answered; what the app saw. The mirrored ones settle, too."""
    stack.kube.call("driver", "/app", {"rps": 0})
    stack.kube.wait(
        "every request answered",
        lambda: (s := stack.kube.call("driver", "/stats"))["answered"] + s["failed"] == s["sent"],
        90,
    )
    before: list[str] = []

    def settled() -> bool:
        now = [
            stack.kube.run(
                "get", "--raw", f"/api/v1/namespaces/{stack.namespace}/pods/{pod}:9090/proxy/metrics"
            )
            for pod in gateway_pods(stack)
        ]
        lines = [json.dumps(LINE.findall(text)) for text in now]
        same = lines == before
        before[:] = lines
        return same

    stack.kube.wait("counters that stand still", settled, 30, every_seconds=1.0)
    found: dict[str, Any] = stack.kube.call("driver", "/stats")
    return found


def scraped(stack: Stack, expected: Totals, rollout: str) -> None:
    """Until Prometheus has the live requests that the pods have counted; and a moment for answers already given."""
    owner = stack.kube.get("modelrollout", rollout)
    assert owner is not None
    query = f'sum({REQUESTS}{{rollout="{rollout_key(owner["metadata"]["uid"])}"}})'
    wanted = sum(n for key, n in expected.items() if key.startswith("requests/"))

    def seen() -> bool:
        found = stack.kube.call("prometheus", f"/api/v1/query?query={_quoted(query)}", port=9090)
        rows = found["data"]["result"]
        return bool(rows) and float(rows[0]["value"][1]) >= wanted

    stack.kube.wait("Prometheus to have scraped every gateway pod", seen, 60)
    time.sleep(
        2
    )  # an answer serves for a moment, and the mirrored requests are in the next scrape at the latest


def _quoted(text: str) -> str:
    return "".join(c if c.isalnum() else f"%{ord(c):02X}" for c in text)
