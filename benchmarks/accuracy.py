"""Everything that says how accurate the ensemble is, in one go.

    .venv/bin/python benchmarks/accuracy.py --run runs/mhad runs/mhad/data --run runs/demo runs/demo/data --tcn TCN

For every run: combiners with and without the scene and their differences (combine.py run), views missing (combine.py
views), variants of decoding with and without boundary heads (decoding.py). For the frame-wise scores in TCN:
combine.py frames. All differences have paired bootstrap intervals.
"""

import subprocess
import sys
from pathlib import Path

import click

FOLDER = Path(__file__).parent


def call(script: str, *arguments: object) -> None:
    """Run another benchmark and stop where it fails."""
    click.echo(f"\n== {script} {' '.join(map(str, arguments))}")
    subprocess.run([sys.executable, "-P", str(FOLDER / script), *map(str, arguments)], check=True)


@click.command()
@click.option("--run", "runs", type=(Path, Path), multiple=True, metavar="RUN DATA", help="May be given several times.")
@click.option("--tcn", type=click.Path(path_type=Path, exists=True, file_okay=False), help="Frame-wise scores.")
def main(runs: tuple[tuple[Path, Path], ...], tcn: Path | None) -> None:
    """Print the tables of accuracy of finished runs and of frame-wise scores."""
    for run, data in runs:
        call("combine.py", "run", run, data)
        call("combine.py", "views", run, data)
        call("decoding.py", run, "--data", data)
    if tcn is not None:
        call("combine.py", "frames", tcn)


if __name__ == "__main__":
    main()
