"""What happens when: the recordings of the sample data set as plans, before any pixel or sample exists.

Everything follows from (seed, index): the same pair gives the same recording, whatever else is generated. Times
are seconds on the recording's clock, rounded to milliseconds, so that what is written in the annotations is
exactly what is rendered.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from talstack.io.errors import InputError

FPS = 16
AUDIO_RATE = 16000
MIN_RECORDINGS = 6  # fewer cannot show every scene in both splits
MIN_DURATION_S = 8.0  # shorter ones have no room for two egocentric clips

PANORAMIC, THIRD_PERSON, MONOCULAR = "panoramic", "third_person", "monocular"

SCENES = ("Kitchen", "Workspaces", "Parks & Recreational Areas")

# Where an action takes place. Two actions may overlap in time only where their places differ; the two of one
# place look alike in every single frame and differ in the direction of motion alone.
PLACES = {
    "pouring": "column",
    "smoking": "column",
    "pushing": "band",
    "moving things": "band",
    "dancing": "floor",
    "flashing": "light",
    "operating phone": "hand",
    "speaking": "voice",
}
ACTIONS = tuple(PLACES)

# How often an action starts, scene by scene, in the order of ACTIONS: the scene informs, it never decides.
FREQUENCIES = {
    "Kitchen": (0.195, 0.105, 0.105, 0.195, 0.08, 0.08, 0.10, 0.14),
    "Workspaces": (0.14, 0.14, 0.195, 0.105, 0.06, 0.08, 0.14, 0.14),
    "Parks & Recreational Areas": (0.105, 0.195, 0.14, 0.14, 0.14, 0.08, 0.08, 0.12),
}

LABELLED_SHARE = 0.6  # at most this much of a recording carries an action
MIN_ACTION_S, MAX_ACTION_S = 2.0, 6.0
MIN_GAP_S = 0.5
PAIR_CHANCE = 0.6
PAIR_OVERLAP = (0.4, 0.95)  # of the shorter action's length

_TIMELINE_STREAM, _CLIP_STREAM = 0, 1


@dataclass(frozen=True, slots=True)
class Instance:
    """One action from start_s to end_s."""

    label: str
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class EgoClip:
    """One egocentric clip: its frame 0 lies at offset_s on the recording's clock; duration_s is whole frames."""

    name: str
    offset_s: float
    duration_s: float


@dataclass(frozen=True, slots=True)
class Recording:
    """The plan of one recording.

    Attributes:
        seed, index: the pair that everything follows from.
        instances: by start; those that overlap differ in place.
        ego_clips: by offset, apart in time; empty where the view is missing.
        views: those that exist.
        via_spelling: which of the two spellings of a VIA record its annotations use, 0 or 1.
    """

    seed: int
    index: int
    duration_s: float
    scene: str
    split: str
    instances: tuple[Instance, ...]
    views: tuple[str, ...]
    ego_clips: tuple[EgoClip, ...]
    via_spelling: int
    id: str = field(init=False)

    def __post_init__(self) -> None:
        digest = hashlib.sha256(f"talstack demo {self.seed} {self.index}".encode()).hexdigest()
        parts = (digest[:8], digest[8:12], digest[12:16], digest[16:20], digest[20:32])
        object.__setattr__(self, "id", "-".join(parts))

    def rng(self, stream: int) -> np.random.Generator:
        """Return a generator of its own for each purpose, so that a change in one leaves the others alone."""
        return np.random.default_rng([self.seed, self.index, stream])


def plan_recordings(num_recordings: int = 32, *, duration_s: float = 36.0, seed: int = 0) -> list[Recording]:
    """Return the plans of a whole data set: a quarter test, at least one recording of each scene in both splits.

    One train recording lacks the monocular view and one test recording the third-person view.

    Raises:
        InputError: fewer than 6 recordings, shorter than 8 s, not whole frames, or a negative seed.
    """
    if num_recordings < MIN_RECORDINGS:
        raise InputError(f"demo data: {num_recordings} recordings asked for; at least {MIN_RECORDINGS} are needed")
    if not np.isfinite(duration_s) or duration_s < MIN_DURATION_S or duration_s * FPS % 1:
        raise InputError(
            f"demo data: duration {duration_s} s; at least {MIN_DURATION_S} s and a multiple of 1/{FPS} s is needed"
        )
    if seed < 0:
        raise InputError(f"demo data: seed {seed}; a number >= 0 is needed")
    num_test = max(len(SCENES), round(num_recordings / 4))
    num_train = num_recordings - num_test
    return [
        plan_recording(
            index,
            duration_s=duration_s,
            seed=seed,
            split="train" if index < num_train else "test",
            missing={1: MONOCULAR, num_recordings - 1: THIRD_PERSON}.get(index),
        )
        for index in range(num_recordings)
    ]


