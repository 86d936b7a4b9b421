"""Asks a real vLLM, on this machine's CPU, what the contract asks, and keeps its answers as tests/fixtures/vllm.

    python -m soak.vllm_contract [--venv build/vllm/venv] [--into tests/fixtures/vllm]

vLLM is started with the command line and the environment that the operator renders for a pod, less what `CHANGED` and
`ADDED` name. Three pods one after the other: the trained adapter; an adapter of another architecture's prefix, beside
which one with vision targets is loaded; the trained adapter in the precision vLLM chooses by itself.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fakes import vllm_pod
from fakes.free_ports import free_port
from fakes.vllm_recording import FOLDER, SETUP, Exchange, settled, write, write_document
from soak import vllm_questions as questions
from soak.vllm_questions import Request

ROOT = Path(__file__).resolve().parents[2]
LOGS = ROOT / "build/vllm/logs"
ENGINE_DIED = "EngineCore encountered an issue"
START_SECONDS = 1800.0
ANSWER_SECONDS = 300.0
FLOAT32 = ["--dtype", "float32"]
ADDED_ARGS = {
    "--enforce-eager": "nothing is compiled for a few dozen answers",
    "--dtype float32": "left to itself vLLM halves the test model's precision, and four decimals could not be compared",
}
ADDED_ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": ("1", "GiB of memory for the cache; a GPU has its own"),
    "VLLM_CPU_OMP_THREADS_BIND": ("nobind", "the machine's cores are shared"),
    "OMP_NUM_THREADS": ("1", "the machine's cores are shared"),
    "CUDA_VISIBLE_DEVICES": ("", "there is no GPU"),
    "VLLM_HOST_IP": ("127.0.0.1", "its processes talk over loopback"),
}
CHANGED = {
    "--host": "127.0.0.1 instead of 0.0.0.0",
    "--port": "a free one",
    "/models, /cache, /tmp": "a folder of this machine stands for the pod's root",
}
RUNTIME_LOADING = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}
"""For the second pod only; the operator's vLLM loads adapters at its start and never again."""
PROOFS = {"damage": "proven", "bare": "AdapterProofFailed (65)", "half": "proven"}
"""How the proof beside each pod must end."""
PACKAGES = ("vllm-cpu", "torch", "transformers", "xgrammar")


class CouldNotRun(Exception):
    """The recording did not take place; nothing was written."""


class Pod:
    """A vLLM process and the folder that stands for its file system."""

    def __init__(self, origin: str, root: Path) -> None:
        self.origin = origin
        self._root = root

    def ask(self, name: str, request: Request) -> Exchange:
        method, path, body = request
        raw = None if body is None else (body if isinstance(body, str) else json.dumps(body)).encode()
        if raw is not None:
            raw = raw.replace(b"/models/", f"{self._root}/models/".encode())
        sent = urllib.request.Request(
            self.origin + path, data=raw, method=method, headers={"content-type": "application/json"}
        )
        try:
            with urllib.request.urlopen(sent, timeout=ANSWER_SECONDS) as response:
                status, kind, text = response.status, response.headers.get_content_type(), response.read()
        except urllib.error.HTTPError as error:
            status, kind, text = error.code, error.headers.get_content_type(), error.read()
        except OSError as error:
            raise CouldNotRun(f"no answer to {name} ({error}); see {LOGS}") from error
        told = settled(text.decode(), str(self._root))
        if ENGINE_DIED in told:
            raise CouldNotRun(f"the engine died of {name}; see {LOGS}")
        reply = json.loads(told) if kind == "application/json" else told
        print(f"  {name:28} {status} {kind} {told[:100]!r}", flush=True)
        return Exchange(name, method, path, body, status, kind, reply)


@contextlib.contextmanager
def running(
    venv: Path, root: Path, adapter: str, *, float32: bool = True, more: dict[str, str] | None = None
) -> Iterator[Pod]:
    """vLLM as the operator starts it, once it says that it is healthy."""
    pod, port = vllm_pod.rendered(adapter), free_port()
    args = ["127.0.0.1" if one == "0.0.0.0" else one for one in pod.args]
    args[args.index("--port") + 1] = str(port)
    line = [str(venv / "bin" / pod.command[0]), *pod.command[1:], *args, "--enforce-eager"]
    line += FLOAT32 if float32 else []
    environment = {name: value for name, (value, _) in ADDED_ENVIRONMENT.items()}
    for name, value in pod.environment.items():
        environment[name] = f"{root}{value}" if value.startswith("/") else value
    for name in ("PATH", "LANG"):
        environment[name] = os.environ.get(name, "")
    environment["PATH"] = f"{venv / 'bin'}:{environment['PATH']}"
    log = LOGS / f"{adapter}{'' if float32 else '-half'}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        process = subprocess.Popen(
            [one.replace("/models/", f"{root}/models/") for one in line],
            env={**environment, **(more or {})},
            cwd=root,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    origin = f"http://127.0.0.1:{port}"
    try:
        _wait_healthy(origin, process, log)
        yield Pod(origin, root)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait_healthy(origin: str, process: subprocess.Popen[bytes], log: Path) -> None:
    started = time.monotonic()
    while True:
        try:
            with urllib.request.urlopen(f"{origin}/health", timeout=5):
                print(f"healthy after {time.monotonic() - started:.0f} s", flush=True)
                return
        except OSError:
            time.sleep(1)
        if process.poll() is not None or time.monotonic() - started > START_SECONDS:
            tail = log.read_text(errors="replace")[-6000:]
            raise CouldNotRun(f"vLLM did not become healthy (exit code {process.poll()}):\n{tail}")


