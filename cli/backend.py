"""The options `--backend` and `--scheduler`, the same for every command that works on a cluster too."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from talstack.io.cluster import Backend, Cluster


def backend_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command both options; it checks them with `check_backend`."""
    scheduler = click.option("--scheduler", metavar="ADDRESS", help="Address of dask's scheduler or of a ray cluster.")
    backend = click.option(
        "--backend",
        type=click.Choice(["loky", "dask", "ray"]),
        default="loky",
        show_default=True,
        help="Where workers run: this machine, or a cluster of dask or ray.",
    )
    return backend(scheduler(function))


def check_backend(backend: "Backend", scheduler: str | None) -> None:
    """Raise UsageError where the options do not go together."""
    if backend == "dask" and scheduler is None:
        raise click.UsageError("--backend dask needs --scheduler ADDRESS, such as tcp://HOST:8786")
    if backend == "loky" and scheduler is not None:
        raise click.UsageError("--scheduler is for --backend dask or ray; loky runs on this machine")


@contextmanager
def opened(backend: "Backend", scheduler: str | None) -> "Iterator[Cluster | None]":
    """Yield the cluster, None for this machine."""
    if backend == "loky":
        yield None
        return
    from talstack.io.cluster import open_cluster

    with open_cluster(backend, scheduler) as cluster:
        yield cluster
