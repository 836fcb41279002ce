"""What ``hmasd tune`` was asked for: its options, checked before anything is started."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hmasd_sb3 import paper_settings
from hmasd_sb3.running.config import Request, RunConfig, read_request, why_refused
from hmasd_sb3.running.env_check import check_before_training
from hmasd_sb3.running.errors import InputError
from hmasd_sb3.running.options import TrainOptions
from hmasd_sb3.tuning.objective import AGGREGATES, METRICS, Objective
from hmasd_sb3.tuning.space import SearchSpace
from hmasd_sb3.tuning.study import DEFAULTS, Spec
from hmasd_sb3.tuning.training import Training
from hmasd_sb3.tuning.workers import PRUNERS, SAMPLERS


@dataclass(frozen=True)
class TuneOptions:
    """The options of ``hmasd tune``."""

    env: str | None = None
    config: Path | None = None
    assignments: list[str] = field(default_factory=list)
    total_timesteps: int | None = None
    n_envs: int | None = None
    n_workers: int | None = None
    trials: int = 50
    workers: int = 1
    seeds: int = 3
    n_evaluations: int = 8
    eval_episodes: int = 32
    aggregate: str = "mean"
    metric: str = "auto"
    deterministic: bool = False
    search: list[str] = field(default_factory=list)
    sampler: str = "tpe"
    pruner: str = "median"
    seed: int = 0
    defaults_first: bool = True
    paper_first: str | None = None
    vary: int | None = None
    confirm: int = 3
    confirm_seeds: int = 8
    max_failures: int = 3
    timeout: float | None = None
    study: str | None = None
    storage: str | None = None
    out: Path | None = None
    check: bool = True


@dataclass(frozen=True)
class Command:
    """The options, read and checked."""

    options: TuneOptions
    spec: Spec
    n_workers: int | None
    study: str
    storage: str
    out: Path
    deadline: float | None
    """``time.time()`` after which no trial is begun."""
    first_trials: dict[str, dict[str, Any]]
    note: str
    """Lines about what was taken without being asked for."""


def read_command(options: TuneOptions) -> Command:
    """Check all that can be checked before anything is started."""
    for name, value, known in (
        ("--sampler", options.sampler, SAMPLERS),
        ("--pruner", options.pruner, PRUNERS),
        ("--aggregate", options.aggregate, tuple(AGGREGATES)),
        ("--metric", options.metric, METRICS),
    ):
        if value not in known:
            raise InputError(f"{name} {value}: must be one of {', '.join(known)}.")
    request = read_request(
        TrainOptions(
            env=options.env,
            config=options.config,
            assignments=options.assignments,
            total_timesteps=options.total_timesteps,
            n_envs=options.n_envs,
            n_workers=options.n_workers,
        )
    )
    config = request.config
    try:
        fixed, first = _divide(config.hyperparameters, request.hyperparameters, options.search or None)
    except ValueError as error:
        raise InputError(str(error)) from error
    spec = Spec(
        env=config.env,
        total_timesteps=request.given.get("total_timesteps", 100_000),
        n_envs=config.n_envs,
        policy=config.policy,
        normalize=config.normalize,
        env_kwargs=config.env_kwargs,
        seeds=list(range(options.seeds)),
        n_evaluations=options.n_evaluations,
        n_eval_episodes=options.eval_episodes,
        aggregate=options.aggregate,
        metric=options.metric,
        deterministic=options.deterministic,
        fixed=fixed,
        search=options.search or None,
    )
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", config.env)
    out = options.out or Path("runs") / f"tune-{name}"
    try:
        objective = spec.objective(config.n_workers)
        first_trials = _first_trials(options, request, objective.space, first)
    except (ValueError, TypeError, ImportError) as error:
        raise InputError(" ".join(str(error).split())) from error
    try:
        _try_out(objective, options.check)
    except (ValueError, TypeError, ImportError, FileNotFoundError) as error:
        raise InputError(why_refused(error, request.places)) from error
    study = options.study or f"hmasd-{name}"
    storage = options.storage or str(out / "study.journal")
    deadline = None if options.timeout is None else time.time() + options.timeout
    return Command(options, spec, config.n_workers, study, storage, out, deadline, first_trials, request.note)


def _divide(
    in_force: dict[str, Any], given: dict[str, Any], search: list[str] | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Which arguments are fixed, and which only say where the search begins.

    Those of a file that comes with the package do the latter, but for those that are not searched.

    :param in_force: arguments of ``HMASD`` that a training would have
    :param given: those of them that somebody set
    """
    searched = SearchSpace(fixed=given, only=search).ranges
    begin = {name: value for name, value in in_force.items() if name not in given and name in searched}
    return {name: value for name, value in in_force.items() if name not in begin}, begin


def _first_trials(
    options: TuneOptions, request: Request, space: SearchSpace, first: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    """What a new study tries first; settings that were given hold for all trials."""
    first_trials: dict[str, dict[str, Any]] = {DEFAULTS: first} if options.defaults_first else {}
    if options.paper_first is not None:
        given, n_envs = request.hyperparameters, request.config.n_envs
        paper = paper_settings(options.paper_first, n_envs)
        paper["batch_size"] = given.get("n_steps", paper["n_steps"]) * n_envs  # all of a rollout at once
        paper = {name: value for name, value in paper.items() if name not in given}
        space.params_of(paper, n_envs)
        first_trials["paper's setting"] = paper
    return first_trials


def _try_out(objective: Objective, is_played: bool) -> None:
    """Make game and model once, and play a little: what is wrong with them would break every trial."""
    config = RunConfig(**{**vars(objective.config), "hyperparameters": objective.space.fixed})
    Training(config, objective.deterministic).close()
    if is_played:
        check_before_training(config, with_notes=False)
