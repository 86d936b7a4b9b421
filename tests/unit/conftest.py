"""What is dear to start and shared by several files."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fakes.mlflow_server import mlflow_server


@pytest.fixture(scope="session")
def mlflow_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real MLflow server; each test has a registered model of its own."""
    with mlflow_server(tmp_path_factory.mktemp("mlflow")) as url:
        yield url
