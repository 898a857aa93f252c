"""The options `--older-than` and `--delete`, the same for every command that removes what nothing uses."""

from collections.abc import Callable
from typing import Any

import click


def removal_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command both options, as `older_than_days` and `delete`."""
    delete = click.option("--delete", is_flag=True, help="Remove it; without this, only say what would be removed.")
    older_than = click.option(
        "--older-than",
        "older_than_days",
        default=1.0,
        type=click.FloatRange(0),
        show_default=True,
        metavar="DAYS",
        help="Only what was written longer ago than this.",
    )
    return older_than(delete(function))
