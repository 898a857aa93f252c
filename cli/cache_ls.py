"""`talstack cache ls`: what is in a feature store, by recipe."""

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from talstack.cli.sizes import age_text, bytes_text

if TYPE_CHECKING:
    from talstack.io.store_contents import ShardEntry, StoreContents
    from talstack.io.store_summary import RecipeSummary


@click.command("ls")
@click.argument("store", type=click.Path(path_type=Path))
@click.option("--shards", "show_shards", is_flag=True, help="List every shard and recorded failure.")
@click.option("--rebuild", is_flag=True, help="Write STORE/index.parquet anew first.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def command(store: Path, show_shards: bool, rebuild: bool, as_json: bool) -> None:
    """List what is in STORE by recipe: kind, backbone, views and modalities, size, age, who uses it.

    A recipe is the settings that features were made with; its folder is named by their hash. Leftovers are temporary
    files of killed workers, quarantined files, and files that no talstack puts there. What the index (see `talstack
    cache index`) knows is not opened, as long as size and time of the file are what they were.
    """
    from talstack.io.store_contents import scan_store
    from talstack.io.store_index import indexed_entries, update_index
    from talstack.io.store_summary import summarise

    if rebuild:
        update_index(scan_store(store), rebuild=True)
    contents = scan_store(store)
    summaries = summarise(contents, read=indexed_entries(contents))
    if as_json:
        click.echo(json.dumps(to_json(contents, summaries, with_shards=show_shards), allow_nan=False))
        return
    _print_table(summaries)
    if show_shards:
        for summary in summaries:
            for entry in summary.shards:
                click.echo(_shard_line(entry, contents.root))
    click.echo(_line(contents, summaries))


def to_json(contents: "StoreContents", summaries: "list[RecipeSummary]", *, with_shards: bool) -> dict[str, Any]:
    """Return the object that --json prints; times are seconds since 1970."""
    recipes = []
    for summary in summaries:
        recipe: dict[str, Any] = {
            name: getattr(summary, name)
            for name in ("recipe", "kind", "backbone", "segment_s", "groups", "num_shards", "num_failures",
                         "num_unreadable", "size_bytes", "oldest_s", "newest_s", "extractions")
        }  # fmt: skip
        if with_shards:
            recipe["shards"] = [_shard_json(entry, contents.root) for entry in summary.shards]
        recipes.append(recipe)
    leftovers = {
        kind: [str(file.path.relative_to(contents.root)) for file in contents.of_kind(kind)]
        for kind in ("temporary", "quarantined", "foreign")
    }  # fmt: skip
    leftovers["interrupted"] = [path.name for path in contents.interrupted]
    return {
        "store": str(contents.root),
        "size_bytes": sum(file.size_bytes for file in contents.files),
        "recipes": recipes,
        "leftovers": leftovers,
    }


def _shard_json(entry: "ShardEntry", root: Path) -> dict[str, Any]:
    recording, view, modality = entry.group or (None, None, None)
    return {
        "path": str(entry.file.path.relative_to(root)), "recording": recording, "view": view, "modality": modality,
        "status": _status(entry), "num_segments": entry.num_segments, "size_bytes": entry.file.size_bytes,
        "changed_s": entry.file.changed_s, "reason": entry.reason,
    }  # fmt: skip


def _status(entry: "ShardEntry") -> str:
    if entry.identity is None:
        return "unreadable"
    return "done" if entry.file.kind == "shard" else "failed"


def _shard_line(entry: "ShardEntry", root: Path) -> str:
    recording, view, modality = entry.group or ("?", "?", "?")
    what = f"{entry.num_segments} segments" if _status(entry) == "done" else entry.reason
    age = age_text(entry.file.changed_s, time.time())
    place = entry.file.path.relative_to(root)
    return (
        f"{_status(entry)}: {recording} {view}/{modality}: {what}, {bytes_text(entry.file.size_bytes)}, {age}: {place}"
    )


def _print_table(summaries: "list[RecipeSummary]") -> None:
    from rich.console import Console
    from rich.table import Table

    now_s = time.time()
    table = Table(
        "recipe", "kind", "backbone", "segment s", "shards by view/modality", "failed", "size", "newest", "oldest",
        "extractions", title="recipes",
    )  # fmt: skip
    for summary in summaries:
        groups = "\n".join(f"{group} {count}" for group, count in summary.groups.items())
        unreadable = f"{summary.num_unreadable} unreadable" if summary.num_unreadable else ""
        table.add_row(
            summary.recipe, summary.kind, summary.backbone, ", ".join(f"{value:g}" for value in summary.segment_s),
            "\n".join(part for part in (groups, unreadable) if part), str(summary.num_failures),
            bytes_text(summary.size_bytes), age_text(summary.newest_s, now_s), age_text(summary.oldest_s, now_s),
            ", ".join(summary.extractions) or "none",
        )  # fmt: skip
    Console(width=max(Console().width, 140)).print(table)  # a pipe has 80 columns, which would cut the names


def _line(contents: "StoreContents", summaries: "list[RecipeSummary]") -> str:
    """Return one line: how much there is, and what should not be."""
    shards = sum(summary.num_shards for summary in summaries)
    failures = sum(summary.num_failures for summary in summaries)
    size = bytes_text(sum(file.size_bytes for file in contents.files))
    text = f"{contents.root}: {len(summaries)} recipes, {shards} shards, {failures} recorded failures, {size}"
    counts = {
        "temporary files": len(contents.of_kind("temporary")),
        "quarantined files": len(contents.of_kind("quarantined")),
        "foreign files": len(contents.of_kind("foreign")),
        "folders of an interrupted gc": len(contents.interrupted),
    }
    leftovers = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
    return f"{text}; leftovers: {leftovers}" if leftovers else text
