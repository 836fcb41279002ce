"""Games for the tests of RL Zoo's programs."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces


class PictureTeam(gym.Env[dict[str, Any], Any]):
    """Two agents that see pictures; the state is a picture too, with its channels last."""

    def __init__(self) -> None:
        self.observation_space = spaces.Dict(  # type: ignore[assignment]
            {
                "obs": spaces.Box(0, 255, (2, 36, 36, 3), np.uint8),
                "state": spaces.Box(0, 255, (40, 36, 3), np.uint8),
            }
        )
        self.action_space = spaces.MultiDiscrete([3, 3])
        self._steps = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        super().reset(seed=seed)
        self._steps = 0
        return self._observation(), {}

    def step(self, action: Any) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        self._steps += 1
        return self._observation(), float(np.sum(action)), False, self._steps >= 10, {}

    def _observation(self) -> dict[str, Any]:
        return {
            key: self.np_random.integers(0, 256, space.shape, np.uint8)
            for key, space in self.observation_space.spaces.items()  # type: ignore[attr-defined]
        }


def picture_team() -> PictureTeam:
    return PictureTeam()


class NoisyTeam(gym.Env[dict[str, Any], Any]):
    """Two agents whose returns tell one seed from another, however they act."""

    def __init__(self) -> None:
        numbers = {"obs": (2, 3), "state": (4,)}
        self.observation_space = spaces.Dict(  # type: ignore[assignment]
            {key: spaces.Box(-np.inf, np.inf, shape, np.float32) for key, shape in numbers.items()}
        )
        self.action_space = spaces.MultiDiscrete([3, 3])
        self._steps = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        super().reset(seed=seed)
        self._steps = 0
        return self._observation(), {}

    def step(self, action: Any) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        self._steps += 1
        return self._observation(), float(self.np_random.normal()), False, self._steps >= 10, {}

    def _observation(self) -> dict[str, Any]:
        return {
            key: self.np_random.normal(size=space.shape).astype(np.float32)
            for key, space in self.observation_space.spaces.items()  # type: ignore[attr-defined]
        }
