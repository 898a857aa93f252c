"""What `talstack extract` shows: one bar while it runs, and a table of what was done."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from talstack.extract.status import StatusRow

STAGES = ("decode", "compute", "store")


@dataclass(frozen=True, slots=True)
class Figures:
    """Figures of some shards.

    Attributes:
        new, cached, failed: shards by what became of them.
        segments, masked: rows made now, and how many of them hold no features.
        segments_per_s: of one worker; None where nothing was timed.
        decode, compute, store: shares of what these three took together, 0 to 1; None where nothing was timed.
    """

    new: int
    cached: int
    failed: int
    segments: int
    masked: int
    segments_per_s: float | None
    decode: float | None
    compute: float | None
    store: float | None


def figures(rows: Iterable["StatusRow"]) -> Figures:
    """Return the figures of these shards."""
    rows = list(rows)
    count = Counter(row.outcome for row in rows)
    segments = sum(row.num_segments for row in rows)
    masked = segments - sum(row.num_valid for row in rows)
    wall_s = sum(row.wall_s for row in rows if row.num_segments)
    taken_s = {stage: sum(getattr(row, f"{stage}_s") for row in rows) for stage in STAGES}
    all_s = sum(taken_s.values())
    shares = {stage: taken_s[stage] / all_s if all_s else None for stage in STAGES}
    rate = segments / wall_s if segments and wall_s else None
    return Figures(count["done"], count["cached"], count["failed"], segments, masked, rate, **shares)


def by_group(rows: Sequence["StatusRow"]) -> dict[tuple[str, str], Figures]:
    """Return the figures of every (view, modality), sorted."""
    groups = sorted({(row.view, row.modality) for row in rows})
    return {group: figures(row for row in rows if (row.view, row.modality) == group) for group in groups}


def to_json(rows: Sequence["StatusRow"], *, seconds: float) -> dict[str, Any]:
    """Return what --json prints about these shards beside the store's name."""
    total = figures(rows)
    return {
        "shards": [asdict(row) for row in rows],
        "groups": [
            {"view": view, "modality": modality, **asdict(made)} for (view, modality), made in by_group(rows).items()
        ],
        "retried": num_retried(rows),
        "quarantined": [
            {"recording": row.recording, "view": row.view, "modality": row.modality, "reason": row.reason}
            for row in rows
            if row.quarantined
        ],
        "seconds": round(seconds, 3),
        "segments_per_s": round(total.segments / seconds, 3) if total.segments and seconds else None,
    }


def num_retried(rows: Iterable["StatusRow"]) -> int:
    """Return how many shards more than one worker began."""
    return sum(row.attempts > 1 for row in rows)


def print_table(rows: Sequence["StatusRow"]) -> None:
    """Print one line per view and modality to stderr."""
    from rich.console import Console
    from rich.table import Table

    heads = ("view", "modality", "new", "cached", "failed", "segments", "masked", "segments/s", *STAGES)
    table = Table(title="features")
    for head in heads:
        table.add_column(head, overflow="fold")  # names of pieces differ at their ends
    for (view, modality), made in by_group(rows).items():
        counts = (made.new, made.cached, made.failed, made.segments, made.masked)
        rate = "-" if made.segments_per_s is None else f"{made.segments_per_s:.3g}"
        shares = (share_text(getattr(made, stage)) for stage in STAGES)
        table.add_row(view, modality, *map(str, counts), rate, *shares)
    console = Console(stderr=True)
    console.width = max(console.width, 116)  # a pipe has 80 columns, which would cut the heads
    console.print(table)


def summary_line(rows: Sequence["StatusRow"], *, seconds: float) -> str:
    """Return how many shards there are and what went wrong, in one line."""
    made = figures(rows)
    parts = [f"{len(rows)} shards", f"{made.failed} failed"]
    if num_retried(rows):
        parts.append(f"{num_retried(rows)} retried after a worker died")
    if any(row.quarantined for row in rows):
        parts.append(f"{sum(row.quarantined for row in rows)} quarantined")
    if made.segments:
        parts.append(f"{made.segments} segments in {seconds:.0f} s")
    if runtimes := sorted({row.runtime for row in rows if row.runtime}):
        parts.append(f"by {' and '.join(runtimes)}")
    return ", ".join(parts)


def share_text(share: float | None) -> str:
    """Return a share as "42 %", or "-" where it is not known."""
    return "-" if share is None else f"{100 * share:.0f} %"


class RunningBar:
    """The bar of a run, with the figures of the shards that have come."""

    def __init__(self, progress: "Progress", bar: "TaskID") -> None:
        self._progress, self._bar = progress, bar
        self._rows: list[StatusRow] = []

    def report(self, row: "StatusRow") -> None:
        """Count one more shard."""
        self._rows.append(row)
        self._progress.update(self._bar, advance=1, figures=self._text())

    def warn(self, text: str) -> None:
        """Print a line above the bar."""
        self._progress.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _text(self) -> str:
        made, elapsed_s = figures(self._rows), self._progress.tasks[self._bar].elapsed or 0.0
        rate = f"{made.segments / elapsed_s:.3g}" if made.segments and elapsed_s else "-"
        return (
            f"{rate} segments/s, decode {share_text(made.decode)} compute {share_text(made.compute)}, "
            f"{made.failed} failed,"
        )


@contextmanager
def running_bar(num_shards: int) -> Iterator[RunningBar]:
    """Yield the bar over so many shards, on stderr."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        BarColumn(10), MofNCompleteColumn(), TextColumn("{task.fields[figures]}"), TimeRemainingColumn(),
        TextColumn("left"),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = RunningBar(progress, progress.add_task("", total=num_shards, figures=""))
        yield bar
