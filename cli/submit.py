"""`talstack submit`: ensemble, intervals, scores and submission files of one split."""

import json
import platform
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import click

from talstack.cli.jobs import jobs_option

if TYPE_CHECKING:
    from talstack.ensemble.run import EnsembleResult
    from talstack.io.manifest import Manifest

FORMATS = ("binego360", "activitynet", "csv", "vtt", "eaf", "audacity")
PACKAGES = ("numpy", "scipy", "polars", "scikit-learn", "lightgbm", "torch", "torchvision", "h5py", "av", "decord2")


@click.command("submit")
@click.argument("data", type=click.Path(path_type=Path, file_okay=False))
@click.option("--store", type=click.Path(path_type=Path), help="Feature store; checks that the heads still fit to it.")
@click.option("--run", required=True, type=click.Path(path_type=Path), help="Folder that `talstack heads` wrote.")
@click.option("--split", default="test", show_default=True, help="Recordings to predict: train, val or test.")
@click.option("--format", "format_", type=click.Choice(FORMATS), default="binego360", show_default=True)
@click.option(
    "--system",
    default="stack",
    show_default=True,
    help="stack, mean, weighted, another combiner or view/modality/head.",
)
@click.option("--config", "config_file", type=click.Path(path_type=Path), help="TOML file; see `talstack init`.")
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    help="The submission file; a folder for vtt, eaf, audacity.",
)
@click.option(
    "--min-score", type=float, default=0.2, show_default=True, help="vtt, eaf, audacity: leave out detections below."
)
@jobs_option("Processes and threads")
@click.option("--allow-seen", is_flag=True, help="Score recordings that the backbone was fine-tuned on (optimistic).")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def command(  # noqa: PLR0913 - one parameter per option
    data: Path, store: Path | None, run: Path, split: str, format_: str, system: str, config_file: Path | None,
    out: Path, min_score: float, jobs: int, allow_seen: bool, as_json: bool,
) -> None:  # fmt: skip
    """Turn the heads' predictions into intervals and write the submission of one split of DATA.

    Fits the stacker and the weighted ensemble on out-of-fold predictions of recordings that nothing below has
    seen, tunes the intervals there, and predicts the split. Where the split has annotations, every single model,
    the mean, the weighted ensemble and the stack are scored. Writes OUT, and into the run's folder
    detections.parquet, detections.json (ActivityNet), scene.parquet, metrics.json and provenance.json; with
    --format binego360 also scene_submission.csv. vtt (WebVTT chapters), eaf (ELAN) and audacity (label track) are
    for people who look: OUT is a folder with one file per recording. Does nothing where all of it is there already.
    """
    from rich.console import Console

    from talstack.cli.config import load_config
    from talstack.ensemble.run import run_ensemble
    from talstack.io.manifest import Manifest
    from talstack.io.runs import record_data

    own = run / "config.toml"  # what the heads, and `talstack tune`, were given
    config, manifest = load_config(config_file or (own if own.is_file() else None)), Manifest.load(data)
    if store is not None:
        check_store(manifest, store, run)
    started = time.perf_counter()
    with Console(stderr=True).status("reading predictions") as status:
        result = run_ensemble(
            manifest, run, config=config.ensemble, split=split, jobs=jobs, allow_seen=allow_seen,
            report=status.update,
        )  # fmt: skip
    written, kept = write_files(
        manifest, run, split=split, format_=format_, system=system, out=out, min_score=min_score
    )
    if not result.cached:
        if config_file is not None or not (run / "config.toml").exists():
            config.save_resolved(run)
        save_provenance(run, result, seconds=time.perf_counter() - started, seed=config.ensemble.seed)
    record_data(run, data)
    for warning in result.record["warnings"]:
        click.echo(f"warning: {warning}", err=True)
    if as_json:
        files = [str(path) for path in (*written, *kept)]
        click.echo(json.dumps({"cached": result.cached, "files": files, "metrics": result.metrics}))
        return
    print_table(result)
    for path in written:
        click.echo(f"wrote {path}")
    if result.cached and not written:
        click.echo(f"{run}: everything is there already and its inputs have not changed; nothing done")


def check_store(manifest: "Manifest", store: Path, run: Path) -> None:
    """Raise where the store's extraction is not the one that the heads were trained on."""
    from talstack.io.errors import InputError, MissingInputError
    from talstack.io.extraction import Extraction
    from talstack.io.files import read_json

    if not (run / "heads.json").is_file():
        raise MissingInputError(f"{run / 'heads.json'}: no such file; run `talstack heads` first")
    heads = read_json(run / "heads.json")
    extraction = Extraction.load(store, heads.get("extraction") or manifest.name)
    seen = extraction.seen_among(manifest)
    now, then = (extraction.segment_s, sorted(seen)), (heads.get("segment_s"), sorted(heads.get("seen", [])))
    if now != then:
        raise InputError(
            f"{run}: its heads were trained on another extraction than {store} holds now: segments of {then[0]} s and "
            f"{len(then[1])} seen recordings against {now[0]} s and {len(now[1])}; run `talstack heads` again"
        )


