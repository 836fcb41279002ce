"""HMASD (Hierarchical Multi-Agent Skill Discovery) as a Stable-Baselines3 plugin."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

import hmasd_sb3.envs  # noqa: F401  (registers the bundled games with Gymnasium)

if TYPE_CHECKING:
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

# Imported when they are first asked for, as torch takes a second or more: registering games and `hmasd --help` need none of it.
_HOMES = {
    "HMASD": "hmasd",
    "HMASDPolicy": "policies",
    "paper_settings": "presets",
    "ConfusionGatedNoise": "schedules",
    "ExponentialSchedule": "schedules",
    "SuperSuitTeamVecEnv": "wrappers",
    "TeamEnv": "wrappers",
    "WorkerError": "wrappers",
    "make_team_vec_env": "wrappers",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(import_module(f"hmasd_sb3.{_HOMES[name]}"), name)
    elif name in _HOMES.values():  # `hmasd_sb3.wrappers.WorkerTeamVecEnv` after nothing but `import hmasd_sb3`
        value = import_module(f"hmasd_sb3.{name}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
