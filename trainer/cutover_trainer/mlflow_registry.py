"""A connection to an MLflow server, and its refusals in the words of whoever has to mend them.

A server that is away, or fails, is worth another try (StageFailed); one that refuses is not (BadInput). The token comes
from a file, goes into no message, and is sent to this server only.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cutover_trainer.outcome import BadInput, StageFailed

REFUSALS = ("UNAUTHENTICATED", "PERMISSION_DENIED", "INVALID_PARAMETER_VALUE", "NOT_FOUND")
MAX_MESSAGE_CHARACTERS = 600


@contextmanager
def registry(url: str, token_file: str | None, field: str, secret_field: str) -> Iterator[Any]:
    """Yields an `MlflowClient`. `field` and `secret_field`: where url and Secret are written, for the
    messages.

    Raises BadInput and StageFailed, also for what the body meets in MLflow.
    """
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    if token_file is not None:
        token = Path(token_file)
        if not token.is_file():
            raise BadInput("MlflowTokenMissing", f"{secret_field}: no token at {token}")
        os.environ["MLFLOW_TRACKING_TOKEN"] = token.read_text().strip()
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException, RestException

    try:
        yield MlflowClient(tracking_uri=url, registry_uri=url)
    except RestException as error:
        if error.error_code in REFUSALS:
            text = f"{field}: {url} answered {error.error_code}: {error}"
            raise BadInput("RegistryRefused", text[:MAX_MESSAGE_CHARACTERS]) from None
        raise StageFailed(
            "RegistryUnavailable", f"{field}.url: {url}: {error}"[:MAX_MESSAGE_CHARACTERS]
        ) from None
    except MlflowException as error:
        text = str(error)
        if "error code 401" in text or "error code 403" in text:
            raise BadInput(
                "RegistryRefused", f"{secret_field}: {url} refused the token; check the Secret"
            ) from None
        raise StageFailed(
            "RegistryUnavailable", f"{field}.url: {url}: {text}"[:MAX_MESSAGE_CHARACTERS]
        ) from None
