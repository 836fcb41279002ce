"""A team game that costs next to nothing, with any number of agents, for measuring everything but the game."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from stable_baselines3.common.vec_env import VecEnv

from hmasd_sb3.wrappers import GymVectorTeamVecEnv

OBS_SIZE, STATE_SIZE, N_ACTIONS, EPISODE_LENGTH = 16, 32, 5, 100
_POOL = 16
"""Observations drawn in advance, shown in turn."""


Observation = dict[str, np.ndarray]


class SyntheticTeams(VectorEnv[Any, Any, Any]):
    """Teams that observe noise; a reward when all agents choose action 0; episodes of 100 steps, all in step.

    The state has one size whatever the number of agents, so that what grows with them is the algorithm's own.

    :param num_envs: B
    :param n_agents: N
    """

    def __init__(self, num_envs: int, n_agents: int) -> None:
        self.num_envs = num_envs
        self.metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}
        self.single_observation_space = spaces.Dict(
            obs=spaces.Box(-1.0, 1.0, (n_agents, OBS_SIZE), np.float32), state=spaces.Box(-1.0, 1.0, (STATE_SIZE,), np.float32)
        )
        self.single_action_space = spaces.MultiDiscrete([N_ACTIONS] * n_agents)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        rng = np.random.default_rng(0)
        self._pool = [
            {
                "obs": rng.uniform(-1.0, 1.0, (num_envs, n_agents, OBS_SIZE)).astype(np.float32),
                "state": rng.uniform(-1.0, 1.0, (num_envs, STATE_SIZE)).astype(np.float32),
            }
            for _ in range(_POOL)
        ]
        self._clock = 0

    def _observe(self) -> Observation:
        return self._pool[self._clock % _POOL]

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Observation, dict[str, Any]]:
        """All rows begin an episode."""
        self._clock = 0
        return self._observe(), {}

    def step(self, actions: np.ndarray) -> tuple[Observation, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """One step of all rows."""
        self._clock += 1
        ended = self._clock % EPISODE_LENGTH == 0
        observation = self._observe()
        infos: dict[str, Any] = {}
        if ended:
            last = np.empty(self.num_envs, dtype=object)
            for row in range(self.num_envs):
                last[row] = {key: value[row] for key, value in observation.items()}
            infos = {"final_obs": last, "_final_obs": np.ones(self.num_envs, dtype=bool)}
        rewards = (actions.sum(axis=1) == 0).astype(np.float64)
        return observation, rewards, np.zeros(self.num_envs, dtype=bool), np.full(self.num_envs, ended), infos


def synthetic_teams(num_envs: int, n_agents: int) -> VecEnv:
    """:class:`SyntheticTeams` as a vector environment of Stable-Baselines3."""
    return GymVectorTeamVecEnv(SyntheticTeams(num_envs, n_agents))
