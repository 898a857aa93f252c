"""What is learned from out-of-fold proposals, and that nobody is decoded with what was learned from him."""

from dataclasses import fields, replace

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from talstack.ensemble import decode as decode_module
from talstack.ensemble import fit as fit_module
from talstack.ensemble.curves import Curves
from talstack.ensemble.decode import Decoder, DecodeSettings, Fitted
from talstack.ensemble.durations import ClassDurations
from talstack.ensemble.fit import fit, fit_calibration, truth_of
from talstack.ensemble.held_out import HeldOutDecoder
from talstack.ensemble.refine import BoundaryVotes
from talstack.evaluate.map import evaluate_detections
from talstack.io.grid import SegmentGrid
from talstack.io.manifest import SCHEMAS
from talstack.io.predictions import SegmentIndex

TIOU = (0.5, 0.75, 0.95)
LEARNED = DecodeSettings(refine=True, score="fitted")
NAMES = tuple(f"r{number}" for number in range(9))


@pytest.fixture(scope="module")
def late():
    """Return decoder, curves that lag by 0.4 segments, and instances."""
    rng, grid = np.random.default_rng(0), SegmentGrid(80.0, 1.0)
    rows, curves = [], []
    for name in NAMES:
        logit = rng.normal(-5, 0.7, (len(grid), 2))
        for slot in range(7):
            start, length, label = 2 + 11 * slot + rng.uniform(0, 3), rng.uniform(4, 7), int(rng.integers(2))
            rows.append((name, start, start + length, "ab"[label]))
            times = grid.centres_s - 0.4
            shape = np.clip(5 * np.minimum(times - start, start + length - times), -5, rng.uniform(1, 4))
            logit[:, label] = np.maximum(logit[:, label], shape + rng.normal(0, 0.7, len(grid)))
        curves.append(1 / (1 + np.exp(-logit)))
    action = np.concatenate(curves)
    instances = pl.DataFrame(rows, schema=SCHEMAS["instances"], orient="row")
    durations = ClassDurations(np.tile([4.0, 7.0], (2, 1)), np.full(2, np.log(5.4)), np.full(2, 0.2))
    decoder = Decoder(("a", "b"), dict.fromkeys(NAMES, grid), durations)
    return decoder, Curves(SegmentIndex(NAMES, (len(grid),) * len(NAMES)), action, action.max(axis=1)), instances


def held_out_decoder(late) -> HeldOutDecoder:
    decoder, curves, instances = late
    groups = {name: row % 3 for row, name in enumerate(NAMES)}
    return HeldOutDecoder(decoder, curves, truth_of(instances, decoder.actions), groups=groups, tiou=TIOU)


def held_out(late, settings: DecodeSettings) -> pl.DataFrame:
    return held_out_decoder(late).detections(settings)


def scores(late, settings: DecodeSettings) -> tuple[float, ...]:
    return evaluate_detections(held_out(late, settings), late[2], tiou_thresholds=TIOU).map


def test_refined_ends_reach_what_no_segment_could(late) -> None:
    plain, refined = scores(late, DecodeSettings()), scores(late, DecodeSettings(refine=True))
    assert plain[2] < 0.2
    assert refined[2] > plain[2] + 0.2


def test_markov_runs_are_refined_and_scored_too(late) -> None:
    alone = replace(LEARNED, hmm=True, activity_thresholds=(), class_thresholds=())
    assert scores(late, alone)[0] > 0.8


def test_group_is_decoded_with_what_the_others_taught(late) -> None:
    decoder, curves, instances = late
    # the first group's instances are moved: this must not change how that group is decoded
    moved = instances.with_columns(
        pl.when(pl.col("recording").is_in(["r0", "r3", "r6"])).then(pl.col("end_s") + 3.0).otherwise(pl.col("end_s"))
    )
    honest, spoilt = held_out(late, LEARNED), held_out((decoder, curves, moved), LEARNED)
    first = pl.col("recording").is_in(["r0", "r3", "r6"])
    assert honest.filter(first).equals(spoilt.filter(first))
    assert not honest.filter(~first).equals(spoilt.filter(~first))


