"""`cutover-trainer STAGE --config stage.yaml`: runs one stage and says how it ended.

The end is said four times, in this order: DONE-<stage>.json in the artifacts (only when done), a JSON line on standard
output, the termination log, the exit code. A stage that is done already answers at once.
`cutover-trainer champion` has arguments of its own and leaves no artifact.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import sys
import tempfile
import traceback
from pathlib import Path

import yaml
from pydantic import ValidationError

from cutover.api.trainingrun import STAGES, EvaluationSummary
from cutover.contract import (
    FIELD_OVERALL,
    STAGE_CONFIG_PATH,
    TERMINATION_LIMIT_BYTES,
    TERMINATION_LOG,
    ExitCode,
)
from cutover.stages import StageConfig, StageName, StageResult, done_file
from cutover_trainer.joblog import log
from cutover_trainer.manifest import digest_of
from cutover_trainer.node_link import meet
from cutover_trainer.outcome import BadInput, StageEnded
from cutover_trainer.place import place_here
from cutover_trainer.processors import keep_bitsandbytes_out, keep_torch_out
from cutover_trainer.stopping import Stop
from cutover_trainer.storage import ArtifactStore
from cutover_trainer.workers import SHARED_SCRATCH, is_leader, run_workers

ALL = "all"
CHAMPION: StageName = "champion"
CONFIG_DIGEST = "configDigest"
MAX_MESSAGE_CHARACTERS = 1500


def main(arguments: list[str] | None = None) -> int:
    given = sys.argv[1:] if arguments is None else arguments
    if given[:1] == [CHAMPION]:
        return _champion(given[1:])
    parser = argparse.ArgumentParser(prog="cutover-trainer", description=__doc__)
    parser.add_argument("stage", choices=["export", *STAGES, ALL])
    parser.add_argument("--config", type=Path, default=Path(STAGE_CONFIG_PATH), help="StageConfig as YAML")
    parsed = parser.parse_args(arguments)
    stages: list[StageName] = list(STAGES) if parsed.stage == ALL else [parsed.stage]
    if arguments is None and parsed.stage == "prepare":
        # A process of its own that will never train: it needs the processor, not torch's memory.
        keep_torch_out()
    try:
        config = _read_config(parsed.config)
    except BadInput as error:
        return _ended(_result(stages[0], error), error.exit_code)
    if arguments is None and ("train" not in stages or config.spec.fine_tune.quantization == "none"):
        keep_bitsandbytes_out()
    compute = config.spec.compute
    gpus = compute.gpus * compute.nodes if "train" in stages else 1
    stop = Stop(config.gpu_seconds_left, max(1, gpus))
    stop.listen()
    code: int = ExitCode.DONE
    for stage in stages:
        code = _run(stage, config, stop, parsed.config)
        if code != ExitCode.DONE:
            break
    if arguments is None:
        stop.over()
    return code


def _champion(arguments: list[str]) -> int:
    from cutover_trainer import champion

    try:
        return _ended(champion.run(arguments), ExitCode.DONE)
    except StageEnded as ended:
        return _ended(_result(CHAMPION, ended), ended.exit_code)
    except Exception as error:
        return _unexpected(CHAMPION, error)


def _read_config(path: Path) -> StageConfig:
    try:
        return StageConfig.model_validate(yaml.safe_load(path.read_text()))
    except OSError as error:
        raise BadInput("InvalidConfig", f"--config: {path}: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise BadInput("InvalidConfig", f"--config: {path} is not YAML: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BadInput("InvalidConfig", f"{where}: {first['msg']}") from None


def _run(stage: StageName, config: StageConfig, stop: Stop, file: Path) -> int:
    shared = os.environ.get(SHARED_SCRATCH)
    scratch = Path(
        shared or tempfile.mkdtemp(prefix=f"cutover-{stage}-", dir=os.environ.get("CUTOVER_SCRATCH"))
    )
    try:
        store = ArtifactStore(config.artifacts)
        known = _done_before(stage, config, store)
        if known is not None:
            return _ended(known, ExitCode.DONE)
        log("stage", stage=stage, attempt=config.attempt)
        if stage == "train" and shared is None:
            place = place_here(config.spec.compute)
            if place.size > 1:
                others = meet(place, f"{config.run.uid}/{config.attempt}", stage, stop)
                command = [sys.executable, "-m", "cutover_trainer", stage, "--config", str(file.resolve())]
                return run_workers(command, place, stop, scratch, _termination_log(), others)
        done = _dispatch(stage, config, store, scratch, stop)
        done = done.model_copy(
            update={"details": {**done.details, CONFIG_DIGEST: config_digest(stage, config)}}
        )
        if is_leader():
            store.put(done_file(stage), done.model_dump_json(by_alias=True, exclude_none=True).encode())
        return _ended(done, ExitCode.DONE)
    except StageEnded as ended:
        return _ended(_result(stage, ended), ended.exit_code)
    except Exception as error:
        return _unexpected(stage, error)
    finally:
        if shared is None:
            shutil.rmtree(scratch, ignore_errors=True)


def _dispatch(
    stage: StageName, config: StageConfig, store: ArtifactStore, scratch: Path, stop: Stop
) -> StageResult:
    # Imported late: an answer from DONE and a refused configuration need no torch.
    if stage == "export":
        from cutover_trainer import export

        return export.run(config, store, scratch)
    if stage == "prepare":
        from cutover_trainer import prepare

        return prepare.run(config, store, scratch, stop)
    if stage == "train":
        from cutover_trainer import train

        return train.run(config, store, scratch, stop)
    if stage == "evaluate":
        from cutover_trainer import evaluate

        return evaluate.run(config, store, scratch, stop)
    from cutover_trainer import register

    return register.run(config, store, scratch, stop)


def config_digest(stage: StageName, config: StageConfig) -> str:
    """Digest of what the stage's outcome depends on, earlier stages included."""
    spec = config.spec
    parts = [config.task.to_wire(), spec.dataset.to_wire(), spec.base_model.to_wire()]
    if stage in ("train", "evaluate", "register"):
        parts.append(spec.fine_tune.to_wire())
    if spec.trial is not None:
        parts.append(spec.trial.to_wire())
    if stage in ("evaluate", "register"):
        parts.append(spec.evaluation.to_wire())
    if stage == "register":
        parts.append(spec.registry.to_wire())
    return digest_of(parts)


