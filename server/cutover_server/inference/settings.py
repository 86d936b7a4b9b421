"""What the command line and the environment say. An argument wins over its variable (`--max-queue`, `CUTOVER_ENGINE_MAX_QUEUE`)."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

FAMILIES = ("llava", "llava_next", "blip2")
DTYPES = ("auto", "fp32", "bf16", "fp16")
ENV_PREFIX = "CUTOVER_ENGINE_"


@dataclass(frozen=True, slots=True)
class ServeSettings:
    base: str
    revision: str = "main"
    adapter: str | None = None
    served_name: str = "model"
    family: str | None = None
    host: str = "0.0.0.0"  # noqa: S104 - a pod serves its own address
    port: int = 8000
    max_queue: int = 32
    max_batch: int = 4
    threads: int = 1
    max_new_tokens: int = 512
    max_pictures: int = 1
    max_body_bytes: int = 32 * 1024 * 1024
    device: str = "auto"
    dtype: str = "auto"
    drain_seconds: float = 60.0
    cache: str | None = None
    allow_unproven: bool = False


@dataclass(frozen=True, slots=True)
class FetchSettings:
    uri: str
    destination: str


@dataclass(frozen=True, slots=True)
class ProveSettings:
    origin: str
    adapter: str
    served_name: str
    base_name: str = "base"
    host: str = "0.0.0.0"  # noqa: S104 - a pod serves its own address
    port: int = 8001


Settings = ServeSettings | FetchSettings | ProveSettings


def read_settings(argv: Sequence[str], env: Mapping[str, str]) -> Settings:
    """Exits with a usage message when the arguments make no sense."""
    if argv[:1] == ["fetch"]:
        return FetchSettings(**vars(_fetch_parser().parse_args(argv[1:])))
    if argv[:1] == ["prove"]:
        return ProveSettings(**vars(_prove_parser().parse_args(argv[1:])))
    parser = _serve_parser(env)
    settings = ServeSettings(**vars(parser.parse_args(argv[1:] if argv[:1] == ["serve"] else argv)))
    for name in ("max_queue", "max_batch", "threads", "max_new_tokens", "max_pictures", "max_body_bytes"):
        if getattr(settings, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, not {getattr(settings, name)}")
    return settings


def _serve_parser(env: Mapping[str, str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cutover-engine",
        description="Serve a vision-language model behind the OpenAI chat API. `cutover-engine fetch URI DEST` copies "
        "a model folder into a cache first; `cutover-engine prove` holds a vLLM pod back until its adapter is proven.",
    )

    def add(name: str, default: Any, text: str, kind: Any = str, **more: Any) -> None:
        value = env.get(ENV_PREFIX + name.upper().replace("-", "_"), default)
        more.setdefault("required", value is None and default is None and name == "base")
        parser.add_argument(
            f"--{name}", default=value, type=kind, help=f"{text} (default: {default})", **more
        )

    add("base", None, "folder, hf://org/name, org/name, s3:// or gs:// of the base or merged model")
    add("revision", "main", "revision of a Hugging Face model")
    add("adapter", None, "folder, s3:// or gs:// of the LoRA adapter")
    add("served-name", "model", "the `model` requests must name")
    add("family", None, "what the base must be", choices=FAMILIES)
    add("host", "0.0.0.0", "address to listen on")  # noqa: S104 - a pod serves its own address
    add("port", 8000, "port to listen on", int)
    add("max-queue", 32, "requests that may wait; one more is answered 429", int)
    add("max-batch", 4, "requests generated together", int)
    add("threads", 1, "CPU threads of torch", int)
    add("max-new-tokens", 512, "most tokens of one answer, whatever the request says", int)
    add("max-pictures", 1, "most pictures of one request", int)
    add("max-body-bytes", 32 * 1024 * 1024, "largest request body", int)
    add("device", "auto", "auto, cpu, cuda, cuda:0 …")
    add("dtype", "auto", "number format of the weights", choices=DTYPES)
    add("drain-seconds", 60.0, "time for admitted requests after SIGTERM", float)
    add("cache", None, "folder for models given as s3:// or gs://")
    parser.add_argument(
        "--allow-unproven",
        action="store_true",
        default=env.get(ENV_PREFIX + "ALLOW_UNPROVEN", "").lower() in ("1", "true"),
        help="serve an adapter without probe.json, unproven",
    )
    return parser


def _fetch_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cutover-engine fetch",
        description="Copy a model folder into a cache, verified, once for all pods.",
    )
    parser.add_argument("uri", help="s3://…, gs://…, file:///… or a folder")
    parser.add_argument("destination", help="path that will be the model folder (a link to verified content)")
    return parser


def _prove_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cutover-engine prove",
        description="Ready only while the vLLM beside it answers the adapter's stored probe as the trained model did.",
    )
    parser.add_argument("--origin", required=True, help="of the server, as http://127.0.0.1:8000")
    parser.add_argument("--adapter", required=True, help="folder of the adapter it serves")
    parser.add_argument("--served-name", required=True, help="the `model` that means the adapter")
    parser.add_argument("--base-name", default="base", help="the `model` that means the base (default: base)")
    parser.add_argument("--host", default="0.0.0.0", help="address to listen on")  # noqa: S104
    parser.add_argument("--port", default=8001, type=int, help="port to listen on (default: 8001)")
    return parser
