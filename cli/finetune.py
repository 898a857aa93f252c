"""`talstack finetune`: train the TSM backbone on a data set's training recordings."""

from pathlib import Path

import click

from talstack.cli.jobs import jobs_option


@click.command("finetune")
@click.argument("data", type=click.Path(path_type=Path, file_okay=False))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder for the backbone and its card.")
@click.option("--config", "config_file", type=click.Path(path_type=Path), help="TOML file; see `talstack init`.")
@click.option(
    "--cross-fit",
    type=click.IntRange(min=2),
    metavar="K",
    help="K backbones, each trained without its share of the folds, so that every recording has one that never saw it.",
)
@jobs_option("Processes that decode frames")
def command(data: Path, out: Path, config_file: Path | None, cross_fit: int | None, jobs: int) -> None:
    """Fine-tune a TSM backbone on DATA (a folder made by `talstack import`).

    Learns actions against an explicit background class, with the scene as auxiliary task, on the recordings of
    split train that are not in a held-out fold. The card beside the weights lists what the backbone has seen.
    With --cross-fit or finetune.per_view OUT holds several backbones and set.json, which `talstack extract --backbone
    OUT` takes like one; with --cross-fit heads use their logits alone, and the stacker may learn from all recordings.
    """
    from rich.console import Console
    from rich.table import Table

    from talstack.cli.config import load_config
    from talstack.extract.training.finetune import EpochRow
    from talstack.extract.training.members import finetune_set
    from talstack.io.manifest import Manifest

    config = load_config(config_file)
    manifest = Manifest.load(data)
    err = Console(stderr=True)
    table = Table("backbone", "epoch", "action loss", "scene loss", "accuracy", "lr", title="fine-tuning")

    def report(member: str, row: EpochRow) -> None:
        figures = (f"{row.action_loss:.3f}", f"{row.scene_loss:.3f}", f"{row.accuracy:.3f}", f"{row.lr:.1e}")
        table.add_row(member, str(row.epoch), *figures)
        name = f"{member}, epoch" if member else "epoch"
        err.print(f"{name} {row.epoch}/{config.finetune.epochs}: action loss {figures[0]}, accuracy {figures[2]}")

    made = finetune_set(
        manifest, out, config=config.finetune, sampling=config.sampling, cross_fit=cross_fit or 0, jobs=jobs,
        report=report,
    )  # fmt: skip
    if table.row_count:
        err.print(table)
    done = "fine-tuned" if table.row_count else "unchanged"
    for member, source in zip(made.members, made.sources, strict=True):
        card = source.card
        for reason in card.training["skipped"]:
            err.print(f"left out: {reason}", highlight=False)
        click.echo(
            f"{out / member.name}: {done} {card.arch}, {len(card.seen)} recordings seen, T = {card.frames_per_segment}"
        )
