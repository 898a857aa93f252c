"""The `talstack` group: collects the commands and turns talstack's errors into exit codes."""

from typing import Any

import click

from talstack.cli import (
    ablate,
    cache,
    compare,
    demo_data,
    diagnose,
    evaluate,
    extract,
    finetune,
    heads,
    import_,
    init,
    predict,
    prune,
    submit,
    sync,
    tune,
    validate,
)
from talstack.io.errors import TalstackError


class _Group(click.Group):
    """A group whose commands end with exit code 2 and one clear line where talstack refuses its input."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except TalstackError as error:
            click.echo(f"error: {error}", err=True)
            ctx.exit(2)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="talstack")
def main() -> None:
    """Find which actions happen when in long recordings filmed by several cameras.

    The usual order: import (or demo-data), sync, finetune, extract, heads, tune, submit, evaluate. Every step skips
    what is already there. Then: predict applies the run to other recordings, ablate compares settings of heads and
    ensembles, diagnose says why a score is what it is, compare whether another is better, validate what the
    competition would refuse; cache looks after the features, prune after the heads of the past.
    Exit codes: 0 done, 1 incomplete (what is missing is listed), 2 wrong usage or input.
    """


for _module in (
    init,
    demo_data,
    import_,
    sync,
    finetune,
    extract,
    cache,
    heads,
    tune,
    ablate,
    submit,
    predict,
    evaluate,
    diagnose,
    compare,
    validate,
    prune,
):
    main.add_command(_module.command)
