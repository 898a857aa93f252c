"""`talstack init`: write a configuration file with every setting, its default and what it means."""

from pathlib import Path

import click


@click.command("init")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False), default="talstack.toml")
@click.option("--force", is_flag=True, help="Overwrite FILE if it is there.")
def command(file: Path, force: bool) -> None:
    """Write a commented default configuration to FILE (talstack.toml).

    Edit it and hand it to the other commands with --config; a key that you delete keeps its default.
    """
    from talstack.cli.config import Config
    from talstack.io.errors import InputError
    from talstack.io.files import write_text

    if file.exists() and not force:
        raise InputError(f"{file} is there already; --force overwrites it")
    write_text(file, Config().to_toml())
    click.echo(f"wrote {file}")
