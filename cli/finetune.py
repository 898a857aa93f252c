"""`talstack finetune`: train the TSM backbone on a data set's training recordings."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from talstack.cli.jobs import jobs_option

if TYPE_CHECKING:
    pass


@click.command("finetune")
@click.argument("data", type=click.Path(path_type=Path, file_okay=False))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder for the backbone and its card.")
@click.option("--config", "config_file", type=click.Path(path_type=Path), help="TOML file; see `talstack init`.")
@jobs_option("Processes that decode frames")
def command(data: Path, out: Path, config_file: Path | None, jobs: int) -> None:
    """Fine-tune a TSM backbone on DATA (a folder made by `talstack import`).

    Learns actions against an explicit background class, with the scene as auxiliary task, on the recordings of
    split train that are not in a held-out fold. The card beside the weights lists what the backbone has seen.

    A training that was killed goes on where it was when the command is given again. Several GPUs:
    torchrun --nproc-per-node 4 -m talstack.cli finetune DATA --out BACKBONE
    """
    from rich.console import Console

    from talstack.cli.config import load_config
    from talstack.cli.finetune_progress import FinetuneProgress
    from talstack.extract.training.finetune import finetune
    from talstack.io.manifest import Manifest

    config = load_config(config_file)
    manifest = Manifest.load(data)
    err = Console(stderr=True, quiet=os.environ.get("RANK", "0") != "0")
    with FinetuneProgress(err, config.finetune, out) as progress:
        card = finetune(
            manifest, out, config=config.finetune, sampling=config.sampling, panoramas=config.extract.panoramic,
            jobs=jobs, watcher=progress.watcher,
        )  # fmt: skip
    for reason in card.training["skipped"]:
        err.print(f"left out: {reason}", highlight=False)
    if not err.quiet:
        made = f"fine-tuned in {progress.num_epochs} epochs" if progress.num_epochs else "unchanged"
        click.echo(
            f"{out}: {card.arch} {made}, weights of epoch {card.training['best_epoch']}, {len(card.seen)} recordings "
            f"seen, T = {card.frames_per_segment}"
        )
