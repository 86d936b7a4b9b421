"""Model folders through the cache: whole or not there, verified, once for all who fetch at the same time."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

from cutover.contract import ExitCode
from cutover_server.inference import content
from cutover_server.inference.base_digest import base_digest
from cutover_server.inference.content import CONTENT_FOLDER, fetch, open_source, verify
from cutover_server.inference.main import main
from cutover_server.inference.refusal import Unservable
from fakes.sample_models import write_manifest


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "remote" / "model"
    (folder / "sub").mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "llava"}')
    (folder / "model.safetensors").write_bytes(b"w" * 300_000)
    (folder / "sub" / "notes.txt").write_text("one")
    return folder


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    folder = tmp_path / "cache"
    folder.mkdir()
    return folder


def names(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def contents(cache: Path) -> list[str]:
    return sorted(p.name for p in (cache / CONTENT_FOLDER).iterdir() if p.is_dir())


def test_a_folder_arrives_whole_and_a_second_fetch_copies_nothing(model: Path, cache: Path) -> None:
    fetch(str(model), cache / "base")
    assert names(cache / "base") == names(model)
    before = (cache / "base" / "config.json").stat().st_mtime_ns
    fetch(f"file://{model}", cache / "base")
    assert (cache / "base" / "config.json").stat().st_mtime_ns == before
    assert len(contents(cache)) == 1


def test_new_bytes_get_a_new_folder_and_the_old_stays_for_its_readers(model: Path, cache: Path) -> None:
    old = fetch(str(model), cache / "base")
    (model / "sub" / "notes.txt").write_text("two!")
    fetch(str(model), cache / "base")
    assert (cache / "base" / "sub" / "notes.txt").read_text() == "two!"
    assert (old / "sub" / "notes.txt").read_text() == "one"


def test_two_destinations_of_one_content_share_it(model: Path, cache: Path) -> None:
    assert fetch(str(model), cache / "one") == fetch(str(model), cache / "two")
    assert len(contents(cache)) == 1


def test_many_at_once_end_with_one_whole_copy(
    model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies: list[str] = []
    copy_file = content._copy_file

    def counted(source: Any, name: str, *rest: Any) -> None:
        copies.append(name)
        copy_file(source, name, *rest)

    monkeypatch.setattr(content, "_copy_file", counted)
    together = threading.Barrier(6)

    def one(_: int) -> Path:
        together.wait()
        return fetch(str(model), cache / "base")

    with ThreadPoolExecutor(6) as pool:
        assert len(set(pool.map(one, range(6)))) == 1
    assert sorted(copies) == names(model)
    assert names(cache / "base") == names(model)


def test_many_at_once_on_a_volume_without_locks(
    model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: Any) -> None:
        raise OSError("no locks available")

    monkeypatch.setattr(content.fcntl, "flock", no_locks)
    together = threading.Barrier(4)

    def one(_: int) -> Path:
        together.wait()
        return fetch(str(model), cache / "base")

    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(one, range(4)))) == 1
    assert len(contents(cache)) == 1
    assert names(cache / "base") == names(model)


def test_a_pod_that_died_half_way_leaves_a_part_that_is_continued(
    model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_manifest(model)
    copy_file = content._copy_file

    def dies(source: Any, name: str, *rest: Any) -> None:
        if name == "model.safetensors":
            raise KeyboardInterrupt
        copy_file(source, name, *rest)

    monkeypatch.setattr(content, "_copy_file", dies)
    with pytest.raises(KeyboardInterrupt):
        fetch(str(model), cache / "base")
    assert not (cache / "base").exists()
    copied: list[str] = []
    monkeypatch.setattr(
        content,
        "_copy_file",
        lambda source, name, *rest: (copied.append(name), copy_file(source, name, *rest)),
    )
    fetch(str(model), cache / "base")
    assert "config.json" not in copied
    verify(cache / "base")


def test_bytes_that_are_not_the_manifests_never_appear(
    model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_manifest(model)
    (model / "model.safetensors").write_bytes(b"x" * 300_000)
    monkeypatch.setattr(content, "FIRST_PAUSE_SECONDS", 0.001)
    with pytest.raises(OSError, match="other bytes"):
        fetch(str(model), cache / "base")
    assert not (cache / "base").exists()


def test_a_copy_that_fails_once_is_tried_again(
    model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(content, "FIRST_PAUSE_SECONDS", 0.001)
    source = open_source(str(model))
    get_file, failed = type(source.files).get_file, []

    def flaky(self: Any, remote: str, local: str, **more: Any) -> None:
        if not failed:
            failed.append(remote)
            raise ConnectionResetError("reset")
        get_file(self, remote, local, **more)

    monkeypatch.setattr(type(source.files), "get_file", flaky)
    fetch(str(model), cache / "base")
    assert failed
    assert names(cache / "base") == names(model)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda model: shutil.rmtree(model), "ModelNotFound"),
        (lambda model: (model / "MANIFEST.json").write_text("{"), "ManifestUnreadable"),
        (
            lambda model: (model / "MANIFEST.json").write_text(
                json.dumps({"files": {"../../etc/x": {"size": 1, "sha256": "0"}}})
            ),
            "ManifestUnreadable",
        ),
        (
            lambda model: (model / "MANIFEST.json").write_text(
                json.dumps({"files": {"gone": {"size": 1, "sha256": "0"}}})
            ),
            "ModelIncomplete",
        ),
    ],
)
def test_what_can_never_be_served_is_refused(model: Path, cache: Path, spoil: Any, reason: str) -> None:
    spoil(model)
    with pytest.raises(Unservable) as caught:
        fetch(str(model), cache / "base")
    assert caught.value.reason == reason


def test_a_destination_with_other_files_is_left_alone(model: Path, cache: Path) -> None:
    (cache / "mine").write_text("keep")
    with pytest.raises(Unservable, match="inside the cache"):
        fetch(str(model), cache)
    assert (cache / "mine").read_text() == "keep"


def test_the_command_answers_with_exit_codes(
    model: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fetch", str(model), str(cache / "base")]) == ExitCode.DONE
    assert main(["fetch", "ftp://somewhere/x", str(cache / "other")]) == ExitCode.BAD_INPUT
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (last["reason"], last["exit_code"]) == ("UnknownStorage", 65)


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in (
        ("AWS_ACCESS_KEY_ID", "x"),
        ("AWS_SECRET_ACCESS_KEY", "x"),
        ("AWS_DEFAULT_REGION", "us-east-1"),
        ("AWS_ENDPOINT_URL", f"http://{host}:{port}"),
    ):
        monkeypatch.setenv(name, value)
    client = boto3.client("s3")
    client.create_bucket(Bucket="models")
    yield client
    server.stop()


def test_an_object_store_is_a_source_like_another(model: Path, cache: Path, bucket: Any) -> None:
    write_manifest(model)
    for name in names(model):
        bucket.put_object(Bucket="models", Key=f"run/adapter/{name}", Body=(model / name).read_bytes())
    fetch("s3://models/run/adapter", cache / "adapter")
    # What the manifest does not name is not part of the model.
    assert names(cache / "adapter") == ["MANIFEST.json", "config.json", "model.safetensors"]
    assert verify(cache / "adapter") is not None


def test_the_base_digest_is_the_one_the_trainer_records(model: Path) -> None:
    trainer = pytest.importorskip("cutover_trainer.base_model")
    assert base_digest(model) == trainer.base_digest(model)
