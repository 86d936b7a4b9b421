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
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cutover.contract import ExitCode
from cutover.stages import StageResult
from cutover_trainer.encoding import Encoder, Unencodable
from cutover_trainer.outcome import BadInput
from cutover_trainer.processors import load_encoder
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
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
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
    return Prepared(
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


# ------------------------------------------------------------------ models whose processor does not fit
@dataclass(frozen=True)
class Misfit:
    name: str
    base: Callable[[], Path]
    family: Any
    break_it: Callable[[Path], None]
    said: str


def settings(file: str, **changes: Any) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        document = json.loads((folder / file).read_text())
        for name, value in changes.items():
            if value is ...:
                document.pop(name, None)
            else:
                document[name] = value
        (folder / file).write_text(json.dumps(document))

    return apply


def picture_side(side: int) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        document = json.loads((folder / "processor_config.json").read_text())
        document["image_processor"]["size"] = {"height": side, "width": side}
        (folder / "processor_config.json").write_text(json.dumps(document))

    return apply


def llava() -> Path:
    return BASE_MODEL


MISFITS = [
    Misfit("35 places for 36 features", llava, "llava", settings("processor_config.json", num_additional_image_tokens=0), "num_additional_image_tokens is 0"),
    Misfit("37 places for 36 features", llava, "llava", settings("processor_config.json", vision_feature_select_strategy=None), "vision_feature_select_strategy is None"),
    Misfit("no patch size", llava, "llava", settings("processor_config.json", patch_size=None), "patch_size is None, the model's 8"),
    Misfit("another patch size", llava, "llava", settings("processor_config.json", patch_size=16), "patch_size is 16"),
    Misfit("larger pictures", llava, "llava", picture_side(64), "64 x 64 pixels, the model reads 48 x 48"),
    Misfit("another image token", llava, "llava", settings("config.json", image_token_index=9999, image_token_id=...), "9999 is not in the tokenizer"),
    Misfit("no end token", llava, "llava", settings("tokenizer_config.json", eos_token=None), "no end token"),
    Misfit("no template", llava, "llava", lambda folder: (folder / "chat_template.jinja").unlink(), "no chat template"),
    Misfit("tiles of another model", sample_models.tiny_llava_next, "llava_next", settings("processor_config.json", patch_size=4), "patch_size is 4"),
    Misfit("5 of 4 queries", sample_models.tiny_blip2, "blip2", settings("processor_config.json", num_query_tokens=5), "num_query_tokens is 5, the model's 4"),
]  # fmt: skip


@pytest.mark.parametrize("case", MISFITS, ids=lambda case: case.name)
def test_a_processor_that_does_not_fit_its_model_is_found_before_a_row_is_read(
    tmp_path: Path, case: Misfit
) -> None:
    folder = tmp_path / "base"
    shutil.copytree(case.base(), folder)
    case.break_it(folder)
    with pytest.raises(BadInput) as refused:
        load_encoder(folder, case.family)
    assert refused.value.reason == "BaseModelInconsistent"
    assert case.said in refused.value.message
    assert "baseModel.uri" in refused.value.message


# ------------------------------------------------------------------ what others swallow when rows are encoded
def encoder(template: str | None = None, limit: int | None = None) -> Encoder:
    made = load_encoder(BASE_MODEL, "llava")
    if template is not None:
        made.processor.chat_template = template
    if limit is not None:
        made._limit = limit
    return made


QUESTION = [
    {
        "role": "user",
        "content": [{"type": "text", "text": "Damage?"}, {"type": "image_url", "image_url": "sha256:0"}],
    }
]
ORDINARY = (BASE_MODEL / "chat_template.jinja").read_text()

ENCODINGS = [
    ("the answer melts into the prompt", encoder, {"template": ORDINARY.rstrip() + "{{ ' ' }}"}, "crack", "prefix"),
    ("no place for the picture", encoder, {"template": "Question:"}, ANSWER, "0 image tokens for one picture"),
    ("two places for one picture", encoder, {"template": "<image><image> Question:"}, ANSWER, "2 image tokens for one picture"),
    ("the answer is cut off", encoder, {"limit": 60}, ANSWER, "reads at most 60"),
    ("nothing is trained", encoder, {}, "", "no answer token"),
    ("only space is trained", encoder, {}, "   ", "no answer token"),
    ("an end token in the answer", encoder, {}, f"{ANSWER}</s>", "control token"),
    ("an image token in the answer", encoder, {}, f"{ANSWER}<image>", "control token"),
    ("a start token in the answer", encoder, {}, f"<s>{ANSWER}", "control token"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "make", "changes", "answer", "said"),
    ENCODINGS,
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_row_that_would_train_on_the_wrong_tokens_is_refused(
    name: str, make: Callable[..., Encoder], changes: dict[str, Any], answer: str, said: str
) -> None:
    with pytest.raises(Unencodable, match=said):
        make(**changes).encode(QUESTION, answer, (48, 48))


def test_two_rows_whose_image_tokens_cancel_are_each_looked_at() -> None:
    """One placeholder too many here and one too few there pass as a batch, with features in the wrong row."""
    made = encoder()
    doubled = [{"role": "user", "content": [{"type": "text", "text": "<image>"}, QUESTION[0]["content"][1]]}]  # type: ignore[index]
    bare = [{"role": "user", "content": "Damage?"}]
    for question in (doubled, bare):
        with pytest.raises(Unencodable, match=r"image token|control token"):
            made.encode(question, ANSWER, (48, 48))


# ------------------------------------------------------------------ leaks: what must stay together, and is reported
def copies_of(image: Image.Image) -> dict[str, bytes]:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=75)
    return {
        "encoded again": buffer.getvalue(),
        "scaled down": encoded(image.resize((96, 96))),
        "brightened": encoded(image.point(lambda value: min(255, int(value * 1.05)))),
    }


@pytest.fixture(scope="module")
def leaky(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, str], dict[str, Any]]:
    """Part of each row by id, and the report."""
    workspace = tmp_path_factory.mktemp("leaks")
    documents = copy.deepcopy(GOOD_ROWS)
    original = pictures().damage_picture(9, 3, 128).image
    documents.append({**holding(encoded(original)), "id": "original", "group_id": "house 1"})
    for number, (name, data) in enumerate(copies_of(original).items()):
        documents.append({**holding(data), "id": name, "group_id": f"elsewhere {number}"})
    for number, group in enumerate(["Flat 4, Mill Lane", "flat 4,  mill lane ", "ＦＬＡＴ 4, Mill Lane"]):
        documents.append(
            {
                **holding(encoded(pictures().damage_picture(9, 40 + number).image)),
                "id": f"flat-{number}",
                "group_id": group,
            }
        )
    again = {**copy.deepcopy(GOOD_ROWS[5]), "group_id": "another house"}
    twin = {**copy.deepcopy(GOOD_ROWS[6]), "id": "twin", "group_id": "a third house", "labels": []}
    twin["messages"][-1]["content"] = json.dumps(
        {**json.loads(twin["messages"][-1]["content"]), "damageType": "mould"}
    )
    follow_up = {**copy.deepcopy(GOOD_ROWS[9]), "assessment_id": "A-17", "id": "first visit", "group_id": "x"}
    second = {**copy.deepcopy(GOOD_ROWS[10]), "assessment_id": "a-17 ", "id": "second visit", "group_id": "y"}
    file = write_rows(workspace / "rows.jsonl", [*documents, again, twin, follow_up, second])
    code, result = run_stage("prepare", stage_document(workspace / "run", file), workspace)
    assert code == ExitCode.DONE, result.message
    data = workspace / "run/data"
    part_of = {
        json.loads(line)["id"]: part
        for part in ("train", "validation", "test")
        for line in (data / f"{part}.jsonl").read_text().splitlines()
    }
    return part_of, json.loads((data / "report.json").read_bytes())


