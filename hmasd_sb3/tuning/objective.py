"""What a trial is worth: HMASD trained on several seeds within a budget, evaluated on the way."""

from __future__ import annotations

import gc
import math
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from hmasd_sb3.monitoring.optional import import_optional
from hmasd_sb3.monitoring.stopping import StopRequest
from hmasd_sb3.running.config import RunConfig
from hmasd_sb3.tuning.space import SearchSpace
from hmasd_sb3.tuning.training import Training
from hmasd_sb3.validation import check_count

if TYPE_CHECKING:
    from optuna.trial import Trial

AGGREGATES: dict[str, Callable[[Sequence[float]], float]] = {
    "mean": lambda values: float(np.mean(values)),
    "min": lambda values: float(np.min(values)),
    "q25": lambda values: float(np.quantile(values, 0.25)),
}
"""What becomes of the values of a trial's seeds."""
METRICS = ("auto", "success", "return")
SETTINGS = "settings"
"""A trial may bring constructor arguments of its own, those beyond the space, as a user attribute of this name."""
HYPERPARAMETERS, ERROR, TRACEBACK, EVALUATIONS, SECONDS = "hyperparameters", "error", "traceback", "evaluations", "seconds"
_LONGEST_TEXT = 8000
_BUSY = threading.Lock()
"""Held during a trial, as trainings need the global random generators to themselves."""


class TrialInterrupted(Exception):
    """A stop was requested in the middle of a trial: no fault of the trial, which has no value."""


