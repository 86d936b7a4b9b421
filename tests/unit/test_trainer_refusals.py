"""Broken inputs, each on its own line of a table: every one is refused or reported with line, field and remedy.

All broken lines go through one run of the stage prepare, between good ones; broken models through the check every
stage begins with; broken data sets through a run each.
"""

from __future__ import annotations

import base64
import copy
import html
import io
import json
import shutil
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cutover.contract import ExitCode
from cutover.stages import StageResult
from cutover_trainer.encoding import Encoder, Unencodable
from cutover_trainer.models import load_encoder
from cutover_trainer.outcome import BadInput
from cutover_trainer.refused import REMEDIES
from fakes import sample_models, training_example
from fakes.training_example import BASE_MODEL, http_service, pictures, run_stage, stage_document, write_rows

GOOD_ROWS = training_example.rows(24)
ANSWER = '{"damageType": "crack", "severity": "minor"}'
SERVICE = "http://service"
"""Stands for the origin of the picture service until it runs."""


# ------------------------------------------------------------------ ways to break a row
def row(**changes: Any) -> dict[str, Any]:
    document = {**copy.deepcopy(GOOD_ROWS[0]), **changes}
    return {name: value for name, value in document.items() if value is not ...}


def answered(text: Any) -> dict[str, Any]:
    document = row(labels=...)
    document["messages"][-1]["content"] = text
    return document


def asked(content: Any) -> dict[str, Any]:
    document = row()
    document["messages"][1]["content"] = content
    return document


def spoken(*roles: Any) -> dict[str, Any]:
    document = row()
    texts = {"system": 0, "user": 1, "assistant": 2}
    document["messages"] = [{**document["messages"][texts.get(role, 1)], "role": role} for role in roles]
    return document


def showing(url: Any) -> dict[str, Any]:
    return asked([{"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": {"url": url}}])


def saying(text: str) -> dict[str, Any]:
    return asked(
        [{"type": "text", "text": text}, {"type": "image_url", "image_url": "https://example.org/a.jpg"}]
    )


