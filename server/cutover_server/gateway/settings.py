"""What the environment tells the gateway. Read once at start; a missing or wrong value stops it with its name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml
from pydantic import ValidationError

from cutover.contract import KEYS_FOLDER, PORT_APP, PORT_OPS
from cutover.route import GatewayConfig

_ACCOUNT_FOLDER = "/var/run/secrets/kubernetes.io/serviceaccount"


class SettingsError(ValueError):
    """Names the variable, its value unless it is a secret, and the remedy."""


@dataclass(frozen=True, slots=True)
class Settings:
    gateway: str
    config: GatewayConfig
    spool: Path
    assessments_url: str
    internal_token: str
    client_token: str | None = None
    client_keys_file: Path | None = None
    """Hashed keys, one per application; see `callers`."""
    route_config_map: str | None = None
    route_file: Path | None = None
    pod: str = "gateway"
    namespace: str = ""
    kubernetes_url: str = ""
    account_folder: Path = Path(_ACCOUNT_FOLDER)
    keys_folder: Path = Path(KEYS_FOLDER)
    allowed_image_hosts: tuple[str, ...] | None = ()
    """Public hosts of pictures; None: any, empty: none, so that pictures are embedded in the request."""
    allowed_image_origins: tuple[str, ...] = ()
    """Origins of picture services inside the network; none by default."""
    port_app: int = PORT_APP
    port_ops: int = PORT_OPS
    host: str = "0.0.0.0"  # noqa: S104
    listener_socket: Path | None = None
    """Unix socket of `cutover-listener`, which holds the application's port; None: the gateway listens by itself."""
    max_body_bytes: int = 20_000_000
    max_in_flight_bytes: int = 256_000_000
    max_spool_bytes: int = 2_000_000_000
    last_arm_seconds: float = 60.0
    """Time of an arm after which there is no other to ask."""
    request_seconds: float = 75.0
    """Time of a whole request, every arm included."""
    silence_seconds: float = 15.0
    """Longest pause within a reply that has begun."""
    body_seconds: float = 30.0
    """How long a caller may take to send a request's body."""
    streaming: Literal["buffered", "passthrough"] = "buffered"
    """Whether a stream is answered once its whole answer is valid, or handed on while it is generated."""
    first_token_seconds: float = 10.0
    """With `passthrough`: how long an arm may take to its first characters."""
    connections: int = 512
    shadow_queue: int = 64
    shadow_concurrency: int = 4
    shadow_seconds: float = 60.0
    drain_delay_seconds: float = 3.0
    """Between the refused readiness probe and the closed port: endpoints need time to forget the pod."""
    drain_seconds: float = 75.0
    """For requests in flight after that."""

    def __repr__(self) -> str:
        return f"Settings(gateway={self.gateway!r}, pod={self.pod!r})"


