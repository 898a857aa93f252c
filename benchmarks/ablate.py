"""What an ablation of twelve variants costs cold, warm, and after one change.

    .venv/bin/python benchmarks/ablate.py DATA STORE --config demo/demo.toml

Runs `talstack ablate` as a user does, in a folder of its own: a cold run fits every head and ensemble, a warm one
nothing; then one setting of the linear heads is changed, then one of an ensemble. Seconds are of the whole command,
start of Python and scores included.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

# few candidates and trees: what is measured is what is reused, not how long a search can be made
GRID = """
[base]
{config}
heads.gbm_rounds = 50
ensemble.smoothing_s = [0.0, 0.5]
ensemble.margin = [0.2]
ensemble.contrast_weight = [1.0, 2.0]
ensemble.nms_sigma = [0.5]

[grid]
heads.learners = [["linear"], ["gbm"]]
heads.context = [[], [1, 2]]
heads.linear_squares = [false]
heads.gbm_leaves = [7]
ensemble.view_dropout = [0.0]
ensemble.neighbours_s = [[1.0, 3.0]]
ensemble.weighted_metric = ["log_loss"]
ensemble.system = ["weighted", "mean"]
"""
CHANGES = {
    "one setting of the linear heads": ("heads.linear_squares = [false]", "heads.linear_l2 = [[0.05]]"),
    "one setting of an ensemble": ("ensemble.view_dropout = [0.0]", "ensemble.view_dropout = [0.5]"),
}


def ablate(folder: Path, grid: str, arguments: list[str]) -> tuple[float, dict[str, Any]]:
    """Return (seconds, what --json says) of one call."""
    (folder / "grid.toml").write_text(grid)
    command = [str(Path(sys.executable).with_name("talstack")), "ablate", str(folder / "grid.toml"), *arguments]
    started = time.perf_counter()
    done = subprocess.run([*command, "--run", str(folder / "run"), "--json"], stdout=subprocess.PIPE, check=True)
    return time.perf_counter() - started, json.loads(done.stdout)


@click.command()
@click.argument("data", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("store", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--config", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="Settings of the base.")
@click.option("--jobs", default=2, show_default=True)
@click.option("--warm-runs", default=3, show_default=True, help="The median is shown.")
def main(data: Path, store: Path, config: Path | None, jobs: int, warm_runs: int) -> None:
    """Print seconds, and heads and ensembles fitted, of every step."""
    arguments = ["--data", str(data), "--store", str(store), "--jobs", str(jobs)]
    grid = GRID.format(config=f"config = {json.dumps(str(config.resolve()))}" if config else "")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        steps = {"cold": ablate(folder, grid, arguments)}
        warm = sorted((ablate(folder, grid, arguments) for _ in range(warm_runs)), key=lambda step: step[0])
        steps["warm"] = warm[len(warm) // 2]
        for text, (before, after) in CHANGES.items():
            steps[text] = ablate(folder, grid.replace(before, after), arguments)
    number = len(steps["cold"][1]["rows"])
    table = Table("step", "seconds", "of cold", "heads fitted", "reused", "ensembles fitted", "reused")
    for text, (seconds, found) in steps.items():
        counts = [found[f"{what}_{how}"] for what in ("heads", "ensembles") for how in ("fitted", "cached")]
        table.add_row(text, f"{seconds:.1f}", f"1/{steps['cold'][0] / seconds:.0f}", *map(str, counts))
    Console(width=max(Console().width, 100)).print(f"{number} variants, {jobs} processes", table)


if __name__ == "__main__":
    main()
