from pathlib import Path

import numpy as np
import polars as pl

from talstack.io.manifest import SCHEMAS, Manifest, empty_table
from talstack.io.targets import boundary_targets, segment_index, segment_shares


def test_shares_are_covered_fractions_and_overlapping_instances_count_once() -> None:
    recordings = [("r", 4.5, None, "train"), ("without", 1.0, None, "train")]
    instances = [("r", 0.5, 1.5, "a"), ("r", 1.25, 1.75, "a"), ("r", 1.0, 1.25, "b"), ("r", 3.5, 9.0, "b")]
    manifest = Manifest(
        "hand", Path(), ("a", "b"), (), pl.DataFrame(recordings, schema=SCHEMAS["recordings"], orient="row"),
        empty_table("clips"), pl.DataFrame(instances, schema=SCHEMAS["instances"], orient="row"),
    )  # fmt: skip
    shares = segment_shares(manifest, segment_index(manifest, 1.0), 1.0)
    expected = [[0.5, 0.5, 0], [0.25, 0.75, 0.25], [1, 0, 0], [0.5, 0, 0.5], [0, 0, 1], [1, 0, 0]]
    np.testing.assert_allclose(shares, expected, atol=1e-12)  # half of the last segment of r is recorded


def test_boundaries_fall_into_parts_of_segments() -> None:
    recordings = [("r", 4.0, None, "train"), ("without", 1.0, None, "train")]
    instances = [("r", 0.5, 1.5, "a"), ("r", 1.6, 3.0, "b"), ("r", 3.9, 9.0, "b")]
    manifest = Manifest(
        "hand", Path(), ("a", "b"), (), pl.DataFrame(recordings, schema=SCHEMAS["recordings"], orient="row"),
        empty_table("clips"), pl.DataFrame(instances, schema=SCHEMAS["instances"], orient="row"),
    )  # fmt: skip
    targets = boundary_targets(manifest, segment_index(manifest, 1.0), 1.0, parts=2)
    starts = [[0, 1], [0, 1], [0, 0], [0, 1], [0, 0]]
    # an end on an edge belongs to the part before it, one beyond the recording to the last
    ends = [[0, 0], [1, 0], [0, 1], [0, 1], [0, 0]]
    np.testing.assert_array_equal(targets, np.hstack([starts, ends]).astype(bool))
