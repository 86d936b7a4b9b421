"""Who may connect to whom under the chart's network policies: every way the programs need, and none besides."""

from __future__ import annotations

import ipaddress
import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster import tools
from cutover.contract import LABEL_COMPONENT, LABEL_MANAGED_BY, MANAGED_BY, PORT_APP, PORT_ENGINE, PORT_OPS
from cutover_operator.rollout.resources import Owner, labels, selector
from cutover_operator.settings import OPS_PORT

pytestmark = pytest.mark.chart
ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "charts/cutover"
FULL = f"--values={CHART / 'ci/full-values.yaml'}"
HERE, OTHER = "cutover-test", "cutover-other"
Json = dict[str, Any]


@cache
def rendered(*words: str) -> tuple[Json, ...]:
    command = [str(tools.helm()), "template", "cutover", str(CHART), f"--namespace={HERE}"]
    done = subprocess.run(
        [*command, "--kube-version=1.35.4", *words], capture_output=True, text=True, check=True
    )
    return tuple(document for document in yaml.safe_load_all(done.stdout) if document)


def policies(*words: str) -> list[Json]:
    return [document for document in rendered(*words) if document["kind"] == "NetworkPolicy"]


# ---------------------------------------------------------------------- what a network plugin does with them


@dataclass(frozen=True)
class Pod:
    labels: Json
    namespace: str = HERE
    address: str = "10.244.0.7"


def chooses(wanted: Json, found: Json) -> bool:
    for one in wanted.get("matchExpressions", []):
        assert one["operator"] == "In"
        if found.get(one["key"]) not in one["values"]:
            return False
    return bool(wanted.get("matchLabels", {}).items() <= found.items())


def is_meant(peer: Json, caller: Pod, namespace: str) -> bool:
    if "ipBlock" in peer:
        address = ipaddress.ip_address(caller.address)
        return address in ipaddress.ip_network(peer["ipBlock"]["cidr"]) and not any(
            address in ipaddress.ip_network(less) for less in peer["ipBlock"].get("except", [])
        )
    if "namespaceSelector" in peer:
        if not chooses(peer["namespaceSelector"], {"kubernetes.io/metadata.name": caller.namespace}):
            return False
    elif caller.namespace != namespace:
        return False
    return chooses(peer.get("podSelector", {}), caller.labels)


def lets_in(found: list[Json], called: Pod, port: int, caller: Pod) -> bool:
    about = [
        policy
        for policy in found
        if policy["metadata"].get("namespace", HERE) == called.namespace
        and chooses(policy["spec"]["podSelector"], called.labels)
    ]
    if not about:
        return True
    rules = [rule for policy in about for rule in policy["spec"]["ingress"] or []]
    return any(
        ("ports" not in rule or port in [one["port"] for one in rule["ports"]])
        and any(is_meant(peer, caller, called.namespace) for peer in rule["from"])
        for rule in rules
    )


# ---------------------------------------------------------------------- who there is


def pods(*words: str) -> dict[str, Pod]:
    """Those of the chart with the labels it gives them, those of the operator with its, and strangers."""

    def own() -> Iterator[tuple[str, Pod]]:
        for document in rendered(*words):
            if "template" in document.get("spec", {}):
                yield document["metadata"]["name"], Pod(document["spec"]["template"]["metadata"]["labels"])

    owner = Owner("damage", HERE, "uid-1")
    trainer = {LABEL_MANAGED_BY: MANAGED_BY, LABEL_COMPONENT: "trainer"}
    prometheus = {"app.kubernetes.io/name": "prometheus"}
    return dict(own()) | {
        "candidate": Pod({**labels(owner), **selector(owner)}),
        "trainer": Pod(trainer),
        "trainer elsewhere": Pod(trainer, OTHER),
        "prometheus": Pod(prometheus, "monitoring"),
        "gateway elsewhere": Pod(
            {"app.kubernetes.io/name": "cutover", "app.kubernetes.io/component": "gateway"}, OTHER
        ),
        "application": Pod({"app": "claims"}, "claims"),
        "neighbour": Pod({"app": "claims"}),
        "machine": Pod({}, "outside", "10.20.1.1"),
        "machine left out": Pod({}, "outside", "10.20.9.1"),
        "ingress": Pod({"app": "nginx"}, "ingress"),
        "stranger": Pod({"app": "x"}, "strange"),
        "postgres": Pod({"app": "postgres"}),
    }


WAYS = {
    ("assess", PORT_APP): {"application", "machine"},
    ("assess", PORT_OPS): {"cutover-operator", "prometheus"},
    ("cutover-assessments", PORT_APP): {
        *("assess", "second", "gateway elsewhere", "trainer", "trainer elsewhere"),
        *("application", "machine", "ingress"),
    },
    ("cutover-assessments", PORT_OPS): {"prometheus"},
    ("cutover-operator", OPS_PORT): {"prometheus"},
    ("candidate", PORT_ENGINE): {"assess", "second", "prometheus"},
    ("trainer", 29500): {"trainer"},
    ("trainer elsewhere", 43211): {"trainer elsewhere"},
    ("postgres", 5433): {"cutover-assessments"},
    ("postgres", 5432): set(),
}


@pytest.mark.parametrize(("called", "port"), list(WAYS))
def test_who_has_to_connect_may_and_nobody_else(called: str, port: int) -> None:
    everybody = pods(FULL)
    found = {
        name for name, caller in everybody.items() if lets_in(policies(FULL), everybody[called], port, caller)
    }
    assert found == WAYS[called, port]


def test_nothing_that_leaves_a_pod_is_limited() -> None:
    """GPT-4, DNS, the API server, Prometheus and object stores stay in reach."""
    assert policies(FULL)
    for policy in policies(FULL):
        assert policy["spec"]["policyTypes"] == ["Ingress"]
        assert "egress" not in policy["spec"]


def test_they_are_made_only_when_asked_for() -> None:
    assert policies() == []
    assert policies(FULL, "--set=networkPolicy.enabled=false") == []


def test_as_it_is_switched_on_applications_of_the_namespace_and_prometheus_get_in() -> None:
    words = (FULL, *_defaults())
    everybody = pods(*words)

    def callers(called: str, port: int) -> set[str]:
        return {
            name
            for name, caller in everybody.items()
            if lets_in(policies(*words), everybody[called], port, caller)
        }

    at_home = {name for name, pod in everybody.items() if pod.namespace == HERE}
    assert callers("assess", PORT_APP) == at_home
    assert callers("assess", PORT_OPS) == {"cutover-operator", "prometheus"}
    assert callers("postgres", 5432) == set(everybody), "the chart does not know the database by itself"


def _defaults() -> tuple[str, ...]:
    """The chart's own lists in the place of the full example's."""
    written = yaml.safe_load((CHART / "values.yaml").read_text())["networkPolicy"]
    lists = {name: written[name] for name in ("applications", "reviewers", "scrapers")}
    found = {**lists, "database.podLabels": None}
    return tuple(f"--set-json=networkPolicy.{key}={json.dumps(value)}" for key, value in found.items())


def test_an_empty_list_lets_nobody_in_rather_than_everybody() -> None:
    words = (FULL, "--set-json=networkPolicy.scrapers=[]", "--set-json=networkPolicy.applications=[]")
    everybody = pods(*words)
    assert not any(
        lets_in(policies(*words), everybody[called], port, everybody[caller])
        for called, port in (("assess", PORT_APP), ("cutover-operator", OPS_PORT))
        for caller in ("application", "prometheus", "neighbour")
    )
