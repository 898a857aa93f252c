"""The tuned settings of a run: RUN/tuned.json, written by `talstack tune` and used by `talstack submit`.

The file says what the settings were tuned on (`basis`): the out-of-fold table, the settings of the ensemble, the
recordings and their instances. For anything else it counts as not there.
"""

from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import polars as pl

from talstack.ensemble.config import EnsembleConfig
from talstack.ensemble.decode import DecodeSettings
from talstack.ensemble.heads_run import HeadsRun
from talstack.io.config import to_dict
from talstack.io.errors import InputError
from talstack.io.files import canonical_json, read_json, sha256_text, write_json
from talstack.io.manifest import Manifest

NAME = "tuned.json"
FORMAT_VERSION = 1


def tuning_basis(manifest: Manifest, heads: HeadsRun, config: EnsembleConfig, recordings: Sequence[str]) -> str:
    """Return a hash of everything that tuning on these recordings depends on."""
    known = manifest.instances.filter(pl.col("recording").is_in(list(recordings)))
    parts = {
        "format_version": FORMAT_VERSION,
        "oof": heads.sha256,
        "segment_s": heads.segment_s,
        "config": to_dict(config),
        "recordings": list(recordings),
        "instances": sha256_text(known.write_csv()),
        "actions": list(manifest.actions),
    }
    return sha256_text(canonical_json(parts))


def save_tuned(run: Path, basis: str, systems: dict[str, dict[str, Any]]) -> None:
    """Write RUN/tuned.json.

    Args:
        systems: {system: {"settings": DecodeSettings, and what else is known of it}}.
    """
    plain = {name: {**entry, "settings": asdict(entry["settings"])} for name, entry in systems.items()}
    write_json(run / NAME, {"format_version": FORMAT_VERSION, "basis": basis, "systems": plain})


def load_tuned(run: Path, basis: str) -> dict[str, DecodeSettings]:
    """Return {system: settings} that were tuned on the basis; nothing where the run has none.

    Raises:
        InputError: the file is damaged.
    """
    path = run / NAME
    if not path.is_file():
        return {}
    record = read_json(path)
    if not isinstance(record, dict) or record.get("basis") != basis:
        return {}
    try:
        return {name: settings_from_json(entry["settings"]) for name, entry in record["systems"].items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: not what `talstack tune` writes ({error!r}); delete it or tune again") from error


def stale_warnings(run: Path, basis: str) -> list[str]:
    """Return a warning where the run has tuned settings, but for another basis."""
    path = run / NAME
    if not path.is_file() or read_json(path).get("basis") == basis:
        return []
    return [
        f"{path} was tuned with other settings, recordings or predictions and is not used; run `talstack tune` again "
        "with the same --config and --split"
    ]


def settings_from_json(values: dict[str, Any]) -> DecodeSettings:
    """Return the settings that `asdict` made plain; raises TypeError on unknown or missing ones."""
    unknown = sorted(set(values) ^ {field.name for field in fields(DecodeSettings)})
    if unknown:
        raise TypeError(f"settings {', '.join(unknown)} unknown or missing")
    plain: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
    return DecodeSettings(**plain)
