"""One behaviour on local files and on S3: whole names, one winner, folders that are complete or absent."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cutover_trainer.manifest import commit_folder, fetch_folder, read_manifest
from cutover_trainer.outcome import BadInput
from cutover_trainer.storage import ArtifactStore
from fakes.object_store import s3_bucket


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with s3_bucket("artifacts") as uri:
        yield uri


@pytest.fixture(params=["file", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ArtifactStore:
    if request.param == "file":
        return ArtifactStore(f"file://{tmp_path}/run")
    return ArtifactStore(f"{request.getfixturevalue('bucket')}/{tmp_path.name}")


def test_what_was_put_is_there(store: ArtifactStore) -> None:
    assert store.list() == []
    assert not store.exists("a/b.json")
    with pytest.raises(FileNotFoundError):
        store.get("a/b.json")
    store.put("a/b.json", b"one")
    store.put("a/b.json", b"two")
    store.put("c", b"")
    assert store.get("a/b.json") == b"two"
    assert store.list() == ["a/b.json", "c"]
    assert store.list("a") == ["a/b.json"]
    assert store.list("absent") == []
    assert store.exists("a/b.json")


def test_a_folder_is_uploaded_file_by_file(store: ArtifactStore, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "inner").mkdir(parents=True)
    (folder / "a.bin").write_bytes(b"a" * 3_000_000)
    (folder / "inner/b.txt").write_bytes(b"b")
    store.put("there/a.bin", b"older")
    store.upload(folder, "there")
    assert store.list("there") == ["there/a.bin", "there/inner/b.txt"]
    assert store.get("there/a.bin") == b"a" * 3_000_000


def test_only_the_first_put_if_absent_wins(store: ArtifactStore) -> None:
    assert store.put_if_absent("DONE.json", b"first")
    assert not store.put_if_absent("DONE.json", b"second")
    assert store.get("DONE.json") == b"first"
    assert store.list() == ["DONE.json"]


def test_deleting_files_and_folders(store: ArtifactStore) -> None:
    store.put("x/1", b"1")
    store.put("x/2", b"2")
    store.put("y", b"3")
    store.delete("x")
    store.delete("absent")
    assert store.list() == ["y"]
    store.delete("y")
    assert store.list() == []


def test_a_folder_counts_once_its_manifest_is_there(store: ArtifactStore, tmp_path: Path) -> None:
    store.put("adapter/weights", b"half a save")
    assert fetch_folder(store, "adapter", tmp_path) is None
    manifest = commit_folder(store, "adapter", {"weights": b"w", "sub/config": b"c"}, {"step": 3})
    assert read_manifest(store, "adapter") == manifest
    found = fetch_folder(store, "adapter", tmp_path)
    assert found is not None
    assert (found[0] / "sub/config").read_bytes() == b"c"
    assert found[1].facts == {"step": 3}


def test_a_damaged_folder_does_not_count(store: ArtifactStore, tmp_path: Path) -> None:
    commit_folder(store, "adapter", {"weights": b"good"}, {})
    store.put("adapter/weights", b"evil")
    assert fetch_folder(store, "adapter", tmp_path / "one") is None
    store.put("adapter/MANIFEST.json", b'{"digest"')
    assert fetch_folder(store, "adapter", tmp_path / "two") is None


def test_the_digest_is_of_names_and_contents(tmp_path: Path) -> None:
    store = ArtifactStore(f"file://{tmp_path}")
    one = commit_folder(store, "a", {"x": b"1", "y": b"2"}, {"step": 1})
    two = commit_folder(store, "b", {"y": b"2", "x": b"1"}, {"step": 2})
    other = commit_folder(store, "c", {"x": b"2", "y": b"1"}, {"step": 1})
    assert one.digest == two.digest != other.digest


@pytest.mark.parametrize("uri", ["http://host/a", "/artifacts", "memory://a"])
def test_other_places_are_refused(uri: str) -> None:
    with pytest.raises(BadInput, match="must start with file://, s3:// or gs://"):
        ArtifactStore(uri)
