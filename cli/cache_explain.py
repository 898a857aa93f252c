"""`talstack cache explain`: whether features are served, and if not, which field made it a miss."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from talstack.io.shard import ShardKey
    from talstack.io.store_explain import Explanation


@click.command("explain")
@click.argument("store", type=click.Path(path_type=Path))
@click.argument("data", type=click.Path(path_type=Path, file_okay=False))
@click.argument("recording")
@click.argument("view")
@click.option("--modality", "modalities", multiple=True, help="Only rgb, audio or an external feature's name.")
@click.option("--backbone", type=click.Path(path_type=Path), help="Folder made by `talstack finetune`.")
@click.option("--config", "config_file", type=click.Path(path_type=Path), help="TOML file; see `talstack init`.")
@click.option("--name", help="Name of the extraction [the data set's name].")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of lines.")
def command(  # noqa: PLR0913 - one parameter per option
    store: Path, data: Path, recording: str, view: str, modalities: tuple[str, ...], backbone: Path | None,
    config_file: Path | None, name: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Say whether STORE serves the features of RECORDING and VIEW of DATA, and if not, why.

    Give the options that you give `talstack extract`. For a miss, the nearest shard is named, with every field in
    which it differs from the one that is asked for. VIEW is `external` for features that come from a file. Exit codes:
    0 all are served, 1 some are not, 2 wrong usage, or DATA has no such recording or view.
    """
    from talstack.io.store_contents import scan_store
    from talstack.io.store_explain import explain

    contents = scan_store(store)
    keys = _keys(store, data, recording, view, modalities=modalities, backbone=backbone, config=config_file, name=name)
    found = explain(contents, keys)
    if as_json:
        click.echo(json.dumps({"store": str(store), "shards": [to_json(item, store) for item in found]}))
    else:
        for item in found:
            _print(item, store)
    if any(item.outcome != "served" for item in found):
        raise click.exceptions.Exit(1)


def _keys(
    store: Path, data: Path, recording: str, view: str, *, modalities: tuple[str, ...], backbone: Path | None,
    config: Path | None, name: str | None,
) -> "list[ShardKey]":  # fmt: skip
    """Return the keys of the recording and view under these settings."""
    from talstack.cli.config import load_config
    from talstack.extract.plan import plan_extraction
    from talstack.io.errors import InputError

    settings = load_config(config)
    imported = _imported_keys(store, data, name)
    asked = tuple(modality for modality in modalities if modality not in {key.modality for key in imported})
    keys = [key for key in imported if key.modality in modalities or not modalities]
    if asked or not modalities:
        plan = plan_extraction(
            data, store, config=settings.extract, sampling=settings.sampling, backbone=backbone, modalities=asked,
            name=name,
        )  # fmt: skip
        keys += plan.keys
    of_recording = [key for key in keys if key.recording == recording]
    found = [key for key in of_recording if key.view == view]
    if not found:
        if not of_recording:
            raise InputError(f"{data}: these settings ask for nothing of recording {recording!r}; is the name right?")
        there = sorted({f"{key.view}/{key.modality}" for key in of_recording})
        wanted = f" with modality {', '.join(modalities)}" if modalities else ""
        raise InputError(
            f"{data}: these settings ask for nothing of recording {recording!r}, view {view!r}{wanted}; of this "
            f"recording they ask for: {', '.join(there)}"
        )
    return found


def _imported_keys(store: Path, data: Path, name: str | None) -> "list[ShardKey]":
    """Return the keys of what `talstack cache import` brought in, which only the extraction's record knows."""
    from dataclasses import replace

    from talstack.io.extraction import Extraction, shard_keys
    from talstack.io.manifest import Manifest
    from talstack.io.store import ClipHashes

    manifest = Manifest.load(data)
    if not (store / "extractions" / f"{name or manifest.name}.json").is_file():
        return []
    record = Extraction.load(store, name or manifest.name)
    recipes = {modality: record.recipes[modality] for modality in record.imported}
    alone = replace(record, recipes=recipes, views=())
    return [key for key in shard_keys(manifest, alone, ClipHashes(store)) if key.modality in record.imported]


def to_json(item: "Explanation", store: Path) -> dict[str, Any]:
    """Return one explanation as --json prints it; paths are relative to the store."""
    return {
        "recording": item.key.recording,
        "view": item.key.view,
        "modality": item.key.modality,
        "outcome": item.outcome,
        "path": str(item.path.relative_to(store)),
        "reason": item.reason,
        "nearest": None if item.nearest is None else str(item.nearest.file.path.relative_to(store)),
        "nearest_reason": "" if item.nearest is None else item.nearest.reason,
        "differences": [
            {"field": found.field, "stored": found.stored, "wanted": found.wanted} for found in item.differences
        ],
        "num_unreadable": item.num_unreadable,
    }


def _print(item: "Explanation", store: Path) -> None:
    place = item.path.relative_to(store)
    if item.outcome != "missing":
        click.echo(f"{item.key}: {item.outcome}: {item.reason or place}")
        return
    click.echo(f"{item.key}: missing: {place}")
    if item.nearest is None:
        click.echo("  the store has no readable shard at all; run `talstack extract`")
    else:
        what = "shard" if item.nearest.file.kind == "shard" else "recorded failure"
        click.echo(f"  nearest {what}: {item.nearest.file.path.relative_to(store)}; it differs in")
        for found in item.differences:
            click.echo(f"    {found.field}: stored {json.dumps(found.stored)}, wanted {json.dumps(found.wanted)}")
    if item.num_unreadable:
        click.echo(f"  {item.num_unreadable} files were passed over as unreadable; run `talstack cache verify`")
