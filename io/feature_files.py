"""Feature files of other programs: which file belongs to which recording, and the array in it.

One file per recording (or per clip), or one HDF5 file with a data set per recording. Rows are steps in time, columns
are channels:

    .npy          (T, C), as ActionFormer and OpenTAD read them; `<clip>_<type>.npy` of video_features, whose
                  `<clip>_timestamps_ms.npy` and `<clip>_fps.npy` lie beside it where the network works frame by frame
                  or is I3D, and are missing for R(2+1)D, S3D and VGGish
    .npz          one array, or the one named feats, features, values or arr_0; `times_s` beside it gives the times
    .h5 .hdf5     one data set, or the one named
    .csv          a row per step, with or without a header (ActivityNet's C3D and TSN)
    .pt .pth      tensors: read by talstack.extract.feature_import, since torch lives there

A file is data from a stranger: pickles, object arrays, links and virtual data sets are refused.
"""

import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Formatter

import h5py
import numpy as np

from talstack.io.errors import InputError, MissingInputError
from talstack.io.manifest import resolve_inside

HDF5_SUFFIXES = (".h5", ".hdf5")
TORCH_SUFFIXES = (".pt", ".pth")
SUFFIXES = (".npy", ".npz", *HDF5_SUFFIXES, ".csv", *TORCH_SUFFIXES)
USUAL_KEYS = ("feats", "features", "values", "arr_0")
TIMES_KEY = "times_s"
TIMESTAMPS, FPS = "_timestamps_ms.npy", "_fps.npy"  # video_features: make_path in utils/utils.py
STACK_TYPES = ("rgb", "flow")  # video_features' I3D: its timestamps are the ends of the stacks of frames
VALID = "valid"  # beside exported files: which rows hold features
MAX_GZIP = 1032  # gzip makes nothing smaller than this
PLACEHOLDERS = ("recording", "clip")
SHOWN = 3


@dataclass(frozen=True, slots=True)
class FeatureFile:
    """Where the features of one recording or clip lie.

    Attributes:
        path: the file.
        name: what to call it in a key: its path within the folder, with "#" and the data set where it holds several.
        key: the data set or array to take; None where there is only one that it can be.
    """

    path: Path
    name: str
    key: str | None = None

    @property
    def timestamps(self) -> Path | None:
        """video_features' times of the rows, where they lie beside the file."""
        stem, _, kind = self.path.stem.rpartition("_")
        beside = self.path.with_name(stem + TIMESTAMPS)
        return beside if self.path.suffix == ".npy" and stem and kind and beside.is_file() else None

    @property
    def mask(self) -> Path | None:
        """The mask that `talstack cache export` wrote for the file, where there is one."""
        suffix = self.path.suffix
        beside = self.path.parent / (VALID + suffix if suffix in HDF5_SUFFIXES else f"{VALID}/{self.path.name}")
        return beside if suffix in (".npy", *HDF5_SUFFIXES) and beside.is_file() and beside != self.path else None

    @property
    def files(self) -> tuple[Path, ...]:
        """Everything that decides the numbers: the file, and what lies beside it."""
        return tuple(path for path in (self.path, self.timestamps, self.mask) if path is not None)


@dataclass(frozen=True, slots=True)
class FoundFiles:
    """The files of a folder against the recordings of a data set.

    Attributes:
        files: by (recording, clip), clip "" where files are per recording.
        without_file: the (recording, clip) that have none.
        without_recording: names of files (or data sets) that match the pattern and belong to none.
        pattern: what was matched.
    """

    files: Mapping[tuple[str, str], FeatureFile]
    without_file: tuple[tuple[str, str], ...]
    without_recording: tuple[str, ...]
    pattern: str


