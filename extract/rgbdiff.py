"""RGB difference: motion as stacked differences of consecutive frames.

After Wang et al., Temporal Segment Networks, ECCV 2016: around each of a segment's T moments six frames are taken, a
fixed time apart, and their five differences are stacked as 15 input channels. The third of the six is the moment's own
frame, the one that rgb uses, so frames are decoded once for both. The spacing is in seconds, so that the same motion
gives the same differences at any frame rate. Here are the times (no torch); what becomes of the pixels is in
`talstack.extract.motion`.
"""

import numpy as np

from talstack.io.errors import InputError

NUM_DIFFERENCES = 5
NUM_FRAMES = NUM_DIFFERENCES + 1
NUM_CHANNELS = 3 * NUM_DIFFERENCES
OWN_FRAME = 2  # of the six, the one at the moment itself
SPACING_S = 1 / 15  # at 30 fps every second frame: neighbours of 60-fps video differ by little more than noise


def difference_times_s(times_s: np.ndarray, *, end_s: float, spacing_s: float = SPACING_S) -> np.ndarray:
    """Return (n, T, 6) float64 times of the frames to subtract, kept within the clip; [..., OWN_FRAME] is `times_s`.

    At the clip's ends times coincide, so their differences are zero. Around neighbouring moments that are close the
    times may overlap.

    Args:
        times_s: (n, T) float64, rgb's times on the clip's clock, as `ClipSegments.sample_times_s` gives them.
        end_s: the last time on the clip's clock that has a frame of its own, seconds.
        spacing_s: between two of the six frames, seconds.

    Raises:
        InputError: a spacing that is not positive, or times of another shape.
    """
    if not (np.isfinite(spacing_s) and spacing_s > 0):
        raise InputError(f"rgbdiff: the spacing must be a positive number of seconds, got {spacing_s}")
    if times_s.ndim != 2:
        raise InputError(f"rgbdiff: times must be (segments, moments), got {times_s.shape}")
    steps_s = (np.arange(NUM_FRAMES) - OWN_FRAME) * spacing_s
    return np.clip(times_s[..., None] + steps_s, 0.0, end_s)
