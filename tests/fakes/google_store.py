"""A Google Cloud Storage server on the loopback address: as much of its JSON API as gcsfs speaks, generations included.

`ifGenerationMatch=0` is decided under one lock, as the real service decides it: of two writers of one name one gets 412.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

Answer = tuple[int, dict[str, str], bytes]
_BATCHED_DELETE = re.compile(r"DELETE (/storage/v1/b/[^/\s]+/o/\S+) HTTP/1\.1")


class Objects:
    """What is stored, by bucket and name, each with the generation it was written as."""

    def __init__(self, bucket: str) -> None:
        self.bucket = bucket
        self._held: dict[str, tuple[int, bytes]] = {}
        self._uploads: dict[str, tuple[str, str | None, bytearray]] = {}
        self._written = 0
        self._lock = Lock()

    # -------------------------------------------------------------- requests
    def answer(self, method: str, target: str, headers: Any, body: bytes) -> Answer:
        parts = urlsplit(target)
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        path = parts.path.removeprefix("/upload").removeprefix("/download")
        if path == "/batch/storage/v1":
            return self._batch(body)
        bucket = f"/storage/v1/b/{self.bucket}"
        if parts.path.startswith(f"/upload{bucket}/o"):
            return self._upload(query, headers, body)
        if path == bucket:
            return _json({"kind": "storage#bucket", "name": self.bucket})
        if path == f"{bucket}/o":
            return self._listing(query)
        if not path.startswith(f"{bucket}/o/"):
            return _error(404, f"no {path}")
        name = unquote(path.removeprefix(f"{bucket}/o/"))
        if method == "DELETE":
            return self._delete(name)
        return self._read(name, media=query.get("alt") == "media")

    def _upload(self, query: dict[str, str], headers: Any, body: bytes) -> Answer:
        match = query.get("ifGenerationMatch")
        if query["uploadType"] == "multipart":
            _, about, content = body.split(b"--==0==", 2)
            name = json.loads(about.split(b"\n\n", 1)[1])["name"]
            return self._put(name, content.split(b"\n\n", 1)[1].removesuffix(b"\n--==0==--"), match)
        if "upload_id" not in query:
            number = str(len(self._uploads))
            self._uploads[number] = (query["name"], match, bytearray())
            place = f"http://{headers['Host']}/upload/storage/v1/b/{self.bucket}/o"
            return 200, {"Location": f"{place}?uploadType=resumable&upload_id={number}"}, b""
        name, match, received = self._uploads[query["upload_id"]]
        received += body
        if len(received) < int(headers["Content-Range"].rpartition("/")[2]):
            return 308, {"Range": f"bytes=0-{len(received) - 1}"}, b""
        return self._put(name, bytes(received), match)

    def _put(self, name: str, data: bytes, match: str | None) -> Answer:
        with self._lock:
            known = self._held.get(name)
            if match is not None and int(match) != (known[0] if known else 0):
                return _error(412, "at least one of the pre-conditions you specified did not hold")
            self._written += 1
            self._held[name] = (self._written, data)
        return _json(self._about(name))

    def _read(self, name: str, *, media: bool) -> Answer:
        if name not in self._held:
            return _error(404, f"no such object: {name}")
        if not media:
            return _json(self._about(name))
        return 200, {"Content-Type": "application/octet-stream"}, self._held[name][1]

    def _delete(self, name: str) -> Answer:
        with self._lock:
            return (204, {}, b"") if self._held.pop(name, None) else _error(404, f"no such object: {name}")

    def _listing(self, query: dict[str, str]) -> Answer:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        names = sorted(name for name in self._held if name.startswith(prefix))
        folders: set[str] = set()
        if delimiter:
            below = [name for name in names if delimiter in name[len(prefix) :]]
            folders = {prefix + name[len(prefix) :].partition(delimiter)[0] + delimiter for name in below}
            names = [name for name in names if name not in below]
        items = [self._about(name) for name in names]
        return _json({"kind": "storage#objects", "items": items, "prefixes": sorted(folders)})

    def _batch(self, body: bytes) -> Answer:
        boundary = "batch_cutover"
        parts = []
        for target in _BATCHED_DELETE.findall(body.decode()):
            status, _, text = self.answer("DELETE", target, {}, b"")
            parts.append(
                f"--{boundary}\r\nContent-Type: application/http\r\n\r\nHTTP/1.1 {status} x\r\n\r\n{text.decode()}\r\n"
            )
        whole = "".join(parts) + f"--{boundary}--"
        return 200, {"Content-Type": f"multipart/mixed; boundary={boundary}"}, whole.encode()

    def _about(self, name: str) -> dict[str, Any]:
        generation, data = self._held[name]
        moment = "2026-11-24T00:00:00.000Z"
        return {
            "kind": "storage#object",
            "bucket": self.bucket,
            "name": name,
            "generation": str(generation),
            "size": str(len(data)),
            "md5Hash": base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode(),
            "timeCreated": moment,
            "updated": moment,
        }


def _json(document: dict[str, Any]) -> Answer:
    return 200, {"Content-Type": "application/json"}, json.dumps(document).encode()


def _error(code: int, message: str) -> Answer:
    text = json.dumps({"error": {"code": code, "message": message}})
    return code, {"Content-Type": "application/json"}, text.encode()


@contextmanager
def gcs_bucket(name: str) -> Iterator[str]:
    """An empty bucket; yields its URI. Clients find it by STORAGE_EMULATOR_HOST while the context lasts."""
    objects = Objects(name)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, headers, text = objects.answer(self.command, self.path, self.headers, body)
            self.send_response(status)
            for key, value in (headers | {"Content-Length": str(len(text))}).items():
                self.send_header(key, value)
            self.end_headers()
            with suppress(ConnectionError):  # the client has hung up
                self.wfile.write(text)

        do_GET = do_POST = do_PUT = do_DELETE = _serve

        def log_message(self, format: str, *args: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    settings = {
        "STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{server.server_port}",
        # Read when gcsfs is imported: otherwise it asks Google by gRPC what kind of bucket this is.
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
    }
    before = {key: os.environ.get(key) for key in settings}
    os.environ.update(settings)
    import fsspec

    fsspec.config.conf["gs"] = {"token": "anon"}
    try:
        yield f"gs://{name}"
    finally:
        del fsspec.config.conf["gs"]
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value
        server.shutdown()
        server.server_close()
        thread.join()
