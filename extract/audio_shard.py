"""The shard of one view's sound: log-mel statistics, and what two channels say about direction."""

import numpy as np

from talstack.extract import audio
from talstack.extract.layout import ClipSegments, ViewLayout
from talstack.extract.watchdog import beat
from talstack.io.errors import MediaError
from talstack.io.media import read_audio
from talstack.io.shard import Shard, ShardKey


def make_audio_shard(key: ShardKey, layout: ViewLayout) -> Shard:
    """Return the statistics of every segment that has sound.

    Columns: mean, standard deviation, maximum and mean change of every mel band, then
    `talstack.extract.audio.STEREO_STATISTICS`; of sound with one channel these say that both sides are equal.
    """
    num_mels, rate = int(key.recipe["mels"]), int(key.recipe["rate"])
    width = audio.NUM_STATISTICS * num_mels + len(audio.STEREO_STATISTICS)
    features = np.zeros((len(layout.times_s), width), dtype=np.float16)
    valid = np.zeros(len(layout.times_s), dtype=bool)
    notes = dict.fromkeys(layout.notes)  # an ordered set
    for clip in layout.clips:
        try:
            values, good = _clip_statistics(clip, num_mels=num_mels, rate=rate, segment_s=key.segment_s)
        except MediaError as error:  # a clip without sound has no valid row
            notes[str(error)] = None
            continue
        features[clip.rows[good]], valid[clip.rows[good]] = values[good].astype(np.float16), True
        beat()
    return Shard(features, valid, layout.times_s, aligned=layout.aligned, notes=tuple(notes))


def _clip_statistics(
    clip: ClipSegments, *, num_mels: int, rate: int, segment_s: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return (n, D) float32 statistics of the clip's segments and which have any, (n,) bool."""
    sound = read_audio(clip.path, rate=rate, stereo=True, progress=beat)
    starts_s = clip.start_s - sound.start_s
    # of surround sound left and right are not all: people speak in the centre channel
    surround = sound.num_channels > 2
    mono = read_audio(clip.path, rate=rate, progress=beat).samples if surround else sound.samples.mean(axis=0)
    spectrogram = audio.log_mel(mono, rate=rate, num_mels=num_mels)
    bands, valid = audio.segment_statistics(spectrogram, starts_s, segment_s=segment_s)
    both, _ = audio.stereo_statistics(sound.samples, starts_s, rate=rate, segment_s=segment_s)
    return np.concatenate([bands, both], axis=1), valid
