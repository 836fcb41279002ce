"""``hmasd eval``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hmasd_sb3.commands.ends import Outcome, end
from hmasd_sb3.running.errors import DONE
from hmasd_sb3.running.options import EvalOptions

EXIT_CODES = """\b
Exit codes:
  0    all episodes were played, however well
  1    something else went wrong
  2    wrong input: no such model, no environment for it, a package missing
  4    an environment or a worker process broke down
  130  stopped by Ctrl-C
"""


def evaluate(
    path: Annotated[Path, typer.Argument(metavar="MODEL|RUN", help="A model file (.zip), or the folder of a run.")],
    best: Annotated[
        bool, typer.Option("--best", help="Of a run: the model of its best evaluation, not the last one.")
    ] = False,
    env: Annotated[
        str | None, typer.Option(metavar="ID", help="Registered id, or package.module:factory.  [default: the run's]")
    ] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="'env_kwargs={...}' or normalize=..., as for training."),
    ] = None,
    episodes: Annotated[int, typer.Option(min=1, metavar="N", help="Episodes to play.")] = 100,
    n_envs: Annotated[int, typer.Option(min=1, metavar="N", help="Environments side by side, at most.")] = 32,
    n_workers: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Processes to spread the environments over.  [default: none]")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Seed of the episodes.  [default: 20000 above the run's]")
    ] = None,
    stochastic: Annotated[bool, typer.Option("--stochastic", help="Sample skills and actions, as in training.")] = False,
    render: Annotated[bool, typer.Option("--render", help="Show one environment in the game's own window.")] = False,
    gif: Annotated[Path | None, typer.Option(metavar="FILE.gif", help="Write one episode, with its skills.")] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE.png", help="Draw which skills are used how much.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object; all else goes to standard error.")] = False,
) -> None:
    """Play a saved model: return, success rate, episode length, and what its skills are used for.

    Nothing is trained. Every environment plays a number of episodes that is settled beforehand, so that short ones count no
    more than long ones. Intervals are for the mean over this one model's episodes: they say nothing about other trainings.
    """
    given = {name: value for name, value in locals().items() if name != "json"}
    options = EvalOptions(**{**given, "assignments": assignments or []})
    raise end(lambda: _evaluate(options), json_wanted=json)


def _evaluate(options: EvalOptions) -> Outcome:
    import torch as th

    from hmasd_sb3.running.evaluating import as_dict, evaluate_saved, lines

    th.set_num_threads(1)  # as in training
    played = evaluate_saved(options)
    print("\n".join(lines(played)), flush=True)
    for path in (played.gif, played.plot):
        if path is not None:
            print(f"Wrote {path}.", flush=True)
    return Outcome(DONE, as_dict(played))
