"""JSON forms of detections and instances, read into tables.

Two forms: ActivityNet's, {recording: [{"segment": [start, end], "label": name, "score": number}]}, which OpenTAD and
ActionFormer write too (`results`) and Ego4D's Moments Queries challenge wants (`detect_results`); and the record per
detection that the BinEgo-360 page shows, [{"video_id": ..., "t_start": ..., "t_end": ..., "label": ...}], here with
an optional "score". Columns are built whole; only where that fails are the entries looked at one by one, to name the
first that is wrong.
"""

import gc
import json
import math
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from talstack.io.errors import InputError, MissingInputError

Bounds = Callable[[Any], Sequence[Any]]  # an entry's start and end
RESULT_KEYS = ("results", "detect_results")
HALF_PAIR = re.compile(r"\\u[dD][89a-fA-F]")  # either half; a pair of them is one character
KEY_END = re.compile(r'"\s*:')
RECORD_KEYS = ("video_id", "t_start", "t_end", "label")
UNRANKED = "no entry has a score, so every score is 1.0 and the ranking, on which mAP rests, is undefined"


def read_result_json(path: Path) -> Any:
    """Return the parsed file, in which no key stands twice in one object (Python would keep the last one silently).

    Raises:
        MissingInputError: there is no such file.
        InputError: it is not UTF-8 or not JSON, nested too deeply, holds half a surrogate pair or a whole number of
            thousands of digits, or has a key twice in one object.
    """
    if not path.is_file():
        raise MissingInputError(f"{path}: no such file")
    collecting = gc.isenabled()
    gc.disable()  # looking for cycles among millions of new dicts takes longer than parsing, and JSON has none
    try:
        text = _text(path)
        content = json.loads(text)
        _refuse_half_pairs(content, text, path)
        # refusing repeated keys while parsing takes twice as long; counting says whether it is needed
        return content if _has_every_key(content, text) else _loads_unique(text, path)
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: not valid JSON, line {error.lineno} column {error.colno}: {error.msg}") from error
    except RecursionError as error:
        raise InputError(f"{path}: nested too deeply to be a table of intervals") from error
    except InputError:
        raise
    except ValueError as error:  # Python's limit on the digits of a whole number
        raise InputError(f"{path}: holds a number that cannot be read: {error}") from error
    finally:
        if collecting:
            gc.enable()


def _text(path: Path) -> str:
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        start = len(content) - len(error.object) + error.start  # the codec counts from behind the byte order mark
        raise InputError(
            f"{path}: byte {content[start]:#04x} at offset {start} is not UTF-8; save the file as UTF-8"
        ) from error


def _refuse_half_pairs(content: Any, text: str, path: Path) -> None:
    """Raise InputError where an escape such as \\ud800 stands alone: half a character, which no table can hold."""
    if HALF_PAIR.search(text) is None:
        return
    whole = json.dumps(content, ensure_ascii=False)
    try:
        whole.encode()
    except UnicodeEncodeError as error:
        around = whole[max(0, error.start - 20) : error.end + 20]
        raise InputError(f"{path}: half a character (a lone surrogate) in {around!r}") from error


def _has_every_key(content: Any, text: str) -> bool:
    """Return whether the parsed objects have as many keys as the text; False where too few of them are counted."""
    count = _num_keys(content)
    return text.count(":") == count or sum(1 for _ in KEY_END.finditer(text)) == count


def _num_keys(value: Any) -> int:
    """Return how many keys the objects have; of objects within a list, their own keys only, which is fast."""
    if isinstance(value, list):
        return sum(len(item) for item in value if isinstance(item, dict))
    return len(value) + sum(map(_num_keys, value.values())) if isinstance(value, dict) else 0


def _loads_unique(text: str, path: Path) -> Any:
    def refuse_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            repeated = next(key for key, times in Counter(key for key, _ in pairs).items() if times > 1)
            raise InputError(f"{path}: {repeated!r} stands there twice in one object; keep one of them")
        return found

    return json.loads(text, object_pairs_hook=refuse_repeated_keys)


def activitynet_columns(entries: Iterable[tuple[str, Any]], *, keys: Sequence[str], where: Path) -> pl.DataFrame:
    """Return a table of ActivityNet's JSON entries: recording, start_s, end_s, then one column per key.

    Args:
        entries: (recording, list of {"segment": [start, end], "label": str, ...}).
        keys: "label" and, for results, "score".
        where: the file, for messages.

    Raises:
        InputError: an entry of another form, a number that is not finite, or an end before its start; the message
            names the recording and the entry.
    """
    entries = list(entries)
    for recording, items in entries:
        if not isinstance(items, list):
            raise InputError(f"{where}, recording {recording!r}: expected a list of entries, got {items!r:.80}")
    flat = list(chain.from_iterable(items for _, items in entries))
    table = _columns(flat, keys, _segment)
    if table is None:
        for place, item in _places(entries):
            _refuse_if_bad(item, ("segment [start, end]", *keys), where=f"{where}, {place}", bounds=_segment)
        raise InputError(f"{where}: the entries do not make a table of segment [start, end], {', '.join(keys)}")
    counts = [len(items) for _, items in entries]
    names = pl.Series("recording", [recording for recording, _ in entries], dtype=pl.String)
    return table.insert_column(0, names.gather(np.repeat(np.arange(len(counts)), counts)))


