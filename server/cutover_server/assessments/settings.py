"""The environment of the assessments service, read once: every refusal names the variable and the remedy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from pydantic import ValidationError

from cutover.contract import PORT_APP, PORT_OPS
from cutover.task import Task

MIN_TOKEN_CHARACTERS = 16


class SettingsError(ValueError):
    """A variable is missing or unfit; the message is for the person who set it."""


@dataclass(frozen=True)
class Settings:
    database_url: str
    pictures_uri: str
    tasks: Mapping[str, Task]
    admin_token: str = field(repr=False)
    internal_token: str = field(repr=False)
    surveyor_token: str = field(default="", repr=False)
    """Empty: nobody is a surveyor by token."""
    port_app: int = PORT_APP
    port_ops: int = PORT_OPS
    public_url: str = ""
    """Base of the picture URLs in the export; empty means the host the export was asked from."""
    proxy_user_header: str = ""
    """Header in which an OIDC proxy names the user. Empty: such a header is never believed."""
    proxy_admins: frozenset[str] = frozenset()
    assessments_path: str = "/admin/building-assessments"
    blind_surveyors: bool = True
    """Surveyors do not see which arm answered."""
    picture_retention_days: float = 365.0
    max_picture_bytes: int = 20_000_000
    tick_seconds: float = 1.0

    @property
    def first_task(self) -> Task:
        return next(iter(self.tasks.values()))


def read_settings(environ: Mapping[str, str]) -> Settings:
    tokens = {
        name: _secret(environ, f"CUTOVER_{name}_TOKEN", required=name != "SURVEYOR")
        for name in ("ADMIN", "INTERNAL", "SURVEYOR")
    }
    given = [token for token in tokens.values() if token]
    if len(set(given)) != len(given):
        raise SettingsError(
            "CUTOVER_ADMIN_TOKEN, CUTOVER_INTERNAL_TOKEN and CUTOVER_SURVEYOR_TOKEN must differ: each is another role"
        )
    path = environ.get("CUTOVER_ASSESSMENTS_PATH", Settings.assessments_path).rstrip("/")
    if not path.startswith("/admin/") or "{" in path or path == "/admin/model-performance":
        raise SettingsError(
            f"CUTOVER_ASSESSMENTS_PATH is {path!r}; use a path below /admin/, such as /admin/building-assessments"
        )
    public_url = environ.get("CUTOVER_PUBLIC_URL", "").rstrip("/")
    if public_url and not public_url.startswith(("http://", "https://")):
        raise SettingsError(f"CUTOVER_PUBLIC_URL is {public_url!r}; it must begin with http:// or https://")
    return Settings(
        # A *_FILE variant for the URL as well: it holds the database password.
        database_url=_secret(environ, "CUTOVER_DATABASE_URL", shortest=1),
        pictures_uri=_required(
            environ, "CUTOVER_PICTURES_URI", "a folder or fsspec URI such as s3://bucket/pictures"
        ),
        tasks=_tasks(_required(environ, "CUTOVER_TASK", "the path of a task.yaml")),
        admin_token=tokens["ADMIN"],
        internal_token=tokens["INTERNAL"],
        surveyor_token=tokens["SURVEYOR"],
        port_app=int(_number(environ, "CUTOVER_PORT_APP", PORT_APP)),
        port_ops=int(_number(environ, "CUTOVER_PORT_OPS", PORT_OPS)),
        public_url=public_url,
        proxy_user_header=environ.get("CUTOVER_TRUSTED_PROXY_USER_HEADER", "").strip().lower(),
        proxy_admins=frozenset(_listed(environ.get("CUTOVER_TRUSTED_PROXY_ADMINS", ""))),
        assessments_path=path,
        blind_surveyors=_flag(environ, "CUTOVER_BLIND_SURVEYORS", default=True),
        picture_retention_days=_number(environ, "CUTOVER_PICTURE_RETENTION_DAYS", 365),
        max_picture_bytes=int(_number(environ, "CUTOVER_MAX_PICTURE_BYTES", 20_000_000)),
    )


def _tasks(paths: str) -> dict[str, Task]:
    tasks: dict[str, Task] = {}
    for path in _listed(paths):
        try:
            task = Task.model_validate(yaml.safe_load(Path(path).read_text()))
        except OSError as error:
            raise SettingsError(f"CUTOVER_TASK: {path} cannot be read: {error.strerror}") from error
        except yaml.YAMLError as error:
            raise SettingsError(f"CUTOVER_TASK: {path} is not YAML: {error}") from error
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            raise SettingsError(f"CUTOVER_TASK: {path}: {where}: {first['msg']}") from error
        tasks[task.name] = task
    if not tasks:
        raise SettingsError("CUTOVER_TASK names no file; give the path of a task.yaml")
    return tasks


def _secret(
    environ: Mapping[str, str], name: str, *, required: bool = True, shortest: int = MIN_TOKEN_CHARACTERS
) -> str:
    value, path = environ.get(name, ""), environ.get(f"{name}_FILE", "")
    if value and path:
        raise SettingsError(f"{name} and {name}_FILE are both set; keep one")
    if path:
        try:
            value = Path(path).read_text().strip()
        except OSError as error:
            raise SettingsError(f"{name}_FILE: {path} cannot be read: {error.strerror}") from error
    if not value and not required:
        return ""
    if len(value) < shortest:
        raise SettingsError(f"{name} has {len(value)} characters; give at least {shortest} (or {name}_FILE)")
    return value


def _required(environ: Mapping[str, str], name: str, remedy: str) -> str:
    value = environ.get(name, "").strip()
    if not value:
        raise SettingsError(f"{name} is not set; give {remedy}")
    return value


def _number(environ: Mapping[str, str], name: str, default: float) -> float:
    text = environ.get(name, "").strip()
    if not text:
        return default
    try:
        value = float(text)
    except ValueError as error:
        raise SettingsError(f"{name} is {text!r}; give a number") from error
    if not 0 <= value < 1e12:
        raise SettingsError(f"{name} is {text!r}; give a number that is not negative")
    return value


def _flag(environ: Mapping[str, str], name: str, *, default: bool) -> bool:
    text = environ.get(name, "").strip().lower()
    if text in ("", "true", "false"):
        return default if not text else text == "true"
    raise SettingsError(f"{name} is {text!r}; give true or false")


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]
