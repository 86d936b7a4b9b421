"""What the operator is told by its environment: read once, checked at once, frozen."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from cutover_operator.origins import origin_of

LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
DEFAULT_NAMESPACE = "default"
OPS_PORT = 8080
WORKERS = 64


class SettingsError(Exception):
    """A variable that cannot be used; the message names it, its value and the remedy."""


@dataclass(frozen=True, slots=True)
class Settings:
    namespaces: tuple[str, ...] = ()
    """CUTOVER_WATCH_NAMESPACES, comma separated; empty means every namespace."""
    prometheus_url: str = ""
    """CUTOVER_PROMETHEUS_URL: where rollouts look that name none."""
    allowed_urls: tuple[str, ...] = ()
    """CUTOVER_ALLOWED_URLS: prefixes a URL in a spec must match, see `origins`."""
    trainer_image: str = ""
    engine_image: str = ""
    vllm_image: str = ""
    tgi_image: str = ""
    pull_secrets: tuple[str, ...] = ()
    """CUTOVER_PULL_SECRETS: Secrets of every namespace that hold the registries' credentials, for the pods made."""
    log_level: str = "INFO"
    pod_name: str = "cutover-operator"
    """POD_NAME: the identity in the Lease; unique among replicas. Outside a pod: host name and process id."""
    pod_namespace: str = DEFAULT_NAMESPACE
    """POD_NAMESPACE: where the Lease lives."""
    ops_port: int = OPS_PORT
    """CUTOVER_OPS_PORT: health and metrics."""
    workers: int = WORKERS
    """CUTOVER_WORKERS: passes at the same time."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Settings:
        """Raises SettingsError."""
        level = environment.get("CUTOVER_LOG_LEVEL", "INFO").upper()
        if level not in LOG_LEVELS:
            raise SettingsError(f"CUTOVER_LOG_LEVEL: {level!r} is none of {', '.join(LOG_LEVELS)}")
        allowed = _words(environment.get("CUTOVER_ALLOWED_URLS", ""))
        prometheus = environment.get("CUTOVER_PROMETHEUS_URL", "").rstrip("/")
        for name, urls in (("CUTOVER_ALLOWED_URLS", allowed), ("CUTOVER_PROMETHEUS_URL", (prometheus,))):
            for url in filter(None, urls):
                if origin_of(url) is None:
                    raise SettingsError(f"{name}: {url!r} is no URL; write for example http://host:9090")
        return cls(
            namespaces=_words(environment.get("CUTOVER_WATCH_NAMESPACES", "")),
            prometheus_url=prometheus,
            allowed_urls=allowed,
            trainer_image=environment.get("CUTOVER_TRAINER_IMAGE", ""),
            engine_image=environment.get("CUTOVER_ENGINE_IMAGE", ""),
            vllm_image=environment.get("CUTOVER_VLLM_IMAGE", ""),
            tgi_image=environment.get("CUTOVER_TGI_IMAGE", ""),
            pull_secrets=_words(environment.get("CUTOVER_PULL_SECRETS", "")),
            log_level=level,
            pod_name=environment.get("POD_NAME", "") or f"{socket.gethostname()}-{os.getpid()}",
            pod_namespace=environment.get("POD_NAMESPACE", "") or DEFAULT_NAMESPACE,
            ops_port=_count(environment, "CUTOVER_OPS_PORT", OPS_PORT, 0, 65535),
            workers=_count(environment, "CUTOVER_WORKERS", WORKERS, 1, 256),
        )


def _words(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _count(environment: Mapping[str, str], name: str, default: int, least: int, most: int) -> int:
    text = environment.get(name, "")
    if not text:
        return default
    if not text.isdecimal() or not least <= int(text) <= most:
        raise SettingsError(f"{name}: {text!r} is no number from {least} to {most}")
    return int(text)
