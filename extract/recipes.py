"""Recipes: everything that decides the numbers of a modality, as plain values for the fingerprint.

Light on purpose: no torch, so that a resume that finds everything done starts at once.
"""

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from talstack.extract.config import ExtractConfig, SamplingConfig
from talstack.extract.external import STATISTICS
from talstack.io.config import to_dict
from talstack.io.errors import InputError
from talstack.io.manifest import Manifest
from talstack.io.media import decoder_versions

CODE_VERSION = 1  # raise when the code changes the numbers of an unchanged recipe
RGB, AUDIO = "rgb", "audio"


def build_recipes(
    manifest: Manifest, config: ExtractConfig, *, sampling: SamplingConfig, backbone: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Return {modality: recipe} of what there is to extract.

    Args:
        backbone: what identifies the backbone: its architecture and the hash of its weights.

    Raises:
        InputError: a modality that is neither rgb, audio nor an external feature of the data set.
    """
    external = sorted(manifest.features["modality"].unique().to_list())
    available = ([RGB, AUDIO] if manifest.clips.height else []) + external
    unknown = [name for name in config.modalities if name not in available]
    if unknown:
        raise InputError(f"modality {unknown[0]!r} is not in {manifest.name}; modalities: {', '.join(available)}")
    recipes: dict[str, dict[str, Any]] = {}
    for modality in config.modalities or available:
        if modality == RGB:
            recipes[modality] = {
                "kind": "rgb",
                "sampling": to_dict(sampling),
                "resize": "squash",
                "backbone": dict(backbone),
                "torch": version("torch").split("+")[0],
            }
        elif modality == AUDIO:
            recipes[modality] = {
                "kind": "audio", "statistics": "log-mel mean std max change", "rate": config.audio_rate,
                "mels": config.audio_mels,
            }  # fmt: skip
        else:
            recipes[modality] = {"kind": "external", "statistics": list(STATISTICS)}
        recipes[modality]["code"] = CODE_VERSION
        if modality in (RGB, AUDIO):
            recipes[modality]["decoders"] = decoder_versions()
    return recipes