def holding(data: bytes, kind: str = "image/png") -> dict[str, Any]:
    return showing(f"data:{kind};base64,{base64.b64encode(data).decode()}")


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def lying_png(width: int, height: int) -> bytes:
    """A header that promises pixels which are not there."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", head) + png_chunk(b"IDAT", zlib.compress(b"\0" * 9))


PHOTO = encoded(pictures().damage_picture(5, 0).image)
JPEG = encoded(pictures().damage_picture(5, 0).image, "JPEG")


# ------------------------------------------------------------------ the table of lines
@dataclass(frozen=True)
class Line:
    name: str
    content: Any
    """A document, or the line as it stands."""
    reason: str
    field: str
    said: str


LINES = [
    # the line
    Line("torn JSON", '{"id": "a", "messa', "UnreadableLine", "", "not JSON"),
    Line("CSV", "id,damage,severity", "UnreadableLine", "", "not JSON"),
    Line("Python, not JSON", "{'id': 'a'}", "UnreadableLine", "", "not JSON"),
    Line("a list", "[1, 2]", "UnreadableLine", "", "a JSON list"),
    Line("null", "null", "UnreadableLine", "", "NoneType"),
    Line("two documents", '{"id": 1} {"id": 2}', "UnreadableLine", "", "Extra data"),
    Line("NaN", '{"id": "a", "score": NaN}', "UnreadableLine", "", "NaN is no JSON value"),
    Line("nested to death", "[" * 200_000, "UnreadableLine", "", "not JSON"),
    Line("a key twice", '{"id": "a", "messages": [], "messages": []}', "UnreadableLine", "messages", "twice"),
    Line("half a character", row(comment="\ud83d"), "UnreadableLine", "", "lone surrogate"),
    # what identifies the row
    Line("id is an object", row(id={"a": 1}), "InvalidId", "id", "JSON dict"),
    Line("id is true", row(id=True), "InvalidId", "id", "JSON bool"),
    Line("id is a page", row(id="x" * 5000), "InvalidId", "id", "5000 characters"),
    Line("id hides a newline", row(id="a\nb"), "InvalidId", "id", "cannot be shown"),
    Line("id runs backwards", row(id="a\u202egpj.exe"), "InvalidId", "id", "cannot be shown"),
    Line("group is empty", row(group_id=" "), "InvalidGroup", "group_id", "one building"),
    Line("group is a list", row(group_id=["b"]), "InvalidGroup", "group_id", "JSON list"),
    Line("group is a fraction", row(group_id=1.5), "InvalidGroup", "group_id", "JSON float"),
    Line("assessment is an object", row(assessment_id={}), "InvalidGroup", "assessment_id", "JSON dict"),
    Line("validated is text", row(validated="false"), "InvalidValidated", "validated", '"false"'),
    Line("validated is a number", row(validated=1), "InvalidValidated", "validated", "not true or false"),
    # roles and layout
    Line("no messages", row(messages=...), "NoMessages", "messages", "must be a list"),
    Line("messages are text", row(messages="hello"), "NoMessages", "messages", "must be a list"),
    Line("message is text", row(messages=["hello"]), "NoMessages", "messages", "objects"),
    Line("no answer", spoken("system", "user"), "NoAssistantAnswer", "messages", "must be the assistant's"),
    Line("answer first", spoken("assistant", "user"), "NoAssistantAnswer", "messages", "the last must be"),
    Line("only an answer", spoken("assistant"), "UnknownLayout", "messages", "wanted system"),
    Line("no user", spoken("system", "assistant"), "UnknownLayout", "messages", "wanted system"),
    Line("a tool speaks", spoken("user", "tool", "assistant"), "UnknownLayout", "messages", "'tool'"),
    Line(
        "system in the middle", spoken("user", "system", "assistant"), "UnknownLayout", "messages", "wanted"
    ),
    Line(
        "two turns", spoken("user", "assistant", "user", "assistant"), "UnknownLayout", "messages", "wanted"
    ),
    Line("no role", spoken("user", None, "assistant"), "UnknownLayout", "messages", "None"),
    Line("content is null", asked(None), "UnknownLayout", "messages[1].content", "string or a list"),
    Line("audio", asked([{"type": "audio"}]), "UnknownLayout", "messages[1].content", "'audio'"),
    Line(
        "image path",
        asked([{"type": "image", "image": "/etc/passwd"}]),
        "UnknownLayout",
        "messages[1].content",
        "'image'",
    ),
    Line(
        "text is a number",
        asked([{"type": "text", "text": 7}]),
        "UnknownLayout",
        "messages[1].content",
        "'text'",
    ),
    Line("image_url is empty", showing(""), "UnknownLayout", "messages[1].content", "image_url"),
    Line("no picture", asked("What is it?"), "NoPicture", "messages", "0 pictures"),
    Line(
        "two pictures",
        asked([{"type": "image_url", "image_url": "https://example.org/a.jpg"}] * 2),
        "SeveralPictures",
        "messages",
        "2 pictures",
    ),
    # control tokens in text
    Line(
        "image token in the question",
        saying("a <image> b"),
        "ControlToken",
        "messages[1].content",
        "'<image>'",
    ),
    Line("end token in the question", saying("stop</s>"), "ControlToken", "messages[1].content", "'</s>'"),
    Line("turn token", saying("<|im_start|>system"), "ControlToken", "messages[1].content", "<|im_start|>"),
    Line("instruction token", saying("[INST] obey"), "ControlToken", "messages[1].content", "[INST]"),
    Line(
        "end token in the answer",
        answered('{"damageType": "crack", "severity": "minor", "notes": "</s> no_damage"}'),
        "ControlToken",
        "messages[2].content",
        "'</s>'",
    ),
    # the answer
    Line("answer is empty", answered("  "), "NoAssistantAnswer", "messages[2].content", "no text"),
    Line("answer is null", answered(None), "NoAssistantAnswer", "messages[2].content", "no text"),
    Line(
        "answer is a picture",
        answered([{"type": "image_url"}]),
        "NoAssistantAnswer",
        "messages[2].content",
        "no text",
    ),
    Line(
        "answer is prose", answered(f"Sure: {ANSWER}"), "UnreadableAnswer", "messages[2].content", "not JSON"
    ),
    Line("answer is cut off", answered(ANSWER[:-4]), "UnreadableAnswer", "messages[2].content", "not JSON"),
    Line(
        "answer is a list", answered(f"[{ANSWER}]"), "UnreadableAnswer", "messages[2].content", "a JSON list"
    ),
    Line(
        "answer holds NaN",
        answered('{"damageType": "crack", "severity": "minor", "notes": NaN}'),
        "UnreadableAnswer",
        "messages[2].content",
        "NaN",
    ),
    Line(
        "two answers in one",
        answered('{"damageType": "crack", "damageType": "mould", "severity": "minor"}'),
        "AmbiguousAnswer",
        "messages[2].content.damageType",
        "twice",
    ),
    Line(
        "no class",
        answered('{"severity": "minor"}'),
        "InvalidAnswer",
        "messages[2].content.damageType",
        "no damageType",
    ),
    Line(
        "class is null",
        answered('{"damageType": null, "severity": "minor"}'),
        "UnknownClass",
        "messages[2].content.damageType",
        "'None'",
    ),
    Line(
        "class is a list",
        answered('{"damageType": ["crack"], "severity": "minor"}'),
        "UnknownClass",
        "messages[2].content.damageType",
        "the task knows",
    ),
    Line(
        "unknown class",
        answered('{"damageType": "flood", "severity": "minor"}'),
        "UnknownClass",
        "messages[2].content.damageType",
        "water_damage",
    ),
    Line(
        "class in capitals",
        answered('{"damageType": "Crack", "severity": "minor"}'),
        "UnknownClass",
        "messages[2].content.damageType",
        "did you mean 'crack'",
    ),
    Line(
        "class misspelled",
        answered('{"damageType": "mold", "severity": "minor"}'),
        "UnknownClass",
        "messages[2].content.damageType",
        "did you mean 'mould'",
    ),
    Line(
        "class with a space",
        answered('{"damageType": "crack ", "severity": "minor"}'),
        "UnknownClass",
        "messages[2].content.damageType",
        "did you mean 'crack'",
    ),
    Line(
        "unknown severity",
        answered('{"damageType": "crack", "severity": "low"}'),
        "UnknownClass",
        "messages[2].content.severity",
        "moderate",
    ),
    Line(
        "field too many",
        answered('{"damageType": "crack", "severity": "minor", "x": 1}'),
        "InvalidAnswer",
        "messages[2].content",
        "answerSchema",
    ),
    Line(
        "field of another type",
        answered('{"damageType": "crack", "severity": "minor", "notes": 7}'),
        "InvalidAnswer",
        "messages[2].content",
        "answerSchema",
    ),
    Line(
        "nobody said so",
        row(labels=[{"labeller": "a", "labels": {"damageType": "mould"}}]),
        "LabelsDisagree",
        "labels.damageType",
        "the people mould",
    ),
    # hostile URLs
    Line("a local file", showing("file:///etc/passwd"), "PictureRefused", "image_url", "scheme 'file'"),
    Line("a path", showing("/etc/passwd"), "PictureRefused", "image_url", "scheme ''"),
    Line("ftp", showing("ftp://example.org/a.jpg"), "PictureRefused", "image_url", "scheme 'ftp'"),
    Line(
        "gopher", showing("gopher://127.0.0.1:6379/_INFO"), "PictureRefused", "image_url", "scheme 'gopher'"
    ),
    Line("no scheme", showing("//example.org/a.jpg"), "PictureRefused", "image_url", "scheme ''"),
    Line("localhost", showing("http://localhost/a.jpg"), "PictureRefused", "image_url", "not a public host"),
    Line(
        "loopback", showing("http://127.0.0.1/a.jpg"), "PictureRefused", "image_url", "not a public address"
    ),
    Line(
        "loopback of IPv6",
        showing("http://[::1]/a.jpg"),
        "PictureRefused",
        "image_url",
        "not a public address",
    ),
    Line(
        "IPv4 inside IPv6",
        showing("http://[::ffff:10.0.0.1]/a.jpg"),
        "PictureRefused",
        "image_url",
        "not a public",
    ),
    Line(
        "metadata service",
        showing("http://169.254.169.254/latest"),
        "PictureRefused",
        "image_url",
        "not a public",
    ),
    Line(
        "private network",
        showing("https://10.96.0.1/api"),
        "PictureRefused",
        "image_url",
        "not a public address",
    ),
    Line("address as a number", showing("http://2130706433/"), "PictureRefused", "image_url", "unusual form"),
    Line(
        "address in hexadecimal", showing("http://0x7f000001/"), "PictureRefused", "image_url", "unusual form"
    ),
    Line("short address", showing("http://127.1/"), "PictureRefused", "image_url", "unusual form"),
    Line(
        "password in the URL", showing("http://a:b@example.org/x"), "PictureRefused", "image_url", "password"
    ),
    Line("space in the URL", showing("http://example.org/a b"), "PictureRefused", "image_url", "a space"),
    Line(
        "header smuggled in",
        showing("http://example.org/\r\nHost: x"),
        "PictureRefused",
        "image_url",
        "control",
    ),
    Line("endless URL", showing("http://example.org/" + "a" * 9000), "PictureRefused", "image_url", "8192"),
    Line(
        "somebody's bucket",
        showing("s3://somebody-elses/a.jpg"),
        "PictureRefused",
        "image_url",
        "outside the bucket",
    ),
    Line("redirect inwards", showing(f"{SERVICE}/inwards"), "PictureRefused", "image_url", "not a public"),
    Line("redirect to a file", showing(f"{SERVICE}/to-file"), "PictureRefused", "image_url", "scheme 'file'"),
    Line("redirect for ever", showing(f"{SERVICE}/for-ever"), "PictureRefused", "image_url", "redirects"),
    Line("not found", showing(f"{SERVICE}/absent"), "PictureRefused", "image_url", "answered 404"),
    Line(
        "too many bytes",
        showing(f"{SERVICE}/huge"),
        "PictureRefused",
        "image_url",
        "more than 10000000 bytes",
    ),
    Line("a page for a picture", showing(f"{SERVICE}/page"), "UnusablePicture", "image_url", "not a JPEG"),
    # hostile pictures
    Line("data URL without comma", showing("data:image/png;base64"), "PictureRefused", "image_url", "comma"),
    Line(
        "data URL not base64",
        showing("data:image/png;base64,????"),
        "PictureRefused",
        "image_url",
        "not base64",
    ),
    Line("empty picture", holding(b""), "UnusablePicture", "image_url", "not a JPEG"),
    Line(
        "SVG",
        holding(b"<svg xmlns='http://www.w3.org/2000/svg'/>"),
        "UnusablePicture",
        "image_url",
        "not a JPEG",
    ),
    Line(
        "GIF",
        holding(encoded(Image.new("RGB", (32, 32)), "GIF")),
        "UnusablePicture",
        "image_url",
        "not a JPEG",
    ),
    Line("PDF", holding(b"%PDF-1.7"), "UnusablePicture", "image_url", "not a JPEG"),
    Line("half a PNG", holding(PHOTO[: len(PHOTO) // 2]), "UnusablePicture", "image_url", "damaged"),
    Line("half a JPEG", holding(JPEG[: len(JPEG) // 2]), "UnusablePicture", "image_url", "damaged"),
    Line("promised pixels", holding(lying_png(64, 64)), "UnusablePicture", "image_url", "damaged"),
    Line("decompression bomb", holding(lying_png(30_000, 30_000)), "UnusablePicture", "image_url", "pixels"),
    Line(
        "tracking pixel", holding(encoded(Image.new("RGB", (1, 1)))), "UnusablePicture", "image_url", "1 x 1"
    ),
    Line(
        "nothing but black",
        holding(encoded(Image.new("RGB", (64, 64)))),
        "UnusablePicture",
        "image_url",
        "one colour",
    ),
    Line("a thread", holding(encoded(Image.new("L", (4000, 2)))), "UnusablePicture", "image_url", "4000 x 2"),
]
TOO_LONG = Line("a prompt too long", None, "Unencodable", "messages", "reads at most")


REDIRECTS = {
    "/inwards": "http://169.254.169.254/latest/meta-data",
    "/to-file": "file:///etc/passwd",
    "/for-ever": "/for-ever",
}


def service(path: str, headers: dict[str, str]) -> tuple[int, bytes]:
    known = {"/huge": (200, b"\xff" * 10_000_001), "/page": (200, b"<html>not here</html>")}
    return known.get(path, (404, b""))


@dataclass(frozen=True)
class Prepared:
    result: StageResult
    report: dict[str, Any]
    page: str
    refused: list[dict[str, Any]]
    line_of: dict[str, int]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prepared]:
    """All broken lines among good ones, through the stage once."""
    workspace = tmp_path_factory.mktemp("refusals")
    long_row = row(id="<script>alert(1)</script>")
    long_row["messages"][0]["content"] = "word " * 700
    with http_service(service, redirects=REDIRECTS) as origin:
        contents = [*(line.content for line in LINES), long_row]
        broken = [
            json.loads(json.dumps(one).replace(SERVICE, origin)) if isinstance(one, dict) else one
            for one in contents
        ]
        documents = [*GOOD_ROWS[1:12], *broken, *GOOD_ROWS[12:]]
        file = write_rows(workspace / "rows.jsonl", documents)
        quality = {"maxBadRowsShare": 1.0}
        document = stage_document(workspace / "run", file, dataset={"quality": quality})
        code, result = run_stage("prepare", {**document, "allowedOrigins": [origin]}, workspace)
    assert code == ExitCode.DONE, result.message
    data = workspace / "run/data"
    yield Prepared(
        result,
        json.loads((data / "report.json").read_bytes()),
        (data / "report.html").read_text(),
        [json.loads(line) for line in (data / "refused.jsonl").read_text().splitlines()],
        {line.name: number for number, line in enumerate([*LINES, TOO_LONG], start=12)},
    )


@pytest.mark.parametrize("case", [*LINES, TOO_LONG], ids=lambda case: case.name)
def test_a_broken_line_is_refused_with_line_field_and_remedy(prepared: Prepared, case: Line) -> None:
    number = prepared.line_of[case.name]
    found = [one for one in prepared.refused if one["line"] == number]
    assert [(one["reason"], one["field"]) for one in found] == [(case.reason, case.field)], found
    assert case.said in found[0]["detail"]
    assert len(found[0]["detail"]) <= 400
    assert found[0]["remedy"] == REMEDIES[case.reason]  # type: ignore[index]


def test_the_table_is_long_and_nothing_is_dropped_in_silence(prepared: Prepared) -> None:
    assert len(prepared.line_of) >= 60
    assert len(prepared.refused) == len(prepared.line_of)
    assert prepared.report["rows"] == len(GOOD_ROWS) - 1 + len(prepared.line_of)
    assert sum(prepared.report["badByReason"].values()) == len(prepared.refused)
    assert prepared.report["bad"] == prepared.refused
    assert prepared.result.data is not None
    assert prepared.result.data.bad_rows == len(prepared.refused)


def test_the_page_shows_every_refused_line_and_runs_nothing(prepared: Prepared) -> None:
    for one in prepared.refused:
        assert f">{one['line']}</td>" in prepared.page
    assert html.escape("<script>alert(1)</script>") in prepared.page
    lowered = prepared.page.lower()
    assert "<script" not in lowered
    assert "javascript:" not in lowered
    assert "default-src 'none'" in prepared.page
    assert lowered.count("<img ") == len(pictures().DAMAGE_TYPES)
    assert all(part.startswith('"data:image/jpeg;base64,') for part in lowered.split("src=")[1:])
