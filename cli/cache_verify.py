"""`talstack cache verify`: whether every file of a feature store is what it should be."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from talstack.cli.jobs import jobs_option

if TYPE_CHECKING:
    from talstack.io.store_check import BadFile, StoreCheck
    from talstack.io.store_contents import StoreContents


@click.command("verify")
@click.argument("store", type=click.Path(path_type=Path))
@click.option("--deep", is_flag=True, help="Also read all content: checksums, segment times, masked rows.")
@click.option("--quarantine", "move_out", is_flag=True, help="Move bad files to STORE/quarantine/; deletes nothing.")
@jobs_option("Threads of a deep check")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of lines.")
def command(store: Path, deep: bool, move_out: bool, jobs: int, as_json: bool) -> None:
    """Check that every file of STORE opens, holds what a shard holds, and lies where its settings put it.

    Bad files are listed with the reason. After --quarantine the next `talstack extract` makes them again. Exit codes:
    0 all is well, 1 bad files were found (moved or not), 2 wrong usage or no such folder.
    """
    from talstack.io.store_check import quarantine
    from talstack.io.store_contents import scan_store

    contents = scan_store(store)
    check = _check(contents, deep=deep, jobs=jobs)
    bad = quarantine(contents, check.bad) if move_out else list(check.bad)
    if as_json:
        click.echo(json.dumps(to_json(contents, check, bad, deep=deep)))
    else:
        _print(contents, check, bad, deep=deep)
    if bad:
        raise click.exceptions.Exit(1)


def _check(contents: "StoreContents", *, deep: bool, jobs: int) -> "StoreCheck":
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

    from talstack.io.store_check import CHECKED, check_store

    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task("checking", total=len(contents.of_kind(*CHECKED)))
        return check_store(contents, deep=deep, jobs=jobs, report=lambda: progress.advance(bar))


def to_json(contents: "StoreContents", check: "StoreCheck", bad: "list[BadFile]", *, deep: bool) -> dict[str, Any]:
    """Return the object that --json prints; paths are relative to the store."""
    root = contents.root
    return {
        "store": str(root),
        "deep": deep,
        "num_checked": check.num_checked,
        "bad": [
            {
                "path": str(found.path.relative_to(root)),
                "reason": found.reason,
                "moved_to": None if found.moved_to is None else str(found.moved_to.relative_to(root)),
            }
            for found in bad
        ],
        "other_format": [
            {"path": str(found.path.relative_to(root)), "reason": found.reason} for found in check.other_format
        ],
        "foreign": [str(path.relative_to(root)) for path in check.foreign],
        "interrupted": [path.name for path in contents.interrupted],
    }


def _print(contents: "StoreContents", check: "StoreCheck", bad: "list[BadFile]", *, deep: bool) -> None:
    root = contents.root
    for found in bad:
        moved = f" (moved to {found.moved_to.relative_to(root)})" if found.moved_to else ""
        click.echo(f"bad: {found.path.relative_to(root)}: {found.reason}{moved}")
    for found in check.other_format:
        click.echo(f"not judged: {found.path.relative_to(root)}: {found.reason}")
    for path in check.foreign:
        click.echo(f"note: {path.relative_to(root)}: not a file that talstack puts here", err=True)
    for path in contents.interrupted:
        click.echo(
            f"note: {path.name}: left by a gc that was stopped; `talstack cache gc --delete` sees to it", err=True
        )
    counts = check.num_checked
    depth = "all content" if deep else "names and headers"
    click.echo(
        f"{root}: {counts['shard']} shards, {counts['failure']} recorded failures, {depth} checked: "
        f"{f'{len(bad)} bad files' if bad else 'nothing to object to'}"
    )
