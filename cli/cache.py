"""`talstack cache`: what is in a feature store. Each subcommand has a module of its own, imported when it is used."""

from collections.abc import Mapping
from importlib import import_module

import click

# a subcommand's module has a click command named `command`
SUBCOMMANDS: Mapping[str, str] = {
    "ls": "talstack.cli.cache_ls",
    "verify": "talstack.cli.cache_verify",
    "explain": "talstack.cli.cache_explain",
    "gc": "talstack.cli.cache_gc",
    "index": "talstack.cli.cache_index",
    "import": "talstack.cli.cache_import",
    "export": "talstack.cli.cache_export",
}


class _LazyGroup(click.Group):
    """A group that imports a subcommand only when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(SUBCOMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in SUBCOMMANDS:
            return None
        command: click.Command = import_module(SUBCOMMANDS[cmd_name]).command
        return command


@click.group("cache", cls=_LazyGroup)
def command() -> None:
    """See what is in a feature store, check it, bring features in and out."""
