"""Small bundled games. Importing this room registers them with Gymnasium."""

from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import register, registry

from hmasd_sb3.envs.alice_and_bob import AliceAndBobParallelEnv, parallel_env

__all__ = ["ALICE_AND_BOB_ID", "JAXMARL_IDS", "SIMPLE_SPREAD_ID", "AliceAndBobParallelEnv", "parallel_env", "register_envs"]

ALICE_AND_BOB_ID = "AliceAndBob-v0"

# MPE2's game, which needs the extra "mpe" once it is made.
SIMPLE_SPREAD_ID = "SimpleSpread-v0"

# JaxMARL's games, which need the extra "jaxmarl" once they are made: the arguments of `jaxmarl_game`. The last takes any.
JAXMARL_IDS: dict[str, dict[str, Any]] = {
    "Overcooked-CrampedRoom-v0": {"game": "overcooked", "layout": "cramped_room"},
    "Overcooked-AsymmetricAdvantages-v0": {"game": "overcooked", "layout": "asymm_advantages"},
    "Overcooked-CoordinationRing-v0": {"game": "overcooked", "layout": "coord_ring"},
    "SMAX-3m-v0": {"game": "HeuristicEnemySMAX", "scenario": "3m"},
    "SMAX-2s3z-v0": {"game": "HeuristicEnemySMAX", "scenario": "2s3z"},
    "JaxMARL-v0": {},
}


def alice_and_bob_team_env(**kwargs: Any) -> gym.Env[Any, Any]:
    """Make Alice and Bob as a team environment; takes the arguments of `AliceAndBobParallelEnv`."""
    # Imported here, as the wrappers import this room to have its games registered.
    from hmasd_sb3.wrappers.team_env import TeamEnv

    return TeamEnv(AliceAndBobParallelEnv(**kwargs))


# What Gymnasium looks at to show pictures in a window, for games that draw but open none themselves.
alice_and_bob_team_env.metadata = AliceAndBobParallelEnv.metadata  # type: ignore[attr-defined]


def simple_spread_team_env(**kwargs: Any) -> gym.Env[Any, Any]:
    """Make MPE2's simple_spread as a team environment; takes the arguments of ``mpe2.simple_spread_v3.parallel_env``.

    :raises ImportError: if MPE2 is not installed
    """
    from hmasd_sb3.wrappers.team_env import TeamEnv

    try:
        from mpe2 import simple_spread_v3
    except ModuleNotFoundError as error:
        if error.name != "mpe2":
            raise
        raise ImportError(
            f'{SIMPLE_SPREAD_ID} needs the package "mpe2", which is not installed: pip install "hmasd-sb3[mpe]"'
        ) from error
    return TeamEnv(simple_spread_v3.parallel_env(**kwargs))


def register_envs() -> None:
    """Register the bundled games with Gymnasium; once is enough, more does no harm."""
    if ALICE_AND_BOB_ID not in registry:
        # No max_episode_steps: the game has its own time limit, which `max_steps` sets.
        register(
            ALICE_AND_BOB_ID,
            entry_point="hmasd_sb3.envs:alice_and_bob_team_env",
            vector_entry_point="hmasd_sb3.envs.alice_and_bob_vector:AliceAndBobVectorEnv",
        )
    if SIMPLE_SPREAD_ID not in registry:
        register(SIMPLE_SPREAD_ID, entry_point="hmasd_sb3.envs:simple_spread_team_env")
    for env_id, kwargs in JAXMARL_IDS.items():
        if env_id not in registry:
            # These have time limits of their own too.
            register(
                env_id,
                entry_point="hmasd_sb3.wrappers.jaxmarl_vec:JaxMARLTeamEnv",
                vector_entry_point="hmasd_sb3.wrappers.jaxmarl_vec:JaxMARLVectorEnv",
                kwargs=kwargs,
            )


register_envs()
