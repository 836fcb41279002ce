"""``hmasd tune``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from hmasd_sb3.commands.ends import Outcome, end
from hmasd_sb3.commands.numbers import whole_number
from hmasd_sb3.running.errors import SIGNAL_BASE

EXIT_CODES = """\b
Exit codes:
  0    the study has all its trials, or the time was up
  1    something else went wrong: workers died again and again, a full disk
  2    wrong input: nothing was started
  4    too many trials failed; the last error was printed
  130  stopped by SIGINT (Ctrl-C), 143 by SIGTERM: the same command goes on
"""


def tune(
    env: Annotated[
        str | None,
        typer.Option(metavar="ID", help="Registered id, or package.module:factory.  [default: AliceAndBob-v0]"),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(metavar="FILE.yml", help="Settings in RL Zoo's format that are the same in all trials."),
    ] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="One such setting, e.g. skill_interval=50; may be repeated."),
    ] = None,
    search: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Search this argument, or group: skills, batches, ppo; may be repeated.  [default: all groups]",
        ),
    ] = None,
    total_timesteps: Annotated[
        int | None,
        typer.Option(
            parser=whole_number(1),
            metavar="N",
            help="Environment steps per trial and seed, such as 1e5.  [default: that of --config, or 100000]",
        ),
    ] = None,
    n_envs: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Environments side by side.  [default: the file's, or 32]")
    ] = None,
    n_workers: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Processes to spread the environments of one training over.  [default: none]"),
    ] = None,
    trials: Annotated[
        int, typer.Option(min=1, metavar="N", help="Trials that have a value in the end, complete or pruned, of all workers.")
    ] = 50,
    workers: Annotated[int, typer.Option(min=1, metavar="N", help="Processes that try at the same time.")] = 1,
    seeds: Annotated[int, typer.Option(min=1, metavar="N", help="Trainings per trial, of seeds 0 to N - 1.")] = 3,
    n_evaluations: Annotated[int, typer.Option(min=1, metavar="N", help="Evaluations per training, evenly spread.")] = 8,
    eval_episodes: Annotated[int, typer.Option(min=1, metavar="N", help="Episodes per evaluation and seed.")] = 32,
    aggregate: Annotated[
        str, typer.Option(metavar="mean|min|q25", help="What the seeds' values become; q25: lower quartile.")
    ] = "mean",
    metric: Annotated[
        str, typer.Option(metavar="auto|success|return", help="What is maximised; auto: success where it is reported.")
    ] = "auto",
    deterministic: Annotated[
        bool, typer.Option("--deterministic/--sampled", help="Evaluate the most likely actions, or drawn ones.")
    ] = False,
    sampler: Annotated[str, typer.Option(metavar="tpe|random", help="How new trials are chosen.")] = "tpe",
    pruner: Annotated[
        str, typer.Option(metavar="median|halving|none", help="How trials are ended early that lag behind.")
    ] = "median",
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Seed of the sampler, and of what is varied.")] = 0,
    defaults_first: Annotated[
        bool,
        typer.Option("--enqueue-defaults/--no-enqueue-defaults", help="Whether a new study's first trial is the defaults."),
    ] = True,
    paper_first: Annotated[
        str | None,
        typer.Option("--enqueue-paper", metavar="TASK", help="A new study tries the paper's setting of this task first."),
    ] = None,
    vary: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="N",
            help="Trials that vary the best one so far by steps in an eighth of its arguments; the sampler draws the others.  "
            "[default: two thirds of --trials]",
        ),
    ] = None,
    confirm: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="N",
            help="Train the best N trials, and the defaults, again on new seeds, and choose by these; 0: do not.",
        ),
    ] = 3,
    confirm_seeds: Annotated[int, typer.Option(min=1, metavar="N", help="New seeds for each of them.")] = 8,
    max_failures: Annotated[
        int,
        typer.Option(min=1, metavar="N", help="Stop after so many crashes in a row; after one while no trial has a value."),
    ] = 3,
    timeout: Annotated[
        float | None, typer.Option(min=0.0, metavar="SECONDS", help="Begin no trial after that.  [default: none]")
    ] = None,
    study: Annotated[str | None, typer.Option(metavar="NAME", help="The study's name.  [default: hmasd-<env>]")] = None,
    storage: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|URL",
            help="Journal file, sqlite:///FILE or postgresql://USER@HOST/DATABASE.  [default: study.journal in --out]",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder for best.yml, tables, pictures.  [default: runs/tune-<env>]")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check/--no-check", help="Try the environment out first, for some two seconds.")
    ] = True,
    json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object at the end; all else goes to standard error.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Print tracebacks of refused input.")] = False,
    worker: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Search for hyperparameters with Optuna.

    The same command, given again, goes on with the study; given in several places at once, all work on it.
    """
    given = {**locals(), "assignments": assignments or [], "search": search or []}
    own = {name: given.pop(name) for name in ("worker", "json", "verbose")}
    raise end(lambda: _tune(given, own["worker"]), json_wanted=own["json"], verbose=own["verbose"])


def _tune(given: dict[str, Any], worker: str | None) -> Outcome:
    import torch as th

    from hmasd_sb3.monitoring.stopping import StopRequest
    from hmasd_sb3.supervisor import end_with_supervisor

    th.set_num_threads(1)
    with StopRequest() as stop:
        try:
            from hmasd_sb3.tuning.command import TuneOptions
            from hmasd_sb3.tuning.search import run_worker, tune

            if worker is not None:
                end_with_supervisor()
                return Outcome(run_worker(worker, stop), {})
            return Outcome(*tune(TuneOptions(**given), stop))
        except KeyboardInterrupt:
            if worker is None:
                print("Stopped at once.", file=sys.stderr, flush=True)
            return Outcome(SIGNAL_BASE + (stop.number or 2), {"error": "stopped at once by a signal"})
