"""The stored probe as a request to vLLM, and its reply as log-probabilities. Pure.

vLLM says what it thinks of the tokens of a prompt (`prompt_logprobs`). So the answer is given as the beginning of the
assistant's message, which vLLM is to go on with: teacher forcing over the chat API. The end token, which no such prompt
holds, is the one token of the answer that is not compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cutover.probe import Probe
from cutover_server.inference.probe import check_prompt
from cutover_server.inference.refusal import Unservable


def probe_request(probe: Probe, model: str) -> dict[str, Any]:
    """Body of a chat completion request."""
    return {
        "model": model,
        "messages": [
            *(_with_picture(message, probe.picture) for message in probe.messages),
            {"role": "assistant", "content": probe.answer},
        ],
        "add_generation_prompt": False,
        "continue_final_message": True,
        "temperature": 0,
        "max_tokens": 1,
        "prompt_logprobs": 0,
        "return_token_ids": True,
    }


def probe_logprobs(reply: Mapping[str, Any], probe: Probe) -> list[float]:
    """Natural log-probability of each answer token but the last. Raises Unservable.

    A server that renders, tokenizes or expands the question otherwise than the trainer is found out here.
    """
    told, prompt = reply.get("prompt_logprobs"), reply.get("prompt_token_ids")
    if not isinstance(told, list) or not isinstance(prompt, list) or len(told) != len(prompt):
        raise Unservable(
            "ProbeUnanswered",
            "the server gives no prompt_logprobs and prompt_token_ids; the proof needs vLLM 0.18 or newer",
        )
    answer = probe.answer_token_ids[:-1]
    check_prompt(prompt, [*probe.prompt_token_ids, *answer])
    found = []
    for entry, token in zip(told[len(prompt) - len(answer) :], answer, strict=True):
        one = entry.get(str(token)) if isinstance(entry, dict) else None
        if not isinstance(one, dict) or not isinstance(one.get("logprob"), int | float):
            raise Unservable("ProbeUnanswered", f"the server tells no log-probability of token {token}")
        found.append(float(one["logprob"]))
    return found


def _with_picture(message: Mapping[str, Any], picture: str) -> dict[str, Any]:
    content = message["content"]
    if isinstance(content, str):
        return dict(message)
    url = {"url": f"data:image/png;base64,{picture}"}
    return {
        **message,
        "content": [
            {**part, "image_url": url} if part.get("type") == "image_url" else part for part in content
        ],
    }
