"""HMASD (Hierarchical Multi-Agent Skill Discovery) as a Stable-Baselines3 plugin."""

import hmasd_sb3.envs  # noqa: F401  (registers the bundled games with Gymnasium)
from hmasd_sb3.hmasd import HMASD
from hmasd_sb3.policies import HMASDPolicy
from hmasd_sb3.presets import paper_settings
from hmasd_sb3.schedules import ConfusionGatedNoise, ExponentialSchedule
from hmasd_sb3.wrappers import SuperSuitTeamVecEnv, TeamEnv, WorkerError, make_team_vec_env

__all__ = [
    "HMASD",
    "ConfusionGatedNoise",
    "ExponentialSchedule",
    "HMASDPolicy",
    "SuperSuitTeamVecEnv",
    "TeamEnv",
    "WorkerError",
    "make_team_vec_env",
    "paper_settings",
]
__version__ = "0.1.0"
