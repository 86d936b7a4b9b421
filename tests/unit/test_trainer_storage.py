"""One behaviour on local files, on S3 and on Google Cloud Storage: whole names, one winner, folders that are complete or absent."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from cutover_trainer.manifest import commit_folder, commit_once, fetch_folder, read_manifest
from cutover_trainer.outcome import BadInput
from cutover_trainer.storage import ArtifactStore
from fakes.google_store import gcs_bucket
from fakes.object_store import s3_bucket


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with s3_bucket("artifacts") as uri:
        yield uri


@pytest.fixture(scope="module")
def google_bucket() -> Iterator[str]:
    with gcs_bucket("artifacts") as uri:
        yield uri


@pytest.fixture(params=["file", "s3", "gs"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URI of an empty folder."""
    if request.param == "file":
        return f"file://{tmp_path}/run"
    bucket = request.getfixturevalue("bucket" if request.param == "s3" else "google_bucket")
    return f"{bucket}/{tmp_path.name}"


@pytest.fixture
def store(root: str) -> ArtifactStore:
    return ArtifactStore(root)


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


def test_of_many_writers_at_once_one_wins(root: str) -> None:
    stores = [ArtifactStore(root) for _ in range(6)]
    gate = Barrier(len(stores))

    def put(number: int) -> bool:
        gate.wait()
        return stores[number].put_if_absent("DONE.json", f"writer {number}".encode())

    with ThreadPoolExecutor(len(stores)) as pool:
        won = list(pool.map(put, range(len(stores))))
    assert sum(won) == 1
    assert stores[0].get("DONE.json") == f"writer {won.index(True)}".encode()
    assert stores[0].list() == ["DONE.json"]


def test_of_two_writers_of_one_folder_one_wins_and_the_other_harms_nothing(
    store: ArtifactStore, tmp_path: Path
) -> None:
    first = commit_once(store, "step", "a", {"weights": b"one"}, {"step": 3})
    assert first is not None
    assert commit_once(store, "step", "b", {"weights": b"two"}, {"step": 3}) is None
    found = fetch_folder(store, "step", tmp_path)
    assert found is not None
    assert found[1] == first
    assert (found[0] / "a/weights").read_bytes() == b"one"
    # The answer to its first request was lost, and the client has asked again.
    assert commit_once(store, "step", "a", {"weights": b"one"}, {"step": 3}) == first


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
