"""`talstack prune`: heads of past settings in a run's folder, and their removal."""

import json
from pathlib import Path

import click

from talstack.cli.removal import removal_options
from talstack.cli.sizes import bytes_text


@click.command("prune")
@click.argument("run", type=click.Path(path_type=Path, file_okay=False))
@click.option("--ablations", is_flag=True, help="Give up results of old ablations too, and heads that they alone use.")
@removal_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of lines.")
def command(run: Path, ablations: bool, older_than_days: float, delete: bool, as_json: bool) -> None:
    """Say which heads in RUN nothing uses any more, and with --delete remove them.

    Heads of every setting that was ever tried stay in RUN/heads, so that going back to it fits nothing. In use is what
    RUN/heads.json names and what an ablation in RUN/ablation names. The rest can be made again from the store. Not
    while `talstack heads` or `talstack ablate` are at work in RUN.
    """
    from talstack.heads.prune import find_leftovers, remove, totals

    leftovers, num_young = find_leftovers(run, older_than_days=older_than_days, ablations=ablations)
    if delete:
        remove(leftovers)
    if as_json:
        items = [
            {"path": str(one.path.relative_to(run)), "reason": one.reason, "size_bytes": one.size_bytes}
            for one in leftovers
        ]
        value = {"run": str(run), "dry_run": not delete, "leftovers": items, "by_reason": totals(leftovers)}
        click.echo(json.dumps({**value, "num_young": num_young}))
        return
    verb = "removed" if delete else "would remove"
    for one in leftovers:
        click.echo(f"{verb}: {one.path.relative_to(run)}: {one.reason}, {bytes_text(one.size_bytes)}")
    if num_young:
        click.echo(f"kept: {num_young} that nothing uses are too recent; see --older-than", err=True)
    size = bytes_text(sum(one.size_bytes for one in leftovers))
    hint = "; --delete removes them" if leftovers and not delete else ""
    click.echo(f"{run}: {verb} {len(leftovers)} leftovers, {size}{hint}")
