"""Whose fault an exception is."""

from __future__ import annotations

import traceback
from typing import Any

import gymnasium as gym
from pettingzoo import ParallelEnv
from stable_baselines3.common.vec_env import VecEnv

_ENVIRONMENTS: tuple[type[Any], ...] = (VecEnv, gym.Env, gym.vector.VectorEnv, ParallelEnv)


def raised_by_environment(error: BaseException) -> bool:
    """Whether an error came out of a method of an environment, such as ``step``."""
    return any(isinstance(frame.f_locals.get("self"), _ENVIRONMENTS) for frame, _ in traceback.walk_tb(error.__traceback__))
