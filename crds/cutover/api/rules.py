"""What the API server refuses beyond types and bounds: the CEL rules of both kinds, by model.

A table of pure text. Every message names the field and the remedy; `crdgen` puts the rules into the CRDs.
"""

from __future__ import annotations

from collections.abc import Iterable

from cutover.api.base import ApiModel, ClaimRef
from cutover.api.cel import Rule, one_of, seconds, unchanged
from cutover.api.modelrollout import (
    ENGINE_FAMILIES,
    SELECTOR_PATTERN,
    Candidate,
    Control,
    Fallback,
    Gate,
    ModelRolloutSpec,
    Step,
)
from cutover.api.trainingrun import (
    Dataset,
    DatasetSource,
    Evaluation,
    EvaluationGate,
    FineTune,
    Output,
    Split,
    Synthetic,
    TrainingRun,
    TrainingRunSpec,
)
from cutover.api.tuning_rules import TUNING_RULES
from cutover.contract import FIELD_OVERALL, LATENCY_EDGES_SECONDS

_STARTED = "has(oldSelf.status) && has(oldSelf.status.stage) && oldSelf.status.stage != ''"
_FROZEN = ("task", "dataset", "baseModel", "fineTune", "tuning", "trial", "output")


def _frozen(field: str) -> Rule:
    rule = unchanged(
        f"spec.{field}",
        f"spec.{field} cannot change once the run has started: artifacts belong to the spec they were made from; "
        "create a new TrainingRun",
    )
    return Rule(f"!({_STARTED}) || ({rule.expression})", rule.message, field=rule.field, reason=rule.reason)


_EDGES = [f"{edge:g}" for edge in LATENCY_EDGES_SECONDS]


def _nearest_edges() -> str:
    """CEL: the edges around self.limit, a ladder of ready texts because computed ones exceed the cost budget."""
    text = f"'{_EDGES[-1]}'"
    for index in range(len(_EDGES) - 1, -1, -1):
        around = " or ".join(_EDGES[max(index - 1, 0) : index + 1])
        text = f"self.limit < {float(_EDGES[index])} ? '{around}' : {text}"
    return text


_LATENCY = Rule(
    f"self.metric != 'latency' || !has(self.limit) || self.limit in {[float(edge) for edge in _EDGES]}",
    f"limit of a latency gate must be an edge of the latency histogram, in seconds: {', '.join(_EDGES)}",
    field=".limit",
    message_expression=(
        f"'limit of a latency gate must be an edge of the latency histogram; nearest: ' + ({_nearest_edges()}) + "
        f"' seconds (all: {', '.join(_EDGES)})'"
    ),
)

_SHARES = "['accuracy', 'errorRate', 'custom']"


def _selector(field: str) -> Rule:
    """A series selector and nothing around it: functions hide resets, and with them events."""
    return Rule(
        f"!has(self.{field}) || self.{field}.matches(r'{SELECTOR_PATTERN}')",
        f"{field} must be a counter by name, with label matchers if need be, for example "
        'claims_total{result="appealed"}; no functions, ranges or arithmetic',
        field=f".{field}",
    )


def _gate_name(gate: str) -> str:
    """CEL of Gate.full_name."""
    text = f"'-' + {gate}.field.lowerAscii().replace('_', '-')"
    field = f"(has({gate}.field) && {gate}.field != '{FIELD_OVERALL}' ? {text} : '')"
    return f"(has({gate}.name) ? {gate}.name : {gate}.metric.lowerAscii() + {field})"


def _engine_rules() -> Iterable[Rule]:
    http = "(has(self.candidate.model) && self.candidate.model.uri.matches('^https?://'))"
    yield Rule(
        f"self.serving.engine != 'external' || {http}",
        "serving.engine external needs candidate.model.uri to be the http:// or https:// base URL of an endpoint that "
        "runs already; set it, or choose vllm, tgi or builtin",
        field=".candidate",
    )
    yield Rule(
        f"self.serving.engine == 'external' || !{http}",
        "candidate.model.uri is a URL, which only serving.engine external serves; set the engine to external, or give "
        "an hf://, s3://, gs:// or claim:// model",
        field=".candidate",
    )
    yield Rule(
        "self.serving.engine != 'external' || !has(self.candidate.model) || !has(self.candidate.model.adapterUri)",
        "candidate.model.adapterUri cannot be added to an endpoint that runs already; remove it, or choose another "
        "serving.engine",
        field=".candidate",
        reason="FieldValueForbidden",
    )
    yield Rule(
        "self.serving.engine != 'external' || (self.serving.replicas == 1 && self.serving.image == '' && "
        "size(self.serving.args) == 0 && size(self.serving.resources.limits) == 0 && "
        "size(self.serving.resources.requests) == 0 && !has(self.serving.modelCache.claim) && "
        "size(self.serving.nodeSelector) == 0 && size(self.serving.tolerations) == 0)",
        "serving.replicas, image, resources, modelCache, nodeSelector, tolerations and args belong to pods, and "
        "serving.engine external has none; remove them",
        field=".serving",
        reason="FieldValueForbidden",
    )
    every = {family for families in ENGINE_FAMILIES.values() for family in families}
    for engine, families in ENGINE_FAMILIES.items():
        if set(families) == every:
            continue
        able = [
            name for name, served in ENGINE_FAMILIES.items() if set(served) == every and name != "external"
        ]
        allowed = ", ".join(f"'{family}'" for family in families)
        yield Rule(
            f"self.serving.engine != '{engine}' || !has(self.candidate.model) || "
            f"self.candidate.model.family in [{allowed}]",
            f"serving.engine {engine} serves candidate.model.family {' or '.join(families)} only; choose engine "
            f"{' or '.join(able)}",
            field=".serving",
        )


