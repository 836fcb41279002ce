"""Settings of an experiment of RL Zoo: those that ``hmasd train`` knows too, checked alike, and RL Zoo's own."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from hmasd_sb3.hmasd import HMASD
from hmasd_sb3.policies.policy import HMASDPolicy
from hmasd_sb3.running.config import RunConfig, check_settings_together, known_settings, read_settings
from hmasd_sb3.running.errors import InputError
from hmasd_sb3.running.hyperparameters import NAMES, check_value
from hmasd_sb3.running.literals import as_plain, read_mapping
from hmasd_sb3.running.yaml_file import Given
from hmasd_sb3.validation import nearest, resolve_policy

ZOO_KEYS = ("callback", "env_wrapper", "frame_stack", "monitor_kwargs", "vec_env_wrapper")
"""What RL Zoo does itself, beside what ``hmasd train`` knows."""
_PLACES = ("callback", "env_wrapper", "vec_env_wrapper")
_OPTIONS = {
    "env": "--env",
    "seed": "--seed",
    "verbose": "--verbose",
    "tensorboard_log": "--tensorboard-log",
    "_init_setup_model": "nobody",
}
_DEFAULTS = {"n_timesteps": RunConfig.total_timesteps, "n_envs": RunConfig.n_envs, "policy": RunConfig.policy}
"""As for ``hmasd train``, so that one file means the same to both."""


def check_settings(settings: Mapping[str, Given]) -> dict[str, Any]:
    """Check all settings of an experiment.

    :param settings: by name, as given
    :return: the same as values that RL Zoo hands on: plain ones, but for Python objects that were given as such
    :raises InputError: for the first thing that is wrong, naming its place, name, value and the nearest valid name
    """
    own, objects = {}, {}
    shared: dict[str, Given] = {}
    for name, (value, where, _) in settings.items():
        try:
            if name in ZOO_KEYS:
                own[name] = _read_own(name, value)
            elif name == "policy" and isinstance(value, str | type) and (isinstance(value, type) or "." in value):
                objects[name] = _read_policy_class(value)
            elif name in _OPTIONS:
                raise ValueError(f"{name} is set by {_OPTIONS[name]}.")
            elif name in NAMES and not _is_plain(value):
                objects[name] = check_value(name, value)
            elif name not in known_settings():
                known = [*known_settings(), *ZOO_KEYS]
                raise ValueError(f"there is no setting {name!r} (value {value!r}).{nearest(name, known)}")
            else:
                shared[name] = Given(value, where)
        except ValueError as error:
            raise InputError(f"{where}: {error}") from error
    given, hyperparameters = read_settings(shared)
    if not objects:  # else some of what is checked here may be of the user's own kind
        check_settings_together(RunConfig(**given, hyperparameters=hyperparameters), shared)
    if "total_timesteps" in given:
        given["n_timesteps"] = given.pop("total_timesteps")
    return {**_DEFAULTS, **given, **hyperparameters, **objects, **own}


def _is_plain(value: Any) -> bool:
    try:
        as_plain(value)
    except ValueError as error:
        return "finite" in str(error)  # not meant as an object: refused with the others
    return True


def _read_own(name: str, value: Any) -> Any:
    if name in _PLACES:
        for place in _places(name, value):
            _check_place(name, place)
        return value
    if name == "frame_stack":
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"frame_stack must be a whole number of at least 1, got {value!r}.")
        return value
    try:
        arguments = dict(read_mapping(value))
    except ValueError as error:
        raise ValueError(f"{name} {error}.") from error
    if isinstance(arguments.get("info_keywords"), list):  # of which SB3's Monitor takes tuples alone
        arguments["info_keywords"] = tuple(arguments["info_keywords"])
    return arguments


def _places(name: str, value: Any) -> list[Any]:
    """Classes, or their places, out of RL Zoo's ways to write one or several, with or without arguments."""
    places = []
    for entry in [] if value is None else value if isinstance(value, list) else [value]:
        if isinstance(entry, dict):
            if len(entry) != 1 or not isinstance(next(iter(entry.values())), dict):
                raise ValueError(
                    f"{name}: an entry with arguments must have the form 'package.module.Class: {{argument: value}}'; "
                    f"got {entry!r}. Is the indentation right?"
                )
            entry = next(iter(entry))
        places.append(entry)
    return places


def _check_place(name: str, place: Any) -> None:
    if not isinstance(place, str):
        if isinstance(place, bool | int | float):
            raise ValueError(f"{name} must be the place of a class, such as package.module.Class, got {place!r}.")
        return
    _import_place(name, place)


def _import_place(name: str, place: str) -> Any:
    module_name, _, attribute = place.rpartition(".")
    if not module_name:
        raise ValueError(f"{name} must be the place of a class, such as package.module.Class, got {place!r}.")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ValueError(f"{name}={place!r}: cannot import {module_name!r}: {error}") from error
    if not hasattr(module, attribute):
        near = nearest(attribute, [known for known in dir(module) if not known.startswith("_")])
        raise ValueError(f"{name}={place!r}: the module {module_name!r} has no {attribute!r}.{near}")
    return getattr(module, attribute)


def _read_policy_class(value: str | type) -> Any:
    policy = _import_place("policy", value) if isinstance(value, str) else value
    resolve_policy(policy, HMASD.policy_aliases, HMASDPolicy)
    return value
