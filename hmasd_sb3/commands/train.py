"""``hmasd train``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hmasd_sb3.commands.ends import Outcome, describe, end, report
from hmasd_sb3.commands.numbers import whole_number
from hmasd_sb3.running.errors import SIGNAL_BASE, InputError
from hmasd_sb3.running.options import TrainOptions

if TYPE_CHECKING:
    from hmasd_sb3.running.folder import RunFolder

EXIT_CODES = """\b
Exit codes:
  0    the run is complete
  1    something else went wrong: a full disk, no memory left
  2    wrong input, or an environment that breaks a convention: nothing was started
  3    NaN or infinity, in the networks or from the environment
  4    an environment or a worker process broke down
  130  stopped by SIGINT (Ctrl-C), 143 by SIGTERM: a checkpoint was saved
"""


def train(
    env: Annotated[
        str | None,
        typer.Option(metavar="ID", help="Registered id, or package.module:factory.  [default: AliceAndBob-v0]"),
    ] = None,
    total_timesteps: Annotated[
        int | None,
        typer.Option(
            parser=whole_number(1),
            metavar="N",
            help="Environment steps to train for, such as 1e6.  [default: the file's, or 320000]",
        ),
    ] = None,
    n_envs: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Environments side by side.  [default: the file's, or 32]")
    ] = None,
    n_workers: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Processes to spread the environments over; worth it from 1 ms per step.  [default: none]"
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, metavar="N", help="Seed of everything random.  [default: 0]")] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.yml",
            help="Settings in RL Zoo's format; options given here go before those in it.  [default: this package's own file, "
            "if that has an entry for the environment]",
        ),
    ] = None,
    from_run: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="DIR",
            help="Repeat the run in this folder, in a new one: its settings and its seed, but for the options given beside.",
        ),
    ] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="One setting as in the file, e.g. gamma=0.95; may be repeated."),
    ] = None,
    run_dir: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder of the run, new or empty.  [default: runs/<env>-seed<seed>-<time>]"),
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option(
            metavar="[auto|PATH]",
            help="Go on with a run, exactly where it was: the one in --run-dir, or the newest unfinished one below runs/ that "
            "this command started (auto); or that of a run folder or checkpoint file.",
        ),
    ] = None,
    checkpoint_freq: Annotated[
        int | None,
        typer.Option(parser=whole_number(1), metavar="N", help="Environment steps between checkpoints.  [default: 32000]"),
    ] = None,
    keep_checkpoints: Annotated[
        int | None, typer.Option(min=1, metavar="K", help="How many checkpoints stay.  [default: 3]")
    ] = None,
    eval_freq: Annotated[
        int | None,
        typer.Option(
            parser=whole_number(0), metavar="N", help="Environment steps between evaluations; 0: never.  [default: 32000]"
        ),
    ] = None,
    eval_episodes: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Episodes per evaluation.  [default: 100]")
    ] = None,
    max_restarts: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="N",
            help="Train in a process that is started again, so often, if it breaks down (1, 3, 4, signals).",
        ),
    ] = 0,
    tensorboard: Annotated[
        bool | None,
        typer.Option(
            "--tensorboard/--no-tensorboard",
            help="With a TensorBoard server beside the run, which ends with it; or without logs for it.  "
            "[default: logs if it is installed, no server]",
        ),
    ] = None,
    tensorboard_port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, metavar="PORT", help="Where the server listens.  [default: 6006, or one that is free]"),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check/--no-check", help="Try the environment out before a new run, for some two seconds.")
    ] = True,
    json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object about the run at its end; all else goes to standard error.")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Print everything logged, and tracebacks of refused input.")
    ] = False,
    supervised: Annotated[int | None, typer.Option(hidden=True)] = None,
) -> None:
    """Train a team: settings, checkpoints, metrics, evaluations and the model go into one folder.

    Ctrl-C or SIGTERM saves a checkpoint and ends; --resume goes on from it as if nothing had happened. A second Ctrl-C ends
    at once.
    """
    options = TrainOptions(**{**locals(), "assignments": assignments or []})
    found: list[RunFolder] = []
    raise end(lambda: _train(options, found), json_wanted=json, verbose=verbose)


def _train(options: TrainOptions, found: list[RunFolder]) -> Outcome:
    """Train; whatever ends it, the answer holds what is known of the run."""
    from hmasd_sb3.running.answers import run_answer

    error: str | None = None
    try:
        code = _carry_out(options, found)
    except InputError:
        raise
    except (Exception, SystemExit) as reason:  # a game that calls sys.exit(0) has not trained anything
        code, error = report(reason), describe(reason)[1]
    answer: dict[str, Any] = run_answer(found[0]) if found and found[0].holds_run else {}
    return Outcome(code, answer if error is None else {"error": error, **answer})


def _carry_out(options: TrainOptions, found: list[RunFolder]) -> int:
    import torch as th

    from hmasd_sb3.monitoring.stopping import StopRequest, show_cursor
    from hmasd_sb3.running.supervised import train_supervised
    from hmasd_sb3.running.train import train
    from hmasd_sb3.supervisor import end_with_supervisor

    # Networks this small spend longer waiting for each other's threads than computing.
    th.set_num_threads(1)
    if options.max_restarts:
        return train_supervised(options, found.append)
    with StopRequest() as stop:
        if options.supervised is not None:
            end_with_supervisor()
        try:
            return train(options, stop, found.append)
        except KeyboardInterrupt:
            show_cursor()
            print("Stopped at once.", file=sys.stderr, flush=True)
            return SIGNAL_BASE + (stop.number or 2)