def find_feature_files(
    folder: Path, wanted: Sequence[tuple[str, str]], *, pattern: str | None = None, key: str | None = None
) -> FoundFiles:
    """Return which file belongs to which (recording, clip).

    Args:
        folder: the folder, or one HDF5 file with a data set per recording.
        wanted: (recording, clip) pairs.
        pattern: a file's path within the folder (or a data set's within the file), with {recording} and, where one
            recording has several clips, {clip}. Default: {recording} with any known suffix, else v_{recording}
            (ActivityNet), else video_features' {recording}_<type>.npy where the folder has one type.
        key: array or data set within each file.

    Raises:
        MissingInputError: there is no such folder or file.
        InputError: no file fits, or several patterns do; the message shows names that are there.
    """
    if not folder.exists():
        raise MissingInputError(f"{folder}: no such folder or HDF5 file")
    if folder.is_file() and folder.suffix not in HDF5_SUFFIXES:
        raise InputError(f"{folder}: a single file must be {' or '.join(HDF5_SUFFIXES)}; give the folder it lies in")
    names = _data_set_names(folder) if folder.is_file() else _file_names(folder)
    pattern = pattern or _guess_pattern(folder, names, wanted)
    _check_pattern(pattern, wanted)
    at = {pair: pattern.format(recording=pair[0], clip=pair[1]) for pair in wanted}
    there = set(names)
    files = {
        pair: FeatureFile(folder, f"{folder.name}#{name}", name) if folder.is_file()
        else FeatureFile(resolve_inside(folder, name), name, key)
        for pair, name in at.items() if name in there
    }  # fmt: skip
    if not files:
        raise InputError(f"{folder}: no file fits {pattern!r}; {_shown(names)}; give --pattern")
    expression = re.escape(pattern)
    for placeholder in PLACEHOLDERS:
        expression = expression.replace(re.escape("{" + placeholder + "}"), "[^/]+")
    left = tuple(name for name in names if name not in at.values() and re.fullmatch(expression, name))
    return FoundFiles(files, tuple(pair for pair in wanted if pair not in files), left, pattern)


