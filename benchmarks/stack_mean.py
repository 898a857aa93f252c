"""How large the share of the weighted mean in the stack should be.

    .venv/bin/python benchmarks/stack_mean.py RUN DATA

RUN is what `talstack heads` left; rows are decoded with the first candidates of [ensemble]. Percent: average mAP out of
fold (combiners and intervals fitted on other groups than they are scored on) and on split test; mean AP of segments.
"""

import sys
from dataclasses import replace
from pathlib import Path

import click
import polars as pl
from rich.console import Console
from rich.table import Table

from talstack.ensemble.config import EnsembleConfig
from talstack.ensemble.crossfit import cross_fit_stacker, cross_fit_weighted, fit_stack, fit_weights
from talstack.ensemble.curves import Curves
from talstack.ensemble.stack import mixed
from talstack.ensemble.tune import TARGET_TIOU, Problem, average_map, first_settings, tuned_with
from talstack.ensemble.weighted import combine, segment_ap

sys.path.insert(0, str(Path(__file__).parent))
from combine import Run, load_run  # noqa: E402

SHARES = (0.0, 0.3, 0.5, 0.7)


def curves_of(run: Run, config: EnsembleConfig) -> dict[str, tuple[Curves, Curves]]:
    """Return {system: (predictions out of fold, predictions for the test recordings)}."""
    learned, scored = run.learned, run.scored.evidence
    found = {"mean": (combine(learned.evidence), combine(scored))}
    for name in ("weighted", "weighted_by_class"):
        weights = fit_weights(learned, config=config, combiner=name)
        found[name] = cross_fit_weighted(learned, config=config, combiner=name), combine(scored, weights)
    alone = replace(config, stack_mean=0.0)
    held_out, chosen = cross_fit_stacker(learned, config=alone)
    stacked = held_out, fit_stack(learned, chosen, config=alone).predict(scored)
    for share in SHARES:
        pairs = zip(stacked, found["weighted_by_class"], strict=True)
        tuning, test = (mixed(one, mean, share) for one, mean in pairs)
        found[f"stack, share {share:g}"] = tuning, test
    return found


@click.command()
@click.argument("run", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("data", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--split", default="test", show_default=True)
def main(run: Path, data: Path, split: str) -> None:
    """Print the table for the heads of RUN."""
    config, loaded = EnsembleConfig(), load_run(run, data, split)
    learned, scored = loaded.learned, loaded.scored
    truth = loaded.instances.filter(pl.col("recording").is_in(list(scored.evidence.index.recordings)))
    groups = dict(zip(learned.evidence.index.recordings, learned.groups.tolist(), strict=True))
    columns = ("average out of fold", "average on test", "segment AP out of fold", "segment AP on test")
    table = Table("system", *columns, title=f"{run.name}, {len(groups)} recordings to learn from")
    for name, (tuning, test) in curves_of(loaded, config).items():
        problem = Problem.of(loaded.decoder, tuning, loaded.instances, groups, off_limits=loaded.off_limits)
        tuned = tuned_with(problem, first_settings(config))
        detections = loaded.decoder.decode(test, tuned.settings, tuned.fitted)
        values = [
            tuned.average_map or 0.0, average_map(detections, truth, tiou=TARGET_TIOU)[0],
            segment_ap(tuning.action, learned.targets), segment_ap(test.action, scored.targets),
        ]  # fmt: skip
        table.add_row(name, *(f"{100 * value:.1f}" for value in values))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
