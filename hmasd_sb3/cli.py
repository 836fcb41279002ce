"""The command ``hmasd``: puts the commands together."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

import hmasd_sb3
from hmasd_sb3.commands import check, doctor, envs, evaluate, train, tune, zoo

app = typer.Typer(
    name="hmasd",
    help="Train teams of agents with HMASD, hierarchical multi-agent skill discovery.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"hmasd-sb3 {hmasd_sb3.__version__}")
        raise typer.Exit


@app.callback()
def commands(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    """Train teams of agents with HMASD, hierarchical multi-agent skill discovery."""


# Texts of at most 60 characters, as others are cut off in the list of commands.
app.command(epilog=check.EXIT_CODES, short_help="Try an environment out: what breaks a convention?")(check.check)
app.command(epilog=doctor.EXIT_CODES, short_help="Look at this computer: what works, what is missing?")(doctor.doctor)
app.command(short_help="List environments, their sizes and recommended settings.")(envs.envs)
app.command("eval", epilog=evaluate.EXIT_CODES, short_help="Play a saved model: return, success, use of skills.")(
    evaluate.evaluate
)
app.command(epilog=train.EXIT_CODES, short_help="Train a team, or go on with a run.")(train.train)
app.command(epilog=tune.EXIT_CODES, short_help="Search for hyperparameters with Optuna.")(tune.tune)
app.command(context_settings=zoo.CONTEXT, add_help_option=False, short_help="Run RL Zoo's programs with HMASD.")(zoo.zoo)


def main() -> None:
    """Entry point of the command ``hmasd``."""
    # As with `python -m`: games of one's own are found in the working directory.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        app(prog_name="hmasd")
    except KeyboardInterrupt:  # outside of any command
        print("Stopped.", file=sys.stderr, flush=True)
        sys.exit(130)


if __name__ == "__main__":
    main()
