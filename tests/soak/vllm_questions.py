"""What vLLM is asked in the contract, by pod: name, then the request. Pure.

Answers are greedy, so that they can be compared; pictures are `data:` URLs, the only kind the operator's vLLM takes.
"""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

from PIL import Image

from cutover_server.inference.probe import read_probe
from cutover_server.inference.remote_probe import probe_request
from fakes import sample_models
from fakes.training_example import task
from fakes.vllm_pod import ADAPTERS_PATH, NAME

Request = tuple[str, str, Any]
"""Method, path, body."""
CHAT = "/v1/chat/completions"
ANSWER_TOKENS = 48
PICTURE = sample_models.data_url(sample_models.picture(7, 60, 44))


def chat(**more: Any) -> Request:
    body = {"model": NAME, "messages": messages(PICTURE), "temperature": 0, "max_tokens": ANSWER_TOKENS}
    return "POST", CHAT, {name: value for name, value in {**body, **more}.items() if value is not ...}


def messages(*urls: str, text: str | None = None) -> list[dict[str, Any]]:
    pictures = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    parts = [{"type": "text", "text": task().user_prompt if text is None else text}, *pictures]
    return [{"role": "system", "content": task().system_prompt}, {"role": "user", "content": parts}]


def schema_format(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "damage", "schema": schema, "strict": True}}


def probe_question(adapter: Path, model: str) -> Request:
    """The adapter's stored probe, as it is put to a vLLM pod before the pod becomes ready."""
    probe = read_probe(adapter)
    assert probe is not None
    return "POST", CHAT, probe_request(probe, model)


def turned_picture() -> str:
    """A JPEG that is upright only for those who read its orientation."""
    image = sample_models.picture(3, 64, 32)
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90, exif=exif)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def cut_picture() -> str:
    """The first half of a PNG."""
    whole = sample_models.png(sample_models.picture(7, 60, 44))
    return "data:image/png;base64," + base64.b64encode(whole[: len(whole) // 2]).decode()


def clear_picture() -> str:
    """A PNG whose left half cannot be seen."""
    image = sample_models.picture(5, 48, 48).convert("RGBA")
    image.paste((10, 20, 30, 0), (0, 0, 24, 48))
    return sample_models.data_url(image)


def of_the_adapter() -> dict[str, Request]:
    """Asked of a pod as the operator starts it."""
    schema = task().answer_schema
    long = " ".join(["crack"] * 700)
    return {
        "health": ("GET", "/health", None),
        "version": ("GET", "/version", None),
        "models": ("GET", "/v1/models", None),
        "answer": chat(),
        "answer_logprobs": chat(logprobs=True, top_logprobs=3),
        "answer_chosen_logprobs": chat(logprobs=True),
        "answer_base": chat(model="base", logprobs=True, top_logprobs=3),
        "answer_schema": chat(response_format=schema_format(schema), logprobs=True),
        "answer_no_schema": chat(response_format={"type": "json_object"}),
        "answer_turned_picture": chat(messages=messages(turned_picture()), logprobs=True),
        "answer_clear_picture": chat(messages=messages(clear_picture()), logprobs=True),
        "answer_text_only": chat(messages=messages(), logprobs=True),
        "answer_seeded": chat(temperature=0.7, seed=11, max_completion_tokens=8, max_tokens=...),
        "cut_at_length": chat(max_tokens=5, logprobs=True),
        "cut_schema": chat(max_tokens=5, response_format=schema_format(schema)),
        "stream": chat(stream=True),
        "stream_usage": chat(
            stream=True, stream_options={"include_usage": True}, logprobs=True, top_logprobs=2
        ),
        "stream_cut": chat(stream=True, max_tokens=5),
        "model_unknown": chat(model="no-such-model"),
        "model_missing": chat(model=...),
        "stream_model_unknown": chat(model="no-such-model", stream=True),
        "picture_no_image": chat(
            messages=messages("data:image/png;base64," + base64.b64encode(b"no picture").decode())
        ),
        "picture_no_base64": chat(messages=messages("data:image/png;base64,%%%")),
        "picture_empty": chat(messages=messages("data:image/png;base64,")),
        "picture_cut": chat(messages=messages(cut_picture())),
        "pictures_two": chat(messages=messages(PICTURE, PICTURE)),
        "picture_http": chat(messages=messages("http://127.0.0.1:1/house.png")),
        "picture_https_elsewhere": chat(messages=messages("https://pictures.example/house.png")),
        "picture_file": chat(messages=messages("file:///etc/hostname")),
        "stream_picture_no_image": chat(
            stream=True,
            messages=messages("data:image/png;base64," + base64.b64encode(b"no picture").decode()),
        ),
        "prompt_too_long": chat(messages=messages(PICTURE, text=long)),
        "answer_too_long": chat(max_tokens=5000),
        "placeholder_in_text": chat(messages=messages(PICTURE, text="<image> Assess this.")),
        "messages_missing": chat(messages=...),
        "messages_empty": chat(messages=[]),
        "role_unknown": chat(messages=[{"role": "surveyor", "content": "Assess this."}]),
        "temperature_high": chat(temperature=9),
        "max_tokens_zero": chat(max_tokens=0),
        "top_logprobs_many": chat(logprobs=True, top_logprobs=21),
        "schema_broken": chat(response_format=schema_format({"type": "no-such-type"})),
        "response_format_unknown": chat(response_format={"type": "xml"}),
        "body_no_json": ("POST", CHAT, "{no json"),
        "body_list": ("POST", CHAT, []),
        "path_unknown": ("GET", "/v1/nothing", None),
        "method_wrong": ("GET", CHAT, None),
        "adapter_load_closed": load("second", "damage"),
        "metrics": ("GET", "/metrics", None),
    }


def load(name: str, adapter: str) -> Request:
    return (
        "POST",
        "/v1/load_lora_adapter",
        {"lora_name": name, "lora_path": f"{ADAPTERS_PATH}/{adapter}"},
    )
