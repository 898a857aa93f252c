"""`talstack finetune`: train the TSM backbone on a data set's training recordings."""

import os
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

    A training that was killed goes on where it was when the command is given again. Several GPUs:
    torchrun --nproc-per-node 4 -m talstack.cli finetune DATA --out BACKBONE

    With --cross-fit or finetune.per_view OUT holds several backbones and set.json, which `talstack extract --backbone
    OUT` takes like one; with --cross-fit heads use their logits alone, and the stacker may learn from all recordings.
    """
    from rich.console import Console

    from talstack.cli.config import load_config
    from talstack.cli.finetune_progress import FinetuneProgress
    from talstack.extract.training.members import finetune_set
    from talstack.io.manifest import Manifest

    config = load_config(config_file)
    manifest = Manifest.load(data)
    err = Console(stderr=True, quiet=os.environ.get("RANK", "0") != "0")
    with FinetuneProgress(err, config.finetune, out) as progress:
        made = finetune_set(
            manifest, out, config=config.finetune, sampling=config.sampling, cross_fit=cross_fit or 0,
            panoramas=config.extract.panoramic, jobs=jobs, watcher_of=progress.watcher_of,
        )  # fmt: skip
    if err.quiet:
        return
    for member, source in zip(made.members, made.sources, strict=True):
        card, epochs = source.card, progress.epochs_of(member.name)
        for note in card.training["start"]:
            err.print(f"weights: {note}", highlight=False)
        for reason in card.training["skipped"]:
            err.print(f"left out: {reason}", highlight=False)
        done = f"fine-tuned in {epochs} epochs" if epochs else "unchanged"
        click.echo(
            f"{out / member.name}: {card.arch} {done}, weights of epoch {card.training['best_epoch']}, "
            f"{len(card.seen)} recordings seen, T = {card.frames_per_segment}"
        )
