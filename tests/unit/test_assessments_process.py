"""`cutover-assessments` as it ships: a process with an environment, two ports, and an end on SIGTERM."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import yaml

from cutover_server.assessments.main import EXIT_BAD_SETTINGS, main
from cutover_server.assessments.settings import SettingsError, read_settings
from fakes.assessments_service import ADMIN, INTERNAL, SURVEYOR, TASK
from fakes.free_ports import free_port


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    task = tmp_path / "task.yaml"
    task.write_text(yaml.safe_dump(TASK.to_wire()))
    return {
        "CUTOVER_TASK": str(task),
        "CUTOVER_DATABASE_URL": f"sqlite:///{tmp_path}/assessments.db",
        "CUTOVER_PICTURES_URI": f"file://{tmp_path}/pictures",
        "CUTOVER_ADMIN_TOKEN": ADMIN,
        "CUTOVER_SURVEYOR_TOKEN": SURVEYOR,
        "CUTOVER_INTERNAL_TOKEN": INTERNAL,
    }


def test_settings_are_read(environ: dict[str, str], tmp_path: Path) -> None:
    secret = tmp_path / "token"
    secret.write_text("another-admin-token-1\n")
    del environ["CUTOVER_ADMIN_TOKEN"], environ["CUTOVER_SURVEYOR_TOKEN"]
    settings = read_settings({**environ, "CUTOVER_ADMIN_TOKEN_FILE": str(secret), "CUTOVER_PORT_APP": "8123"})
    assert (settings.admin_token, settings.surveyor_token) == ("another-admin-token-1", "")
    assert (settings.port_app, settings.port_ops) == (8123, 9090)
    assert settings.first_task == TASK
    assert ADMIN not in repr(settings)
    assert "another" not in repr(settings)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CUTOVER_TASK", ""),
        ("CUTOVER_TASK", "/nowhere/task.yaml"),
        ("CUTOVER_DATABASE_URL", ""),
        ("CUTOVER_PICTURES_URI", ""),
        ("CUTOVER_ADMIN_TOKEN", ""),
        ("CUTOVER_ADMIN_TOKEN", "short"),
        ("CUTOVER_INTERNAL_TOKEN", ADMIN),
        ("CUTOVER_INTERNAL_TOKEN_FILE", "/nowhere/token"),
        ("CUTOVER_PORT_APP", "http"),
        ("CUTOVER_PUBLIC_URL", "assess.example.org"),
        ("CUTOVER_ASSESSMENTS_PATH", "/assessments"),
        ("CUTOVER_BLIND_SURVEYORS", "maybe"),
        ("CUTOVER_PICTURE_RETENTION_DAYS", "-1"),
    ],
)
def test_unfit_setting_is_refused_by_name(environ: dict[str, str], name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=name):
        read_settings({**environ, name: value})


def test_unfit_task_is_refused_by_field(environ: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "task.yaml").write_text("name: Not A Name\n")
    with pytest.raises(SettingsError, match=r"CUTOVER_TASK: .*task\.yaml: name"):
        read_settings(environ)


@pytest.mark.parametrize("url", ["mysql://x/y", "sqlite://", "sqlite:///:memory:", "nonsense hunter2"])
def test_unknown_database_ends_the_program_with_one_line(
    environ: dict[str, str], url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {**environ, "CUTOVER_DATABASE_URL": url}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == EXIT_BAD_SETTINGS
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("cutover-assessments: CUTOVER_DATABASE_URL")
    assert "hunter2" not in line


def run(environ: dict[str, str]) -> subprocess.Popen[bytes]:
    code = "from cutover_server.assessments.main import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def status_of(url: str, token: str = "") -> int:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
    try:
        with urllib.request.urlopen(request, timeout=5) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def test_process_serves_both_ports_and_leaves_on_sigterm(environ: dict[str, str]) -> None:
    app, ops = free_port(), free_port()
    process = run({**environ, "CUTOVER_PORT_APP": str(app), "CUTOVER_PORT_OPS": str(ops)})
    try:
        until = time.monotonic() + 60
        while status_of(f"http://127.0.0.1:{ops}/readyz") != 200:
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.1)
        assert status_of(f"http://127.0.0.1:{ops}/healthz") == 200
        assert status_of(f"http://127.0.0.1:{ops}/metrics") == 200
        assert status_of(f"http://127.0.0.1:{ops}/api/assessments", ADMIN) == 404
        assert status_of(f"http://127.0.0.1:{app}/api/assessments", ADMIN) == 200
        assert status_of(f"http://127.0.0.1:{app}/api/assessments") == 401
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=30)
        assert process.returncode == 0, err
        assert ADMIN.encode() not in out + err
    finally:
        process.kill()