def _done_before(stage: StageName, config: StageConfig, store: ArtifactStore) -> StageResult | None:
    try:
        result = StageResult.model_validate_json(store.get(done_file(stage)))
    except (FileNotFoundError, ValidationError):
        return None
    if result.details.get(CONFIG_DIGEST) != config_digest(stage, config):
        raise BadInput(
            "ArtifactsOfAnotherSpec",
            f"artifacts: {config.artifacts} holds the stage {stage} of another specification; use a new TrainingRun "
            "or an empty folder",
        )
    return result


def _result(stage: StageName, ended: StageEnded) -> StageResult:
    return StageResult(
        stage=stage,
        outcome=ended.outcome,
        reason=ended.reason,
        message=ended.message[:MAX_MESSAGE_CHARACTERS],
        evaluation=ended.evaluation,
    )


def _unexpected(stage: StageName, error: Exception) -> ExitCode:
    """To be called where it was caught."""
    traceback.print_exc()
    message = f"{type(error).__name__}: {error}"
    result = StageResult(stage=stage, outcome="failed", reason="Unexpected", message=message)
    return _ended(result, ExitCode.FAILED)


def _ended(result: StageResult, code: ExitCode) -> ExitCode:
    log("result", **result.to_wire())
    message = termination_message(result)
    # Outside a pod there is none; the line above has said it.
    with contextlib.suppress(OSError):
        _termination_log().write_text(message)
    return code


def _termination_log() -> Path:
    return Path(os.environ.get("CUTOVER_TERMINATION_LOG", TERMINATION_LOG))


def termination_message(result: StageResult) -> str:
    """The result as JSON within the limit of the termination log."""
    for shorter in (
        result,
        result.model_copy(update={"details": {}, "message": result.message[:MAX_MESSAGE_CHARACTERS]}),
        result.model_copy(update={"details": {}, "message": result.message[:300]}),
        result.model_copy(
            update={"details": {}, "message": result.message[:300], "evaluation": _brief(result.evaluation)}
        ),
    ):
        text = shorter.model_dump_json(by_alias=True, exclude_none=True)
        if len(text.encode()) < TERMINATION_LIMIT_BYTES:
            break
    return text


def _brief(summary: EvaluationSummary | None) -> EvaluationSummary | None:
    """Only the decisive field, which comes first, and all fields together; the rest stands in the artifacts."""
    if summary is None:
        return None
    kept = {next(iter(summary.accuracy), FIELD_OVERALL), FIELD_OVERALL}
    return EvaluationSummary(
        **{
            name: {field: share for field, share in value.items() if field in kept}
            if isinstance(value, dict)
            else value
            for name, value in summary
        }
    )


if __name__ == "__main__":
    sys.exit(main())
