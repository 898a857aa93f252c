"""What the temporal shift is worth: the same training with and without it, on pairs that only motion tells apart.

    make demo-data && .venv/bin/python benchmarks/shift.py runs/demo/data --config demo/demo.toml

Trains two backbones on the data set's training recordings and prints, for every view of the test recordings and each
pair of actions, how often the right one of the two has the higher logit (chance is 50 %).
"""

from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from talstack.cli.config import Config, load_config
from talstack.extract.backbone import TSMBackbone, normalise
from talstack.extract.frames import PictureTask, read_segments
from talstack.extract.layout import lay_out_view
from talstack.extract.training.finetune import finetune
from talstack.extract.training.trainer import Watcher
from talstack.extract.weights import load_backbone
from talstack.io.errors import MediaError
from talstack.io.manifest import Manifest
from talstack.io.targets import segment_index, segment_targets


def pair_hits(
    model: TSMBackbone, manifest: Manifest, config: Config, pairs: list[tuple[str, str]]
) -> dict[tuple[tuple[str, str], str], list[bool]]:
    """Return, by pair and view, whether each segment with exactly one of the two got the higher logit for it."""
    recordings = manifest.recordings_of(["test"])
    index = segment_index(manifest, config.sampling.segment_s, recordings)
    targets = segment_targets(manifest, index, config.sampling.segment_s)
    hits: dict[tuple[tuple[str, str], str], list[bool]] = {}
    for recording, rows in index.slices():
        for view in sorted(manifest.clips.filter(manifest.clips["recording"] == recording)["view"].unique()):
            logits = _logits(model, manifest, recording, view, config)
            for pair in pairs:
                a, b = (manifest.actions.index(name) for name in pair)
                only_one = targets[rows][:, a] != targets[rows][:, b]
                seen = only_one & np.isfinite(logits).all(axis=1)
                right = (logits[:, a + 1] > logits[:, b + 1]) == targets[rows][:, a]
                hits.setdefault((pair, view), []).extend(right[seen].tolist())
    return hits


def _logits(model: TSMBackbone, manifest: Manifest, recording: str, view: str, config: Config) -> np.ndarray:
    sampling = config.sampling
    try:
        layout = lay_out_view(manifest, recording, view, segment_s=sampling.segment_s)
    except MediaError:
        return np.full((1, len(manifest.actions) + 1), np.nan)
    logits = np.full((len(layout.times_s), len(manifest.actions) + 1), np.nan)
    task = PictureTask(sampling.frames_per_segment, sampling.frame_size)
    with torch.inference_mode():
        for chunk in read_segments(layout, [task], segment_s=sampling.segment_s, chunk=32):
            out = model(normalise(torch.from_numpy(chunk.pixels[0][0]), model.normalisation)).logits.numpy()
            logits[chunk.rows[chunk.valid[0]]] = out[chunk.valid[0]]
    return logits


@click.command()
@click.argument("data", type=click.Path(path_type=Path, exists=True))
@click.option("--config", "config_file", type=click.Path(path_type=Path), required=True)
@click.option("--out", type=click.Path(path_type=Path), default="runs/shift", help="Where the two backbones go.")
@click.option("--pair", "pairs", multiple=True, nargs=2, default=[("pouring", "smoking"), ("pushing", "moving things")])
def main(data: Path, config_file: Path, out: Path, pairs: tuple[tuple[str, str], ...]) -> None:
    """Train with and without the shift on DATA and print the accuracy on the pairs."""
    manifest, config = Manifest.load(data), load_config(config_file)
    results = {}
    for shift in (True, False):
        folder = out / ("shift" if shift else "no-shift")
        finetune(
            manifest, folder, config=replace(config.finetune, shift=shift), sampling=config.sampling,
            panoramas=config.extract.panoramic, frames=out / "frames",
            watcher=Watcher(epoch=lambda row, speed: click.echo(f"epoch {row.epoch}: {row.accuracy:.1%}", err=True)),
        )  # fmt: skip
        results[shift] = pair_hits(load_backbone(folder)[0], manifest, config, list(pairs))
    table = Table("pair", "view", "segments", "with shift", "without", title="right one of two, test recordings")
    for (pair, view), hits in results[True].items():
        without = results[False][pair, view]
        table.add_row(" / ".join(pair), view, str(len(hits)), f"{np.mean(hits):.1%}", f"{np.mean(without):.1%}")
    Console().print(table)
    means = {shift: np.mean(np.concatenate(list(found.values()))) for shift, found in results.items()}
    click.echo(f"all: {means[True]:.1%} with the shift, {means[False]:.1%} without")


if __name__ == "__main__":
    main()