def plan_recording(
    index: int, *, duration_s: float, seed: int, split: str = "train", missing: str | None = None
) -> Recording:
    """Return the plan of one recording; `missing` names the view it lacks."""
    scene = SCENES[index % len(SCENES)]
    clips = _ego_clips(np.random.default_rng([seed, index, _CLIP_STREAM]), duration_s, num_clips=1 + index % 2)
    return Recording(
        seed=seed,
        index=index,
        duration_s=duration_s,
        scene=scene,
        split=split,
        instances=_timeline(np.random.default_rng([seed, index, _TIMELINE_STREAM]), duration_s, scene),
        views=tuple(view for view in (PANORAMIC, THIRD_PERSON, MONOCULAR) if view != missing),
        ego_clips=() if missing == MONOCULAR else clips,
        via_spelling=index // 2 % 2,
    )


def _timeline(rng: np.random.Generator, duration_s: float, scene: str) -> tuple[Instance, ...]:
    """Return groups of one action or two overlapping ones, with background between, before and after them."""
    left_s = LABELLED_SHARE * duration_s
    groups: list[tuple[float, list[Instance]]] = []
    while left_s > MIN_ACTION_S + MIN_GAP_S:
        length_s, members = _group(rng, FREQUENCIES[scene])
        if length_s <= left_s:
            groups.append((length_s, members))
            left_s -= length_s
    background_s = duration_s - sum(length_s for length_s, _ in groups) - MIN_GAP_S * (len(groups) + 1)
    gaps_s = MIN_GAP_S + background_s * rng.dirichlet(np.full(len(groups) + 1, 2.0))
    placed, now_s = [], 0.0
    for gap_s, (length_s, members) in zip(gaps_s[:-1], groups, strict=True):
        now_s += float(gap_s)
        placed += [Instance(m.label, _milli(now_s + m.start_s), _milli(now_s + m.end_s)) for m in members]
        now_s += length_s
    return tuple(placed)


def _group(rng: np.random.Generator, frequencies: Sequence[float]) -> tuple[float, list[Instance]]:
    """Return the length and the one or two overlapping actions of a group, its start at 0."""
    first = _draw(rng, frequencies, ACTIONS)
    first_s = _draw_length(rng)
    if rng.random() >= PAIR_CHANCE:
        return first_s, [Instance(first, 0.0, first_s)]
    second = _draw(rng, frequencies, [a for a in ACTIONS if PLACES[a] != PLACES[first]])
    second_s = _draw_length(rng)
    start_s = first_s - rng.uniform(*PAIR_OVERLAP) * min(first_s, second_s)
    return start_s + second_s, [Instance(first, 0.0, first_s), Instance(second, start_s, start_s + second_s)]


def _draw(rng: np.random.Generator, frequencies: Sequence[float], allowed: Sequence[str]) -> str:
    weights = np.array([frequencies[ACTIONS.index(action)] for action in allowed])
    return allowed[int(rng.choice(len(allowed), p=weights / weights.sum()))]


def _draw_length(rng: np.random.Generator) -> float:
    return MIN_ACTION_S + (MAX_ACTION_S - MIN_ACTION_S) * float(rng.beta(1.0, 3.2))


def _ego_clips(rng: np.random.Generator, duration_s: float, *, num_clips: int) -> tuple[EgoClip, ...]:
    """Return clips that start 1 to 6 s late and may end early, two of them with a gap between."""
    start_s = rng.uniform(1.0, min(6.0, duration_s / 4))
    end_s = duration_s - max(0.0, rng.uniform(-1.0, 1.0)) * min(3.0, duration_s / 8)
    spans = [(start_s, end_s)]
    if num_clips == 2:
        middle_s, gap_s = (
            start_s + rng.uniform(0.4, 0.6) * (end_s - start_s),
            rng.uniform(0.5, min(2.0, duration_s / 10)),
        )
        spans = [(start_s, middle_s - gap_s / 2), (middle_s + gap_s / 2, end_s)]
    clips = []
    for number, (first_s, last_s) in enumerate(spans):
        offset_s = _milli(first_s)
        clips.append(EgoClip(f"clip{number}", offset_s, np.floor((last_s - offset_s) * FPS).item() / FPS))
    return tuple(clips)


def _milli(seconds: float) -> float:
    return round(float(seconds), 3)
