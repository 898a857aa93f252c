"""Recipes: everything that decides the numbers of a modality, as plain values for the fingerprint.

Light on purpose: no torch, so that a resume that finds everything done starts at once.
"""

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from talstack.extract.config import ExtractConfig, SamplingConfig
from talstack.extract.external import STATISTICS
from talstack.extract.rgbdiff import NUM_DIFFERENCES, SPACING_S
from talstack.io.config import to_dict
from talstack.io.errors import InputError
from talstack.io.manifest import Manifest
from talstack.io.media import decoder_versions

CODE_VERSION = 1  # raise when the code changes the numbers of an unchanged recipe
RGB, RGBDIFF, AUDIO = "rgb", "rgbdiff", "audio"


def build_recipes(
    manifest: Manifest, config: ExtractConfig, *, sampling: SamplingConfig, backbone: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Return {modality: recipe} of what there is to extract.

    Args:
        backbone: what identifies the backbone: its architecture and the hash of its weights.

    Raises:
        InputError: a modality that is neither rgb, rgbdiff, audio nor an external feature of the data set.
    """
    external = sorted(manifest.features["modality"].unique().to_list())
    available = ([RGB, RGBDIFF, AUDIO] if manifest.clips.height else []) + external
    unknown = [name for name in config.modalities if name not in available]
    if unknown:
        raise InputError(f"modality {unknown[0]!r} is not in {manifest.name}; modalities: {', '.join(available)}")
    wanted = config.modalities or tuple(name for name in available if name != RGBDIFF)
    return {modality: _recipe(modality, config, sampling=sampling, backbone=backbone) for modality in wanted}


def _recipe(
    modality: str, config: ExtractConfig, *, sampling: SamplingConfig, backbone: Mapping[str, Any]
) -> dict[str, Any]:
    if modality in (RGB, RGBDIFF):
        recipe: dict[str, Any] = {
            "kind": modality, "sampling": to_dict(sampling), "resize": "squash", "backbone": dict(backbone),
            "torch": version("torch").split("+")[0],
        }  # fmt: skip
        if modality == RGBDIFF:
            recipe["differences"] = {"number": NUM_DIFFERENCES, "spacing_s": round(SPACING_S, 6)}
        if config.precision != "float32":
            recipe["precision"] = config.precision
        if config.fast_decoding:
            recipe["fast_decoding"] = True
    elif modality == AUDIO:
        recipe = {
            "kind": "audio", "statistics": "log-mel mean std max change, level and delay between channels",
            "bands of": "mean of all channels", "rate": config.audio_rate, "mels": config.audio_mels,
        }  # fmt: skip
    else:
        return {"kind": "external", "statistics": list(STATISTICS), "code": CODE_VERSION}
    return {**recipe, "code": CODE_VERSION, "decoders": decoder_versions()}
