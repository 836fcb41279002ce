"""Makes HMASD known to RL Zoo."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import gymnasium as gym

from hmasd_sb3.running.errors import InputError

ALGO = "hmasd"
_MODULES = ("rl_zoo3.utils", "rl_zoo3.hyperparams_opt", "rl_zoo3.exp_manager", "rl_zoo3.train")


def register() -> None:
    """Make ``--algo hmasd`` known to RL Zoo's programs, in this process; more than once does no harm.

    They then take HMASD's settings from the shipped ``hmasd.yml`` unless ``--conf-file`` names another file, check them
    before anything starts, and treat environments of teams as ``hmasd train`` does. Other algorithms are not touched.

    :raises InputError: if rl_zoo3, or a package that it needs, is not installed
    """
    for name in _MODULES:
        import_zoo(name)
    from hmasd_sb3.hmasd import HMASD
    from hmasd_sb3.wrappers.row_states import treat_as_its_base
    from hmasd_sb3.zoo.manager import TeamExperimentManager

    # Importing RL Zoo puts a class of its own in the place of Gymnasium's.
    treat_as_its_base(gym.wrappers.TimeLimit)
    # Modules hold these under names of their own, and may come to hold copies of the dictionaries.
    for module in [module for name, module in sys.modules.items() if name.partition(".")[0] == "rl_zoo3"]:
        for registry, entry in (("ALGOS", HMASD), ("HYPERPARAMS_SAMPLER", sample), ("HYPERPARAMS_CONVERTER", convert)):
            if hasattr(module, registry):
                getattr(module, registry)[ALGO] = entry
        if hasattr(module, "ExperimentManager"):
            module.ExperimentManager = TeamExperimentManager  # type: ignore[attr-defined]


def sample(trial: Any, n_actions: int, n_envs: int, additional_args: dict[str, Any]) -> dict[str, Any]:
    """Constructor arguments that a trial chose, as objects: RL Zoo hands them to the constructor as they are."""
    from hmasd_sb3.running.hyperparameters import build_hyperparameters
    from hmasd_sb3.tuning.space import sample_hmasd

    return build_hyperparameters(sample_hmasd(trial, n_actions, n_envs, additional_args))


def convert(params: dict[str, Any]) -> dict[str, Any]:
    """Constructor arguments, as plain values, of what an earlier trial chose (``trial.params``)."""
    from hmasd_sb3.tuning.space import convert_hmasd

    return convert_hmasd(params)


def import_zoo(name: str) -> Any:
    """Import a module of RL Zoo.

    :raises InputError: if a package is missing, naming it and the command that installs it
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if not missing or missing == "hmasd_sb3" or (error.name or "").startswith("rl_zoo3."):
            raise
        raise InputError(f'{name} needs the package "{missing}", which is not installed: {INSTALL}') from error


INSTALL = 'pip install "hmasd-sb3[zoo]"'
