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
        decode_s, compute_s, store_s: how long decoding, the network and writing took, seconds; decoding runs beside
            the network. 0 = not measured.
        wall_s: how long the worker was busy with it, seconds.
        attempts: how many workers began it; more than one where workers died.
        runtime: what computed the features of pictures.
        quarantined: whether it failed because it killed its workers.
    """

    recording: str
    view: str
    modality: str
    outcome: Outcome
    num_segments: int = 0
    num_valid: int = 0
    reason: str = ""
    decode_s: float = 0.0
    compute_s: float = 0.0
    store_s: float = 0.0
    wall_s: float = 0.0
    attempts: int = 1
    runtime: str = ""
    quarantined: bool = False
