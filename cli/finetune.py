"""`talstack finetune`: train the TSM backbone on a data set's training recordings."""

from pathlib import Path

import click

from talstack.cli.jobs import jobs_option


@click.command("finetune")
@click.argument("data", type=click.Path(path_type=Path, file_okay=False))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder for the backbone and its card.")
@click.option("--config", "config_file", type=click.Path(path_type=Path), help="TOML file; see `talstack init`.")
@jobs_option("Processes that decode frames")
def command(data: Path, out: Path, config_file: Path | None, jobs: int) -> None:
    """Fine-tune a TSM backbone on DATA (a folder made by `talstack import`).

    Learns actions against an explicit background class, with the scene as auxiliary task, on the recordings of
    split train that are not in a held-out fold. The card beside the weights lists what the backbone has seen.
    """
    from rich.console import Console
    from rich.table import Table

    from talstack.cli.config import load_config
    from talstack.extract.training.finetune import EpochRow, finetune
    from talstack.io.manifest import Manifest

    config = load_config(config_file)
    manifest = Manifest.load(data)
    err = Console(stderr=True)
    table = Table("epoch", "action loss", "scene loss", "accuracy", "lr", title="fine-tuning")

    def report(row: EpochRow) -> None:
        figures = (f"{row.action_loss:.3f}", f"{row.scene_loss:.3f}", f"{row.accuracy:.3f}", f"{row.lr:.1e}")
        table.add_row(str(row.epoch), *figures)
        err.print(f"epoch {row.epoch}/{config.finetune.epochs}: action loss {figures[0]}, accuracy {figures[2]}")

    card = finetune(manifest, out, config=config.finetune, sampling=config.sampling, jobs=jobs, report=report)
    if table.row_count:
        err.print(table)
    for reason in card.training["skipped"]:
        err.print(f"left out: {reason}", highlight=False)
    made = "fine-tuned" if table.row_count else "unchanged"
    click.echo(f"{out}: {made} {card.arch}, {len(card.seen)} recordings seen, T = {card.frames_per_segment}")
