"""Whether a recording holds what a manifest is judged by: a replay without it would only wait. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from cutover.api.modelrollout import ModelRolloutSpec
from cutover.contract import LABELS_MATURED, REQUESTS
from cutover_cli.recording import Recording, RecordingError, Track
from cutover_operator.evidence.samples import custom_key
from cutover_operator.rollout.gates import named_gates

AGAIN = "read the samples again with --prometheus URL --save FILE and this manifest"


def check(recording: Recording, rollout: str, spec: ModelRolloutSpec) -> list[str]:
    """What may be missing, as sentences. Raises RecordingError where it is missing for certain."""
    _check_gateway(recording, rollout, spec)
    return [*_labels(recording, rollout, spec), *_counters(recording, spec)]


def versions_told(spec: ModelRolloutSpec, versions: list[str], chosen: str) -> list[str]:
    """A replay is about the candidate that was recorded, whatever the manifest says."""
    model = spec.candidate.model
    if model is not None and model.version != chosen:
        return [
            f"candidate.model.version of the manifest is {model.version}, recorded was {_list(versions)}: this is about "
            f"{chosen}, judged by the manifest's gates and steps"
        ]
    if len(versions) > 1 and model is None:
        return [f"recorded were {_list(versions)}: this is about {chosen}, the last one"]
    return []


def _check_gateway(recording: Recording, rollout: str, spec: ModelRolloutSpec) -> None:
    known = _values(_of(recording, REQUESTS, rollout), "gateway")
    if spec.gateway_ref not in known:
        raise RecordingError(
            f"spec.gatewayRef is {spec.gateway_ref}, but the samples of rollout {rollout} are of gateway {_list(known)}; "
            f"name that gateway in the manifest, or {AGAIN}"
        )


def _labels(recording: Recording, rollout: str, spec: ModelRolloutSpec) -> list[str]:
    wanted = {gate.field: gate.name for gate in named_gates(spec) if gate.metric == "accuracy"}
    known = _values(_of(recording, LABELS_MATURED, rollout), "field")
    if not wanted:
        return []
    if not known:
        return [
            f"there are no labels of rollout {rollout} ({LABELS_MATURED}) in this range: nothing can prove accuracy"
        ]
    for field, gate in wanted.items():
        if field not in known:
            raise RecordingError(
                f"spec.gates: gate {gate} judges field {field}, but the labels recorded are of {_list(known)}; name one "
                f"of these, or, if the gateway scores {field} by now, {AGAIN}"
            )
    return []


def _counters(recording: Recording, spec: ModelRolloutSpec) -> list[str]:
    """A counter that was asked for and never answered is unavailable, as it would be to the operator."""
    notes = []
    for one in named_gates(spec):
        for name, selector in (("bad", one.gate.bad), ("total", one.gate.total)):
            if selector is None or recording.tracks.get(custom_key(selector)):
                continue
            if custom_key(selector) not in recording.tracks:
                known = [key.removeprefix("custom:") for key in recording.tracks if key.startswith("custom:")]
                raise RecordingError(
                    f"spec.gates: {name} of gate {one.name} is {selector}, which was not recorded; the samples hold these "
                    f"counters of your own: {_list(known)}; {AGAIN}"
                )
            notes.append(f"Prometheus knew no series of {selector} ({name} of gate {one.name}) in this range")
    return notes


def _of(recording: Recording, metric: str, rollout: str) -> list[Track]:
    return [track for track in recording.tracks.get(metric, ()) if track.labels.get("rollout") == rollout]


def _values(tracks: Iterable[Track], label: str) -> list[str]:
    return sorted({track.labels.get(label, "") for track in tracks} - {""})


def _list(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"
