"""Small bundled games. Importing this room registers them with Gymnasium."""

from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import register, registry

from hmasd_sb3.envs.alice_and_bob import AliceAndBobParallelEnv, parallel_env

__all__ = ["ALICE_AND_BOB_ID", "AliceAndBobParallelEnv", "parallel_env", "register_envs"]

ALICE_AND_BOB_ID = "AliceAndBob-v0"


def alice_and_bob_team_env(**kwargs: Any) -> gym.Env[Any, Any]:
    """Make Alice and Bob as a team environment; takes the arguments of `AliceAndBobParallelEnv`."""
    # Imported here, as the wrappers import this room to have its games registered.
    from hmasd_sb3.wrappers.team_env import TeamEnv

    return TeamEnv(AliceAndBobParallelEnv(**kwargs))


def register_envs() -> None:
    """Register the bundled games with Gymnasium; once is enough, more does no harm."""
    if ALICE_AND_BOB_ID not in registry:
        # No max_episode_steps: the game has its own time limit, which `max_steps` sets.
        register(
            ALICE_AND_BOB_ID,
            entry_point="hmasd_sb3.envs:alice_and_bob_team_env",
            vector_entry_point="hmasd_sb3.envs.alice_and_bob_vector:AliceAndBobVectorEnv",
        )


register_envs()
