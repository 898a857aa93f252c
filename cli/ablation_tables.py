"""What `talstack ablate` prints and writes: the ranked variants as a table, parquet, CSV and Markdown."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from talstack.cli.ablation_grid import shown

if TYPE_CHECKING:
    import polars as pl

    from talstack.cli.ablation_scores import Row
    from talstack.evaluate.bootstrap import Interval


def to_frame(rows: "Sequence[Row]") -> "pl.DataFrame":
    """Return one row per variant, best first; mAP and differences are fractions, null beside the reference.

    Columns: rank, variant, changes, map_<tIoU> ..., average_map, low, high, difference, difference_low,
    difference_high, share_better, fit_seconds, num_heads, folder.
    """
    import polars as pl

    return pl.DataFrame([_record(row) for row in rows], infer_schema_length=None)


def _record(row: "Row") -> dict[str, Any]:
    scores, gap = row.scores, row.difference
    by_tiou = zip(scores.tiou, scores.map, strict=True)
    return {
        "rank": row.rank,
        "variant": row.variant.name,
        "changes": _changes(row),
        **{f"map_{tiou:g}": interval.estimate for tiou, interval in by_tiou},
        "average_map": scores.average_map.estimate,
        "low": scores.average_map.low,
        "high": scores.average_map.high,
        "difference": None if gap is None else gap.estimate,
        "difference_low": None if gap is None else gap.low,
        "difference_high": None if gap is None else gap.high,
        "share_better": row.share_better,
        "fit_seconds": row.seconds,
        "num_heads": row.num_heads,
        "folder": row.folder,
    }


def _changes(row: "Row") -> str:
    return ", ".join(f"{key} = {shown(value)}" for key, value in row.variant.changes.items())


def write_files(rows: "Sequence[Row]", folder: Path, name: str, *, title: str) -> list[Path]:
    """Write <name>.parquet, .csv and .md into the folder and return their paths."""
    from talstack.io.files import atomic_path, write_text

    frame = to_frame(rows)
    parquet, csv, markdown = (folder / f"{name}.{ending}" for ending in ("parquet", "csv", "md"))
    with atomic_path(parquet) as temporary:
        frame.write_parquet(temporary)
    write_text(csv, frame.write_csv())
    write_text(markdown, _markdown(rows, title))
    return [parquet, csv, markdown]


def _markdown(rows: "Sequence[Row]", title: str) -> str:
    lines = [_headers(rows), ["---"] * len(_headers(rows)), *map(_cells, rows)]
    table = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
    return f"{title}\n\n" + "\n".join(table) + "\n"


def print_table(rows: "Sequence[Row]", *, title: str) -> None:
    """Print the ranked variants, percent."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    headers = _headers(rows)
    table = Table(title=escape(title))
    for header in headers:
        table.add_column(header, justify="left" if header == "variant" else "right", overflow="fold")
    for row in rows:
        table.add_row(*map(escape, _cells(row)), style="bold" if row.difference is None else "")
    # rich would cut the figures to fit 80 columns, which is also what it takes a pipe to have
    Console(width=max(Console().width, 150)).print(table)


def _headers(rows: "Sequence[Row]") -> list[str]:
    scores = rows[0].scores
    level = f"{100 * scores.level:g} %"
    tiou = [f"{threshold:g}" for threshold in scores.tiou]
    return ["#", "variant", *tiou, "average", f"{level} interval", f"difference, {level}", "better in", "fit, s"]


def _cells(row: "Row") -> list[str]:
    average = row.scores.average_map
    return [
        str(row.rank),
        row.variant.name,
        *(f"{100 * interval.estimate:.1f}" for interval in row.scores.map),
        f"{100 * average.estimate:.1f}",
        f"{100 * average.low:.1f} to {100 * average.high:.1f}",
        "(reference)" if row.difference is None else _gap(row.difference),
        "" if row.share_better is None else f"{100 * row.share_better:.0f} %",
        "-" if row.seconds is None else f"{row.seconds:.1f}",
    ]


def _gap(gap: "Interval") -> str:
    return f"{100 * gap.estimate:+.1f} [{100 * gap.low:+.1f}, {100 * gap.high:+.1f}]"
