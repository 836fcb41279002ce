"""A worker: begins trials, one after another, until the study has as many as are wanted."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from hmasd_sb3.monitoring.stopping import StopRequest
from hmasd_sb3.running.errors import DONE, FAILED, SIGNAL_BASE
from hmasd_sb3.tuning.objective import ERROR, TRACEBACK, TrialInterrupted
from hmasd_sb3.tuning.study import SharedStudy, Turn

if TYPE_CHECKING:
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler
    from optuna.trial import Trial

SAMPLERS = ("tpe", "random")
PRUNERS = ("median", "halving", "none")
_PATIENCE = 0.3
"""Seconds between two looks at a study whose trials are all at work."""


def make_sampler(name: str, entropy: list[int]) -> BaseSampler:
    """A sampler of its own for every worker: two of one seed would make the same suggestions.

    :param name: one of ``SAMPLERS``
    """
    import optuna

    seed = int(np.random.SeedSequence(entropy).generate_state(1)[0])
    if name == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    # What other workers are at counts as bad for the moment, so that not all of them try the same.
    return optuna.samplers.TPESampler(seed=seed, n_startup_trials=8, constant_liar=True)


def make_pruner(name: str, total_timesteps: int, n_evaluations: int) -> BasePruner:
    """A pruner whose steps are environment steps.

    :param name: one of ``PRUNERS``
    """
    import optuna

    if name == "median":
        # The first third tells little: skills come before success.
        return optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=total_timesteps // 3)
    if name == "halving":
        first = total_timesteps // n_evaluations
        return optuna.pruners.SuccessiveHalvingPruner(min_resource=first, reduction_factor=2)
    return optuna.pruners.NopPruner()


def work(
    shared: SharedStudy,
    objective: Callable[[Trial], float],
    n_trials: int,
    max_failures: int,
    stop: StopRequest,
    deadline: float | None = None,
) -> int:
    """Begin trials until there are enough.

    :param n_trials: how many of the study's trials are to have a value
    :param max_failures: give up after so many failures in a row
    :param deadline: ``time.time()`` after which no trial is begun
    :return: the exit code: 0 once there is nothing to do, 1 after too many failures, 128 and a signal's number
    """
    shared.sign_in()
    while not stop.requested:
        if deadline is not None and time.time() >= deadline:
            return DONE
        turn = shared.next_trial(n_trials, max_failures)
        if turn is Turn.DONE:
            return DONE
        if turn is Turn.BROKEN:
            return FAILED
        if isinstance(turn, Turn):
            time.sleep(_PATIENCE)
        else:
            _carry_out(shared, objective, turn)
    assert stop.number is not None
    return SIGNAL_BASE + stop.number


def _carry_out(shared: SharedStudy, objective: Callable[[Trial], float], trial: Trial) -> None:
    import optuna

    try:
        value: Any = objective(trial)
    except optuna.TrialPruned:
        shared.end(trial, pruned=True)
    except (TrialInterrupted, KeyboardInterrupt) as interruption:
        shared.give_back(trial)
        if isinstance(interruption, KeyboardInterrupt):
            raise
    except Exception:
        shared.end(trial)
    else:
        shared.end(trial, value)


def describe_failure(shared: SharedStudy) -> str:
    """The latest crash, with its traceback."""
    trial = shared.last_failure()
    if trial is None:
        return "no trial failed"
    trace = trial.user_attrs.get(TRACEBACK, "")
    return f"{trace}trial {trial.number} failed: {trial.user_attrs.get(ERROR, 'no error was kept')}"
