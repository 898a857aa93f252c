"""The `--jobs` option, the same for every command that has one."""

from collections.abc import Callable
from typing import Any

import click


def _resolve(context: click.Context, parameter: click.Parameter, asked: int) -> int:
    if asked > 0:
        return asked
    import joblib  # not at the top: --help needs no joblib

    return int(joblib.cpu_count())


def jobs_option(what: str, *, chosen: str = "") -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a `--jobs` option that hands the command a number of at least 1; 0 stands for one per core.

    Args:
        what: what there are several of, such as "Processes".
        chosen: how the command itself chooses where it is handed 0, which it is only then.
    """
    return click.option(
        "--jobs",
        default=0,
        type=click.IntRange(0),
        callback=None if chosen else _resolve,
        show_default=False if chosen else "one per core",
        help=f"{what}; 0 = {chosen or 'one per core'}.",
    )
