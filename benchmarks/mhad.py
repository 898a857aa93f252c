"""The whole path on stitched UTD-MHAD: two depth views and two sensor series, 21 actions, scored on an unseen subject.

    .venv/bin/python benchmarks/mhad.py PATH_TO_MHAD

Folds are by person. Prints mAP for every single (view, modality, head), the plain mean, the weighted ensemble and the
stack. Every step is skipped where it is done. The data are not part of the project: the folder holds recordings.csv,
clips.csv, features.csv, annotations.json and what they name.
"""

import subprocess
import sys
from pathlib import Path

import click

CONFIG = Path(__file__).with_name("mhad.toml")


def talstack(*arguments: object) -> None:
    """Run a talstack command and stop where it fails."""
    command = [str(Path(sys.executable).with_name("talstack")), *map(str, arguments)]
    click.echo("$ talstack " + " ".join(command[1:]), err=True)
    code = subprocess.run(command, check=False).returncode
    if code:
        sys.exit(code)


@click.command()
@click.argument("source", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--out", type=click.Path(path_type=Path), default="runs/mhad")
@click.option("--config", type=click.Path(path_type=Path), default=CONFIG)
@click.option("--cross-fit", type=int, metavar="K", help="K backbones, none of which saw what its features are for.")
def main(source: Path, out: Path, config: Path, cross_fit: int | None) -> None:
    """Import, fine-tune, extract, train heads, stack and score the data set in SOURCE."""
    data, store, backbone = out / "data", out / "store", out / "backbone"
    tables = [word for name in ("clips", "recordings", "features") for word in (f"--{name}", source / f"{name}.csv")]
    talstack(
        "import", "activitynet", source / "annotations.json", "--media", source, *tables,
        "--classes", source / "classes.txt", "--group-column", "subject", "--out", data,
    )  # fmt: skip
    several = ("--cross-fit", cross_fit) if cross_fit else ()
    talstack("finetune", data, "--out", backbone, "--config", config, *several)
    talstack("extract", data, "--store", store, "--backbone", backbone, "--config", config)
    talstack("heads", data, "--store", store, "--run", out, "--config", config)
    talstack(
        "submit", data, "--store", store, "--run", out, "--config", config, "--format", "csv",
        "--out", out / "detections.csv",
    )  # fmt: skip


if __name__ == "__main__":
    main()
