"""A team environment made of noise, for tests of bookkeeping: episodes of random length end in both ways."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv

from hmasd_sb3 import HMASD

FAST: dict[str, Any] = {
    "n_steps": 12,
    "n_epochs": 2,
    "skill_n_epochs": 2,
    "skill_interval": 5,
    "sequence_length": 4,
    "discriminator_n_updates": 2,
    "discriminator_batch_size": 16,
    "seed": 0,
    "device": "cpu",
    "policy_kwargs": {"hidden_size": 16},
}
"""A configuration so small that an update takes milliseconds."""


class RandomTeam(gym.Env[dict[str, np.ndarray], np.ndarray]):
    """Random observations and rewards; ends by the game's rules or by a time limit, each with its own probability.

    ``kind``: "discrete", "masked", "continuous" or "ragged" (continuous, agent 0 has one component of two). With
    ``p_leave`` agents come and go; with ``p_lost`` a step's outcome is lost, as when a worker breaks down.
    """

    metadata = {"render_modes": []}
    render_mode = None

    def __init__(
        self,
        n_agents: int = 2,
        kind: str = "discrete",
        p_terminate: float = 0.1,
        p_truncate: float = 0.1,
        reward: float | None = None,
        p_leave: float = 0.0,
        p_lost: float = 0.0,
    ) -> None:
        self.n_agents, self.kind, self.reward = n_agents, kind, reward
        self.p_leave, self.p_lost = p_leave, p_lost
        self.present = np.ones(n_agents, dtype=np.int8)
        self.p_terminate, self.p_truncate = p_terminate, p_truncate
        self.observation_space = spaces.Dict(
            {
                "obs": spaces.Box(-np.inf, np.inf, (n_agents, 3), np.float32),
                "state": spaces.Box(-np.inf, np.inf, (4,), np.float32),
            }
        )
        if kind == "masked":
            self.observation_space.spaces["action_mask"] = spaces.MultiBinary((n_agents, 3))
        if kind == "ragged":
            self.observation_space.spaces["action_mask"] = spaces.MultiBinary((n_agents, 2))
        if p_leave:
            self.observation_space.spaces["agent_mask"] = spaces.MultiBinary(n_agents)
        self.action_space: spaces.Space[Any] = (
            spaces.Box(-2.0, 1.0, (n_agents, 2), np.float32)
            if kind in ("continuous", "ragged")
            else spaces.MultiDiscrete([3] * n_agents)
        )
        self.illegal_actions = 0

    def _observe(self) -> dict[str, np.ndarray]:
        obs = {
            "obs": self.np_random.normal(size=(self.n_agents, 3)).astype(np.float32),
            "state": self.np_random.normal(size=4).astype(np.float32),
        }
        if self.kind == "masked":
            mask = np.ones((self.n_agents, 3), dtype=np.int8)
            mask[np.arange(self.n_agents), self.np_random.integers(3, size=self.n_agents)] = 0
            obs["action_mask"] = self.mask = mask
        if self.kind == "ragged":
            obs["action_mask"] = np.ones((self.n_agents, 2), dtype=np.int8)
            obs["action_mask"][0, 1] = 0
        if self.p_leave:
            changes = self.np_random.random(self.n_agents) < self.p_leave
            self.present = np.where(changes, 1 - self.present, self.present).astype(np.int8)
            self.present[self.np_random.integers(self.n_agents)] = 1  # never nobody
            obs["agent_mask"] = self.present.copy()
            obs["obs"] *= self.present[:, None]
        return obs

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        super().reset(seed=seed)
        self.present = np.ones(self.n_agents, dtype=np.int8)
        return self._observe(), {}

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), action
        if self.kind == "masked":
            self.illegal_actions += int((self.mask[np.arange(self.n_agents), action] == 0).sum())
        terminated = bool(self.np_random.random() < self.p_terminate)
        truncated = bool(not terminated and self.np_random.random() < self.p_truncate)
        reward = float(self.np_random.normal()) if self.reward is None else self.reward
        if self.p_lost and not terminated and self.np_random.random() < self.p_lost:
            return self._observe(), 0.0, False, True, {"transition_lost": True}
        return self._observe(), reward, terminated, truncated, {}


def random_team_vec_env(n_envs: int = 4, **kwargs: Any) -> DummyVecEnv:
    """Copies of :class:`RandomTeam`, seeded."""
    env = DummyVecEnv([lambda: RandomTeam(**kwargs) for _ in range(n_envs)])
    env.seed(0)
    return env


def make_model(n_envs: int = 4, env_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> HMASD:
    """A tiny HMASD on random teams."""
    return HMASD("MlpPolicy", random_team_vec_env(n_envs, **(env_kwargs or {})), **{**FAST, **kwargs})


def randomise(model: HMASD, scale: float = 0.3, seed: int = 0) -> None:
    """Move every parameter away from its start, so that no output is near uniform or zero by construction."""
    import torch as th

    generator = th.Generator().manual_seed(seed)
    with th.no_grad():
        for parameter in model.policy.parameters():
            parameter.add_(scale * th.randn(parameter.shape, generator=generator))


def parameters_of(model: HMASD) -> dict[str, Any]:
    """Copies of all parameters, by name."""
    return {name: p.detach().clone() for name, p in model.policy.named_parameters()}


def same(first: dict[str, Any], second: dict[str, Any]) -> bool:
    """Whether all parameters are equal to the last bit."""
    import torch as th

    return all(th.equal(first[name], second[name]) for name in first)