def _file_names(folder: Path) -> list[str]:
    """Return the paths of all feature files below the folder, relative to it, without what lies beside others."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix in SUFFIXES and path.is_file())
    names = [path.relative_to(folder).as_posix() for path in paths]
    return [name for name in names if not name.endswith((TIMESTAMPS, FPS))]


def _data_set_names(path: Path) -> list[str]:
    """Return the names of all data sets in the file; links are not followed."""
    names: list[str] = []
    with _open_hdf5(path) as file:
        file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
    return sorted(names)


def _guess_pattern(folder: Path, names: Sequence[str], wanted: Sequence[tuple[str, str]]) -> str:
    stems = ["{recording}", "v_{recording}"] + (["{clip}"] if any(clip for _, clip in wanted) else [])
    suffixes = [""] if folder.is_file() else list(SUFFIXES)
    tried = [stem + suffix for stem in stems for suffix in suffixes]
    there = set(names)
    fitting = [one for one in tried if any(one.format(recording=r, clip=c) in there for r, c in wanted)]
    if not fitting:
        kinds = {
            name[len(r) + 1 :] for r, _ in wanted for name in names
            if name.startswith(f"{r}_") and "_" not in name[len(r) + 1 :] and name.endswith(".npy")
        }  # fmt: skip
        fitting = [f"{{recording}}_{kind}" for kind in sorted(kinds)]
    if len(fitting) != 1:
        what = f"several patterns fit: {', '.join(fitting)}" if fitting else "no file is named after a recording"
        raise InputError(f"{folder}: {what}; {_shown(names)}; give --pattern, such as {{recording}}_rgb.npy")
    return fitting[0]


def _check_pattern(pattern: str, wanted: Sequence[tuple[str, str]]) -> None:
    try:
        used = {name for _, name, _, _ in Formatter().parse(pattern) if name is not None}
    except ValueError as error:
        raise InputError(f"pattern {pattern!r}: {error}; write it like {{recording}}.npy") from error
    if used - set(PLACEHOLDERS) or not used:
        raise InputError(f"pattern {pattern!r}: expected {{recording}} or {{clip}} in it, got {sorted(used)}")
    several = len({recording for recording, _ in wanted}) < len(wanted)
    if several and "clip" not in used:
        raise InputError(
            f"pattern {pattern!r}: the view has several clips per recording; name the clip as well: {{clip}}"
        )


def _shown(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"there: {', '.join(names[:SHOWN])}{more}" if names else "there is no feature file"


def read_array(file: FeatureFile) -> np.ndarray:
    """Return the numbers of a file as they stand, any shape, float or integer.

    Raises:
        InputError: damaged, a pickle, an object array, a link, no numbers, or the array is not named.
    """
    suffix = file.path.suffix
    try:
        if suffix == ".npy":
            # mapped: a header that declares more than the file holds is refused before anything is allocated
            array = np.array(np.load(file.path, mmap_mode="r", allow_pickle=False))
        elif suffix == ".npz":
            array = _read_npz(file)
        elif suffix == ".csv":
            array = _read_csv(file.path)
        else:
            array = _read_hdf5(file.path, file.key)
    except InputError:
        raise
    except (OSError, ValueError, EOFError, KeyError, RuntimeError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{file.name}: not a readable {suffix} file of plain numbers ({error}); pickles are never loaded"
        ) from error
    return check_numbers(array, file.name)


def check_numbers(array: object, name: str) -> np.ndarray:
    """Return the array if it holds real numbers.

    Raises:
        InputError: anything else.
    """
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu":
        got = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
        raise InputError(f"{name}: expected an array of numbers, got {got}")
    return array


def read_valid(file: FeatureFile, num_rows: int) -> np.ndarray:
    """Return which rows hold features, (num_rows,) bool, as `talstack cache export` left it; all, where it did not.

    Raises:
        InputError: the mask is unreadable or of another length.
    """
    if file.path.suffix == ".npz":
        with np.load(file.path, allow_pickle=False) as arrays:
            mask = np.asarray(arrays[VALID]) if VALID in arrays else np.ones(num_rows, dtype=bool)
        return _check_side(mask, file.name, num_rows).astype(bool)
    if file.mask is None:
        return np.ones(num_rows, dtype=bool)
    return _check_side(_read_side(file.mask, file.key), file.mask.name, num_rows).astype(bool)


def read_times_s(file: FeatureFile, num_rows: int, *, window_s: float | None = None) -> np.ndarray | None:
    """Return the middle of each row's frames, (num_rows,) float64 seconds, where the files say it; else None.

    `times_s` in an .npz is taken as it stands, and so are video_features' timestamps of single frames
    (base_framewise_extractor.py). Its I3D gives the time at which a stack of frames ends (extract_i3d.py reads the
    position after the stack): half a stack is taken off, which is `window_s`, or else the first timestamp, since the
    first stack starts at zero.

    Raises:
        InputError: unreadable, of another length, not finite or not ascending.
    """
    if file.path.suffix == ".npz":
        with np.load(file.path, allow_pickle=False) as arrays:
            times_s = np.asarray(arrays[TIMES_KEY]) if TIMES_KEY in arrays else None
        where = f"{file.name}: {TIMES_KEY}"
    elif file.timestamps is not None:
        times_s = _read_side(file.timestamps, None) / 1000.0
        if file.path.stem.rpartition("_")[2] in STACK_TYPES and times_s.size:
            times_s = times_s - 0.5 * (window_s or times_s.flat[0])
        where = file.timestamps.name
    else:
        return None
    if times_s is None:
        return None
    times_s = _check_side(times_s, where, num_rows).astype(np.float64)
    if not np.isfinite(times_s).all() or (np.diff(times_s) <= 0).any():
        raise InputError(f"{where}: times must be finite and ascend")
    return times_s


def _read_side(path: Path, key: str | None) -> np.ndarray:
    try:
        return _read_hdf5(path, key) if path.suffix in HDF5_SUFFIXES else np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError, KeyError) as error:
        raise InputError(f"{path.name}: not readable ({error})") from error


def _check_side(array: np.ndarray, where: str, num_rows: int) -> np.ndarray:
    if array.shape != (num_rows,) or array.dtype.kind not in "fiub":
        raise InputError(f"{where}: expected ({num_rows},) numbers, one per row, got {array.shape} {array.dtype}")
    return array


def _read_npz(file: FeatureFile) -> np.ndarray:
    with np.load(file.path, allow_pickle=False) as arrays:
        return np.asarray(arrays[pick_key([k for k in arrays if k not in (TIMES_KEY, VALID)], file.key, file.name)])


def pick_key(keys: Sequence[str], asked: str | None, name: str) -> str:
    """Return the array to take out of several.

    Raises:
        InputError: the one asked for is not there, or none was asked for and several could be meant.
    """
    usual = [key for key in USUAL_KEYS if key in keys]
    if asked is not None and asked in keys:
        return asked
    if asked is None and (len(keys) == 1 or usual):
        return keys[0] if len(keys) == 1 else usual[0]
    what = f"no array {asked!r}" if asked else "several arrays"
    raise InputError(f"{name}: {what}; there: {', '.join(keys) or 'none'}; give --key")


def _read_csv(path: Path) -> np.ndarray:
    """Return the (T, C) float32 numbers; an empty field is NaN."""
    import polars as pl

    with open(path, "rb") as file:
        first = file.readline(1_000_000).decode("utf-8-sig", errors="replace").strip()
    has_header = not all(_is_number(field) for field in first.split(","))
    try:
        text = pl.read_csv(path, has_header=has_header, infer_schema=False)
    except pl.exceptions.PolarsError as error:
        raise InputError(f"{path.name}: not a readable CSV table: {str(error).splitlines()[0]}") from error
    text = text.select(pl.all().str.strip_chars())
    values = text.select(pl.all().cast(pl.Float32, strict=False))
    for column, name in enumerate(text.columns):
        bad = (values[name].is_null() & text[name].is_not_null() & (text[name] != "")).arg_true()
        if len(bad):
            line = int(bad[0]) + 1 + has_header
            raise InputError(
                f"{path.name}, line {line}, column {column + 1}: expected a number, got {text[name][int(bad[0])]!r}"
            )
    return values.fill_null(float("nan")).to_numpy()


def _is_number(text: str) -> bool:
    try:
        float(text or "nan")
    except ValueError:
        return False
    return True


def _open_hdf5(path: Path) -> h5py.File:
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise InputError(f"{path}: not a readable HDF5 file ({error})") from error


def _read_hdf5(path: Path, key: str | None) -> np.ndarray:
    """Return a data set after checking that its numbers lie in this very file."""
    if key is None:
        names = _data_set_names(path)
        top = [name for name in names if "/" not in name]
        key = pick_key(top or names, None, path.name)
    with _open_hdf5(path) as file:
        parts = key.strip("/").split("/")
        for depth in range(1, len(parts) + 1):
            if not isinstance(file.get("/".join(parts[:depth]), getlink=True), h5py.HardLink):
                raise InputError(f"{path.name}: {key} is missing or leads elsewhere by a link; expected a data set")
        dataset = file[key]
        if not isinstance(dataset, h5py.Dataset) or dataset.is_virtual or dataset.external is not None:
            raise InputError(f"{path.name}: {key} is not a plain data set; its numbers must lie in the file")
        if dataset.dtype.kind not in "fiub" or dataset.nbytes > MAX_GZIP * path.stat().st_size:
            raise InputError(
                f"{path.name}: {key} declares {dataset.shape} {dataset.dtype}, more than the file can hold"
            )
        return np.asarray(dataset[()])
