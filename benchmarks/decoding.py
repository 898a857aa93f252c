"""How probabilities become intervals: every variant of decoding on a run's test recordings.

    .venv/bin/python benchmarks/decoding.py runs/demo [--system stack] [--system mean]

RUN is what `talstack heads` left (its data folder is the one that RUN/provenance.json or --data names). Everything that
is tuned or fitted is so on out-of-fold predictions of unseen recordings; the test recordings are only scored. For
every variant: mAP in percent on test, its average out of fold (for tuned variants that is what they were chosen
for), and the difference to plain decoding tuned on the same recordings, with the paired bootstrap's 95 % interval.
"no boundary heads" decodes as if they had never been trained: refined ends rest on the curves alone.
The last row fuses the default's detections of all single models.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import click
import polars as pl
from rich.console import Console
from rich.table import Table

from talstack.ensemble.config import EnsembleConfig
from talstack.ensemble.crossfit import learnable_folds
from talstack.ensemble.decode import Decoder, DecodeSettings
from talstack.ensemble.fusion import fuse_detections
from talstack.ensemble.heads_run import HeadsRun
from talstack.ensemble.run import System, decoder_of, evidence_of, fit_systems, training_of
from talstack.ensemble.tune import TARGET_TIOU, Problem, Tuned, average_map, first_settings, tune, tuned_with
from talstack.evaluate.bootstrap import compare_detections
from talstack.io.manifest import Manifest
from talstack.io.runs import data_of

PLAIN = DecodeSettings()
DEFAULT = first_settings(EnsembleConfig())
# the lists of candidates before ends and scores were learned
PLAIN_CONFIG = EnsembleConfig(
    score=("plain",), refine=(False,), hmm=(False,), gap_s=(0.0,), smoothing_power=(0.0,),
    nms_sigma=(0.5, 0.1, 0.2, 0.3),
)  # fmt: skip
BASELINE = "plain, tuned greedily"


def variants(problem: Problem) -> Iterator[tuple[str, Tuned, Decoder]]:
    """Yield what each variant decodes with."""
    yield BASELINE, tune(problem, config=PLAIN_CONFIG, confidence=0.0), problem.decoder
    for name, settings in {
        "plain": PLAIN,
        "plain + Markov runs": replace(PLAIN, hmm=True),
        "Markov runs alone": replace(PLAIN, hmm=True, activity_thresholds=(), class_thresholds=()),
        "plain + smoothing 0.25 s": replace(PLAIN, smoothing_s=0.25),
        "plain + smoothing by class": replace(PLAIN, smoothing_s=0.25, smoothing_power=1.0),
        "plain + gaps of 0.5 s closed": replace(PLAIN, gap_s=0.5),
        "fitted score": replace(PLAIN, score="fitted"),
        "refined ends": replace(PLAIN, refine=True),
        "refined, fitted score (default)": DEFAULT,
        "default, linear Soft-NMS": replace(DEFAULT, nms="linear"),
        "default, hard NMS": replace(DEFAULT, nms="hard"),
        "default + Markov runs": replace(DEFAULT, hmm=True),
    }.items():
        yield name, tuned_with(problem, settings), problem.decoder
    deaf = replace(problem, decoder=replace(problem.decoder, boundaries={}))
    yield "default, no boundary heads", tuned_with(deaf, DEFAULT), deaf.decoder
    yield "default, tuned beyond luck", tune(problem, config=EnsembleConfig()), problem.decoder
    yield "default, tuned greedily", tune(problem, config=EnsembleConfig(), confidence=0.0), problem.decoder


def systems_of(run: Path, manifest: Manifest) -> tuple[list[System], Decoder, dict[str, int]]:
    """Return the run's systems, the decoder, and the groups of the recordings that are learned from."""
    heads = HeadsRun.load(run, manifest)
    scored = manifest.recordings_of(["test"])
    off_limits = heads.seen | set(scored)
    folds = learnable_folds(heads.table, seen=heads.seen, scored=scored, groups=manifest.groups)
    training = training_of(manifest, heads, folds, off_limits)
    evidence = evidence_of(manifest, heads, scored)
    with tempfile.TemporaryDirectory() as folder:
        systems, _ = fit_systems(training, evidence, Path(folder), config=EnsembleConfig(), jobs=1)
    names = list(training.evidence.index.recordings)
    groups = dict(zip(names, training.groups.tolist(), strict=True))
    return systems, decoder_of(manifest, heads, names, scored), groups


def rows_of(system: System, problem: Problem, truth: pl.DataFrame) -> Iterator[list[str]]:
    """Yield one row of the table per variant."""
    baseline = None
    for name, tuned, decoder in variants(problem):
        found = decoder.decode(system.scored, tuned.settings, tuned.fitted)
        baseline = found if baseline is None else baseline
        out_of_fold = "" if tuned.average_map is None else f"{100 * tuned.average_map:.1f}"
        yield [name, *scores(found, baseline, truth, out_of_fold)]


def scores(found: pl.DataFrame, baseline: pl.DataFrame, truth: pl.DataFrame, out_of_fold: str = "") -> list[str]:
    average, by_tiou = average_map(found, truth, tiou=TARGET_TIOU)
    comparison = compare_detections(found, baseline, truth, tiou_thresholds=TARGET_TIOU)
    gap = comparison.average_difference
    difference = "" if found is baseline else f"{100 * gap.estimate:+.1f} [{100 * gap.low:+.1f}, {100 * gap.high:+.1f}]"
    return [*(f"{100 * value:.1f}" for value in (*by_tiou.values(), average)), difference, out_of_fold]


@click.command()
@click.argument("run", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--data", type=click.Path(path_type=Path))
@click.option("--system", "wanted", multiple=True, default=("stack", "mean"), show_default=True)
def main(run: Path, data: Path | None, wanted: tuple[str, ...]) -> None:
    """Print the table of every wanted system of RUN."""
    manifest = Manifest.load(data or data_of(run))
    systems, decoder, groups = systems_of(run, manifest)
    truth = manifest.instances.filter(pl.col("recording").is_in(manifest.recordings_of(["test"])))
    by_name = {system.name: system for system in systems}
    console = Console(width=120)
    for name in wanted:
        problem = Problem.of(decoder, by_name[name].tuning, manifest.instances, groups, off_limits=())
        title = f"{name}, {truth['recording'].n_unique()} test recordings, tuned on {len(groups)}"
        table = Table("decoding", *map(str, TARGET_TIOU), "average", "difference", "out of fold", title=title)
        for row in rows_of(by_name[name], problem, truth):
            table.add_row(*row)
        console.print(table)
    singles = []
    for system in (system for system in systems if "/" in system.name):
        tuned = tuned_with(Problem.of(decoder, system.tuning, manifest.instances, groups, off_limits=()), DEFAULT)
        singles.append((system.name, decoder.decode(system.scored, tuned.settings, tuned.fitted)))
    table = Table("single models", *map(str, TARGET_TIOU), "average", "difference to best", "", title="fusion")
    best = max((found for _, found in singles), key=lambda found: average_map(found, truth, tiou=TARGET_TIOU)[0])
    for name, found in singles:
        table.add_row(name, *scores(found, best, truth))
    table.add_row("all fused", *scores(fuse_detections([found for _, found in singles]), best, truth))
    console.print(table)


if __name__ == "__main__":
    main()
