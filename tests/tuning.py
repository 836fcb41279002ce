"""Helpers of the tests of tuning: trials that take a fraction of a second."""

from __future__ import annotations

from typing import Any

from optuna.trial import Trial

from hmasd_sb3.tuning.objective import Objective, make_objective
from hmasd_sb3.tuning.space import SearchSpace
from hmasd_sb3.tuning.study import Spec

QUICK: dict[str, Any] = {
    "n_steps": 12,
    "n_epochs": 1,
    "skill_n_epochs": 1,
    "skill_interval": 5,
    "sequence_length": 4,
    "discriminator_n_updates": 1,
    "discriminator_batch_size": 16,
    "policy_kwargs": {"hidden_size": 8},
    "device": "cpu",
}
SMALL_GAME = {"size": 3, "max_steps": 10}


def quick_objective(env: Any = "AliceAndBob-v0", total_timesteps: int = 96, **kwargs: Any) -> Objective:
    """An objective whose trials take a fraction of a second."""
    space = SearchSpace(fixed=QUICK, only=["team_diversity_coef", "gamma"])
    settings = {"n_envs": 4, "seeds": (0,), "n_evaluations": 2, "n_eval_episodes": 4, "space": space}
    if env == "AliceAndBob-v0":
        settings["env_kwargs"] = SMALL_GAME
    return make_objective(env, total_timesteps, **{**settings, **kwargs})


def quick_options(*more: str) -> list[str]:
    """Options of ``hmasd tune`` for the same."""
    settings = [f"--set={name}={value}" for name, value in QUICK.items()]
    sizes = [
        "--n-envs=4",
        "--total-timesteps=96",
        "--seeds=1",
        "--n-evaluations=2",
        "--eval-episodes=4",
        "--vary=0",
        "--confirm=0",
        "--no-check",
    ]
    return [*settings, *sizes, "--search=team_diversity_coef", "--search=gamma", *more]


ALICE = f"--set=env_kwargs={SMALL_GAME}"


def spec(**kwargs: Any) -> Spec:
    """The same, as a study keeps it."""
    settings: dict[str, Any] = {
        "env": "AliceAndBob-v0",
        "total_timesteps": 96,
        "n_envs": 4,
        "policy": "MlpPolicy",
        "normalize": False,
        "env_kwargs": SMALL_GAME,
        "seeds": [0],
        "n_evaluations": 2,
        "n_eval_episodes": 4,
        "aggregate": "mean",
        "metric": "auto",
        "deterministic": False,
        "fixed": QUICK,
        "search": ["gamma", "team_diversity_coef"],
    }
    return Spec(**{**settings, **kwargs})


def value_of(trial: Trial) -> float:
    """An objective without any training."""
    return trial.suggest_float("x", 0.0, 1.0)