@pytest.mark.parametrize(
    ("together", "finding"),
    [
        (["original", "encoded again"], "NearDuplicate"),
        (["original", "scaled down"], "NearDuplicate"),
        (["original", "brightened"], "NearDuplicate"),
        (["flat-0", "flat-1", "flat-2"], None),
        ([GOOD_ROWS[5]["id"], f"{GOOD_ROWS[5]['id']}#32"], "RepeatedId"),
        ([GOOD_ROWS[6]["id"], "twin"], "ContradictingAnswers"),
        ([GOOD_ROWS[6]["id"], "twin"], "SamePicture"),
        (["first visit", "second visit", GOOD_ROWS[9]["id"], GOOD_ROWS[10]["id"]], "SamePicture"),
    ],
)
def test_what_would_leak_across_the_split_stays_in_one_part_and_is_reported(
    leaky: tuple[dict[str, str], dict[str, Any]], together: list[str], finding: str | None
) -> None:
    part_of, report = leaky
    assert len({part_of[name] for name in together}) == 1
    found = {one["kind"]: one for one in report["findings"]}
    if finding is not None:
        assert found[finding]["lines"]
        assert found[finding]["remedy"]


def test_shares_are_reported_as_they_came_out(leaky: tuple[dict[str, str], dict[str, Any]]) -> None:
    part_of, report = leaky
    for part, share in report["shares"].items():
        assert share["achieved"] == pytest.approx(list(part_of.values()).count(part) / len(part_of))
    assert {part: share["wanted"] for part, share in report["shares"].items()} == {
        "train": 0.8,
        "validation": 0.1,
        "test": 0.1,
    }


