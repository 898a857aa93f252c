"""Targets of segments, by hand: one recording of 4.5 s, segments of one second."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from talstack.extract.training.targets import TargetKind, segment_targets_of
from talstack.io.errors import InputError
from talstack.io.manifest import SCHEMAS, Manifest, empty_table
from talstack.io.targets import segment_index, segment_targets


def manifest_of(*instances: tuple[float, float, str], duration_s: float = 4.5) -> Manifest:
    recordings = pl.DataFrame([("r", duration_s, None, "train")], schema=SCHEMAS["recordings"], orient="row")
    rows = pl.DataFrame([("r", *row) for row in instances], schema=SCHEMAS["instances"], orient="row")
    return Manifest("hand", Path(), ("a", "b"), (), recordings, empty_table("clips"), rows)


def targets_of(manifest: Manifest, kind: TargetKind, *, exclusive: bool = True) -> list[list[float]]:
    return segment_targets_of(manifest, segment_index(manifest, 1.0), 1.0, kind, exclusive=exclusive).tolist()


@pytest.mark.parametrize("kind", ["multihot", "majority", "soft"])
def test_rows_sum_to_one_and_stay_in_range(kind: TargetKind) -> None:
    rng = np.random.default_rng(0)
    starts = rng.uniform(0, 40, 60)
    rows = [(s, s + d, "ab"[i % 2]) for i, (s, d) in enumerate(zip(starts, rng.exponential(0.8, 60), strict=True))]
    manifest = manifest_of(*rows, duration_s=40.3)
    index = segment_index(manifest, 1.0)
    targets = segment_targets_of(manifest, index, 1.0, kind)
    assert targets.dtype == np.float32 and targets.shape == (40, 3)
    np.testing.assert_allclose(targets.sum(axis=1), 1, atol=1e-6)
    own = segment_targets_of(manifest, index, 1.0, kind, exclusive=False)
    assert own.min() >= 0 and own.max() <= 1
    if kind != "majority":
        assert own.sum(axis=1).max() > 1, "actions that overlap do not share"


def test_actions_of_one_segment_share_it_or_keep_their_own() -> None:
    manifest = manifest_of((0.0, 1.0, "a"), (0.0, 0.75, "b"))
    assert targets_of(manifest, "multihot")[:2] == [[0, 0.5, 0.5], [1, 0, 0]]
    assert targets_of(manifest, "multihot", exclusive=False)[:2] == [[0, 1, 1], [1, 0, 0]]
    assert targets_of(manifest, "soft", exclusive=False)[0] == [0, 1, 0.75]
    assert targets_of(manifest, "soft")[0] == pytest.approx([0, 4 / 7, 3 / 7])
    assert targets_of(manifest, "majority")[0] == [0, 1, 0]


def test_multihot_is_what_heads_learn_from() -> None:
    manifest = manifest_of((0.2, 2.6, "a"), (2.5, 2.7, "b"), (4.1, 4.2, "b"))
    index = segment_index(manifest, 1.0)
    actions = segment_targets(manifest, index, 1.0)
    expected = np.column_stack([~actions.any(axis=1), actions])
    assert targets_of(manifest, "multihot", exclusive=False) == expected.tolist()


def test_majority_is_what_covers_most_and_ties_go_to_the_lower_id() -> None:
    manifest = manifest_of((0.0, 0.5, "b"), (0.5, 1.0, "a"), (1.0, 1.75, "b"), (1.0, 1.5, "a"), (2.0, 3.4, "b"))
    assert targets_of(manifest, "majority") == [[0, 1, 0], [0, 0, 1], [0, 0, 1], [1, 0, 0], [1, 0, 0]]
    pieces = manifest_of((0.2, 1.3, "a"), (1.7, 2.8, "a"))  # 0.3 at each end of segment 1: neither labels it
    assert targets_of(pieces, "majority")[1] == [0, 1, 0]
    assert targets_of(pieces, "multihot")[1] == [1, 0, 0]


def test_majority_does_not_lose_an_action_shorter_than_half_a_segment() -> None:
    short = manifest_of((1.9, 2.2, "b"), (2.7, 4.5, "a"))
    assert targets_of(short, "majority")[1:4] == [[1, 0, 0], [0, 0, 1], [0, 1, 0]]


def test_a_recording_without_instances_is_background() -> None:
    for kind in ("multihot", "majority", "soft"):
        assert targets_of(manifest_of(), kind) == [[1, 0, 0]] * 5
    with pytest.raises(InputError, match="kind 'hard': expected multihot, majority or soft"):
        targets_of(manifest_of(), "hard")  # type: ignore[arg-type]
