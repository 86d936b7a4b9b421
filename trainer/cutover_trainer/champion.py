"""`cutover-trainer champion`: tells MLflow that a rollout has promoted a version, or has taken its traffic away again.

The word is written first, as a tag of the version, the alias after it: cut short between the two, a repetition does the
same again. After every move everything is read again, so that of two Jobs at once the second to look sets it right.
The alias `previous` belongs to `candidate` and is not touched.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from cutover.stages import StageResult
from cutover_trainer.champion_rule import (
    CHAMPION,
    FOUND,
    TAG,
    TAG_FOUND,
    History,
    Word,
    champion_after,
    is_found_by_hand,
    last_word,
    latest,
)
from cutover_trainer.mlflow_registry import registry
from cutover_trainer.outcome import BadInput, StageFailed

MOVES = 5
"""Moves of others in a row, each in the moment between a look and an answer, before another attempt is due."""


def run(arguments: Sequence[str]) -> StageResult:
    """Raises BadInput and StageFailed."""
    parser = argparse.ArgumentParser(prog="cutover-trainer champion", description=__doc__)
    parser.add_argument("--url", required=True, help="of the MLflow server")
    parser.add_argument("--model", required=True, help="name of the registered model")
    parser.add_argument("--version", required=True, help="version the rollout served")
    parser.add_argument("--outcome", required=True, choices=["promoted", "withdrawn"])
    parser.add_argument("--at", required=True, help="when the rollout ended so, 2026-11-24T19:00:00.000Z")
    parser.add_argument("--uid", required=True, help="of the rollout")
    parser.add_argument("--rollout", required=True, help="NAMESPACE/NAME")
    parser.add_argument("--token-file", help="file with the bearer token")
    given = parser.parse_args(arguments)
    word = Word(given.outcome == "promoted", given.at, given.rollout)
    with registry(given.url, given.token_file, "status.registry", "status.registry.secretName") as client:
        reason, message = tell(client, given.model, given.version, TAG + given.uid, word)
    return StageResult(stage="champion", outcome="done", reason=reason, message=message)


def tell(client: Any, model: str, version: str, key: str, word: Word) -> tuple[str, str]:
    """Say the word and let the alias follow; (reason, sentence). Raises BadInput, StageFailed and MlflowException."""
    champion, history = _read(client, model)
    if version not in history:
        text = f"MLflow has no version {version} of {model}"
        if word.promoted:
            raise BadInput(
                "VersionNotFound", f"status.registry.version: {text}; was it deleted, or renamed the model?"
            )
        return "VersionNotFound", f"{text} any more, so it is nobody's champion"
    before = champion
    word = last_word(history[version], key, word)
    if history[version].get(key) != word.text():
        after = {**history, version: {**history[version], key: word.text()}}
        if latest(after) == version != champion and is_found_by_hand(champion, history):
            # Where the alias goes back to, should this version be withdrawn.
            client.set_model_version_tag(model, champion, TAG_FOUND, FOUND.text())
        client.set_model_version_tag(model, version, key, word.text())
    for _ in range(MOVES):
        champion, history = _read(client, model)
        wanted = champion_after(champion, history, version, word.promoted)
        if wanted == champion:
            return _said(model, version, word, before, champion)
        if wanted is None:
            client.delete_registered_model_alias(model, CHAMPION)
        else:
            client.set_registered_model_alias(model, CHAMPION, wanted)
    raise StageFailed(
        "RegistryBusy", f"the alias {CHAMPION} of {model} is being moved by others again and again"
    )


def _read(client: Any, model: str) -> tuple[str | None, History]:
    """(who is champion, tags by version); of a model that is not there: (None, nothing)."""
    from mlflow.exceptions import RestException

    try:
        champion = client.get_registered_model(model).aliases.get(CHAMPION)
    except RestException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None, {}
    history: dict[str, dict[str, str]] = {}
    page = None
    while True:
        found = client.search_model_versions(f"name = '{model}'", page_token=page)
        history |= {str(one.version): dict(one.tags) for one in found}
        page = found.token
        if not page:
            return None if champion is None else str(champion), history


def _said(model: str, version: str, word: Word, before: str | None, champion: str | None) -> tuple[str, str]:
    now = f"version {champion} is champion of {model}" if champion else f"{model} has no champion"
    if word.promoted and champion == version:
        return "ChampionSet", now
    if word.promoted:
        return "ChampionKept", f"{now}: it was promoted later than version {version}"
    if before == version != champion:
        return "ChampionWithdrawn", f"{now}: version {version} was withdrawn"
    return "ChampionKept", f"{now}: the withdrawal of version {version} did not change it"
