"""The names the programs promise one another: metrics, labels, headers, paths, ports, exit codes.

Constants only. Every dashboard, rule and query is tested against them.
"""

from __future__ import annotations

from bisect import bisect_right
from enum import IntEnum

# ------------------------------------------------------------------ HTTP
HEADER_ASSESSMENT_ID = "x-cutover-assessment-id"
"""Request: the key of the assignment. Response: the id under which the answer is kept."""
HEADER_ARM = "x-cutover-arm"
"""Response: the arm that was chosen, `control` or `candidate`. Request, with an admin's key: the arm to ask."""
HEADER_REQUEST_ID = "x-request-id"
"""Response: our id of the request; an answer's `id` is the same."""
HEADER_VERSION = "x-cutover-version"
"""Response: the version that really answered."""
HEADER_FALLBACK = "x-cutover-fallback"
"""Response: why the fallback answered; absent when the chosen arm did."""
HEADER_BUSY_SECONDS = "x-cutover-busy-seconds"
"""Response of an engine: GPU-seconds (or CPU-seconds) the answer kept it busy."""

PORT_APP = 8080
PORT_OPS = 9090
PORT_ENGINE = 8000
PORT_PROOF = 8001
"""Of a vLLM pod's adapter proof; nobody but the kubelet asks it."""
PATH_METRICS = "/metrics"
PATH_LIVE = "/healthz"
PATH_READY = "/readyz"
PATH_ROUTE_REPORT = "/internal/route"
"""Gateway, ops port: `RouteReport` of the route in force."""
PATH_RECORDS = "/internal/records"
"""Assessments: POST a `RecordBatch`, idempotent by id."""
PATH_PICTURES = "/internal/pictures"
"""Assessments: PUT /internal/pictures/<sha256>."""
PATH_EXPORT = "/api/admin/training-data/export"
PATH_ACCURACY_STATS = "/api/admin/training-data/accuracy-stats"

# ------------------------------------------------------------------ metrics (Prometheus exposition names)
REQUESTS = "cutover_requests_total"
"""Counter {gateway, rollout, arm, version, outcome}: live requests by the arm that was chosen."""
OUTCOMES = ("ok", "error", "deferred", "rejected")
DURATION = "cutover_request_duration_seconds"
"""Histogram {gateway, rollout, arm, version}: what the caller waited, for outcomes ok and error."""
LATENCY_EDGES_SECONDS = (0.05, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0, 30.0, 60.0)
COST = "cutover_cost_usd_total"
"""Counter {gateway, rollout, arm, version}: price of the answers of the chosen arm, fallback included."""
FALLBACKS = "cutover_fallbacks_total"
"""Counter {gateway, rollout, arm, reason}: requests of the chosen arm that the fallback answered."""
BREAKER_OPEN = "cutover_breaker_open"
"""Gauge {gateway, arm}: 1 while the arm is not asked."""
SHADOW_PAIRS = "cutover_shadow_pairs_total"
"""Counter {gateway, rollout, version, agreement}: mirrored requests. agreement is agree, disagree, invalid, error, or
deferred: a valid answer below the threshold in force, which nobody would have been given."""
AGREEMENTS = ("agree", "disagree", "invalid", "error", "deferred")
CONFIDENCE = "cutover_confidence_total"
"""Counter {gateway, rollout, version, bin}: the candidate's valid answers, served, deferred and mirrored, by confidence."""
SHADOW_DURATION = "cutover_shadow_duration_seconds"
"""Histogram {gateway, rollout, version}: the candidate's time for mirrored requests."""
SHADOW_DROPPED = "cutover_shadow_dropped_total"
"""Counter {gateway, rollout, reason}: mirrored copies given up before the candidate was asked."""
ROUTE_GENERATION = "cutover_route_generation"
"""Gauge {gateway}: generation of the route in force."""
SPOOL_RECORDS = "cutover_spool_records"
"""Gauge {gateway}: records not yet in the database."""
SPOOL_FULL = "cutover_spool_full_total"
"""Counter {gateway}: records refused by a full spool; an alert, never silence."""
SPOOL_DEAD_LETTERS = "cutover_spool_dead_letters_total"
"""Counter {gateway}: records the assessments service refused as unfit, or found damaged; kept in a file on the spool."""
ROUTE_REFUSED = "cutover_route_refused_total"
"""Counter {gateway}: route documents refused as invalid; the last good one stayed in force."""
REQUESTS_REFUSED = "cutover_requests_refused_total"
"""Counter {gateway, reason}: requests turned away before an arm was chosen (size, pressure, token, format)."""
LABELS_MATURED = "cutover_labels_matured_total"
"""Counter {rollout, arm, version, field, stratum, result}: sampled requests past their label deadline, counted once in
the database and exported alike by every replica: take the maximum over replicas, never the sum."""
LABEL_RESULTS = ("right", "wrong", "missing")
LABEL_POOL = "cutover_label_pool_total"
"""Counter {rollout, version, stratum}: matured requests the candidate is judged by that might have been drawn for a label,
drawn or not. From the database, like the labels."""
LABEL_WEIGHT = "cutover_label_weight_total"
"""Counter {rollout, version, stratum}: those that were drawn, each counting 1 / the chance of being drawn from the pool."""
LABEL_PAIRS = "cutover_label_pairs_total"
"""Counter {rollout, version, field, result}: matured requests that both models answered, by who was right. `version` is
the candidate's. From the database, like the labels."""
PAIR_RESULTS = ("both", "candidate", "control", "neither", "missing")
LABEL_DOUBLES = "cutover_label_doubles_total"
"""Counter {rollout, field, result}: matured requests drawn for a second labeller, by whether the two agree."""
DOUBLE_RESULTS = ("same", "different")
LABEL_CONFIDENCE = "cutover_label_confidence_total"
"""Counter {rollout, version, field, bin, result}: matured requests by the confidence of the candidate's valid answer,
whether it was kept, deferred or mirrored; result as for the labels."""
LABEL_PROBABILITY = "cutover_label_sampling_probability"
"""Gauge {gateway, rollout, stratum}: share of requests that people are asked to label."""
LABEL_CORRECTIONS = "cutover_label_corrections_total"
"""Counter {rollout, arm, version}: labels changed after they had matured."""
SATISFACTION = "cutover_satisfaction_total"
"""Counter {rollout, arm, version, score}: user feedback; score is up or down. From the database, like the labels."""

