"""From games to teams: PettingZoo games as Gymnasium environments, and many of them as one SB3 ``VecEnv``."""

from hmasd_sb3.envs.generators import generator_state, restored_generator
from hmasd_sb3.wrappers.convert import as_team_env, as_team_vec_env
from hmasd_sb3.wrappers.gym_vector import GymVectorTeamVecEnv
from hmasd_sb3.wrappers.states import EnvStateError
from hmasd_sb3.wrappers.supersuit_vec import SuperSuitTeamVecEnv
from hmasd_sb3.wrappers.team_env import TeamEnv
from hmasd_sb3.wrappers.vec import make_team_vec_env
from hmasd_sb3.wrappers.worker_handle import WorkerError
from hmasd_sb3.wrappers.workers import WorkerTeamVecEnv

__all__ = [
    "EnvStateError",
    "GymVectorTeamVecEnv",
    "SuperSuitTeamVecEnv",
    "TeamEnv",
    "WorkerError",
    "WorkerTeamVecEnv",
    "as_team_env",
    "as_team_vec_env",
    "generator_state",
    "make_team_vec_env",
    "restored_generator",
]
