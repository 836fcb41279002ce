"""``hmasd check``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from hmasd_sb3.commands.ends import Outcome, end
from hmasd_sb3.running.errors import DONE, FAILED
from hmasd_sb3.running.options import TrainOptions

EXIT_CODES = """\b
Exit codes:
  0  nothing would ruin a training; there may be warnings
  1  something would
  2  wrong input, such as an environment that there is not
"""


def check(
    env: Annotated[
        str | None,
        typer.Option(metavar="ID", help="Registered id, or package.module:factory.  [default: AliceAndBob-v0]"),
    ] = None,
    config: Annotated[Path | None, typer.Option(metavar="FILE.yml", help="Settings as for training.")] = None,
    assignments: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="One setting, e.g. 'env_kwargs={size: 5}'.")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, metavar="N", help="Random steps to take at most.")] = 1000,
    seconds: Annotated[float, typer.Option(min=0.0, metavar="S", help="Seconds to play at most.")] = 10.0,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object; all else goes to standard error.")] = False,
) -> None:
    """Try an environment out: play it at random and name what breaks a convention.

    Looks for NaN, observations that are not what their space says, masks that leave no action, episodes with two ends or
    none, seeds that decide nothing, and slow steps. `hmasd train` does the same, shorter, before a new run.
    """
    options = TrainOptions(env=env, config=config, assignments=assignments or [])
    raise end(lambda: _check(options, steps, seconds), json_wanted=json)


def _check(options: TrainOptions, steps: int, seconds: float) -> Outcome:
    from hmasd_sb3.running.config import read_request, why_refused
    from hmasd_sb3.running.env_check import REFUSALS, try_environment
    from hmasd_sb3.running.errors import InputError

    request = read_request(options)
    if request.note:
        print(request.note, flush=True)
    try:
        report = try_environment(request.config, steps, seconds)
    except REFUSALS as error:
        raise InputError(why_refused(error, request.places)) from error
    print(f"Played {report.summary()}.")
    for finding in report.findings:
        print(f"{finding.level.capitalize()}: {finding}")
    if not report.findings:
        print("Nothing to object to.")
    sys.stdout.flush()
    return Outcome(FAILED if report.errors else DONE, report.as_dict())
