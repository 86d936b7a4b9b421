"""The operator's environment, and which URLs its allow list covers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutover_operator.origins import is_allowed, origin_of
from cutover_operator.settings import Settings, SettingsError


def test_an_empty_environment_is_enough() -> None:
    settings = Settings.from_environment({})
    assert settings.namespaces == ()
    assert settings.pod_namespace == "default"
    assert settings.pod_name != Settings().pod_name  # two processes on one machine are two replicas


def test_everything_is_read() -> None:
    settings = Settings.from_environment(
        {
            "CUTOVER_WATCH_NAMESPACES": "a, b,",
            "CUTOVER_PROMETHEUS_URL": "http://prometheus:9090/",
            "CUTOVER_ALLOWED_URLS": "http://a:1,https://b/x",
            "CUTOVER_TRAINER_IMAGE": "trainer",
            "CUTOVER_ENGINE_IMAGE": "engine",
            "CUTOVER_VLLM_IMAGE": "vllm",
            "CUTOVER_TGI_IMAGE": "tgi",
            "CUTOVER_PULL_SECRETS": "registry,mirror",
            "CUTOVER_LOG_LEVEL": "debug",
            "POD_NAME": "operator-0",
            "POD_NAMESPACE": "cutover",
            "CUTOVER_OPS_PORT": "9000",
            "CUTOVER_WORKERS": "2",
        }
    )
    assert settings == Settings(
        namespaces=("a", "b"),
        prometheus_url="http://prometheus:9090",
        allowed_urls=("http://a:1", "https://b/x"),
        trainer_image="trainer",
        engine_image="engine",
        vllm_image="vllm",
        tgi_image="tgi",
        pull_secrets=("registry", "mirror"),
        log_level="DEBUG",
        pod_name="operator-0",
        pod_namespace="cutover",
        ops_port=9000,
        workers=2,
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CUTOVER_LOG_LEVEL", "loud"),
        ("CUTOVER_ALLOWED_URLS", "assessments:8080"),
        ("CUTOVER_PROMETHEUS_URL", "prometheus"),
        ("CUTOVER_OPS_PORT", "http"),
        ("CUTOVER_WORKERS", "0"),
    ],
)
def test_a_bad_value_is_named(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=name) as raised:
        Settings.from_environment({name: value})
    assert value.lower() in str(raised.value).lower()


@pytest.mark.parametrize(
    "url",
    [
        "http://assessments:8080/api/export?limit=5",
        "http://assessments:8080",
        "HTTP://Assessments:8080/x",
        "https://mlflow.example/team/a",
        "https://mlflow.example:443/team",
    ],
)
def test_allowed(url: str) -> None:
    assert is_allowed(url, ("http://assessments:8080", "https://mlflow.example/team/"))


@pytest.mark.parametrize(
    "url",
    [
        "http://assessments:8080.evil.org/",
        "http://assessments:8080@evil.org/",
        "http://evil.org/http://assessments:8080",
        "https://assessments:8080/",
        "http://assessments:80/",
        "http://assessments/",
        "http://assessments:8080\\@evil.org",
        "http://assessments:8080 .evil.org",
        "https://mlflow.example/teammate",
        "https://mlflow.example/team/../other",
        "https://mlflow.example/team/%2e%2e/other",
        "https://mlflow.example/",
        "file:///etc/passwd",
        "http://[::1",
        "http://assessments:99999999/",
        "",
    ],
)
def test_refused(url: str) -> None:
    assert not is_allowed(url, ("http://assessments:8080", "https://mlflow.example/team"))


@given(st.text(max_size=40))
def test_no_text_breaks_the_reading(text: str) -> None:
    origin_of(text)
    is_allowed(text, ("http://assessments:8080", text))
    assert not is_allowed(text, ())