def record_columns(
    records: Sequence[Any], *, class_ids: Mapping[int, str], where: Path
) -> tuple[pl.DataFrame, tuple[str, ...]]:
    """Return a table (recording, start_s, end_s, label, score) of challenge records, and warnings.

    Args:
        records: [{"video_id", "t_start", "t_end", "label"}], all with a "score" or none; a whole number as label is a
            class id.
        class_ids: label of each class id.
        where: the file, for messages.

    Raises:
        InputError: an entry of another form, an unknown class id, or a score in some entries only.
    """
    scored = any(isinstance(item, dict) and "score" in item for item in records)
    keys = ("video_id", "label", "score") if scored else ("video_id", "label")
    named = [_named(item, class_ids, where=f"{where}, entry {index}") for index, item in enumerate(records)]
    table = _columns(named, keys, _times)
    if table is None:
        for index, item in enumerate(named):
            _refuse_if_bad(item, ("t_start, t_end", *keys), where=f"{where}, entry {index}", bounds=_times)
        raise InputError(f"{where}: the entries do not make a table of {', '.join(RECORD_KEYS)}")
    table = table.rename({"video_id": "recording"})
    if not scored:
        table = table.with_columns(score=pl.lit(1.0))
    columns = ("recording", "start_s", "end_s", "label", "score")
    return table.select(columns), () if scored or table.is_empty() else (UNRANKED,)


def _columns(items: Sequence[Any], keys: Sequence[str], bounds: Bounds) -> pl.DataFrame | None:
    """Return start_s, end_s and the keys; None where an entry does not fit, whichever it is."""
    try:
        pairs = [bounds(item) for item in items]
        numbers = chain(chain.from_iterable(pairs), (item["score"] for item in items) if "score" in keys else ())
        if bool in set(map(type, numbers)):  # which would count as 0 or 1
            return None
        segments = np.array(pairs, dtype=np.float64) if items else np.empty((0, 2))
        types = [pl.Float64 if key == "score" else pl.String for key in keys]
        named = [
            pl.Series(key, [item[key] for item in items], dtype=kind) for key, kind in zip(keys, types, strict=True)
        ]
    except (KeyError, TypeError, ValueError, OverflowError, pl.exceptions.PolarsError):
        return None
    if segments.shape != (len(items), 2) or any(series.null_count() for series in named):
        return None
    columns = [segments, *(series.to_numpy() for series in named if series.dtype == pl.Float64)]
    if not all(np.isfinite(column).all() for column in columns) or (segments[:, 0] > segments[:, 1]).any():
        return None
    return pl.DataFrame([pl.Series("start_s", segments[:, 0]), pl.Series("end_s", segments[:, 1]), *named])


def _places(entries: Iterable[tuple[str, Sequence[Any]]]) -> Iterator[tuple[str, Any]]:
    for recording, items in entries:
        for index, item in enumerate(items):
            yield f"recording {recording!r}, entry {index}", item


def _segment(item: Any) -> Sequence[Any]:
    return item["segment"]


def _times(item: Any) -> Sequence[Any]:
    return item["t_start"], item["t_end"]


def _named(item: Any, class_ids: Mapping[int, str], *, where: str) -> Any:
    """Return the record with the label of its class id in place of the id."""
    label = item.get("label") if isinstance(item, dict) else None
    if isinstance(label, bool) or not isinstance(label, int):
        return item
    if label not in class_ids:
        raise InputError(f"{where}: class id {label} is not one of {min(class_ids)}..{max(class_ids)}")
    return {**item, "label": class_ids[label]}


def _refuse_if_bad(item: Any, form: tuple[str, ...], *, where: str, bounds: Bounds) -> None:
    """Raise InputError if the entry is not of the form: a name for its bounds, then its keys."""
    try:
        start, end = (math.nan if isinstance(value, bool) else float(value) for value in bounds(item))
        values = {key: item[key] for key in form[1:]}
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{where}: expected {', '.join(form)}; got {item!r:.120} ({error!r})") from error
    score = values.pop("score", 0.0)
    texts = [key for key, value in values.items() if not isinstance(value, str)]
    if texts:
        problem = f"{texts[0]} is not a text"
    elif isinstance(score, bool) or not isinstance(score, int | float):
        problem = "score is not a number"
    elif not all(abs(value) <= sys.float_info.max for value in (start, end, score)):
        problem = "times and score must be finite"
    elif end < start:
        problem = "end_s must be after start_s"
    else:
        return
    raise InputError(f"{where}: {problem}; got {item!r:.120}")
