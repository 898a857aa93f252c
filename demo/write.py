"""Writing the sample data set to disk in the BinEgo-360 challenge layout.

Every file is written whole or not at all. `demo.unfinished.json` is there while a run is under way and becomes
`demo.json` when all is done: an interrupted run is taken up where it stopped, a finished one is left alone.
"""

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from joblib import Parallel, delayed

from talstack.demo.encode import write_video
from talstack.demo.render import render_view
from talstack.demo.sound import ego_sound, render_sound
from talstack.demo.world import AUDIO_RATE, FPS, MONOCULAR, Instance, Recording, plan_recordings
from talstack.io.errors import InputError
from talstack.io.files import read_json, write_json, write_text

FORMAT_VERSION = 1  # raise it when the same parameters would give other pixels, samples or annotations
FINISHED, UNFINISHED = "demo.json", "demo.unfinished.json"
FOLDERS = ("panoramic", "third_person", "monocular", "TAL_annotations", "label")
FILES = ("offsets.csv", "splits.csv", "README.md")


@dataclass(frozen=True, slots=True)
class DemoParameters:
    """What decides the content of a sample data set."""

    num_recordings: int
    duration_s: float
    seed: int
    format_version: int = FORMAT_VERSION


@dataclass(frozen=True, slots=True)
class DemoSummary:
    """What a sample data set holds; `written` is False where it was there already."""

    num_recordings: int
    num_clips: int
    num_instances: int
    written: bool


