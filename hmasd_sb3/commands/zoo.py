"""``hmasd zoo``."""

from __future__ import annotations

from collections.abc import Sequence

import typer

from hmasd_sb3.commands.ends import fail, report
from hmasd_sb3.running.errors import DONE, WRONG_INPUT, InputError

# Everything behind the program's name is the program's, --help too.
CONTEXT = {"ignore_unknown_options": True, "allow_extra_args": True, "allow_interspersed_args": False}


def zoo(context: typer.Context) -> None:
    """RL Zoo's programs with HMASD: train, enjoy, record-video, plots.

    hmasd zoo lists them.
    """
    raise typer.Exit(run(context.args))


def run(arguments: Sequence[str]) -> int:
    """Run the program that the first argument names with the others; returns the exit code."""
    from hmasd_sb3.zoo.programs import run_program

    if not arguments or arguments[0] in ("-h", "--help"):
        print(_overview())
        return DONE
    try:
        return run_program(arguments[0], arguments[1:])
    except InputError as error:
        return fail(WRONG_INPUT, str(error))
    except Exception as error:
        return report(error)


def _overview() -> str:
    from hmasd_sb3.zoo.programs import FIGURES, PROGRAMS

    lines = [f"  {name:<16} {text}" for name, (_, _, text) in PROGRAMS.items()]
    return "\n".join(
        [
            "Usage: hmasd zoo PROGRAM [OPTIONS]",
            "",
            "RL Zoo's own programs with its own options, for HMASD unless --algo says otherwise.",
            "",
            *lines,
            "",
            "hmasd zoo PROGRAM --help lists a program's options. Settings come from the shipped file, or from -conf FILE.yml.",
            f"The plotting programs also take {FIGURES} FOLDER, which writes figures instead of showing them.",
        ]
    )
