"""`talstack ablate`: compare settings of stage two on stored features."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from talstack.cli.backend import backend_options, check_backend, opened
from talstack.cli.evaluate import PRESETS
from talstack.cli.jobs import jobs_option

if TYPE_CHECKING:
    from collections.abc import Callable

    from talstack.cli.ablation import EnsembleJob, Exam, Planned
    from talstack.cli.ablation_grid import Grid
    from talstack.heads.run import HeadTask
    from talstack.io.cluster import Backend, Cluster
    from talstack.io.extraction import FeatureSet
    from talstack.io.manifest import Manifest

SPLITS = ("train", "val", "test", "oof")


@click.command("ablate")
@click.argument("grid_file", metavar="GRID.toml", type=click.Path(path_type=Path))
@click.option("--run", required=True, type=click.Path(path_type=Path), help="Folder whose heads are shared.")
@click.option("--data", type=click.Path(path_type=Path), help="Data set [the grid's, or the run's].")
@click.option("--store", type=click.Path(path_type=Path), help="Feature store [the grid's, or the run's].")
@click.option(
    "--split", type=click.Choice(SPLITS),
    help="What to score: oof = training recordings, each predicted without its fold [val, or oof where there is none].",
)  # fmt: skip
@click.option("--preset", default="binego360", show_default=True, type=click.Choice(PRESETS), help="tIoU thresholds.")
@click.option("--draws", default=1000, show_default=True, type=click.IntRange(100), help="Draws of the bootstrap.")
@click.option("--level", default=0.95, show_default=True, type=click.FloatRange(0, 1, True, True), help="Confidence.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Seed of the draws.")
@jobs_option("Processes")
@backend_options
@click.option("--allow-seen", is_flag=True, help="Score recordings that the backbone was fine-tuned on (optimistic).")
@click.option("--dry-run", is_flag=True, help="Say what would be fitted and what is there already; fit nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def command(  # noqa: PLR0913 - one parameter per option
    grid_file: Path, run: Path, data: Path | None, store: Path | None, split: str | None, preset: str, draws: int,
    level: float, seed: int, jobs: int, backend: "Backend", scheduler: str | None, allow_seen: bool, dry_run: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """Fit and rank the variants that GRID.toml asks for: views, modalities, heads, context, ensembles.

    Works on the features that are in the store and extracts none. Heads and ensembles that RUN holds already are
    not fitted again, so a run that was interrupted goes on, and a changed setting costs what depends on it. Prints
    mAP with bootstrap intervals and the difference to the first variant (the base), and writes the table as
    RUN/ablation/<grid>.parquet, .csv and .md.
    """
    from talstack.cli.ablation_scores import score_variants
    from talstack.cli.ablation_tables import print_table, to_frame, write_files

    check_backend(backend, scheduler)
    work = _prepare(grid_file, run, data, store, split=split, allow_seen=allow_seen)
    counts = work.counts()
    if dry_run:
        _print_dry_run(work, counts, as_json=as_json)
        return
    with opened(backend, scheduler) as cluster:
        _fit_heads(work, run, jobs, cluster)
    seconds = _fit_ensembles(work, run, jobs)
    rows = score_variants(
        work.planned, work.ensembles, work.manifest, work.exam, preset=preset, num_draws=draws, level=level,
        seed=seed, seconds=seconds,
    )  # fmt: skip
    title = f"average mAP in percent ({preset}), {_exam_in_words(work.exam)}; differences to {work.reference!r}"
    files = write_files(rows, run / "ablation", work.grid.name, title=title)
    for text in dict.fromkeys(text for row in rows for text in row.warnings):
        click.echo(f"warning: {text}", err=True)
    if as_json:
        value = {**work.to_json(), **counts, "preset": preset, "level": level, "draws": draws, "seed": seed}
        value |= {"rows": to_frame(rows).to_dicts(), "files": [str(path) for path in files]}
        click.echo(json.dumps(value, allow_nan=False))
    else:
        print_table(rows, title=title)
        click.echo(_line(run, counts))
        click.echo("wrote " + " ".join(str(path) for path in files))
    if work.missing:
        raise click.exceptions.Exit(1)


@dataclass(frozen=True, slots=True, eq=False)
class _Work:
    """Everything that is known before anything is fitted."""

    grid: "Grid"
    manifest: "Manifest"
    data: Path
    store: Path
    planned: "list[Planned]"
    missing_heads: "list[HeadTask]"
    ensembles: "list[EnsembleJob]"
    missing_ensembles: "list[EnsembleJob]"
    exam: "Exam"
    missing: tuple[str, ...]

    @property
    def reference(self) -> str:
        return self.grid.variants[0].name

    def counts(self) -> dict[str, int]:
        heads = {task.job.fingerprint for plan in self.planned for task in plan.tasks}
        ensembles = {job.fingerprint for job in self.ensembles}
        return {
            "heads_fitted": len(self.missing_heads),
            "heads_cached": len(heads) - len(self.missing_heads),
            "ensembles_fitted": len(self.missing_ensembles),
            "ensembles_cached": len(ensembles) - len(self.missing_ensembles),
        }

    def to_json(self) -> dict[str, Any]:
        return {
            "grid": self.grid.name,
            "variants": [variant.name for variant in self.grid.variants],
            "reference": self.reference,
            "split": self.exam.split,
            "num_recordings": len(self.exam.recordings),
            "missing": list(self.missing),
        }


def _prepare(
    grid_file: Path, run: Path, data: Path | None, store: Path | None, *, split: str | None, allow_seen: bool
) -> _Work:
    from talstack.cli.ablation import find_ensembles, find_heads, open_features, plan_ensembles, plan_heads, set_exam
    from talstack.cli.ablation_grid import read_grid
    from talstack.io.manifest import Manifest
    from talstack.io.runs import data_of, store_of

    own_config = run / "config.toml"
    grid = read_grid(grid_file, own_config if own_config.is_file() else None)
    data = data or grid.data or data_of(run)
    store = store or grid.store or store_of(run)
    manifest = Manifest.load(data)
    features = open_features(grid, manifest, store.resolve())  # workers of a cluster have another working directory
    planned = plan_heads(grid, features, run.resolve())
    exam = set_exam(planned, manifest, split=split, allow_seen=allow_seen)
    missing_heads = find_heads(planned)[1]
    ensembles = plan_ensembles(planned, run, exam)
    work = _Work(
        grid, manifest, data, store, planned, missing_heads, ensembles, find_ensembles(ensembles), exam,
        _missing_features(grid, features),
    )  # fmt: skip
    _warn(work)
    return work


def _missing_features(grid: "Grid", features: "dict[str, FeatureSet]") -> tuple[str, ...]:
    """Return which features that some variant takes are still to be extracted."""
    from talstack.cli.ablation import selects

    missing = [
        str(key)
        for variant in grid.variants
        for key in features[variant.selection.extraction].missing
        if selects(variant, key.view, key.modality)
    ]
    return tuple(dict.fromkeys(missing))


def _warn(work: _Work) -> None:
    if work.exam.split == "test":
        click.echo(
            "warning: whoever chooses by these scores has tuned on the test split, and the chosen variant's score is "
            "optimistic; choose on val or oof",
            err=True,
        )
    if work.exam.allow_seen:
        click.echo("warning: recordings that the backbone was fine-tuned on are scored; OPTIMISTIC", err=True)
    if work.grid.num_repeated:
        click.echo(f"note: {work.grid.num_repeated} variants have the settings of an earlier one; left out", err=True)
    for key in work.missing:
        click.echo(f"missing: {key}: not extracted yet; run `talstack extract`", err=True)


def _fit_heads(work: _Work, run: Path, jobs: int, cluster: "Cluster | None") -> None:
    from talstack.cli.ablation import fit_heads

    with _bar("training heads", len(work.missing_heads)) as advance:
        fit_heads(work.missing_heads, run, jobs=jobs, cluster=cluster, report=advance)


def _fit_ensembles(work: _Work, run: Path, jobs: int) -> dict[str, float]:
    """Fit what is missing, on this machine; return the seconds of all heads that are known."""
    from talstack.cli.ablation import fit_ensembles, read_seconds

    with _bar("fitting ensembles", len(work.missing_ensembles)) as advance:
        fit_ensembles(work.missing_ensembles, work.manifest, work.exam, jobs=jobs, report=advance)
    if work.exam.split != "oof":
        for job in work.missing_ensembles:
            _note_sources(job.folder, work)
    return read_seconds(run)


def _note_sources(folder: Path, work: _Work) -> None:
    """Let `talstack evaluate`, `compare` and `diagnose` read a variant's folder as they read a run's."""
    from talstack.io.files import write_json
    from talstack.io.runs import PROVENANCE, record_data

    write_json(folder / PROVENANCE, {"submit": {"split": work.exam.split}})
    record_data(folder, work.data, work.store)


@contextmanager
def _bar(text: str, total: int) -> "Iterator[Callable[[], None]]":
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn

    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not total) as progress:
        task = progress.add_task(text, total=total)
        yield lambda: progress.advance(task)


def _print_dry_run(work: _Work, counts: dict[str, int], *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({**work.to_json(), **counts, "dry_run": True}))
        return
    missing = {task.job.fingerprint for task in work.missing_heads}
    for plan in work.planned:
        own = {task.job.fingerprint for task in plan.tasks}
        click.echo(f"{plan.variant.name}: {len(own)} heads, {len(own & missing)} to be fitted")
    click.echo(
        f"{len(work.planned)} variants, scored on {_exam_in_words(work.exam)}: {counts['heads_fitted']} heads would be "
        f"fitted, {counts['heads_cached']} are there; {counts['ensembles_fitted']} ensembles would be fitted, "
        f"{counts['ensembles_cached']} are there"
    )


def _exam_in_words(exam: "Exam") -> str:
    if exam.split == "oof":
        return f"{len(exam.recordings)} training recordings, out of fold"
    return f"{len(exam.recordings)} recordings of split {exam.split}"


def _line(run: Path, counts: dict[str, int]) -> str:
    if not counts["heads_fitted"] and not counts["ensembles_fitted"]:
        return f"{run}: nothing to fit, all {counts['heads_cached']} heads are up to date"
    return (
        f"{run}: {counts['heads_fitted']} heads trained, {counts['heads_cached']} up to date; "
        f"{counts['ensembles_fitted']} ensembles fitted, {counts['ensembles_cached']} up to date"
    )