# ------------------------------------------------------------------ whole data sets
def without_groups() -> list[dict[str, Any]]:
    return [{name: value for name, value in one.items() if name != "group_id"} for one in GOOD_ROWS]


DATA_SETS = [
    ("nothing", [], {}, "EmptyDataset", "dataset.source"),
    ("only noise", ["x"] * 9, {}, "UnreadableRows", "maxBadRowsShare"),
    ("too few", GOOD_ROWS, {"quality": {"minExamples": 25}}, "TooFewExamples", "dataset.limit"),
    ("unlabelled", [{**one, "validated": False} for one in GOOD_ROWS], {}, "TooFewValidated", "minValidatedShare"),
    ("a class is missing", GOOD_ROWS[:7], {"quality": {"minExamples": 1, "requiredClasses": ["no_damage"]}}, "TooFewPerClass", "no_damage 0"),
    ("a class nobody knows", GOOD_ROWS, {"quality": {"requiredClasses": ["flood"]}}, "UnknownClass", "requiredClasses"),
    ("thin classes", GOOD_ROWS, {"quality": {"minPerClass": 4}}, "TooFewPerClass", "minPerClass"),
    ("today's model disagrees", [{**one, "control_answer": "?"} for one in GOOD_ROWS], {}, "ControlDisagreesWithLabels", "0.0% of 24"),
    ("today's model is unknown", [{**one, "control_answer": None} for one in GOOD_ROWS], {}, "ControlAccuracyUnknown", "minControlAccuracy"),
    ("one building", [{**one, "group_id": "b"} for one in GOOD_ROWS], {}, "TooFewGroups", "dataset.groupBy"),
    ("a group field with a typo", GOOD_ROWS, {"groupBy": "buildng"}, "GroupFieldAbsent", "'buildng'"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "documents", "dataset", "reason", "said"), DATA_SETS, ids=[case[0] for case in DATA_SETS]
)
def test_a_data_set_that_cannot_teach_is_refused(
    tmp_path: Path, name: str, documents: list[Any], dataset: dict[str, Any], reason: str, said: str
) -> None:
    file = write_rows(tmp_path / "rows.jsonl", documents)
    code, result = run_stage("prepare", stage_document(tmp_path / "run", file, dataset=dataset), tmp_path)
    assert (code, result.reason) == (ExitCode.BAD_INPUT, reason), result.message
    assert said in result.message


def test_rows_without_buildings_are_taken_and_reported(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "rows.jsonl", without_groups())
    code, result = run_stage("prepare", stage_document(tmp_path / "run", file), tmp_path)
    assert code == ExitCode.DONE
    assert "NoGroup" in result.message