_KERNELS = (
    Rule(
        "self.fineTune.kernels != 'liger' || self.compute.gpus > 0",
        "fineTune.kernels liger runs on a GPU only; set compute.gpus above 0, or kernels to torch",
        field=".fineTune.kernels",
    ),
    Rule(
        "self.fineTune.kernels != 'liger' || self.baseModel.family != 'blip2'",
        "fineTune.kernels liger has no operators for the language models of baseModel.family blip2; set kernels to torch",
        field=".fineTune.kernels",
    ),
)

RULES: dict[type[ApiModel], tuple[Rule, ...]] = {
    # ------------------------------------------------------------ both
    ClaimRef: (
        Rule(
            "!self.path.split('/').exists(part, part == '..')",
            "path must stay inside the claim; write it without ..",
            field=".path",
        ),
    ),
    # ------------------------------------------------------------ TrainingRun
    **TUNING_RULES,
    TrainingRunSpec: (*TUNING_RULES[TrainingRunSpec], *_KERNELS),
    TrainingRun: tuple(_frozen(field) for field in _FROZEN),
    DatasetSource: (
        one_of(("http", "uri", "claim"), "dataset.source needs exactly one of http, uri and claim"),
    ),
    Dataset: (
        Rule(
            "self.quality.minExamples <= self.limit",
            "dataset.quality.minExamples is above dataset.limit, so no data could satisfy it; raise limit or lower "
            "minExamples",
            field=".quality.minExamples",
        ),
    ),
    Synthetic: (
        Rule(
            "!(has(self.uri) && has(self.claim))",
            "dataset.synthetic takes rows from uri or from claim; remove one of them, or both to use the rows of "
            "dataset.source that are marked synthetic",
        ),
    ),
    Split: (
        Rule(
            "self.train + self.validation + self.test > 0.999999 && self.train + self.validation + self.test < 1.000001",
            "dataset.split: train, validation and test must add up to 1, for example 0.8, 0.1 and 0.1",
        ),
        Rule(
            "self.train > 0.0 && self.test > 0.0",
            "dataset.split: train and test must be above 0; without a test part nothing proves the model",
        ),
    ),
    FineTune: (
        # The server rounds a bound down when the value is a whole number, so `minimum` alone lets 0 pass.
        Rule(
            "self.learningRate >= 0.000001",
            "fineTune.learningRate must be from 0.000001 to 0.01, for example 0.0002",
            field=".learningRate",
        ),
    ),
    EvaluationGate: (
        Rule(
            "(self.metric == 'recall') == has(self.class)",
            "evaluation.gates: metric recall needs class, and no other metric takes it",
            field=".class",
        ),
        Rule(
            "self.metric != 'jsonValidity' || !has(self.field)",
            "evaluation.gates: metric jsonValidity is about whole answers; remove field",
            field=".field",
            reason="FieldValueForbidden",
        ),
        Rule(
            f"!(self.metric in ['macroF1', 'recall']) || !has(self.field) || self.field != '{FIELD_OVERALL}'",
            "evaluation.gates: metrics macroF1 and recall are about the classes of one field; name a scored field, or "
            "leave field out for the first one",
            field=".field",
        ),
    ),
    Evaluation: (
        Rule(
            "!has(self.previousAdapter) || !self.previousAdapter.split('/').exists(part, part == '..')",
            "evaluation.previousAdapter must stay inside the claim; write it without ..",
            field=".previousAdapter",
        ),
    ),
    Output: (one_of(("claim", "uri"), "output needs exactly one of claim and uri"),),
    # ------------------------------------------------------------ ModelRollout
    ModelRolloutSpec: (
        Rule(
            "self.gatewayRef == oldSelf.gatewayRef",
            "spec.gatewayRef cannot change; create a new ModelRollout for the other gateway",
            field=".gatewayRef",
            reason="FieldValueForbidden",
        ),
        Rule(
            "self.candidate == oldSelf.candidate",
            "spec.candidate cannot change: evidence belongs to one model; create a new ModelRollout (spec.supersede "
            "takes the gateway over)",
            field=".candidate",
            reason="FieldValueForbidden",
        ),
        *_engine_rules(),
        Rule(
            "self.steps.map(s, has(s.weight) ? 1 : 0).isSorted()",
            "steps: shadow steps come before weight steps; move them to the front",
            field=".steps",
        ),
        Rule(
            "self.steps.filter(s, has(s.weight)).map(s, s.weight).isSorted() && self.steps.all(s, !has(s.weight) || "
            "self.steps.exists_one(t, has(t.weight) && t.weight == s.weight))",
            "steps: weights must rise strictly from step to step and end at most at 100, for example 10, 25, 50, 100",
            field=".steps",
        ),
        Rule(
            f"self.gates.all(g, self.gates.exists_one(h, {_gate_name('h')} == {_gate_name('g')}))",
            "gates: names must be unique; give name to gates of the same metric and field",
            field=".gates",
        ),
        Rule(
            f"self.steps.all(s, !has(s.gates) || s.gates.all(n, self.gates.exists(g, {_gate_name('g')} == n)))",
            "steps[].gates must name gates of spec.gates; a gate without name is called by its metric and field in "
            "lower case, for example accuracy-damagetype or errorrate",
            field=".steps",
        ),
        Rule(
            "self.analysis.labels.strata == 'none' || self.gates.all(g, g.metric != 'accuracy' || has(g.limit) && "
            "!has(g.margin))",
            "analysis.labels.strata disagreement draws labels for a limit only; give accuracy gates a limit and no margin, "
            "or set strata to none",
            field=".analysis.labels.strata",
        ),
        Rule(
            "!self.fallback.autoConfidence || self.gates.exists_one(g, g.metric == 'accuracy' && has(g.limit))",
            "fallback.autoConfidence needs exactly one accuracy gate with a limit, which the answers kept must meet; add or "
            "remove gates, or set confidence to a number",
            field=".fallback.autoConfidence",
        ),
        Rule(
            "self.analysis.labels.strata == 'none' || !self.fallback.autoConfidence",
            "fallback.autoConfidence needs labels drawn alike; set analysis.labels.strata to none, or confidence to a number",
            field=".analysis.labels.strata",
        ),
    ),
    Candidate: (
        one_of(("trainingRunRef", "model"), "candidate needs exactly one of trainingRunRef and model"),
    ),
    Control: (
        Rule(
            "self.promoted != has(self.provider)",
            "control needs exactly one of provider and promoted: true; leave control out for the promoted model",
        ),
    ),
    Step: (
        one_of(("shadow", "weight"), "a step needs exactly one of shadow and weight"),
        Rule(
            f"!has(self.deadline) || {seconds('self.deadline')} >= {seconds('self.minDuration')}",
            "deadline of a step must not be before its minDuration; raise deadline or lower minDuration",
            field=".deadline",
        ),
    ),
    Gate: (
        Rule(
            "has(self.limit) || (has(self.margin) && self.metric in ['accuracy', 'satisfaction'])",
            "a gate needs limit; only accuracy can do with margin alone, and satisfaction takes nothing but margin",
        ),
        Rule(
            "self.metric != 'satisfaction' || !has(self.limit)",
            "satisfaction is told by those who care to, so it is judged against the control only; remove limit and set "
            "margin, for example 0.5",
            field=".limit",
            reason="FieldValueForbidden",
        ),
        Rule(
            "!has(self.margin) || self.metric in ['accuracy', 'errorRate', 'latency', 'satisfaction']",
            "margin compares with the control and belongs to accuracy, errorRate, latency and satisfaction; remove it",
            field=".margin",
            reason="FieldValueForbidden",
        ),
        _LATENCY,
        Rule(
            f"!(self.metric in {_SHARES}) || !has(self.limit) || (self.limit > 0.0 && self.limit < 1.0)",
            "limit of an accuracy, errorRate or custom gate is a share strictly between 0 and 1, as no number of samples "
            "proves 0 or 1; write 0.9 for 90 %",
            field=".limit",
        ),
        Rule(
            "self.metric != 'cost' || !has(self.limit) || self.limit > 0.0",
            "limit of a cost gate is in USD per answer and must be above 0",
            field=".limit",
        ),
        Rule(
            "self.metric == 'accuracy' || !has(self.field)",
            "field names an answer field and belongs to metric accuracy only; remove it",
            field=".field",
            reason="FieldValueForbidden",
        ),
        Rule(
            "self.metric == 'custom' ? has(self.bad) && has(self.total) && has(self.name) : "
            "!has(self.bad) && !has(self.total)",
            "a gate with metric custom needs name, bad and total; other metrics must not have bad or total",
        ),
        _selector("bad"),
        _selector("total"),
    ),
    Fallback: (
        Rule(
            "!(self.autoConfidence && has(self.confidence))",
            "fallback.confidence is a number you choose, autoConfidence finds one; remove one of them",
            field=".autoConfidence",
        ),
    ),
}
"""By model."""
