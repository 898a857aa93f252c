"""How detection depends on the instances: average normalised mAP and misses by coverage, length and number.

Definitions: DETAD (Alwassel, Caba Heilbron, Escorcia, Ghanem: Diagnosing Error in Temporal Action Detectors, ECCV
2018; HumamAlwassel/DETAD, src/sensitivity_analysis.py and src/false_negative_analysis.py). The characteristics of an
instance:

- coverage: its length divided by the recording's duration;
- length: in seconds;
- num_instances: how many instances of its label its recording has, itself included.

Groups of a characteristic are given by their upper edges, inclusive; the last is infinite. Values are compared to
nine decimals, so that an instance from 2.2 to 32.2 s lasts 30 s.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import polars as pl

from talstack.evaluate.average_precision import areas_under_precision, false_before_hits, precision_at_hits
from talstack.evaluate.map import match_for_map
from talstack.evaluate.matching import Matched
from talstack.io.detections import INSTANCE_SCHEMA, validate_instances
from talstack.io.errors import InputError

CHARACTERISTICS = ("coverage", "length", "num_instances")
VALUE_COLUMNS = {"coverage": "coverage", "length": "length_s", "num_instances": "num_instances"}
ALL = "all"

Edges = Mapping[str, float]  # group: its upper edge, ascending
PRESET_EDGES: Mapping[str, Mapping[str, Edges]] = MappingProxyType(
    {
        "anet": {
            "coverage": {"XS": 0.2, "S": 0.4, "M": 0.6, "L": 0.8, "XL": math.inf},
            "length": {"XS": 30.0, "S": 60.0, "M": 120.0, "L": 180.0, "XL": math.inf},
            "num_instances": {"XS": 1.0, "S": 4.0, "M": 8.0, "L": math.inf},
        },
        "thumos": {
            "coverage": {"XS": 0.02, "S": 0.04, "M": 0.06, "L": 0.08, "XL": math.inf},
            "length": {"XS": 3.0, "S": 6.0, "M": 12.0, "L": 18.0, "XL": math.inf},
            "num_instances": {"XS": 1.0, "S": 40.0, "M": 80.0, "L": math.inf},
        },
    }
)
GROUP_NAMES = (("M",), ("S", "L"), ("S", "M", "L"), ("XS", "S", "M", "L"), ("XS", "S", "M", "L", "XL"))
DECIMALS = 9


@dataclass(frozen=True, slots=True, eq=False)
class _Found:
    """The true positives at one threshold, by class, within a class by rank; all arrays (h,).

    Attributes:
        label: class index, int64.
        false_before: false positives of the class ranked before, int64.
        instance: row of the instance that is taken, int64.
    """

    label: np.ndarray
    false_before: np.ndarray
    instance: np.ndarray


def describe_instances(
    instances: pl.DataFrame, durations_s: Mapping[str, float], *, edges: Mapping[str, Edges] | None = None
) -> pl.DataFrame:
    """Return the instances, in their order, with the value and the group of each characteristic.

    Columns added: length_s and coverage (float64), num_instances (int64), and coverage_group, length_group and
    num_instances_group (Enums, groups in ascending order). Coverage and its group are null where the recording's
    duration is not known. A coverage above 1 (annotated past the end) belongs to the last group; DETAD leaves such
    instances out.

    Args:
        instances: table (recording, start_s, end_s, label), seconds.
        durations_s: length of each recording; of those where it is known.
        edges: {characteristic: {group: upper edge}}, such as `PRESET_EDGES["anet"]`; a characteristic that is not
            named gets the `quantile_edges` of its values.

    Raises:
        InputError: a row that is refused, a duration that is not positive and finite, or edges that do not ascend to
            infinity or name another characteristic.
    """
    instances = validate_instances(instances, where="instances", allow_negative=True)
    edges = _checked_edges(edges or {})
    described = instances.with_columns(
        (pl.col("end_s") - pl.col("start_s")).alias("length_s"),
        pl.len().over("recording", "label").cast(pl.Int64).alias("num_instances"),
    )
    duration = pl.col("recording").replace_strict(
        _checked_durations(durations_s), default=None, return_dtype=pl.Float64
    )
    described = described.with_columns((pl.col("length_s") / duration).alias("coverage"))
    described = described.select(*INSTANCE_SCHEMA, "length_s", "coverage", "num_instances")
    return described.with_columns(
        _grouped(described[VALUE_COLUMNS[name]], edges.get(name)).alias(f"{name}_group") for name in CHARACTERISTICS
    )


def quantile_edges(values: pl.Series) -> dict[str, float]:
    """Return the edges of up to five groups of about equal size, {group: upper edge}; nulls are left out.

    The edges are the values at the ranks of 20, 40, 60 and 80 %; equal ones count once, so that fewer groups remain
    where values repeat. Groups that hold no value are left out.
    """
    known = np.sort(values.drop_nulls().to_numpy().astype(np.float64).round(DECIMALS))
    inner: list[float] = []
    if known.size:
        inner = np.unique(np.quantile(known, [0.2, 0.4, 0.6, 0.8], method="inverted_cdf")).tolist()
        inner = [edge for edge in inner if edge < known[-1]]
    return dict(zip(GROUP_NAMES[len(inner)], [*inner, math.inf], strict=True))


def sensitivity(detections: pl.DataFrame, described: pl.DataFrame, *, tiou_thresholds: Sequence[float]) -> pl.DataFrame:
    """Return the average normalised mAP of all instances and of each group: DETAD's average-mAP_N.

    Columns: characteristic and group (String), num_instances (int64), ap_n (float64: AP_N averaged over thresholds
    and over the classes that the group has) and change (float64: ap_n relative to all instances, minus 1; null if
    that is 0). The first row has characteristic and group `all`; then the groups that have an instance, in order.

    Precision is normalised by N = the number of all instances / the number of their classes. For a group, only its
    instances count; a detection that takes an instance outside the group is left out, a detection that takes none
    is a false positive in every group. DETAD's program leaves a detection out at every threshold once it takes an
    instance outside the group at one; here each threshold decides for itself.

    Args:
        detections: table (recording, start_s, end_s, label, score), seconds.
        described: what `describe_instances` returned.
        tiou_thresholds: each in (0, 1].

    Raises:
        InputError: a row that is refused, no instance, a threshold outside (0, 1], or a missing column.
    """
    _check_described(described)
    matched, _ = match_for_map(detections, described.select(list(INSTANCE_SCHEMA)), tiou_thresholds)
    found = _true_positives(matched)
    rows = [
        (characteristic, group, int(members.sum()), _average_map_n(matched, found, members))
        for characteristic, group, members in _groups(described)
    ]
    table = pl.DataFrame(
        rows,
        schema={"characteristic": pl.String, "group": pl.String, "num_instances": pl.Int64, "ap_n": pl.Float64},
        orient="row",
    )
    base = rows[0][-1]
    change = (pl.col("ap_n") - base) / base if base > 0 else pl.lit(None, pl.Float64)
    return table.with_columns(change.alias("change"))


def false_negatives(
    detections: pl.DataFrame, described: pl.DataFrame, *, tiou_threshold: float = 0.5, min_precision: float = 0.05
) -> pl.DataFrame:
    """Return how many instances of each group are missed.

    Columns: characteristic and group (String), num_instances and num_missed (int64), share (float64) of the group's
    instances. The first row has characteristic and group `all`; then the groups that have an instance, in order.

    As in DETAD an instance counts as found only if the detection that takes it stands where the normalised precision
    of its class is above `min_precision`: anything is found at last by enough detections. The precision is that of
    `sensitivity`, over all instances of the class.

    Args:
        detections: table (recording, start_s, end_s, label, score), seconds.
        described: what `describe_instances` returned.
        tiou_threshold: in (0, 1].
        min_precision: in [0, 1); 0 takes every true positive.

    Raises:
        InputError: a row that is refused, no instance, an argument outside its range, or a missing column.
    """
    if not 0 <= min_precision < 1:
        raise InputError(f"false negatives: min_precision must lie in [0, 1), got {min_precision}")
    _check_described(described)
    matched, _ = match_for_map(detections, described.select(list(INSTANCE_SCHEMA)), [tiou_threshold])
    found = _true_positives(matched)[0]
    sizes = np.bincount(matched.instances.label)
    precision = precision_at_hits(found.label, found.false_before, num_instances=sizes, norm=sizes.mean())
    missed = np.ones(described.height, dtype=bool)
    missed[found.instance[precision > min_precision]] = False
    rows = [
        (characteristic, group, int(members.sum()), int((members & missed).sum()))
        for characteristic, group, members in _groups(described)
    ]
    names = ("num_instances", "num_missed")
    schema = {"characteristic": pl.String, "group": pl.String, **dict.fromkeys(names, pl.Int64)}
    table = pl.DataFrame(rows, schema=schema, orient="row")
    return table.with_columns((pl.col("num_missed") / pl.col("num_instances")).alias("share"))


def _true_positives(matched: Matched) -> list[_Found]:
    """Return the true positives of each threshold."""
    found = []
    first = np.searchsorted(matched.detections.label, np.arange(len(matched.classes)))
    for hits in matched.hits:
        label = matched.detections.label[hits.detection]
        false_before = false_before_hits(label, hits.detection, first=first)
        found.append(_Found(label, false_before, matched.instances.row[hits.instance]))
    return found


def _average_map_n(matched: Matched, found: Sequence[_Found], members: np.ndarray) -> float:
    """Return AP_N, averaged over thresholds and the classes of the instances that are members, (m,) bool."""
    labels = matched.instances.label
    norm = labels.size / len(matched.classes)
    sizes = np.bincount(labels[members[matched.instances.row]], minlength=len(matched.classes))
    averages = []
    for hits in found:
        inside = members[hits.instance]
        label, false_before = hits.label[inside], hits.false_before[inside]
        precision = precision_at_hits(label, false_before, num_instances=sizes, norm=norm)
        averages.append(areas_under_precision(label, precision, num_instances=sizes)[sizes > 0].mean())
    return float(np.mean(averages))


def _groups(described: pl.DataFrame) -> list[tuple[str, str, np.ndarray]]:
    """Return (characteristic, group, which instances: (m,) bool) of all, then of every group with an instance."""
    groups = [(ALL, ALL, np.ones(described.height, dtype=bool))]
    for characteristic in CHARACTERISTICS:
        column = described[f"{characteristic}_group"]
        for group in column.drop_nulls().unique().sort():
            groups.append((characteristic, group, (column == group).fill_null(False).to_numpy()))
    return groups


def _grouped(values: pl.Series, edges: Edges | None) -> pl.Series:
    """Return the group of each value, an Enum; null where the value is."""
    edges = quantile_edges(values) if edges is None else edges
    names = list(edges)
    numbers = values.fill_null(0).to_numpy().astype(np.float64).round(DECIMALS)
    places = np.searchsorted(np.array(list(edges.values())).round(DECIMALS), numbers, side="left")
    groups = pl.Series(places).replace_strict(list(range(len(names))), names, return_dtype=pl.Enum(names))
    return groups.set(values.is_null(), None)


def _checked_edges(edges: Mapping[str, Edges]) -> Mapping[str, Edges]:
    for characteristic, groups in edges.items():
        if characteristic not in CHARACTERISTICS:
            raise InputError(f"edges: {characteristic!r} is not one of {', '.join(CHARACTERISTICS)}")
        uppers = list(groups.values())
        if not uppers or uppers[-1] != math.inf or any(b <= a for a, b in zip(uppers, uppers[1:], strict=False)):
            raise InputError(
                f"edges of {characteristic}: upper edges must ascend and the last must be infinite, got {dict(groups)}"
            )
    return edges


def _checked_durations(durations_s: Mapping[str, float]) -> dict[str, float]:
    for recording, value in durations_s.items():
        if not 0 < value < math.inf:
            raise InputError(f"recording {recording!r}: its duration must be positive and finite, got {value} s")
    return dict(durations_s)


def _check_described(described: pl.DataFrame) -> None:
    for name in (*INSTANCE_SCHEMA, *(f"{characteristic}_group" for characteristic in CHARACTERISTICS)):
        if name not in described.columns:
            raise InputError(f"described instances: no column {name!r}; pass what describe_instances returns")
