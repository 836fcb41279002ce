"""The environments of a run, for training and for evaluation."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize

from hmasd_sb3.running.config import RunConfig
from hmasd_sb3.running.errors import InputError
from hmasd_sb3.validation import nearest
from hmasd_sb3.wrappers import make_team_vec_env

# Far enough apart that training, evaluation during it, and evaluation of a saved model never share a seed.
EVAL_SEED_OFFSET = 10_000
SAVED_SEED_OFFSET = 20_000
_NUMBERS = ("obs", "state")


def make_training_env(config: RunConfig) -> VecEnv:
    """The vector environment that is trained in."""
    env = make_team_vec_env(
        config.env, config.n_envs, seed=config.seed, n_workers=config.n_workers, env_kwargs=config.env_kwargs
    )
    return _normalized(env, config, training=True)


def make_evaluation_env(config: RunConfig) -> VecEnv:
    """The vector environment for evaluations: as many teams as there are episodes to play, up to ``n_envs``."""
    n_envs = min(config.n_envs, config.eval_episodes)
    env = make_team_vec_env(
        config.env,
        n_envs,
        seed=config.seed + EVAL_SEED_OFFSET,
        n_workers=None if config.n_workers is None else min(config.n_workers, n_envs),
        env_kwargs=config.env_kwargs,
    )
    return _normalized(env, config, training=False)


def make_playing_env(config: RunConfig, n_envs: int, seed: int, render_mode: str | None = None) -> VecEnv:
    """The vector environment to play a saved model in; statistics of a ``VecNormalize`` still have to be given to it.

    :param render_mode: of the game, whose copies are then stepped one by one
    """
    shown = {} if render_mode is None else {"render_mode": render_mode}
    env = make_team_vec_env(
        config.env,
        n_envs,
        seed=seed,
        n_workers=None if config.n_workers is None or shown else min(config.n_workers, n_envs),
        vec_env_cls=DummyVecEnv if shown else None,
        env_kwargs={**config.env_kwargs, **shown},
    )
    return _normalized(env, config, training=False)


def _normalized(env: VecEnv, config: RunConfig, training: bool) -> VecEnv:
    if config.normalize is False:
        return env
    kwargs: dict[str, Any] = {} if config.normalize is True else dict(config.normalize)
    if kwargs.get("norm_obs", True):
        kwargs.setdefault("norm_obs_keys", float_keys(env))
        _check_keys(env, kwargs["norm_obs_keys"])
    kwargs.setdefault("gamma", config.hyperparameters.get("gamma", 0.99))
    if not training:
        kwargs["norm_reward"] = False
    try:
        return VecNormalize(env, **{**kwargs, "training": training})
    except (TypeError, ValueError, AssertionError) as error:
        raise InputError(f"normalize={config.normalize!r}: {error}") from error


def _check_keys(env: VecEnv, names: Any) -> None:
    assert isinstance(env.observation_space, spaces.Dict)
    known = list(env.observation_space.spaces)
    for name in names:
        if name not in known:
            raise InputError(f"normalize: observations hold no {name!r}; they hold {known}.{nearest(str(name), known)}")


def float_keys(env: VecEnv) -> list[str]:
    """Keys of what can be normalised of an observation; masks cannot, nor need pictures be."""
    space = env.observation_space
    assert isinstance(space, spaces.Dict)
    return [name for name in _NUMBERS if isinstance(space[name], spaces.Box) and np.issubdtype(space[name].dtype, np.floating)]
