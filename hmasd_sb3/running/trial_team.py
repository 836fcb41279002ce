"""One copy of a game to be tried out: made as a run makes it, its returns seen before anything converts them."""

from __future__ import annotations

from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv

from hmasd_sb3.wrappers.convert import as_team_env
from hmasd_sb3.wrappers.states import collect_env_state
from hmasd_sb3.wrappers.vec import make_team_vec_env


class Step(NamedTuple):
    """What a game answered."""

    observation: Any
    reward: Any
    terminated: bool
    truncated: bool
    info: dict[str, Any]


class TrialTeam:
    """A team of its own, for a trial.

    A single environment is asked directly, as a ``DummyVecEnv`` would copy observations of any shape and type into its own
    arrays. A game that brings its own vectorisation is played through that, as in a training.

    :param env: id or place
    :param env_kwargs: arguments of the game
    :raises ValueError: if there is no such game, or it is no team
    """

    def __init__(self, env: str, env_kwargs: dict[str, Any]) -> None:
        self._venv: VecEnv = make_team_vec_env(env, 1, seed=0, env_kwargs=env_kwargs)
        envs: list[gym.Env[Any, Any]] | None = getattr(self._venv.unwrapped, "envs", None)
        self._single = None if envs is None else as_team_env(envs[0])
        self.vectorised = self._single is None
        self.observation_space: spaces.Space[Any] = self._venv.observation_space
        self.action_space: spaces.Space[Any] = self._venv.action_space
        self._next: Any = None
        """First observation of the episode that a vectorised game has begun by itself."""

    def reset(self, seed: int | None) -> Any:
        """The first observation of an episode."""
        if self._single is not None:
            return self._single.reset(seed=seed)[0]
        if seed is None and self._next is not None:
            observation, self._next = self._next, None
            return observation
        self._venv.seed(seed)
        return _row(self._venv.reset())

    def step(self, action: Any) -> Step:
        """Let the team act."""
        if self._single is not None:
            return Step(*self._single.step(action))
        observations, rewards, dones, infos = self._venv.step(np.asarray(action)[None])
        truncated = bool(dones[0] and infos[0].get("TimeLimit.truncated", False))
        observation = _row(observations)
        if dones[0]:
            observation, self._next = infos[0]["terminal_observation"], observation
        return Step(observation, rewards[0], bool(dones[0]) and not truncated, truncated, infos[0])

    def why_no_state(self) -> str | None:
        """Why the game cannot be stored in the middle of an episode; None if it can."""
        reason: str | None = collect_env_state(self._venv)["reason"]
        return reason

    def close(self) -> None:
        """Close the game."""
        self._venv.close()


def random_action(space: spaces.Space[Any], observation: Any, rng: np.random.Generator) -> Any:
    """A legal action of every agent.

    :param observation: of one team; its ``action_mask``, if any, is kept to
    """
    if isinstance(space, spaces.Box):
        low, high = (np.clip(bound, -1e6, 1e6) for bound in (space.low, space.high))
        return rng.uniform(low, high).astype(space.dtype)
    assert isinstance(space, spaces.MultiDiscrete)
    mask = observation.get("action_mask")
    if mask is None:
        return rng.integers(space.nvec).astype(space.dtype)
    return np.array([rng.choice(np.flatnonzero(legal)) for legal in np.asarray(mask)], dtype=space.dtype)


def _row(observations: Any) -> dict[str, Any]:
    return {key: np.array(value[0]) for key, value in observations.items()}
