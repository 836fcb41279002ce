"""Any kind of game, turned into a team environment."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
from pettingzoo import AECEnv, ParallelEnv
from pettingzoo.utils.conversions import aec_to_parallel
from stable_baselines3.common.env_util import is_wrapped
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper, VecMonitor

from hmasd_sb3.wrappers.gym_vector import GymVectorTeamVecEnv
from hmasd_sb3.wrappers.supersuit_games import find_pipeline, is_pipeline
from hmasd_sb3.wrappers.supersuit_vec import SuperSuitTeamVecEnv
from hmasd_sb3.wrappers.team_env import TeamEnv
from hmasd_sb3.wrappers.team_spaces import check_team_spaces


def as_team_env(env: Any, **team_kwargs: Any) -> gym.Env[Any, Any]:
    """Make a team environment of any game that can be one.

    :param env: a PettingZoo ``ParallelEnv``, a parallelisable ``AECEnv``, or a Gymnasium environment whose observation
        already is a team's
    :param team_kwargs: further arguments of :class:`TeamEnv`, for PettingZoo games alone
    :return: a Gymnasium environment with one row per team; ``env`` itself if it is one
    :raises TypeError: if it is none of these, or if ``team_kwargs`` are given with a Gymnasium environment
    :raises ValueError: if it cannot be played as one team
    """
    if isinstance(env, ParallelEnv):
        return TeamEnv(env, **team_kwargs)
    if isinstance(env, AECEnv):
        if not env.metadata.get("is_parallelizable", False):
            raise ValueError(
                f"The turn-based game {env} does not say that its agents may act at once. If it only changes after the "
                "last agent of a round has acted, set metadata['is_parallelizable'] = True. If agents take turns that change "
                "the game, pettingzoo.utils.conversions.turn_based_aec_to_parallel makes a parallel game of it."
            )
        return TeamEnv(aec_to_parallel(env), **team_kwargs)
    if isinstance(env, gym.Env):
        if team_kwargs:
            raise TypeError(f"{sorted(team_kwargs)} are for PettingZoo games; {env} already is a Gymnasium environment.")
        check_team_spaces(env.observation_space, env.action_space)
        return env
    hint = " Pass a function that makes games to make_team_vec_env(function, n_envs)." if callable(env) else ""
    raise TypeError(
        "A game must be a PettingZoo ParallelEnv or AECEnv, or a Gymnasium environment over teams; got "
        f"{type(env).__name__}.{hint}"
    )


def as_team_vec_env(env: Any, monitor: bool = True) -> VecEnv:
    """Make a vector environment over teams, without touching its observations.

    Stable-Baselines3's own wrapping would take the agent axis of a picture for its channels.

    :param env: a ``VecEnv``, which stays as it is; a ``gymnasium.vector.VectorEnv`` over teams; a SuperSuit pipeline, see
        :class:`SuperSuitTeamVecEnv`; or a single game, see :func:`as_team_env`
    :param monitor: whether to report episodes by SB3's monitors, unless one is there already
    """
    if is_pipeline(env):
        teams: VecEnv = SuperSuitTeamVecEnv(env)
        return VecMonitor(teams) if monitor else teams
    if isinstance(env, VecEnvWrapper) and is_pipeline(env.unwrapped):
        find_pipeline(env)  # says which way round they belong
    if isinstance(env, VecEnv):
        return env
    if isinstance(env, gym.vector.VectorEnv):
        teams = GymVectorTeamVecEnv(env)
        return VecMonitor(teams) if monitor else teams
    team = as_team_env(env)
    if monitor and not is_wrapped(team, Monitor):
        team = Monitor(team)
    return DummyVecEnv([lambda: team])