def write_demo(
    out: Path,
    *,
    num_recordings: int = 32,
    duration_s: float = 36.0,
    seed: int = 0,
    jobs: int = 1,
    force: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> DemoSummary:
    """Write the sample data set to `out` and return what it holds.

    A finished set with the same parameters is left untouched, an unfinished one is completed.

    Args:
        out: the folder; made where it does not exist.
        jobs: recordings rendered at the same time, each in a process of its own.
        force: replace a sample data set that was made with other parameters.
        progress: called with (recordings done, recordings in all).

    Raises:
        InputError: parameters out of range, or a folder that holds something else.
    """
    recordings = plan_recordings(num_recordings, duration_s=duration_s, seed=seed)
    written = _claim(out, asdict(DemoParameters(num_recordings, float(duration_s), seed)), force=force)
    if written:
        _render(out, recordings, jobs=jobs, progress=progress or (lambda done, total: None))
    return DemoSummary(
        num_recordings=num_recordings,
        num_clips=sum(len(clip_paths(recording)) for recording in recordings),
        num_instances=sum(len(recording.instances) for recording in recordings),
        written=written,
    )


def _render(out: Path, recordings: list[Recording], *, jobs: int, progress: Callable[[int, int], None]) -> None:
    for leftover in out.rglob(".tmp-*"):  # of a run that was killed while it wrote
        leftover.unlink()
    progress(0, len(recordings))
    work = (delayed(write_recording)(out, recording) for recording in recordings)
    for number, _ in enumerate(Parallel(n_jobs=jobs, return_as="generator_unordered")(work), start=1):
        progress(number, len(recordings))
    _write_tables(out, recordings)
    (out / UNFINISHED).replace(out / FINISHED)


def write_recording(out: Path, recording: Recording) -> None:
    """Write the clips, annotations and scene of one recording; a clip that is there already is kept."""
    sound = render_sound(recording)
    for view, clip, relative in clip_paths(recording):
        path = out / relative
        if path.is_file():
            continue
        ego = next((c for c in recording.ego_clips if view == MONOCULAR and c.name == clip), None)
        offset_s, length_s = (0.0, recording.duration_s) if ego is None else (ego.offset_s, ego.duration_s)
        times_s = offset_s + np.arange(round(length_s * FPS)) / FPS
        heard = sound if ego is None else ego_sound(recording, ego, sound)
        write_video(path, render_view(recording, view, times_s), fps=FPS, audio=heard, audio_rate=AUDIO_RATE)
    write_json(out / "TAL_annotations" / f"{recording.id}.json", via_annotation(recording))
    write_text(out / "label" / recording.id / "label.json", recording.scene)


def clip_paths(recording: Recording) -> list[tuple[str, str, Path]]:
    """Return (view, clip, path under the data set's folder) of every clip of the recording."""
    clips: list[tuple[str, str, Path]] = []
    for view in recording.views:
        if view == MONOCULAR:
            clips += [(view, c.name, Path(view) / recording.id / f"{c.name}.mp4") for c in recording.ego_clips]
        else:
            clips.append((view, recording.id, Path(view) / f"{recording.id}.mp4"))
    return clips


def via_annotation(recording: Recording) -> dict[str, Any]:
    """Return the recording's annotation as VIA-3 writes it, in one of the two spellings found in the wild."""
    spell = (_spell_short, _spell_full)[recording.via_spelling]
    return {
        "metadata": {
            f"1_{hashlib.sha256(f'{recording.id} {number}'.encode()).hexdigest()[:8]}": spell(instance)
            for number, instance in enumerate(recording.instances)
        }
    }


def _spell_short(instance: Instance) -> dict[str, Any]:
    return {"duration": [instance.start_s, instance.end_s], "action": {"1": instance.label}}


def _spell_full(instance: Instance) -> dict[str, Any]:
    return {"vid": "1", "flg": 0, "z": [instance.start_s, instance.end_s], "xy": [], "av": {"1": instance.label}}


def _claim(out: Path, parameters: dict[str, Any], *, force: bool) -> bool:
    """Return whether there is anything to write, after making sure that the folder is ours to write into."""
    marker = next((out / name for name in (FINISHED, UNFINISHED) if (out / name).is_file()), None)
    if marker is not None:
        found = read_json(marker)
        if found == parameters:
            return marker.name == UNFINISHED
        if not force:
            raise InputError(
                f"{out}: holds a sample data set made with {found}, asked for {parameters}; "
                "choose another folder, or replace it with --force"
            )
        _remove(out)
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: is not an empty folder and holds no sample data set; choose another folder")
    write_json(out / UNFINISHED, parameters)
    return True


def _remove(out: Path) -> None:
    """Remove what write_demo writes and nothing else; the markers last, so that a crash leaves the folder ours."""
    for name in FOLDERS:
        if (out / name).is_dir():
            shutil.rmtree(out / name)
    for name in (*FILES, FINISHED, UNFINISHED):
        (out / name).unlink(missing_ok=True)


def _write_tables(out: Path, recordings: list[Recording]) -> None:
    offsets = [
        f"{recording.id},{MONOCULAR},{clip.name},{clip.offset_s}"
        for recording in recordings
        for clip in recording.ego_clips
    ]
    splits = [f"{recording.id},{recording.split}" for recording in recordings]
    write_text(out / "offsets.csv", "\n".join(["recording,view,clip,offset_s", *offsets]) + "\n")
    write_text(out / "splits.csv", "\n".join(["recording,split", *splits]) + "\n")
    write_text(out / "README.md", _README)


_README = """\
# Sample data set of talstack

Rendered by `talstack demo-data`; nothing in it was filmed. `demo.json` has the parameters that it follows from.
The layout is that of the BinEgo-360 challenge, with two tables added:

    panoramic/<recording>.mp4             the whole turn, 192x96
    third_person/<recording>.mp4          front view, 128x96, same clock as panoramic
    monocular/<recording>/<clip>.mp4      egocentric, 112x112, one or two clips that start late
    TAL_annotations/<recording>.json      actions, VIA-3, in both spellings found in the wild
    label/<recording>/label.json          the scene's name as plain text
    offsets.csv                           recording, view, clip, offset_s: egocentric clips on the recording's clock
    splits.csv                            recording, split (train or test)

16 frames per second, H.264, AAC mono sound at 16 kHz. One train recording lacks the monocular view, one test
recording the third-person view.

| action | how to know it |
| --- | --- |
| pouring, smoking | drops stream down or up; single frames and the sound are alike |
| pushing, moving things | bars travel right or left; single frames and the sound are alike |
| dancing | a figure swings from side to side |
| flashing | the light blinks twice a second |
| operating phone | a phone, seen by the egocentric camera only |
| speaking | heard, never seen |

Three scenes (Kitchen, Workspaces, Parks & Recreational Areas) differ in looks and in how often each action
occurs. Actions overlap; a little over 40 % of the time is background.
"""
