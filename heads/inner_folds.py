"""Inner folds: the part of the training rows that settings are chosen on.

They follow the outer folds that the training recordings come from, so that what these keep apart (recordings, persons)
is kept apart here too: a penalty chosen across persons suits a new person.
"""

import numpy as np

_FEWEST_RECORDINGS = 4  # with fewer, inner folds say nothing


def inner_folds(outer: np.ndarray, num_folds: int, *, seed: int) -> np.ndarray:
    """Return the inner fold of each training recording, (R,) int64 from 0 to `num_folds` - 1.

    Every outer fold is an inner one; where there are more than `num_folds`, some share one. Recordings that all come
    from one outer fold are dealt out at random, or all get 0 where they are too few to choose anything on.

    Args:
        outer: (R,) int, the outer fold of each recording.
    """
    names, rank = np.unique(outer, return_inverse=True)
    if len(names) > 1:
        return np.asarray(rank % num_folds, dtype=np.int64)
    if len(outer) < _FEWEST_RECORDINGS:
        return np.zeros(len(outer), dtype=np.int64)
    dealt = np.empty(len(outer), dtype=np.int64)
    dealt[np.random.default_rng(seed).permutation(len(outer))] = np.arange(len(outer)) % num_folds
    return dealt