def test_some_of_the_proposals_teach_as_much_and_all_are_decoded(late, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = held_out(late, LEARNED)
    monkeypatch.setattr(fit_module, "MAX_ROWS", 300)
    some = held_out(late, LEARNED)
    assert some.height == pytest.approx(whole.height, rel=0.2)
    one, two = (evaluate_detections(table, late[2], tiou_thresholds=TIOU).average_map for table in (whole, some))
    assert two == pytest.approx(one, abs=0.05) and not some.equals(whole)
    assert len(fit_module.thinned(np.arange(301))) == 151 and len(fit_module.thinned(np.arange(300))) == 300


def test_what_settings_have_in_common_is_made_once_and_changes_nothing(late, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every setting there is, changed alone after others: the result is that of a decoder that has seen nothing."""
    others = dict(
        smoothing_s=0.5, smoothing_power=1.0, proposals="class", activity_thresholds=(0.3,), class_thresholds=(0.4,),
        hmm=True, hmm_levels=(0.4,), hmm_weight=2.0, gap_s=1.0, labels_per_run=1, margin=1.0, contrast_weight=2.0,
        score="plain", refine=False, start_shift_s=0.3, end_shift_s=-0.3, shortest=0.9, longest=1.05, nms="hard",
        nms_threshold=0.2, nms_sigma=0.1, min_score=0.2, max_detections=3,
    )  # fmt: skip
    assert set(others) == {field.name for field in fields(DecodeSettings)}
    used, proposed, propose = held_out_decoder(late), [], Decoder.propose
    monkeypatch.setattr(Decoder, "propose", lambda *given: proposed.append(given) or propose(*given))
    for name, value in others.items():
        base = replace(LEARNED, **{"smoothing_power": {"smoothing_s": 0.5}, "hmm_levels": {"hmm": True}}.get(name, {}))
        for settings in (base, replace(base, **{name: value}), base):
            found = used.detections(settings)
            assert_frame_equal(found, held_out(late, settings))
    proposed.clear()
    for changed in ({}, {"nms_sigma": 0.3}, {"score": "plain"}, {"end_shift_s": 0.2}, {"refine": False}):
        used.detections(replace(LEARNED, **changed))
    assert len(proposed) <= 1, "these settings have their proposals in common"


def test_markov_runs_are_found_once_per_smoothing_and_model(late, monkeypatch: pytest.MonkeyPatch) -> None:
    used, levels, viterbi = held_out_decoder(late), [], decode_module.viterbi_runs
    monkeypatch.setattr(
        decode_module, "viterbi_runs", lambda *given, **how: levels.extend(how["levels"]) or viterbi(*given, **how)
    )
    markov = replace(LEARNED, hmm=True, hmm_levels=(0.3, 0.5))
    for changed, searched in (
        ({}, 2), ({"gap_s": 1.0}, 0), ({"proposals": "class"}, 0), ({"hmm": False}, 0), ({"smoothing_power": 1.0}, 0),
        ({"smoothing_s": 0.5}, 2), ({"smoothing_s": 0.5, "smoothing_power": 1.0}, 2), ({}, 0),
        ({"smoothing_s": 0.5}, 0), ({"hmm_weight": 2.0}, 2), ({"hmm_levels": (0.4,)}, 1),
    ):  # fmt: skip
        levels.clear()
        used.detections(replace(markov, **changed))
        assert len(levels) == searched, changed


def test_groups_decoded_at_once_are_decoded_as_one_by_one(late) -> None:
    decoder, curves, instances = late
    groups = {name: row % 3 for row, name in enumerate(NAMES)}
    several = HeldOutDecoder(
        decoder, curves, truth_of(instances, decoder.actions), groups=groups, tiou=TIOU, threads=3
    )  # fmt: skip
    assert_frame_equal(several.detections(LEARNED), held_out(late, LEARNED))


def test_recordings_of_any_length_are_decoded_together_as_alone(late) -> None:
    """Curves lie end to end: none may reach into its neighbour's, nor may boundary votes."""
    decoder, curves, instances = late
    rng, lengths = np.random.default_rng(1), (80, 33, 61, 5, 80, 47, 80, 12, 70)
    names = curves.index.recordings
    rows = np.concatenate([np.arange(80 * i, 80 * i + length) for i, length in enumerate(lengths)])
    index = SegmentIndex(names, lengths)
    curves = Curves(index, curves.action[rows], curves.activity[rows])
    votes = [BoundaryVotes(*rng.random((2, length)), *rng.normal(0, 0.3, (2, length))) for length in lengths]
    grids = {name: SegmentGrid(float(length), 1.0) for name, length in zip(names, lengths, strict=True)}
    decoder = replace(decoder, grids=grids, boundaries=dict(zip(names, votes, strict=True)))
    fitted = fit(decoder, decoder.propose(curves, LEARNED), truth_of(instances, decoder.actions), LEARNED, tiou=TIOU)
    assert len(fitted.edges) == 2
    assert fitted.scorer is not None
    for settings in (LEARNED, DecodeSettings()):
        together = decoder.decode(curves, settings, fitted)
        alone = pl.concat([decoder.decode(curves.subset([name]), settings, fitted) for name in names])
        assert set(together["recording"]) >= {"r0", "r1", "r8"}
        assert_frame_equal(together, alone, abs_tol=1e-9)


@pytest.mark.parametrize("most", [fit_module.MAX_ROWS, 400])
def test_what_held_out_decoding_has_made_already_gives_the_same_models(
    late, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit_module, "MAX_ROWS", most)
    decoder, curves, instances = late
    held_out, truth = held_out_decoder(late), truth_of(instances, decoder.actions)
    several = [LEARNED, replace(LEARNED, smoothing_s=1.0), replace(LEARNED, refine=False), DecodeSettings()]
    several += [replace(LEARNED, start_shift_s=0.3), LEARNED]
    held_out.detections(replace(LEARNED, proposals="class"))
    models = [held_out.fitted(settings).to_json() for settings in several]
    fresh = [fit(decoder, decoder.propose(curves, s), truth, s, tiou=TIOU).to_json() for s in several]
    assert models == fresh
    assert models[0] != models[1] and models[0]["scorer"] != models[2]["scorer"] and models[0] == models[-1]


def test_calibrated_scores_are_the_precision_and_change_no_map(late) -> None:
    decoder, curves, instances = late
    detections = held_out(late, LEARNED)
    calibration = fit_calibration(detections, instances, tiou=TIOU)
    plain = decoder.decode(curves, DecodeSettings())
    mapped = decoder.decode(curves, DecodeSettings(), Fitted(calibration=calibration))
    one, two = (evaluate_detections(table, instances, tiou_thresholds=TIOU) for table in (plain, mapped))
    assert one.map == pytest.approx(two.map)
    assert not np.allclose(plain["score"], mapped["score"])


def test_nothing_to_learn_from_falls_back_to_plain_decoding(late) -> None:
    decoder, curves, instances = late
    fitted = fit(
        decoder, decoder.propose(curves, LEARNED), truth_of(instances.clear(), decoder.actions), LEARNED, tiou=TIOU
    )
    assert fitted.edges == ()
    assert fitted.scorer is None
    assert decoder.decode(curves, LEARNED, fitted).equals(decoder.decode(curves, DecodeSettings()))
    assert fit_calibration(decoder.decode(curves, LEARNED).clear(), instances, tiou=TIOU) is None
