"""Any kind of game, turned into a team environment."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
from pettingzoo import AECEnv, ParallelEnv
from pettingzoo.utils.conversions import aec_to_parallel

from hmasd_sb3.wrappers.team_env import TeamEnv
from hmasd_sb3.wrappers.team_spaces import check_team_spaces


def as_team_env(env: Any) -> gym.Env[Any, Any]:
    """Make a team environment of any game that can be one.

    :param env: a PettingZoo ``ParallelEnv``, a parallelisable ``AECEnv``, or a Gymnasium environment whose observation
        already is a team's
    :return: a Gymnasium environment with one row per team; ``env`` itself if it is one
    :raises TypeError: if it is none of these
    :raises ValueError: if it cannot be played as one team of equal agents
    """
    if isinstance(env, ParallelEnv):
        return TeamEnv(env)
    if isinstance(env, AECEnv):
        if not env.metadata.get("is_parallelizable", False):
            raise ValueError(
                f"The turn-based game {env} does not say that its agents may act at once. If it only changes after the "
                "last agent of a round has acted, set metadata['is_parallelizable'] = True; else it cannot be a team."
            )
        return TeamEnv(aec_to_parallel(env))
    if isinstance(env, gym.Env):
        check_team_spaces(env.observation_space, env.action_space)
        return env
    raise TypeError(
        f"A game must be a PettingZoo ParallelEnv or AECEnv, or a Gymnasium environment over teams; got {type(env).__name__}."
    )
