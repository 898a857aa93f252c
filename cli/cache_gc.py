"""`talstack cache gc`: what in a feature store nothing refers to, and its removal."""

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from talstack.cli.removal import removal_options
from talstack.cli.sizes import bytes_text

if TYPE_CHECKING:
    from talstack.io.store_contents import StoreContents
    from talstack.io.store_gc import Garbage, GcPlan


@click.command("gc")
@click.argument("store", type=click.Path(path_type=Path))
@click.option(
    "--data",
    "data_folders",
    multiple=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Data folder in use; name every one. Finds shards superseded by newer ones (hashes new clips).",
)
@click.option(
    "--run",
    "runs",
    multiple=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Refuse to go on if the store has no record of the extraction this run was made from.",
)
@removal_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of lines.")
def command(  # noqa: PLR0913 - one parameter per option
    store: Path, data_folders: tuple[Path, ...], runs: tuple[Path, ...], older_than_days: float, delete: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """Say what in STORE nothing refers to, and with --delete remove it.

    Garbage are recipes that no record in STORE/extractions names, shards superseded by others of the same recording,
    view and modality (only with --data), temporary files and journals of workers more than a day old, and the
    quarantine. A recipe that a record names stays. To give up an extraction, remove its record from STORE/extractions
    first. Safe beside a running `talstack extract`.
    """
    from talstack.io.manifest import Manifest
    from talstack.io.store_contents import scan_store
    from talstack.io.store_gc import check_runs, collect_garbage, plan_gc, remove_empty_quarantine, restore_interrupted

    contents = scan_store(store)
    check_runs(contents, [(run, _extraction_of(run)) for run in runs])
    if delete and restore_interrupted(contents):
        contents = scan_store(store)
    plan = plan_gc(contents, [Manifest.load(data) for data in data_folders], older_than_days=older_than_days)
    removed = collect_garbage(contents, plan) if delete else None
    if delete:
        remove_empty_quarantine(store)
    if as_json:
        click.echo(json.dumps(to_json(contents, plan, removed)))
    else:
        _print(contents, plan, removed)


def _extraction_of(run: Path) -> str:
    """Return the name of the extraction that a run's heads were trained on."""
    from talstack.io.errors import InputError
    from talstack.io.files import read_json

    record = read_json(run / "heads.json")
    name = record.get("extraction") if isinstance(record, dict) else None
    if not isinstance(name, str):
        raise InputError(f"{run / 'heads.json'}: does not name its extraction; run `talstack heads` again")
    return name


def to_json(contents: "StoreContents", plan: "GcPlan", removed: "list[Garbage] | None") -> dict[str, Any]:
    """Return the object that --json prints; paths are relative to the store; `removed` is null in a dry run."""
    return {
        "store": str(contents.root),
        "dry_run": removed is None,
        "garbage": _items(plan.garbage, contents.root),
        "garbage_by_reason": _by_reason(plan.garbage),
        "removed": None if removed is None else _items(removed, contents.root),
        "removed_by_reason": None if removed is None else _by_reason(removed),
        "kept_recipes": plan.kept_recipes,
        "num_young": plan.num_young,
        "num_unjudged": plan.num_unjudged,
        "foreign": [str(path.relative_to(contents.root)) for path in plan.foreign],
        "interrupted": [path.name for path in contents.interrupted],
    }


def _items(items: "tuple[Garbage, ...] | list[Garbage]", root: Path) -> list[dict[str, Any]]:
    return [
        {"path": str(item.file.path.relative_to(root)), "reason": item.reason, "size_bytes": item.file.size_bytes}
        for item in items
    ]


def _by_reason(items: "tuple[Garbage, ...] | list[Garbage]") -> dict[str, dict[str, int]]:
    counts, sizes = Counter(item.reason for item in items), Counter[str]()
    for item in items:
        sizes[item.reason] += item.file.size_bytes
    return {reason: {"files": counts[reason], "size_bytes": sizes[reason]} for reason in sorted(counts)}


def _print(contents: "StoreContents", plan: "GcPlan", removed: "list[Garbage] | None") -> None:
    verb = "would remove" if removed is None else "removed"
    items = plan.garbage if removed is None else removed
    for item in items:
        click.echo(f"{verb}: {item.file.path.relative_to(contents.root)}: {item.reason}")
    for reason, count in _by_reason(items).items():
        click.echo(f"{verb}, {reason}: {count['files']} files, {bytes_text(count['size_bytes'])}")
    for recipe, reason in plan.kept_recipes.items():
        click.echo(f"kept: {recipe}: {reason}", err=True)
    for path in plan.foreign:
        click.echo(f"kept: {path.relative_to(contents.root)}: not a file that talstack puts here", err=True)
    if plan.num_young:
        click.echo(f"kept: {plan.num_young} files that nothing refers to are too recent; see --older-than", err=True)
    if plan.num_unjudged:
        click.echo(f"kept: {plan.num_unjudged} shards and failures that no --data folder speaks of", err=True)
    if removed is None and contents.interrupted:
        click.echo(
            f"note: {len(contents.interrupted)} folders of a gc that was stopped; --delete sees to them", err=True
        )
    size = bytes_text(sum(item.file.size_bytes for item in items))
    hint = "; --delete removes them" if removed is None and items else ""
    click.echo(f"{contents.root}: {verb} {len(items)} files, {size}{hint}")
