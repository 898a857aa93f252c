"""What became of a shard; apart from the engine so that reading a finished store needs no torch."""

from dataclasses import dataclass
from typing import Literal

Outcome = Literal["done", "cached", "failed"]


@dataclass(frozen=True, slots=True)
class StatusRow:
    """What became of one shard.

    Attributes:
        num_segments, num_valid: rows of the shard, and how many hold features; of shards made in this run.
        reason: why it failed, or what is masked and why.
    """

    recording: str
    view: str
    modality: str
    outcome: Outcome
    num_segments: int = 0
    num_valid: int = 0
    reason: str = ""