FIELD_OVERALL = "overall"
"""Value of the label `field` that means: every scored field right."""
STRATUM_ALL = "all"
STRATUM_AGREE = "agree"
STRATUM_DISAGREE = "disagree"
"""Strata of a mirrored pair: whether both models say the same in every scored field. Without a pair: all."""
CONFIDENCE_EDGES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.93, 0.95, 0.97, 0.98, 0.99, 0.995, 0.999)
"""Lower edges of the bins of confidence, and the thresholds routing may choose from."""
BIN_UNKNOWN = "none"
BIN_LOWEST = "0"
CONFIDENCE_BINS = (BIN_UNKNOWN, BIN_LOWEST, *(f"{edge:g}" for edge in CONFIDENCE_EDGES))
"""Values of the label `bin`, from the least sure up: none is an answer without log-probabilities."""
ROLLOUT_NONE = "none"
"""Value of the label `rollout` when no rollout is active."""


def confidence_bin(confidence: float | None) -> str:
    """The bin a confidence falls into. An edge belongs to the bin above it, as a threshold keeps what equals it."""
    if confidence is None:
        return BIN_UNKNOWN
    at = bisect_right(CONFIDENCE_EDGES, confidence)
    return f"{CONFIDENCE_EDGES[at - 1]:g}" if at else BIN_LOWEST


def rollout_key(uid: str) -> str:
    """Value of the label `rollout`: the first 13 characters of the object's uid."""
    return uid[:13]


# ------------------------------------------------------------------ Kubernetes objects
LABEL_MANAGED_BY = "app.kubernetes.io/managed-by"
MANAGED_BY = "cutover"
LABEL_COMPONENT = "app.kubernetes.io/component"
LABEL_OWNER_KIND = "cutover.dev/owner-kind"
LABEL_OWNER_NAME = "cutover.dev/owner-name"
LABEL_OWNER_UID = "cutover.dev/owner-uid"
"""On a TrainingRun's Jobs and pods: tells them from those of a deleted namesake."""
LABEL_STAGE = "cutover.dev/stage"
LABEL_ATTEMPT = "cutover.dev/attempt"
LABEL_QUEUE = "kueue.x-k8s.io/queue-name"
"""On a TrainingRun's Jobs: the Kueue LocalQueue that admits them."""
LABEL_GATEWAY = "cutover.dev/gateway"
"""On gateway pods and on a gateway's ConfigMaps."""
FINALIZER = "cutover.dev/route"


def route_config_map(gateway: str) -> str:
    """Name of the ConfigMap that holds a gateway's route under the key `route.json`."""
    return f"{gateway}-route"


def gateway_config_map(gateway: str) -> str:
    """Name of the chart's ConfigMap with the gateway's providers and task under the key `gateway.yaml`."""
    return f"{gateway}-config"


ROUTE_KEY = "route.json"
GATEWAY_KEY = "gateway.yaml"
KEYS_FOLDER = "/var/run/cutover/keys"
"""Provider keys in the gateway pod: one file per key name, from a Secret."""

# ------------------------------------------------------------------ trainer
STAGE_CONFIG_PATH = "/etc/cutover/stage.yaml"
TERMINATION_LOG = "/dev/termination-log"
ENV_LEADER = "CUTOVER_LEADER"
"""host:port of the first pod of a training on several nodes."""
PORT_NODES = 29500
"""There its launchers meet, and their workers at the next port."""
TERMINATION_LIMIT_BYTES = 4096
NODE_LABEL_GPU_PRODUCT = "nvidia.com/gpu.product"
RESOURCE_GPU = "nvidia.com/gpu"


class ExitCode(IntEnum):
    """How a trainer stage ends (sysexits.h for 65 and 75)."""

    DONE = 0
    """Only together with the stage's DONE manifest."""
    FAILED = 1
    """Retried with back-off."""
    BAD_INPUT = 65
    """Never retried: the message names the field and the remedy."""
    INTERRUPTED = 75
    """A checkpoint is committed; retried without penalty."""
