"""Getting the rows: from HTTP with a token, from a claim; and what each failure of a source means."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest

from cutover.contract import ExitCode
from fakes.training_example import http_service, run_stage, stage_document, write_rows

ROWS = [{"id": f"r{number}"} for number in range(5)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def http_document(tmp_path: Path, url: str, allowed: tuple[str, ...] = (), **more: Any) -> dict[str, Any]:
    token = tmp_path / "token"
    token.write_text("s3cret\n")
    source = {"http": {"url": url, "secretRef": {"name": "auth"}}}
    document = stage_document(tmp_path / "run", dataset={"source": source, **more})
    return {**document, "sourceTokenFile": str(token), "allowedOrigins": list(allowed)}


def test_rows_are_streamed_with_the_token_and_the_limit(tmp_path: Path) -> None:
    asked: list[tuple[str, str | None]] = []

    def answer(path: str, headers: dict[str, str]) -> tuple[int, bytes]:
        asked.append((path, headers.get("authorization")))
        return 200, LINES

    with http_service(answer) as origin:
        document = http_document(tmp_path, f"{origin}/export?format=jsonl&limit=9", (origin,), limit=3)
        code, result = run_stage("export", document, tmp_path)
        assert (code, result.outcome) == (ExitCode.DONE, "done")
        assert run_stage("export", document, tmp_path)[0] == ExitCode.DONE
    assert asked == [("/export?format=jsonl&limit=3", "Bearer s3cret")]
    assert (tmp_path / "run/export/rows.jsonl").read_bytes() == b"".join(LINES.splitlines(keepends=True)[:3])


def test_a_smaller_limit_in_the_url_holds(tmp_path: Path) -> None:
    with http_service(lambda path, headers: (200, LINES)) as origin:
        document = http_document(tmp_path, f"{origin}/export?limit=2", (origin,), limit=4)
        assert run_stage("export", document, tmp_path)[0] == ExitCode.DONE
    assert (tmp_path / "run/export/rows.jsonl").read_bytes() == b"".join(LINES.splitlines(keepends=True)[:2])


def test_a_limit_in_the_url_that_is_no_number_is_refused(tmp_path: Path) -> None:
    with http_service(lambda path, headers: (200, LINES)) as origin:
        document = http_document(tmp_path, f"{origin}/export?limit=many", (origin,))
        code, result = run_stage("export", document, tmp_path)
    assert code == ExitCode.BAD_INPUT
    assert "'many'" in result.message
    assert "dataset.limit" in result.message


@pytest.mark.parametrize(
    ("status", "code", "reason", "said"),
    [
        (401, ExitCode.BAD_INPUT, "SourceUnauthorized", "dataset.source.http.secretRef"),
        (403, ExitCode.BAD_INPUT, "SourceUnauthorized", "role may export"),
        (404, ExitCode.BAD_INPUT, "SourceNotFound", "dataset.source.http.url"),
        (400, ExitCode.BAD_INPUT, "SourceRefused", "answered 400"),
        (302, ExitCode.BAD_INPUT, "SourceRefused", "answered 302"),
        (429, ExitCode.FAILED, "SourceUnavailable", "answered 429"),
        (500, ExitCode.FAILED, "SourceUnavailable", "answered 500"),
        (503, ExitCode.FAILED, "SourceUnavailable", "answered 503"),
    ],
)
def test_an_answer_that_is_no_data(
    tmp_path: Path, status: int, code: ExitCode, reason: str, said: str
) -> None:
    with http_service(lambda path, headers: (status, b"no")) as origin:
        ended, result = run_stage(
            "export", http_document(tmp_path, f"{origin}/x?sig=hidden", (origin,)), tmp_path
        )
    assert (ended, result.reason) == (code, reason)
    assert said in result.message
    assert "hidden" not in result.message
    assert "s3cret" not in result.message
    assert not (tmp_path / "run/DONE-export.json").exists()


def test_a_private_source_must_be_on_the_allow_list(tmp_path: Path) -> None:
    with http_service(lambda path, headers: (200, LINES)) as origin:
        code, result = run_stage("export", http_document(tmp_path, f"{origin}/x"), tmp_path)
    assert (code, result.reason) == (ExitCode.BAD_INPUT, "SourceRefused")
    assert "allow list" in result.message


def test_a_source_that_is_away_is_tried_again(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        origin = f"http://127.0.0.1:{closed.getsockname()[1]}"
        code, result = run_stage("export", http_document(tmp_path, f"{origin}/x", (origin,)), tmp_path)
    assert (code, result.outcome, result.reason) == (ExitCode.FAILED, "failed", "SourceUnavailable")


def test_a_stream_that_breaks_off_is_not_taken_for_the_whole(tmp_path: Path) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    origin = f"http://127.0.0.1:{listener.getsockname()[1]}"
    from threading import Thread

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
            connection.sendall(head + f"{len(LINES):x}\r\n".encode() + LINES + b"\r\n")

    thread = Thread(target=serve, daemon=True)
    thread.start()
    code, result = run_stage("export", http_document(tmp_path, f"{origin}/x", (origin,)), tmp_path)
    thread.join()
    listener.close()
    assert (code, result.reason) == (ExitCode.FAILED, "SourceUnavailable")
    assert not (tmp_path / "run/export/MANIFEST.json").exists()


def test_a_missing_token_names_the_field(tmp_path: Path) -> None:
    document = {
        **http_document(tmp_path, "http://127.0.0.1:1/x"),
        "sourceTokenFile": str(tmp_path / "absent"),
    }
    code, result = run_stage("export", document, tmp_path)
    assert (code, result.reason) == (ExitCode.BAD_INPUT, "SourceTokenMissing")
    assert "dataset.source.http.secretRef" in result.message


def test_a_claim_may_hold_a_file_or_a_folder(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    write_rows(tmp_path / "data/a.jsonl", ROWS[:2])
    write_rows(tmp_path / "data/b.jsonl", [*ROWS[2:], ""])
    code, result = run_stage("export", stage_document(tmp_path / "run", tmp_path / "data"), tmp_path)
    assert code == ExitCode.DONE
    assert result.message == "5 rows exported"
    assert (tmp_path / "run/export/rows.jsonl").read_bytes() == LINES


@pytest.mark.parametrize("name", ["absent.jsonl", "empty"])
def test_a_claim_without_rows(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    code, result = run_stage("export", stage_document(tmp_path / "run", tmp_path / name), tmp_path)
    assert (code, result.reason) == (ExitCode.BAD_INPUT, "SourceNotFound")
    assert "dataset.source.claim" in result.message


def test_an_empty_export_is_refused(tmp_path: Path) -> None:
    code, result = run_stage(
        "export", stage_document(tmp_path / "run", write_rows(tmp_path / "r", [])), tmp_path
    )
    assert (code, result.reason) == (ExitCode.BAD_INPUT, "EmptyDataset")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"artifacts": "ftp://x"}, "must start with file://, s3:// or gs://"),
        ({"run": {"name": "x"}}, "run.namespace"),
        ({"spec": {}}, "spec.task"),
    ],
)
def test_a_wrong_configuration_is_bad_input(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    document = {**stage_document(tmp_path / "run", write_rows(tmp_path / "r", ROWS)), **change}
    code, result = run_stage("export", document, tmp_path)
    assert code == ExitCode.BAD_INPUT
    assert said in result.message