def proof_of(pod: Pod, adapter: Path) -> str:
    """How `cutover-engine prove` ends beside the pod: `proven`, or the reason it gives up for."""
    port = free_port()
    line = [sys.executable, "-m", "cutover_server.inference.main", "prove", "--origin", pod.origin]
    line += ["--adapter", str(adapter), "--served-name", vllm_pod.NAME, "--host", "127.0.0.1"]
    with subprocess.Popen([*line, "--port", str(port)], stdout=subprocess.PIPE, text=True) as process:
        try:
            while process.poll() is None:
                with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz"):
                    return "proven"
                time.sleep(0.2)
        finally:
            process.terminate()
        assert process.stdout is not None
        reasons = [json.loads(told).get("reason") for told in process.stdout]
        return f"{next(filter(None, reasons), 'silence')} ({process.returncode})"


def metric_names(exposition: str) -> dict[str, dict[str, Any]]:
    """Type and labels of vLLM's own metrics, and the models they name."""
    found: dict[str, dict[str, Any]] = {}
    for line in exposition.splitlines():
        if line.startswith("# TYPE vllm:"):
            _, _, name, kind = line.split(" ")
            found[name] = {"kind": kind, "labels": set(), "models": set()}
        sample = re.match(r"(vllm:\w+)\{(.*)\} ", line)
        if sample is None:
            continue
        own = next(
            (
                name
                for name in (sample[1], re.sub(r"_(bucket|count|sum|created|total)$", "", sample[1]))
                if name in found
            ),
            None,
        )
        if own is not None:
            labels = dict(re.findall(r'(\w+)="([^"]*)"', sample[2]))
            found[own]["labels"] |= labels.keys()
            found[own]["models"] |= {labels[name] for name in ("model_name",) if name in labels}
    return {
        name: {key: sorted(value) if isinstance(value, set) else value for key, value in one.items()}
        for name, one in sorted(found.items())
    }


def record(venv: Path) -> tuple[dict[str, Exchange | dict[str, Any]], dict[str, str]]:
    """Every file's content by its name; how the operator's proof container ended beside each adapter."""
    kept: dict[str, Exchange | dict[str, Any]] = {}
    proofs: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="vllm-contract-") as scratch:
        root = Path(scratch).resolve()
        (root / "tmp").mkdir()
        (root / "cache").mkdir()
        vllm_pod.make_files(root)
        adapters = {
            kind: vllm_pod.under(root, f"{vllm_pod.ADAPTERS_PATH}/{kind}") for kind in vllm_pod.ADAPTERS
        }
        name, probe = vllm_pod.NAME, questions.probe_question
        with running(venv, root, "damage") as pod:
            for key, request in questions.of_the_adapter().items():
                exchange = pod.ask(key, request)
                kept[key] = exchange if key != "metrics" else metric_names(exchange.reply)
            kept["probe_adapter"] = pod.ask("probe_adapter", probe(adapters["damage"], name))
            kept["probe_base"] = pod.ask("probe_base", probe(adapters["damage"], "base"))
            proofs["damage"] = proof_of(pod, adapters["damage"])
        with running(venv, root, "bare", more=RUNTIME_LOADING) as pod:
            kept["bare_models"] = pod.ask("bare_models", ("GET", "/v1/models", None))
            kept["bare_probe"] = pod.ask("bare_probe", probe(adapters["damage"], name))
            proofs["bare"] = proof_of(pod, adapters["bare"])
            for key, request in {
                "load_vision": questions.load("vision-7", "vision"),
                "load_twice": questions.load("vision-7", "vision"),
                "load_nothing": questions.load("nothing", "nothing"),
                "vision_probe": probe(adapters["vision"], "vision-7"),
                "vision_probe_base": probe(adapters["vision"], "base"),
            }.items():
                kept[key] = pod.ask(key, request)
        with running(venv, root, "damage", float32=False) as pod:
            kept["half_probe"] = pod.ask("half_probe", probe(adapters["damage"], name))
            proofs["half"] = proof_of(pod, adapters["damage"])
    kept[SETUP] = setup(venv)
    return kept, proofs


def setup(venv: Path) -> dict[str, Any]:
    pod = vllm_pod.rendered()
    told = subprocess.run(
        [
            venv / "bin" / "python",
            "-c",
            "import importlib.metadata as m, json, sys; print(json.dumps({n: m.version(n) for n in sys.argv[1:]}))",
            *PACKAGES,
        ],
        check=True,
        capture_output=True,
        text=True,
    )
    return {
        "versions": {**json.loads(told.stdout), "python": platform.python_version()},
        "command": pod.command,
        "args": pod.args,
        "environment": pod.environment,
        "changed": CHANGED,
        "added_args": ADDED_ARGS,
        "added_environment": {name: list(told) for name, told in ADDED_ENVIRONMENT.items()},
        "for_the_second_pod_only": RUNTIME_LOADING,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="Record a real vLLM's answers")
    parser.add_argument("--venv", type=Path, default=ROOT / "build/vllm/venv")
    parser.add_argument("--into", type=Path, default=FOLDER)
    options = parser.parse_args()
    try:
        kept, proofs = record(options.venv.resolve())
    except CouldNotRun as problem:
        print(problem, file=sys.stderr)
        return 2
    shutil.rmtree(options.into, ignore_errors=True)
    options.into.mkdir(parents=True)
    for name, content in kept.items():
        if isinstance(content, Exchange):
            write(options.into, content)
        else:
            write_document(options.into, name, content)
    print(f"{len(kept)} files in {options.into}")
    for adapter, wanted in PROOFS.items():
        print(f"{'PASS' if proofs[adapter] == wanted else 'FAIL'} proof beside {adapter}: {proofs[adapter]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
