"""Teams that break one convention each, for the checks before a training."""

from __future__ import annotations

import time
import warnings
from typing import Any

import numpy as np
from teams import RandomTeam


class OddTeam(RandomTeam):
    """A team of noise that is odd from its ``at``-th step on.

    :param odd: what is wrong with it; "" for nothing
    :param at: step over all episodes; 0: from the first observation on
    """

    def __init__(self, odd: str = "", at: int = 5) -> None:
        super().__init__(kind="masked" if odd == "no legal action" else "discrete", p_leave=0.1 if odd == "nobody" else 0.0)
        self.odd, self.at = odd, at
        self.steps_taken = 0
        if odd == "endless":
            self.p_terminate = self.p_truncate = 0.0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        observation, info = super().reset(seed=seed, options=options)
        if self.odd == "unseeded":
            observation["obs"] += np.random.normal()
        return self._odd(observation), info

    def step(self, action: Any) -> Any:
        self.steps_taken += 1
        observation, reward, terminated, truncated, info = super().step(action)
        if self.steps_taken >= self.at:
            if self.odd == "raise":
                raise RuntimeError("the game broke")
            if self.odd == "warn":
                warnings.warn("the game is unwell", UserWarning, stacklevel=1)
            if self.odd == "slow":
                time.sleep(0.003)
            if self.odd == "both ends":
                terminated, truncated = terminated or truncated, terminated or truncated
            if self.odd == "nan reward":
                reward = float("nan")
        if self.odd == "drift":
            observation["obs"] += self.steps_taken
        return self._odd(observation), reward, terminated, truncated, info

    def _odd(self, observation: dict[str, np.ndarray]) -> Any:
        if self.steps_taken < self.at:
            return observation
        if self.odd == "nan":
            observation["obs"] = np.full_like(observation["obs"], np.nan)
        if self.odd == "infinity":
            observation["state"] = np.full_like(observation["state"], np.inf)
        if self.odd == "shape":
            observation["obs"] = observation["obs"][:, :1]  # which a DummyVecEnv would copy into all three columns
        if self.odd == "complex":
            observation["state"] = observation["state"].astype(complex)
        if self.odd == "keys":
            del observation["state"]
        if self.odd == "no dict":
            return observation["obs"]
        if self.odd == "no legal action":
            observation["action_mask"] = np.zeros_like(observation["action_mask"])
        if self.odd == "nobody":
            observation["agent_mask"] = np.zeros_like(observation["agent_mask"])
        return observation


class NarrowTeam(RandomTeam):
    """Declares bounds that it does not keep to, and bytes where it returns floats."""

    def __init__(self, odd: str = "bounds") -> None:
        super().__init__()
        from gymnasium import spaces

        if odd == "bounds":
            self.observation_space.spaces["state"] = spaces.Box(-0.01, 0.01, (4,), np.float32)
        else:
            self.observation_space.spaces["state"] = spaces.Box(0, 255, (4,), np.uint8)


class GlobalNoise(RandomTeam):
    """Draws from NumPy's global generator, so that it is disturbed by whatever else does."""

    def step(self, action: Any) -> Any:
        observation, reward, terminated, truncated, info = super().step(action)
        observation["obs"] += np.random.normal(size=observation["obs"].shape).astype(np.float32)
        return observation, reward, terminated, truncated, info


def not_a_team() -> Any:
    import gymnasium as gym

    return gym.make("CartPole-v1")


def broken() -> OddTeam:
    raise RuntimeError("no licence")
