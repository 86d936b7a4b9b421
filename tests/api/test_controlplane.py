"""The API server that other tests write their objects to is a real one, dies on demand, and is not alone."""

from pathlib import Path

import pytest

from cluster.api import Api, ApiError
from cluster.controlplane import ControlPlane

pytestmark = pytest.mark.api

NOTE = {
    "apiVersion": "v1",
    "kind": "ConfigMap",
    "metadata": {"name": "note", "namespace": "default"},
    "data": {"text": "kept"},
}
WHERE = "api/v1/namespaces/default/configmaps/note"


def test_what_was_written_outlives_a_killed_api_server(tmp_path: Path) -> None:
    with ControlPlane(tmp_path) as plane:
        api = Api(plane.kubeconfig)
        api.apply(NOTE)
        plane.kill_apiserver()
        assert not api.ready()
        plane.start_apiserver()
        assert api.get(WHERE)["data"] == {"text": "kept"}
    assert not api.ready()


def test_two_of_them_know_nothing_of_each_other(tmp_path: Path) -> None:
    with ControlPlane(tmp_path / "one") as one, ControlPlane(tmp_path / "two") as two:
        Api(one.kubeconfig).apply(NOTE)
        with pytest.raises(ApiError, match="404"):
            Api(two.kubeconfig).get(WHERE)
