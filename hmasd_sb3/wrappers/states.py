"""State of vector environments."""

from typing import Any

from stable_baselines3.common.vec_env import VecEnv


class EnvStateError(RuntimeError):
    """An environment cannot give or take its state."""


def collect_env_state(venv: VecEnv) -> dict[str, Any]:
    """State of a vector environment."""
    return {"n_envs": venv.num_envs, "normalizer": None, "episodes": None, "reason": "unknown"}


def restore_normalizer(venv: VecEnv, state: dict[str, Any]) -> bool:
    """Put the statistics back."""
    return False


def restore_episodes(venv: VecEnv, state: dict[str, Any]) -> None:
    """Put the episodes back."""
    raise EnvStateError(state["reason"])
