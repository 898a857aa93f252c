"""Tuning the intervals of a run on unseen out-of-fold predictions, for `talstack tune`."""

import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from threadpoolctl import threadpool_limits

from talstack.ensemble.config import EnsembleConfig
from talstack.ensemble.crossfit import learnable_folds
from talstack.ensemble.decode import DecodeSettings
from talstack.ensemble.heads_run import HeadsRun
from talstack.ensemble.run import ENSEMBLES, decoder_of, evidence_of, fit_systems, recordings_to_score, training_of
from talstack.ensemble.tune import Problem, first_settings, nested_average_map, solve_each, tune
from talstack.ensemble.tuned_file import save_tuned, tuning_basis
from talstack.io.errors import InputError
from talstack.io.manifest import Manifest


@dataclass(frozen=True, slots=True)
class TunedSystem:
    """What tuning made of one system; average mAP over the target's tIoU thresholds, fractions, out of fold.

    Attributes:
        name: stack, weighted, mean or a single model.
        settings: the chosen ones.
        changed: {setting: value} where they differ from the first candidates.
        first_average_map: with the first candidates.
        average_map: with the chosen settings; they were chosen for it, so it flatters.
        nested_average_map: of recordings that neither the choice nor what is fitted has looked at; None where it
            was not asked for.
        num_tried: how many settings were scored.
    """

    name: str
    settings: DecodeSettings
    changed: dict[str, object]
    first_average_map: float
    average_map: float
    nested_average_map: float | None
    num_tried: int


def tune_run(
    manifest: Manifest,
    run: Path,
    *,
    config: EnsembleConfig,
    split: str = "test",
    nested: bool = True,
    jobs: int = 1,
    report: Callable[[str], None] = lambda step: None,
) -> list[TunedSystem]:
    """Tune every system of the run, write RUN/tuned.json and return what came of it.

    Args:
        manifest: the data set that the heads were trained on.
        run: the folder that `talstack heads` wrote.
        split: its recordings take no part, so that they can be scored later.
        nested: also tune the ensembles once per group of recordings without it, to see what is left of the gain.
        jobs: processes, and threads where nothing is searched.
        report: is told what is being done.

    Raises:
        MissingInputError, InputError: as `run_ensemble`; or the recordings to learn from have no instance.
        LeakError: nothing unseen is left to learn from.
    """
    heads = HeadsRun.load(run, manifest)
    scored = recordings_to_score(manifest, split, heads.seen, allow_seen=True)
    off_limits = heads.seen | set(scored)
    folds = learnable_folds(heads.table, seen=heads.seen, scored=scored, groups=manifest.groups)
    training = training_of(manifest, heads, folds, off_limits)
    names = list(training.evidence.index.recordings)
    report("fitting the stacker and the weighted ensemble")
    with tempfile.TemporaryDirectory() as folder:  # the models of the last submit stay as they are
        evidence = evidence_of(manifest, heads, scored)
        with threadpool_limits(limits=1):
            systems, _ = fit_systems(training, evidence, Path(folder), config=config, jobs=jobs)
    decoder = decoder_of(manifest, heads, names, scored)
    groups = dict(zip(names, training.groups.tolist(), strict=True))
    problems = {
        system.name: Problem.of(decoder, system.tuning, manifest.instances, groups, off_limits=off_limits)
        for system in systems
    }
    if problems["mean"].instances.is_empty():
        raise InputError(f"{run}: none of the {len(names)} recordings to learn from has an instance; nothing to tune")
    report(f"tuning the intervals of {len(systems)} systems")
    with threadpool_limits(limits=1):
        solve = partial(_tuned, config=config, nested=nested)
        results = list(solve_each(problems, solve, jobs=jobs, search=True).values())
    save_tuned(run, tuning_basis(manifest, heads, config, names), {r.name: _entry(r) for r in results})
    return results


def _tuned(name: str, problem: Problem, *, config: EnsembleConfig, nested: bool) -> TunedSystem:
    tuned, first = tune(problem, config=config), first_settings(config)
    chosen, before = asdict(tuned.settings), asdict(first)
    return TunedSystem(
        name=name,
        settings=tuned.settings,
        changed={key: value for key, value in chosen.items() if value != before[key]},
        first_average_map=tuned.first_average_map or 0.0,
        average_map=tuned.average_map or 0.0,
        nested_average_map=nested_average_map(problem, config=config) if nested and name in ENSEMBLES else None,
        num_tried=tuned.num_tried,
    )


def _entry(result: TunedSystem) -> dict[str, object]:
    return {
        "settings": result.settings,
        "first_average_map": result.first_average_map,
        "average_map": result.average_map,
        "nested_average_map": result.nested_average_map,
        "num_tried": result.num_tried,
    }