def read_settings(environment: Mapping[str, str]) -> Settings:
    def text(name: str, default: str | None = None) -> str:
        value = environment.get(name, "").strip()
        if value:
            return value
        if default is None:
            raise SettingsError(f"{name} is not set; the gateway needs it")
        return default

    def number(name: str, default: float, least: float = 0.0) -> float:
        raw = text(name, str(default))
        try:
            value = float(raw)
        except ValueError:
            raise SettingsError(f"{name}: {raw!r} is not a number") from None
        if not least <= value < 1e15:
            raise SettingsError(f"{name}: {raw} is below {least:g}")
        return value

    gateway = text("CUTOVER_GATEWAY_NAME")
    route_config_map = environment.get("CUTOVER_ROUTE_CONFIGMAP", "").strip() or None
    route_file = environment.get("CUTOVER_ROUTE_FILE", "").strip() or None
    if (route_config_map is None) == (route_file is None):
        raise SettingsError(
            "set one of CUTOVER_ROUTE_CONFIGMAP (in a cluster) and CUTOVER_ROUTE_FILE (outside one)"
        )
    kubernetes_url = ""
    account_folder = Path(text("CUTOVER_SERVICE_ACCOUNT_FOLDER", _ACCOUNT_FOLDER))
    namespace = environment.get("POD_NAMESPACE", "").strip()
    if route_config_map is not None:
        kubernetes_url = _in_cluster_url(
            text("KUBERNETES_SERVICE_HOST"), text("KUBERNETES_SERVICE_PORT", "443")
        )
        namespace = namespace or _namespace_of(account_folder)
    assessments_url = text("CUTOVER_ASSESSMENTS_URL")
    if not assessments_url.startswith(("http://", "https://")):
        raise SettingsError(f"CUTOVER_ASSESSMENTS_URL: {assessments_url!r} is not an http or https URL")
    streaming = text("CUTOVER_STREAMING", "buffered")
    if streaming not in ("buffered", "passthrough"):
        raise SettingsError(f"CUTOVER_STREAMING: {streaming!r} is neither buffered nor passthrough")
    keys_file = environment.get("CUTOVER_CLIENT_KEYS_FILE", "").strip()
    listener_socket = environment.get("CUTOVER_LISTENER_SOCKET", "").strip()
    return Settings(
        gateway=gateway,
        config=_read_config(Path(text("CUTOVER_GATEWAY_CONFIG")), gateway),
        spool=Path(text("CUTOVER_SPOOL_DIR")),
        assessments_url=assessments_url,
        internal_token=text("CUTOVER_INTERNAL_TOKEN"),
        client_token=environment.get("CUTOVER_CLIENT_TOKEN", "").strip() or None,
        client_keys_file=Path(keys_file) if keys_file else None,
        route_config_map=route_config_map,
        route_file=Path(route_file) if route_file else None,
        pod=text("POD_NAME", "gateway"),
        namespace=namespace,
        kubernetes_url=kubernetes_url,
        account_folder=account_folder,
        keys_folder=Path(text("CUTOVER_KEYS_FOLDER", KEYS_FOLDER)),
        allowed_image_hosts=_hosts(environment.get("CUTOVER_ALLOWED_IMAGE_HOSTS", "")),
        allowed_image_origins=_list(environment.get("CUTOVER_ALLOWED_IMAGE_ORIGINS", "")),
        port_app=int(number("CUTOVER_PORT_APP", PORT_APP)),
        port_ops=int(number("CUTOVER_PORT_OPS", PORT_OPS)),
        host=text("CUTOVER_HOST", "0.0.0.0"),  # noqa: S104
        listener_socket=Path(listener_socket) if listener_socket else None,
        max_body_bytes=int(number("CUTOVER_MAX_BODY_BYTES", 20_000_000, 1000)),
        max_in_flight_bytes=int(number("CUTOVER_MAX_IN_FLIGHT_BYTES", 256_000_000, 1000)),
        max_spool_bytes=int(number("CUTOVER_MAX_SPOOL_BYTES", 2_000_000_000)),
        last_arm_seconds=number("CUTOVER_LAST_ARM_SECONDS", 60.0, 0.1),
        request_seconds=number("CUTOVER_REQUEST_SECONDS", 75.0, 0.1),
        silence_seconds=number("CUTOVER_SILENCE_SECONDS", 15.0, 0.1),
        body_seconds=number("CUTOVER_BODY_SECONDS", 30.0, 0.1),
        streaming="passthrough" if streaming == "passthrough" else "buffered",
        first_token_seconds=number("CUTOVER_FIRST_TOKEN_SECONDS", 10.0, 0.1),
        shadow_queue=int(number("CUTOVER_SHADOW_QUEUE", 64, 1)),
        shadow_concurrency=int(number("CUTOVER_SHADOW_CONCURRENCY", 4, 1)),
        shadow_seconds=number("CUTOVER_SHADOW_SECONDS", 60.0, 0.1),
        drain_delay_seconds=number("CUTOVER_DRAIN_DELAY_SECONDS", 3.0),
        drain_seconds=number("CUTOVER_DRAIN_SECONDS", 75.0, 0.1),
    )


def _hosts(value: str) -> tuple[str, ...] | None:
    hosts = _list(value)
    return None if "*" in hosts else hosts


def _list(value: str) -> tuple[str, ...]:
    return tuple(item for item in (part.strip() for part in value.split(",")) if item)


def _in_cluster_url(host: str, port: str) -> str:
    return f"https://{f'[{host}]' if ':' in host else host}:{port}"


def _namespace_of(account_folder: Path) -> str:
    try:
        return (account_folder / "namespace").read_text(encoding="ascii").strip()
    except OSError:
        raise SettingsError("POD_NAMESPACE is not set, and the service account names no namespace") from None


def _read_config(path: Path, gateway: str) -> GatewayConfig:
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
        config = GatewayConfig.model_validate(document)
    except OSError as error:
        raise SettingsError(f"CUTOVER_GATEWAY_CONFIG: {path} cannot be read: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise SettingsError(f"CUTOVER_GATEWAY_CONFIG: {path} is not YAML: {error}") from None
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise SettingsError(f"CUTOVER_GATEWAY_CONFIG: {path}: {where}: {first['msg']}") from None
    if config.default_provider not in config.providers:
        raise SettingsError(
            f"CUTOVER_GATEWAY_CONFIG: {path}: defaultProvider {config.default_provider!r} is not one of "
            f"{sorted(config.providers)}"
        )
    if config.name != gateway:
        raise SettingsError(
            f"CUTOVER_GATEWAY_NAME is {gateway!r}, but {path} configures gateway {config.name!r}"
        )
    return config
