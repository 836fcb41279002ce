"""The command ``hmasd``: puts the commands together."""

from __future__ import annotations

import os
import sys

import typer

from hmasd_sb3.commands import train, tune, zoo

app = typer.Typer(
    name="hmasd",
    help="Train teams of agents with HMASD, hierarchical multi-agent skill discovery.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@app.callback()
def commands() -> None:
    """Train teams of agents with HMASD, hierarchical multi-agent skill discovery."""


app.command(epilog=train.EXIT_CODES)(train.train)
app.command(epilog=tune.EXIT_CODES)(tune.tune)
app.command(context_settings=zoo.CONTEXT, add_help_option=False)(zoo.zoo)


def main() -> None:
    """Entry point of the command ``hmasd``."""
    # As with `python -m`: games of one's own are found in the working directory.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    app()


if __name__ == "__main__":
    main()
