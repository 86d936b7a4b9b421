"""What stands in `cutover.json` beside an adapter, and in `training.json`: read by stages that need no torch. Pure data."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

TRAINING_FILE = "training.json"
"""Loss curves and speed, for the registry."""
FACTS_FILE = "cutover.json"


class AdapterFacts(BaseModel):
    """`cutover.json`."""

    model_config = ConfigDict(frozen=True)

    schema_version: int = 1
    task: str
    base_uri: str
    base_revision: str
    base_digest: str
    family: str
    data_digest: str
    targets: str
    quantization: str = "none"
    """How the base was held while the adapter was trained; it is served, and was evaluated, as it is."""
    steps: int
    versions: dict[str, str]
