"""What the plan hands to the engine: shards to make, and by what network. Needs no torch."""

from dataclasses import dataclass
from pathlib import Path

from talstack.extract.card import BackboneSource
from talstack.io.errors import TalstackError
from talstack.io.files import canonical_json
from talstack.io.shard import ShardKey


@dataclass(frozen=True, slots=True)
class QuantizedNetwork:
    """An int8 network that lies in the store (`talstack.extract.calibration`).

    Attributes:
        modality: "rgb" or "rgbdiff".
        path: its file.
        sha256: of the file's content.
        runtime: "onnxruntime" or "openvino"; they round differently, so it is part of the recipe.
    """

    modality: str
    path: Path
    sha256: str
    runtime: str


@dataclass(frozen=True, slots=True)
class NetworkOrder:
    """What computes the features of a worker.

    Attributes:
        source: the backbone.
        runtime: its name; "auto" takes the fastest.
        precision: of the arithmetic.
        quantized: the int8 networks, where that is the precision.
        threads: of the computation.
    """

    source: BackboneSource
    runtime: str = "auto"
    precision: str = "float32"
    threads: int = 1
    quantized: tuple[QuantizedNetwork, ...] = ()

    @property
    def name(self) -> str:
        """What tells one order from another; an untrained network's identity says nothing of its classifiers."""
        card = self.source.card
        shape = [card.frames_per_segment, card.frame_size, len(card.actions), len(card.scenes)]
        what = [str(self.source.folder), dict(self.source.identity), shape]
        quantized = [[one.modality, one.sha256, one.runtime] for one in self.quantized]
        return canonical_json([*what, self.runtime, self.precision, self.threads, quantized])


@dataclass(frozen=True, slots=True)
class ExtractionItem:
    """Shards to make from the same clips, with all that a worker process needs.

    Attributes:
        keys: of one recording and of one view and its pieces: all from pictures, or one of another kind.
        networks: what computes features of pictures, one per backbone.
        threads: of the computation.
    """

    keys: tuple[ShardKey, ...]
    store_root: Path
    manifest_folder: Path
    networks: tuple[NetworkOrder, ...]
    batch_segments: int
    threads: int

    def network_of(self, key: ShardKey) -> NetworkOrder:
        """Return what computes a shard of pictures.

        Raises:
            TalstackError: none of the networks is its recipe's backbone.
        """
        wanted = dict(key.recipe["backbone"])
        for network in self.networks:
            if network.source.identity == wanted:
                return network
        raise TalstackError(f"{key}: features of pictures need a backbone")