@dataclass
class Objective:
    """What :func:`make_objective` makes: called with a trial, it trains and returns the trial's value."""

    config: RunConfig
    seeds: tuple[int, ...]
    n_evaluations: int
    aggregate: str
    metric: str
    deterministic: bool
    space: SearchSpace
    stop: StopRequest | None = None
    _clock: Callable[[], float] = field(default=time.perf_counter, repr=False)

    def __call__(self, trial: Trial) -> float:
        """Train and evaluate.

        :raises optuna.TrialPruned: if the study's pruner ends it
        :raises TrialInterrupted: if a stop is requested
        :raises Exception: whatever goes wrong, kept in the trial's user attributes as well
        """
        optuna = import_optional("optuna", purpose="Searching for hyperparameters", extra="tuning")
        study = getattr(trial, "study", None)
        if study is not None and study.direction != optuna.study.StudyDirection.MAXIMIZE:
            raise ValueError("The more success the better: make the study with create_study(direction='maximize').")
        if not _BUSY.acquire(blocking=False):
            raise RuntimeError("One trial at a time in a process: n_jobs starts threads. Use processes, as hmasd tune does.")
        gc.collect()  # an error holds what it happened in, until now
        started = self._clock()
        try:
            hyperparameters = {**self.space.sample(trial, self.config.n_envs), **trial.user_attrs.get(SETTINGS, {})}
            trial.set_user_attr(HYPERPARAMETERS, hyperparameters)
            return self._train(trial, hyperparameters, optuna.TrialPruned)
        except (optuna.TrialPruned, TrialInterrupted):
            raise
        except (Exception, SystemExit) as error:
            trial.set_user_attr(ERROR, f"{type(error).__name__}: {error}"[:_LONGEST_TEXT])
            trial.set_user_attr(TRACEBACK, "".join(traceback.format_exception(error))[-_LONGEST_TEXT:])
            if isinstance(error, SystemExit):  # it would end the study, and pass for a success
                raise RuntimeError(f"The game, or something in it, called sys.exit({error.code!r}).") from error
            raise
        finally:
            _BUSY.release()
            gc.collect()  # models and environments hold each other
            trial.set_user_attr(SECONDS, round(self._clock() - started, 2))

    def _train(self, trial: Trial, hyperparameters: dict[str, Any], pruned: type[Exception]) -> float:
        measured: list[list[float]] = [[] for _ in self.seeds]
        steps: list[int] = []
        with ExitStack() as stack:
            trainings = []
            for seed in self.seeds:
                trainings.append(Training(self._config_of(seed, hyperparameters), self.deterministic, self.stop))
                stack.callback(trainings[-1].close)
            # All seeds side by side, a stretch each: what is reported at a step then always stands for all seeds, and is
            # compared with that of other trials at the same step.
            for number in range(self.n_evaluations):
                steps.append(self.config.total_timesteps * (number + 1) // self.n_evaluations)
                for training, values in zip(trainings, measured, strict=True):
                    training.train_until(steps[-1])
                    self._check_stop()
                    values.append(training.evaluate(number).measure(self.metric))
                    self._check_stop()
                value = self.value(measured)
                if not math.isfinite(value):
                    raise ValueError(f"The evaluations at step {steps[-1]} gave {[values[-1] for values in measured]}.")
                trial.report(value, steps[-1])
                last = number + 1 == self.n_evaluations
                ends = last or trial.should_prune()
                if ends:
                    trial.set_user_attr(EVALUATIONS, {"steps": steps, "by_seed": measured})
                if ends and not last:
                    raise pruned(f"value {value:.4g} at step {steps[-1]}")
        return value

    def value(self, measured: Sequence[Sequence[float]]) -> float:
        """A trial's value after some evaluations: those of its seeds put together.

        :param measured: (seeds, evaluations)
        """
        return AGGREGATES[self.aggregate](seed_values(measured))

    def _config_of(self, seed: int, hyperparameters: dict[str, Any]) -> RunConfig:
        return RunConfig(**{**vars(self.config), "seed": seed, "hyperparameters": hyperparameters})

    def _check_stop(self) -> None:
        if self.stop is not None and self.stop.requested:
            raise TrialInterrupted


def seed_values(measured: Sequence[Sequence[float]]) -> list[float]:
    """What each seed is worth: the mean of the last third of its evaluations (rounded up), so that no single one decides.

    :param measured: (seeds, evaluations)
    """
    tail = math.ceil(len(measured[0]) / 3)
    return [float(np.mean(values[-tail:])) for values in measured]


def make_objective(
    env: Any,
    total_timesteps: int,
    *,
    n_envs: int = 32,
    seeds: Sequence[int] = (0, 1, 2),
    n_evaluations: int = 8,
    n_eval_episodes: int = 32,
    aggregate: str = "mean",
    metric: str = "auto",
    deterministic: bool = False,
    space: SearchSpace | None = None,
    policy: str = "MlpPolicy",
    normalize: bool | dict[str, Any] = False,
    env_kwargs: dict[str, Any] | None = None,
    n_workers: int | None = None,
    stop: StopRequest | None = None,
) -> Objective:
    """An objective for ``study.optimize`` of a study with ``direction="maximize"``.

    :param env: a registered id, or a function that makes a game, or the place of one, ``"package.module:function"``
    :param total_timesteps: budget of every seed, in environment steps
    :param n_envs: environments trained in side by side, for every seed
    :param seeds: each trial trains once with each; they also seed the environments
    :param n_evaluations: evaluations, evenly spread; after each but the last, the trial may be pruned
    :param n_eval_episodes: episodes per evaluation and seed. All trials play the same ones
    :param aggregate: what the seeds' values become: "mean", "min" or "q25", the lower quartile
    :param metric: "success", "return", or "auto": success where every episode reports it, else return
    :param deterministic: evaluate the most likely skills and actions. Drawn ones show small progress sooner
    :param space: what is searched, and what is fixed; by default :class:`SearchSpace` without arguments
    :param policy: "MlpPolicy" or "CnnPolicy"
    :param normalize: as in RL Zoo: true, or arguments of ``VecNormalize``
    :param env_kwargs: arguments of the game
    :param n_workers: processes to spread every seed's environments over
    :param stop: makes a trial end early, with :class:`TrialInterrupted`
    :raises ValueError: for an argument out of its range
    """
    check_count("total_timesteps", total_timesteps)
    check_count("n_envs", n_envs)
    check_count("n_evaluations", n_evaluations)
    check_count("n_eval_episodes", n_eval_episodes)
    for seed in seeds:
        check_count("seeds: each", seed, 0)
    if not seeds or len(set(seeds)) != len(seeds):
        raise ValueError(f"seeds must be different numbers, at least one, got {seeds!r}.")
    for name, given, known in (("aggregate", aggregate, tuple(AGGREGATES)), ("metric", metric, METRICS)):
        if given not in known:
            raise ValueError(f"{name} must be one of {known}, got {given!r}.")
    if n_evaluations * n_envs > total_timesteps:
        raise ValueError(
            f"total_timesteps={total_timesteps} leaves no step of {n_envs} environments before each of {n_evaluations} "
            "evaluations. Raise it, or lower n_evaluations or n_envs."
        )
    space = SearchSpace() if space is None else space
    _check_budget(space, total_timesteps, n_envs)
    config = RunConfig(
        env=env,
        total_timesteps=total_timesteps,
        n_envs=n_envs,
        n_workers=n_workers,
        policy=policy,
        normalize=normalize,
        env_kwargs=dict(env_kwargs or {}),
        eval_episodes=n_eval_episodes,
    )
    return Objective(config, tuple(seeds), n_evaluations, aggregate, metric, deterministic, space, stop)


def _check_budget(space: SearchSpace, total_timesteps: int, n_envs: int) -> None:
    """Two rollouts at least: what is evaluated before the first update is nobody's merit."""
    longest = space.longest_rollout()
    if 2 * longest * n_envs > total_timesteps:
        searched = f" (n_steps is searched up to {longest})" if "n_steps" in space.ranges else ""
        raise ValueError(
            f"total_timesteps={total_timesteps} is less than two rollouts, {n_envs} environments x {longest} steps{searched}, "
            "so trials would be evaluated that learnt nothing. Raise total_timesteps, lower n_envs, or fix a smaller n_steps."
        )
