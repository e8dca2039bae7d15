"""The `diffattn` command."""

from __future__ import annotations

import sys

import typer

from ..analysis.errors import CommandError
from .bench import bench
from .calibrate import calibrate
from .compare import compare
from .demo import demo
from .density import density
from .env import env
from .generate import generate
from .hunt import hunt
from .inspect import inspect
from .recall import recall

app = typer.Typer(
    help="Sparse attention for diffusers pipelines.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command()(generate)
app.command()(inspect)
app.command()(compare)
app.command()(bench)
app.command()(demo)
app.command()(recall)
app.command()(density)
app.command()(calibrate)
app.command()(hunt)
app.command()(env)


INTERRUPTED = 130  # what typer makes of Ctrl-C, without a word


def main() -> None:
    """Run the command; a mistake of the user's is one line on stderr and exit code 2."""
    try:
        app()
    except CommandError as error:
        typer.echo(f"diffattn: {error}", err=True)
        sys.exit(2)
    except SystemExit as exit:
        if exit.code == INTERRUPTED:
            typer.echo("diffattn: interrupted, nothing was written", err=True)
        raise
