"""Import of a data set that is described by plain CSV tables."""

from pathlib import Path

from talstack.io.assemble import DEFAULT_FOLDS, Progress, assemble_manifest
from talstack.io.errors import MissingInputError
from talstack.io.manifest import Manifest, name_of
from talstack.io.source_rows import (
    SourceRows,
    read_clip_rows,
    read_feature_rows,
    read_instance_rows,
    read_name_list,
    read_recording_rows,
)


def import_csv(
    folder: Path, *, group_column: str | None = None, num_folds: int = DEFAULT_FOLDS, progress: Progress | None = None
) -> Manifest:
    """Return the manifest of a folder with recordings.csv, clips.csv, instances.csv and optionally features.csv.

    recordings.csv: recording, scene (may be empty), split (train, val, test), and optionally duration_s and group
    (recordings of one group share a fold; `group_column` takes another column for it). clips.csv:
    recording, view, clip, path, offset_s (empty: unknown). instances.csv: recording, start_s, end_s, label; only
    the header where nothing is labelled. features.csv: recording, modality, path. Paths are relative to the folder;
    further columns are ignored. classes.txt and scenes.txt, one name a line, fix the order of the classes;
    without them it is alphabetical.

    Raises:
        MissingInputError: the folder or one of the three tables is not there.
        InputError: a column, value, recording, label or path that cannot be used; the message names file and line.
    """
    if not folder.is_dir():
        raise MissingInputError(f"{folder}: no such folder; expected one with recordings.csv, clips.csv, instances.csv")
    rows = SourceRows(
        recordings=read_recording_rows(folder / "recordings.csv", group_column=group_column),
        clips=read_clip_rows(folder / "clips.csv"),
        instances=read_instance_rows(folder / "instances.csv"),
        features=read_feature_rows(folder / "features.csv") if (folder / "features.csv").is_file() else [],
    )
    listed = {
        name: read_name_list(folder / f"{name}.txt")
        for name in ("classes", "scenes")
        if (folder / f"{name}.txt").is_file()
    }
    return assemble_manifest(
        rows,
        name=name_of(folder),
        media_root=folder.resolve(),
        actions=listed.get("classes", sorted({row.label for row in rows.instances})),
        scenes=listed.get("scenes", sorted({row.scene for row in rows.recordings if row.scene is not None})),
        num_folds=num_folds,
        progress=progress,
    )
