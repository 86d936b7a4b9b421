"""The probe: one stored question with the log-probabilities the trained adapter and the bare base give its answer.

An engine asks it before it becomes ready: if the adapter it serves were silently not applied, its log-probabilities
would be the base's. `probe.json` in the adapter folder:

    {
      "picture": "<base64 of a PNG>",
      "messages": [...],            OpenAI messages; the one picture's image_url.url is "probe:picture"
      "answer": "{\\"damageType\\": ...}",
      "prompt_token_ids": [...],    rendered prompt as token ids, image tokens expanded
      "answer_token_ids": [...],    ids of the answer as they follow the prompt (end token included)
      "adapter_logprobs": [...],    one natural log-probability per answer token, teacher forced
      "base_logprobs": [...]        the same with the adapter switched off
    }

Proof: mean |served - adapter| <= 0.1 * mean |adapter - base|. Pure data.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

PROBE_FILE = "probe.json"
PROBE_PICTURE_URL = "probe:picture"


class Probe(BaseModel):
    """Contents of `probe.json`."""

    model_config = ConfigDict(frozen=True)

    picture: str
    messages: list[dict[str, Any]]
    answer: str
    prompt_token_ids: list[int]
    answer_token_ids: list[int]
    adapter_logprobs: list[float]
    base_logprobs: list[float]

    @property
    def base_distance(self) -> float:
        """Mean distance between adapter and base, in nats per answer token."""
        pairs = zip(self.adapter_logprobs, self.base_logprobs, strict=True)
        return sum(abs(adapter - base) for adapter, base in pairs) / len(self.answer_token_ids)