def write_files(
    manifest: "Manifest", run: Path, *, split: str, format_: str, system: str, out: Path, min_score: float
) -> tuple[list[Path], list[Path]]:
    """Write the submission files of one system; return those that are new or changed, and those left as they are."""
    import polars as pl

    from talstack.ensemble.submission import LABEL_FORMATS, label_files, write_scene_submission, write_submission
    from talstack.io.detections import DETECTION_SCHEMA
    from talstack.io.errors import InputError
    from talstack.io.files import read_json, write_text

    table = pl.read_parquet(run / "detections.parquet")
    # a system may have found nothing at all
    systems = sorted({*table["system"].unique(), *read_json(run / "stack" / "ensemble.json")["tuned_average_map"]})
    if system not in systems:
        raise InputError(f"no system {system!r} in {run / 'detections.parquet'}; there: {', '.join(systems)}")
    detections = table.filter(pl.col("system") == system).select(list(DETECTION_SCHEMA))

    def submission(format_name: str) -> Callable[[Path], None]:
        return lambda path: write_submission(detections, manifest, split=split, format=format_name, out=path)

    files = {run / "detections.json": submission("activitynet")}
    if format_ in LABEL_FORMATS:
        texts = label_files(detections, manifest, split=split, format=format_, out=out, min_score=min_score)
        files |= {path: partial(write_text, text=text) for path, text in texts.items()}
    else:
        files = {out: submission(format_), **files}
    if format_ == "binego360" and manifest.scenes:
        probs: pl.DataFrame = pl.read_parquet(run / "scene.parquet")
        files[run / "scene_submission.csv"] = lambda path: write_scene_submission(
            probs, manifest, split=split, out=path
        )
    changed = {path: _write_if_changed(path, write) for path, write in files.items()}
    return [path for path, new in changed.items() if new], [path for path, new in changed.items() if not new]


def _write_if_changed(path: Path, write: Callable[[Path], None]) -> bool:
    """Write the file unless it would be the same as it is; return whether it was written."""
    from talstack.io.files import atomic_path

    fresh = path.with_name(f".new-{path.name}")
    try:
        write(fresh)
        if path.is_file() and path.read_bytes() == fresh.read_bytes():
            return False
        with atomic_path(path) as temporary:
            temporary.write_bytes(fresh.read_bytes())
    finally:
        fresh.unlink(missing_ok=True)
    return True


def save_provenance(run: Path, result: "EnsembleResult", *, seconds: float, seed: int) -> None:
    """Write what made the result: versions, seed, fingerprints, seconds; other steps' entries stay."""
    from talstack.io.files import read_json, write_json

    path = run / "provenance.json"
    heads = read_json(run / "heads.json")
    record = read_json(path) if path.is_file() else {}
    record["versions"] = {"talstack": _version("talstack"), **{name: _version(name) for name in PACKAGES}}
    record["python"], record["platform"] = sys.version.split()[0], platform.platform()
    record["heads"] = {name: heads.get(name) for name in ("extraction", "fingerprint", "segment_s", "seen")}
    record["submit"] = {
        "fingerprint": result.record["fingerprint"],
        "split": result.record["split"],
        "seed": seed,
        "seconds": round(seconds, 2),
    }
    write_json(path, record)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def print_table(result: "EnsembleResult") -> None:
    """Print mAP at each tIoU of every system, best last, and the scene accuracy."""
    from rich.console import Console
    from rich.table import Table

    record, metrics = result.record, result.metrics
    if metrics is None:
        click.echo(f"split {record['split']}: {len(record['recordings'])} recordings, no annotations to score against")
        return
    console = Console()
    console.width = max(console.width, 100)  # model names must not be cut, in a log file least of all
    if "detections" in metrics:
        scores = metrics["detections"]
        single = dict(sorted(scores["single"].items(), key=lambda item: item[1]["average_map"]))
        thresholds = list(scores["stack"]["map"])
        title = f"mAP in percent by tIoU, {metrics['num_recordings']} recordings of split {metrics['split']}"
        table = Table(*("system", *thresholds, "average", "0.5:0.95"), title=title)
        best = list(single)[-1]
        combined = {name: scores[name] for name in sorted(set(scores) - {"single", "stack"})}
        for name, row in {**single, **combined, "stack": scores["stack"]}.items():
            values = [*row["map"].values(), row["average_map"], row["average_map_0.50_0.95"]]
            label = f"{name} (best single)" if name == best else name
            table.add_row(label, *(f"{100 * v:.1f}" for v in values), end_section=name == best)
        console.print(table)
    if "scene" in metrics:
        scene = metrics["scene"]
        console.print(f"scene top-1: {100 * scene['top1']:.1f} % of {scene['num_recordings']} recordings")
    if metrics["seen_recordings"]:
        console.print(f"OPTIMISTIC: the backbone was fine-tuned on {metrics['seen_recordings']} of these recordings")
