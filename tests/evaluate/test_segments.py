import numpy as np
import pytest

from talstack.evaluate.segments import segment_average_precision
from talstack.io.errors import InputError


def test_average_precision_per_class_and_over_the_classes_that_occur():
    probs = np.array([[0.9, 0.1, 0.5], [0.8, 0.9, 0.5], [0.7, 0.2, 0.5]])
    targets = np.array([[1, 0, 0], [0, 1, 0], [1, 0, 0]], dtype=bool)
    ap, mean = segment_average_precision(probs, targets)
    assert ap[:2] == pytest.approx([(1 + 2 / 3) / 2, 1.0])
    assert np.isnan(ap[2])
    assert mean == pytest.approx((ap[0] + ap[1]) / 2)


def test_segments_that_are_not_valid_do_not_count():
    probs = np.array([[0.9], [np.nan], [0.1]])
    targets = np.array([[False], [True], [True]])
    ap, mean = segment_average_precision(probs, targets, np.array([True, False, True]))
    assert mean == ap[0] == pytest.approx(0.5)
    with pytest.raises(InputError, match="must be finite"):
        segment_average_precision(probs, targets)


def test_refuses_shapes_and_nothing_to_average():
    with pytest.raises(InputError, match=r"got \(2, 1\), \(2, 2\)"):
        segment_average_precision(np.zeros((2, 1)), np.zeros((2, 2), dtype=bool))
    with pytest.raises(InputError, match="no class occurs"):
        segment_average_precision(np.zeros((2, 1)), np.zeros((2, 1), dtype=bool))
