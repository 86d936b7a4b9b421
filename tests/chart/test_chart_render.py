"""The chart without a cluster: what it renders, what it refuses, and what its pods and roles may do."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster import tools
from cutover import contract
from cutover.route import GatewayConfig
from cutover.task import Task
from cutover_server.listener import HOLD_SECONDS

pytestmark = pytest.mark.chart
ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "charts/cutover"
FULL = CHART / "ci/full-values.yaml"
MONITORING = "monitoring.coreos.com/v1"
Json = dict[str, Any]


def helm(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(tools.helm()), *words], capture_output=True, text=True, check=False)


def template(*words: str) -> subprocess.CompletedProcess[str]:
    return helm(
        "template", "cutover", str(CHART), "--namespace=cutover-test", "--kube-version=1.35.4", *words
    )


@cache
def rendered(*words: str) -> tuple[Json, ...]:
    done = template(*words)
    assert done.returncode == 0, done.stderr
    return tuple(document for document in yaml.safe_load_all(done.stdout) if document)


def values(**tree: Any) -> tuple[str, ...]:
    return tuple(f"--set-json={key}={json.dumps(value)}" for key, value in tree.items())


TASK = yaml.safe_load((ROOT / "examples/building-damage/task.yaml").read_text())
GATEWAY: Json = {
    "name": "assess",
    "providers": {"gpt-4": {"baseUrl": "https://api.openai.com/v1", "model": "gpt-4o"}},
    "defaultProvider": "gpt-4",
    "task": TASK,
}
VARIANTS = {
    "defaults": (),
    "one gateway": values(gateways=[GATEWAY]),
    "full": (f"--values={FULL}", f"--api-versions={MONITORING}"),
    "all namespaces": values(operator={"namespaced": False}),
}
variants = pytest.mark.parametrize("variant", list(VARIANTS))


def find(documents: tuple[Json, ...], kind: str, name: str) -> Json:
    (found,) = (d for d in documents if d["kind"] == kind and d["metadata"]["name"] == name)
    return found


def pod_templates(documents: tuple[Json, ...]) -> Iterator[tuple[str, Json]]:
    for document in documents:
        if "template" in document.get("spec", {}):
            yield document["metadata"]["name"], document["spec"]["template"]


def environment(documents: tuple[Json, ...], kind: str, name: str) -> dict[str, Any]:
    (container,) = find(documents, kind, name)["spec"]["template"]["spec"]["containers"]
    return {entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in container["env"]}


# ------------------------------------------------------------ renders
@pytest.mark.parametrize("words", [(), (f"--values={FULL}",)], ids=["defaults", "full"])
def test_lint_finds_nothing(words: tuple[str, ...]) -> None:
    done = helm("lint", "--strict", str(CHART), *words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stdout


def test_defaults_bring_the_operator_and_no_gateway() -> None:
    kinds = [document["kind"] for document in rendered()]
    assert kinds.count("CustomResourceDefinition") == 2
    assert kinds.count("Deployment") == 1
    assert "StatefulSet" not in kinds


def test_a_gateway_brings_its_service_and_the_assessments() -> None:
    documents = rendered(*VARIANTS["one gateway"])
    names = {(document["kind"], document["metadata"]["name"]) for document in documents}
    assert {
        ("StatefulSet", "assess"),
        ("Service", "assess"),
        ("Service", "assess-pods"),
        ("PodDisruptionBudget", "assess"),
        ("ConfigMap", contract.gateway_config_map("assess")),
        ("Deployment", "cutover-assessments"),
        ("PersistentVolumeClaim", "cutover-assessments"),
        ("Secret", "cutover-auth"),
    } <= names


def test_the_gateway_reads_the_configuration_the_chart_writes() -> None:
    documents = rendered(*VARIANTS["full"])
    for name, providers in (("assess", {"gpt-4", "in-house"}), ("second", {"gpt-4"})):
        text = find(documents, "ConfigMap", contract.gateway_config_map(name))["data"][contract.GATEWAY_KEY]
        config = GatewayConfig.model_validate(yaml.safe_load(text))
        assert config.name == name
        assert set(config.providers) == providers
        assert config.idle_route().control.model == "gpt-4o"
    assert config.providers["gpt-4"].key is None
    unknown = set(yaml.safe_load(text)) - {field.alias for field in GatewayConfig.model_fields.values()}
    assert unknown == set()


def test_every_field_of_a_provider_can_be_set() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())["definitions"]
    provider = GatewayConfig.model_json_schema(by_alias=True)["$defs"]
    assert set(schema["provider"]["properties"]) == set(provider["Provider"]["properties"])
    assert set(schema["price"]["properties"]) == set(provider["Price"]["properties"])
    assert set(schema["task"]["properties"]) == set(provider["Task"]["properties"])


def test_the_assessments_know_every_task_once() -> None:
    documents = rendered(*VARIANTS["full"])
    data = find(documents, "ConfigMap", "cutover-assessments")["data"]
    assert [Task.model_validate(yaml.safe_load(text)).name for text in data.values()] == [
        "building-damage",
        "roof-type",
    ]
    paths = environment(documents, "Deployment", "cutover-assessments")["CUTOVER_TASK"].split(",")
    assert paths == [f"/etc/cutover/{name}" for name in data]


def test_the_operator_allows_what_belongs_to_the_chart() -> None:
    settings = environment(rendered(*VARIANTS["full"]), "Deployment", "cutover-operator")
    assert settings["CUTOVER_ALLOWED_URLS"].split(",") == [
        "http://mlflow.mlflow:5000",
        "https://export.example.com/rows",
        "http://prometheus.monitoring:9090",
        "http://cutover-assessments:8080",
    ]
    assert settings["CUTOVER_WATCH_NAMESPACES"] == "cutover-test,cutover-other"
    assert settings["CUTOVER_TRAINER_IMAGE"] == "registry.example.com/cutover/cutover-ml:0.1.0"
    assert settings["CUTOVER_VLLM_IMAGE"].startswith("vllm/")
    assert (
        environment(rendered(), "Deployment", "cutover-operator")["CUTOVER_WATCH_NAMESPACES"]
        == "cutover-test"
    )


def test_records_wait_for_the_database_on_a_volume_that_outlives_the_pod() -> None:
    gateway = find(rendered(*VARIANTS["full"]), "StatefulSet", "assess")["spec"]
    (claim,) = gateway["volumeClaimTemplates"]
    assert claim["spec"]["resources"]["requests"]["storage"] == "20Gi"
    assert claim["spec"]["storageClassName"] == "fast"
    assert gateway["persistentVolumeClaimRetentionPolicy"] == {
        "whenDeleted": "Retain",
        "whenScaled": "Retain",
    }
    settings = environment(rendered(*VARIANTS["full"]), "StatefulSet", "assess")
    (container,) = gateway["template"]["spec"]["containers"]
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    assert mounts[settings["CUTOVER_SPOOL_DIR"]] == claim["metadata"]["name"]
    assert mounts[contract.KEYS_FOLDER] == "keys"
    assert settings["CUTOVER_MAX_SPOOL_BYTES"] == str(20 * 2**30 * 4 // 5)
    assert gateway["template"]["spec"]["terminationGracePeriodSeconds"] == 60
    assert settings["CUTOVER_DRAIN_SECONDS"] == "50"


@pytest.mark.parametrize(
    ("size", "limit"), [("500M", 400_000_000), ("1Ti", 879_609_302_220), ("", 4 * 2**30)]
)
def test_the_spool_fills_four_fifths_of_its_volume(size: str, limit: int) -> None:
    gateway = {**GATEWAY, "spool": {"size": size} if size else {}}
    told = environment(rendered(*values(gateways=[gateway])), "StatefulSet", "assess")
    assert told["CUTOVER_MAX_SPOOL_BYTES"] == str(limit)


def test_the_keys_of_applications_come_from_a_secret_and_only_if_asked_for() -> None:
    gateway = find(rendered(*VARIANTS["full"]), "StatefulSet", "assess")["spec"]["template"]["spec"]
    (secret,) = (volume["secret"] for volume in gateway["volumes"] if volume["name"] == "client-keys")
    assert secret["secretName"] == "application-keys"
    mounts = {mount["name"]: mount for mount in gateway["containers"][0]["volumeMounts"]}
    told = environment(rendered(*VARIANTS["full"]), "StatefulSet", "assess")
    folder = mounts["client-keys"]["mountPath"]
    assert told["CUTOVER_CLIENT_KEYS_FILE"] == f"{folder}/{secret['items'][0]['path']}"
    assert mounts["client-keys"]["readOnly"] is True
    assert "subPath" not in mounts["client-keys"], "a file of its own would never change"
    plain = find(rendered(*VARIANTS["full"]), "StatefulSet", "second")["spec"]["template"]["spec"]
    assert "client-keys" not in {volume["name"] for volume in plain["volumes"]}
    assert "CUTOVER_CLIENT_KEYS_FILE" not in environment(rendered(*VARIANTS["full"]), "StatefulSet", "second")


def test_the_listening_socket_outlives_the_gateway_unless_that_is_switched_off() -> None:
    documents = rendered(*VARIANTS["full"])
    pod = find(documents, "StatefulSet", "assess")["spec"]["template"]["spec"]
    (listener,) = pod["initContainers"]
    (gateway,) = pod["containers"]
    assert listener["restartPolicy"] == "Always", "a sidecar, which ends after the gateway"
    assert listener["image"] == gateway["image"]
    told = {entry["name"]: entry.get("value") for entry in listener["env"]}
    assert told["CUTOVER_LISTENER_HOLD_SECONDS"] == "8"
    where = environment(documents, "StatefulSet", "assess")["CUTOVER_LISTENER_SOCKET"]
    assert told["CUTOVER_LISTENER_SOCKET"] == where
    (shared,) = (volume for volume in pod["volumes"] if volume["name"] == "listener")
    assert "emptyDir" in shared
    for container in (listener, gateway):
        (folder,) = (one["mountPath"] for one in container["volumeMounts"] if one["name"] == "listener")
        assert str(Path(where).parent) == folder, container["name"]
    assert {one["name"] for one in listener["volumeMounts"]} == {"listener"}, "no spool, no keys"
    assert listener["resources"]["limits"] == {"memory": "24Mi"}

    without = find(documents, "StatefulSet", "second")["spec"]["template"]["spec"]
    assert "initContainers" not in without
    assert "listener" not in {volume["name"] for volume in without["volumes"]}
    assert "CUTOVER_LISTENER_SOCKET" not in environment(documents, "StatefulSet", "second")


def test_the_listener_holds_the_address_its_gateway_serves_and_waits_as_long_as_the_program_does() -> None:
    gateway = {
        **GATEWAY,
        "extraEnv": [{"name": "CUTOVER_HOST", "value": "::"}, {"name": "LANG", "value": "C"}],
    }
    pod = find(rendered(*values(gateways=[gateway])), "StatefulSet", "assess")["spec"]["template"]["spec"]
    told = {entry["name"]: entry["value"] for entry in pod["initContainers"][0]["env"]}
    assert told["CUTOVER_HOST"] == "::"
    assert "LANG" not in told
    assert float(told["CUTOVER_LISTENER_HOLD_SECONDS"]) == HOLD_SECONDS


def test_a_database_and_a_picture_store_elsewhere_need_no_claim() -> None:
    documents = rendered(*VARIANTS["full"])
    assert "PersistentVolumeClaim" not in {document["kind"] for document in documents}
    settings = environment(documents, "Deployment", "cutover-assessments")
    assert settings["CUTOVER_DATABASE_URL"] == {"secretKeyRef": {"name": "database", "key": "url"}}
    assert settings["CUTOVER_PICTURES_URI"] == "s3://pictures/assessments"


def test_a_changed_task_restarts_its_gateway() -> None:
    def digest(prompt: str) -> str:
        gateway = {**GATEWAY, "task": {**TASK, "userPrompt": prompt}}
        pods = dict(pod_templates(rendered(*values(gateways=[gateway]))))
        return str(pods["assess"]["metadata"]["annotations"]["cutover.dev/config-digest"])

    assert digest("What is broken?") != digest("What is wet?")


def test_ports_and_probes_are_the_contracts() -> None:
    for name, pod in pod_templates(rendered(*VARIANTS["full"])):
        (container,) = pod["spec"]["containers"]
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        ops = contract.PORT_APP if name.endswith("operator") else contract.PORT_OPS
        assert ports["ops"] == ops
        assert pod["metadata"]["annotations"]["prometheus.io/port"] == str(ops)
        assert container["readinessProbe"]["httpGet"] == {"path": contract.PATH_READY, "port": "ops"}
        assert container["livenessProbe"]["httpGet"] == {"path": contract.PATH_LIVE, "port": "ops"}


def test_monitoring_is_optional() -> None:
    assert "PodMonitor" in {document["kind"] for document in rendered(*VARIANTS["full"])}
    assert "PodMonitor" not in {document["kind"] for document in rendered(f"--values={FULL}")}
    for _, pod in pod_templates(rendered(*values(monitoring={"annotations": False}, gateways=[GATEWAY]))):
        assert "prometheus.io/scrape" not in pod["metadata"].get("annotations", {})


def test_alerts_name_metrics_that_exist() -> None:
    rules = find(rendered(*VARIANTS["full"]), "PrometheusRule", "cutover")["spec"]
    assert rules == yaml.safe_load((CHART / "rules/alerts.yaml").read_text())
    known = {value for value in vars(contract).values() if isinstance(value, str)}
    for rule in rules["groups"][0]["rules"]:
        named = set(re.findall(r"cutover_[a-z_]+", rule["expr"]))
        assert named, rule["alert"]
        assert named <= known, rule["alert"]


def test_alerts_are_rules_that_prometheus_reads() -> None:
    command = [str(tools.promtool()), "check", "rules", str(CHART / "rules/alerts.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@variants
def test_selectors_match_their_own_pods_only(variant: str) -> None:
    documents = rendered(*VARIANTS[variant])
    pods = {name: pod["metadata"]["labels"] for name, pod in pod_templates(documents)}
    for document in documents:
        selector = document.get("spec", {}).get("selector", {})
        if document["kind"] not in ("Service", "PodDisruptionBudget", "Deployment", "StatefulSet"):
            continue
        wanted = selector.get("matchLabels", selector)
        chosen = [name for name, labels in pods.items() if wanted.items() <= labels.items()]
        assert chosen == [document["metadata"]["name"].removesuffix("-pods")]


# ------------------------------------------------------------ refuses
@pytest.mark.parametrize(
    ("wrong", "answer"),
    [
        ({"operater": {}}, "operater"),
        ({"operator": {"replica": 3}}, "replica"),
        ({"operator": {"replicas": 0}}, "replicas"),
        ({"operator": {"allowedUrls": ["mlflow:5000"]}}, "allowedUrls"),
        ({"operator": {"logLevel": "loud"}}, "logLevel"),
        ({"images": {"pullPolicy": "Sometimes"}}, "pullPolicy"),
        ({"crds": {"install": True}}, "install"),
        ({"gateways": [{"name": "assess"}]}, "providers"),
        ({"gateways": [{**GATEWAY, "name": "Assess"}]}, "name"),
        ({"gateways": [{**GATEWAY, "replica": 1}]}, "replica"),
        ({"gateways": [{**GATEWAY, "spool": {"size": "much"}}]}, "size"),
        ({"gateways": [{**GATEWAY, "streaming": "sometimes"}]}, "streaming"),
        ({"gateways": [{**GATEWAY, "clientKeysSecret": "My Keys"}]}, "clientKeysSecret"),
        ({"gateways": [{**GATEWAY, "providers": {"gpt-4": {"model": "gpt-4o"}}}]}, "baseUrl"),
        (
            {"gateways": [{**GATEWAY, "providers": {"gpt-4": {"baseUrl": "https://x/v1", "model": "m", "apiKey": "sk"}}}]},
            "apiKey",
        ),
        ({"gateways": [{**GATEWAY, "task": {"name": "t"}}]}, "answerSchema"),
        ({"gateways": [{**GATEWAY, "terminationGracePeriodSeconds": 5}]}, "terminationGracePeriodSeconds"),
        ({"gateways": [{**GATEWAY, "listener": {"holdSeconds": 0}}]}, "holdSeconds"),
        ({"gateways": [{**GATEWAY, "listener": {"hold": 5}}]}, "hold"),
        ({"assessments": {"pictures": {"retentionDays": 0}}}, "retentionDays"),
        ({"assessments": {"extraEnv": [{"name": "A", "valueFrom": {"fieldRef": {}}}]}}, "extraEnv"),
        ({"auth": {"token": "secret"}}, "token"),
        ({"networkPolicy": {"enabled": True, "prometheus": []}}, "prometheus"),
        ({"networkPolicy": {"scrapers": [{}]}}, "scrapers"),
        ({"networkPolicy": {"applications": [{"ipBlock": {"cidr": "10.0.0.1"}}]}}, "cidr"),
        ({"networkPolicy": {"applications": [{"podSelector": {"app": "claims"}}]}}, "app"),
        # what a schema cannot say
        ({"gateways": [{**GATEWAY, "defaultProvider": "gpt-5"}]}, "is not one of its providers (gpt-4)"),
        (
            {"gateways": [{**GATEWAY, "providers": {"gpt-4": {"baseUrl": "https://x/v1", "model": "m", "key": "k"}}}]},
            "keysSecret",
        ),
        (
            {"gateways": [GATEWAY, {**GATEWAY, "name": "b", "task": {**TASK, "userPrompt": "?"}}]},
            "give one of them another name",
        ),
        ({"gateways": [GATEWAY], "assessments": {"replicas": 2}}, "SQLite serves one replica"),
        ({"gateways": [GATEWAY], "assessments": {"enabled": False}}, "name the assessments service"),
        ({"gateways": [GATEWAY, GATEWAY]}, "two gateways are named assess"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_a_wrong_value_is_refused_by_name(wrong: Json, answer: str) -> None:
    done = template(*values(**wrong))
    assert done.returncode != 0
    assert answer in done.stderr


def test_every_object_of_the_schema_is_closed() -> None:
    free = {"definitions.task.properties.answerSchema", "properties.global"}

    def walk(node: Any, path: str) -> Iterator[str]:
        if isinstance(node, dict):
            if (
                node.get("type") == "object"
                and "additionalProperties" not in node
                and node.get("maxProperties") != 0
            ):
                yield path
            for key, child in node.items():
                yield from walk(child, f"{path}.{key}".lstrip("."))
        if isinstance(node, list):
            for index, child in enumerate(node):
                yield from walk(child, f"{path}[{index}]")

    assert set(walk(json.loads((CHART / "values.schema.json").read_text()), "")) == free


def test_the_schema_knows_every_value() -> None:
    """And the other way round: a value nobody wrote into values.yaml is unknown to its readers."""

    def keys(tree: Json, path: str = "") -> Iterator[str]:
        for key, value in tree.items():
            yield f"{path}{key}"
            if isinstance(value, dict) and key not in ("resources", "nodeSelector", "task"):
                yield from keys(value, f"{path}{key}.")

    def declared(node: Json, path: str = "") -> Iterator[str]:
        for key, child in node.get("properties", {}).items():
            yield f"{path}{key}"
            yield from declared(child, f"{path}{key}.")

    schema = json.loads((CHART / "values.schema.json").read_text())
    written = set(keys(yaml.safe_load((CHART / "values.yaml").read_text())))
    assert set(declared(schema)) - written == {"global"}
    assert written - set(declared(schema)) == set()


# ------------------------------------------------------------ is safe
@variants
def test_pods_are_restricted(variant: str) -> None:
    for name, pod in pod_templates(rendered(*VARIANTS[variant])):
        spec = pod["spec"]
        security = spec["securityContext"]
        assert security["runAsNonRoot"] is True, name
        assert security["runAsUser"] == 65532, name
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert not {"hostNetwork", "hostPID", "hostIPC", "hostUsers"} & set(spec), name
        for volume in spec["volumes"]:
            assert set(volume) - {"name"} <= {"configMap", "secret", "emptyDir", "persistentVolumeClaim"}, (
                name
            )
        for container in (*spec["containers"], *spec.get("initContainers", ())):
            inner = container["securityContext"]
            assert inner["allowPrivilegeEscalation"] is False, name
            assert inner["capabilities"] == {"drop": ["ALL"]}, name
            assert inner["readOnlyRootFilesystem"] is True, name
            assert "hostPort" not in str(container.get("ports")), name
        for container in spec["containers"]:
            assert "/tmp" in {mount["mountPath"] for mount in container["volumeMounts"]}, name


def test_only_operator_and_gateways_hold_a_token() -> None:
    documents = rendered(*VARIANTS["full"])
    for name, pod in pod_templates(documents):
        mounted = pod["spec"].get("automountServiceAccountToken", True)
        assert mounted == (name in ("cutover-operator", "assess", "second")), name
        assert pod["spec"]["serviceAccountName"] != "default"


@variants
def test_roles_have_no_wildcard_and_no_secret(variant: str) -> None:
    roles = [d for d in rendered(*VARIANTS[variant]) if d["kind"] in ("Role", "ClusterRole")]
    assert roles
    for role in roles:
        for rule in role["rules"]:
            words = [*rule["apiGroups"], *rule["resources"], *rule["verbs"]]
            assert not [word for word in words if "*" in word], role["metadata"]["name"]
            assert "secrets" not in rule["resources"]
            assert not {"escalate", "bind", "impersonate"} & set(rule["verbs"])
            assert "pods/exec" not in rule["resources"]


@variants
def test_what_the_operator_may_do_to_services_and_config_maps_stands_apart(variant: str) -> None:
    """Config maps need more verbs than services, and nothing may come to share their rule."""
    roles = [
        d
        for d in rendered(*VARIANTS[variant])
        if d["kind"] in ("Role", "ClusterRole") and "-operator" in d["metadata"]["name"]
    ]
    for role in (role for role in roles if "lease" not in role["metadata"]["name"]):
        found = {tuple(rule["resources"]): set(rule["verbs"]) for rule in role["rules"]}
        assert found["services",] == {"get", "create", "patch", "delete"}
        assert found["configmaps",] == {"get", "list", "watch", "create", "patch", "update", "delete"}
        assert sum("configmaps" in resources or "services" in resources for resources in found) == 2


def test_a_gateway_sees_its_own_route_only() -> None:
    for name in ("assess", "second"):
        (rule,) = find(rendered(*VARIANTS["full"]), "Role", f"{name}-gateway")["rules"]
        assert rule == {
            "apiGroups": [""],
            "resources": ["configmaps"],
            "resourceNames": [contract.route_config_map(name)],
            "verbs": ["get", "list", "watch"],
        }


def test_the_operator_has_roles_in_its_namespaces_only() -> None:
    def operators(documents: tuple[Json, ...], kind: str) -> list[str | None]:
        return [
            d["metadata"].get("namespace")
            for d in documents
            if d["kind"] == kind
            and "-operator" in d["metadata"]["name"]
            and "lease" not in d["metadata"]["name"]
        ]

    assert operators(rendered(), "Role") == ["cutover-test"]
    assert operators(rendered(), "ClusterRole") == []
    assert operators(rendered(*VARIANTS["full"]), "Role") == ["cutover-test", "cutover-other"]
    everywhere = rendered(*VARIANTS["all namespaces"])
    assert operators(everywhere, "Role") == []
    assert len(operators(everywhere, "ClusterRole")) == 1
    assert environment(everywhere, "Deployment", "cutover-operator")["CUTOVER_WATCH_NAMESPACES"] == ""


def test_the_role_names_the_operators_own_lease() -> None:
    from cutover_operator.main import LEASE_NAME

    rules = find(rendered(), "Role", "cutover-operator-lease")["rules"]
    assert [rule.get("resourceNames") for rule in rules] == [None, [LEASE_NAME]]


def test_the_operator_understands_what_the_chart_tells_it() -> None:
    from cutover_operator.settings import Settings

    told = environment(rendered(*VARIANTS["full"]), "Deployment", "cutover-operator")
    settings = Settings.from_environment(
        {name: value for name, value in told.items() if isinstance(value, str)}
    )
    assert settings.namespaces == ("cutover-test", "cutover-other")
    assert settings.ops_port == contract.PORT_APP
    assert settings.trainer_image == told["CUTOVER_TRAINER_IMAGE"]
    assert settings.tgi_image == told["CUTOVER_TGI_IMAGE"]
    assert settings.pull_secrets == ("registry-login",)


def test_the_servers_understand_what_the_chart_tells_them(tmp_path: Path) -> None:
    from cutover_server.assessments.settings import read_settings as read_assessments
    from cutover_server.gateway.settings import read_settings as read_gateway

    documents = rendered(*VARIANTS["full"])

    def told(kind: str, name: str) -> dict[str, str]:
        """The pod's variables, a secret's value made up, a mounted file put below tmp_path."""
        found = {"KUBERNETES_SERVICE_HOST": "10.96.0.1"}
        for variable, value in environment(documents, kind, name).items():
            found[variable] = value if isinstance(value, str) else f"{variable}-made-up"
        folders = {"/etc/cutover": str(tmp_path), "/var/run/cutover/clients": str(tmp_path)}
        for mounted, here in folders.items():
            found = {variable: value.replace(mounted, here) for variable, value in found.items()}
        return found

    for config_map in (contract.gateway_config_map("assess"), "cutover-assessments"):
        for file, text in find(documents, "ConfigMap", config_map)["data"].items():
            (tmp_path / file).write_text(text)
    gateway = read_gateway(told("StatefulSet", "assess"))
    assert gateway.gateway == "assess"
    assert gateway.route_config_map == contract.route_config_map("assess")
    assert gateway.drain_seconds == 50
    assert gateway.keys_folder == Path(contract.KEYS_FOLDER)
    assert gateway.client_keys_file == tmp_path / "keys"
    assert gateway.streaming == "passthrough"
    assert gateway.max_spool_bytes == 20 * 2**30 * 4 // 5
    assessments = read_assessments(told("Deployment", "cutover-assessments"))
    assert set(assessments.tasks) == {"building-damage", "roof-type"}
    assert assessments.blind_surveyors is False


def test_no_token_is_written_into_a_pod() -> None:
    text = template(*VARIANTS["full"]).stdout
    assert "kind: Secret" not in text
    for name, pod in pod_templates(rendered(*VARIANTS["full"])):
        for entry in pod["spec"]["containers"][0]["env"]:
            if entry["name"].endswith(("_TOKEN", "_KEY", "DATABASE_URL")):
                assert "secretKeyRef" in entry["valueFrom"], f"{name}: {entry['name']}"


# ------------------------------------------------------------ CRDs
def test_the_charts_crds_are_the_generated_ones(tmp_path: Path) -> None:
    subprocess.run([sys.executable, str(ROOT / "charts/sync_crds.py"), str(tmp_path)], check=True)
    fresh = {path.name: path.read_text() for path in tmp_path.iterdir()}
    held = {path.name: path.read_text() for path in (CHART / "templates/crds").iterdir()}
    assert held == fresh, "run `make crds`"
    for path in (ROOT / "crds").glob("*.yaml"):
        definition = yaml.safe_load(path.read_text())
        templated = find(rendered(), "CustomResourceDefinition", definition["metadata"]["name"])
        assert templated["spec"] == definition["spec"]


def test_crds_are_kept_unless_asked_otherwise() -> None:
    def definitions(*words: str) -> list[Json]:
        return [d for d in rendered(*words) if d["kind"] == "CustomResourceDefinition"]

    assert [d["metadata"]["annotations"] for d in definitions()] == [{"helm.sh/resource-policy": "keep"}] * 2
    assert ["annotations" in d["metadata"] for d in definitions(f"--values={FULL}")] == [False, False]
    assert definitions(*values(crds={"enabled": False})) == []
