"""Checks of what a user passes in, early and by name; and of what an environment returns, at once."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import Schedule


class InvalidTransitionError(RuntimeError):
    """An environment returned NaN or infinity."""


def _is_integer(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


_COUNTS = (
    "n_steps",
    "n_epochs",
    "skill_interval",
    "n_team_skills",
    "n_agent_skills",
    "skill_n_epochs",
    "sequence_length",
    "discriminator_n_updates",
    "discriminator_batch_size",
    "max_rollbacks",
)
_OPTIONAL_COUNTS = ("micro_batch_size",)
_SWITCHES = ("normalize_advantage", "skill_timeout_bootstrap", "critic_chance_offset")
_RANGES: dict[str, tuple[Callable[[float], bool], str]] = {
    "gamma": (lambda x: 0.0 <= x <= 1.0, "in [0, 1]"),
    "skill_gamma": (lambda x: 0.0 <= x <= 1.0, "in [0, 1]"),
    "gae_lambda": (lambda x: 0.0 <= x <= 1.0, "in [0, 1]"),
    "vf_coef": (lambda x: x >= 0.0, "at least 0"),
    "max_grad_norm": (lambda x: x > 0.0, "above 0"),
    "huber_delta": (lambda x: x > 0.0, "above 0"),
    "skill_advantage_floor": (lambda x: x >= 0.0, "at least 0"),
    "target_kl": (lambda x: x > 0.0, "above 0, or None for no limit"),
    "skill_target_kl": (lambda x: x > 0.0, "above 0, or None for no limit"),
}
_CLASSES: dict[str, type] = {"optimizer_class": th.optim.Optimizer, "features_extractor_class": BaseFeaturesExtractor}
_OPTIONAL = ("target_kl", "skill_target_kl")
_MAY_BE_INFINITE = ("max_grad_norm", "huber_delta", "target_kl", "skill_target_kl", "clip_range", "clip_range_vf")
"""Limits, of which infinity is none."""
_CHOICES: dict[str, tuple[str, ...]] = {"skill_at_rollout_end": ("continue", "reassign"), "on_nan": ("stop", "rollback")}
SCHEDULED: dict[str, tuple[Callable[[float], bool], str]] = {
    "learning_rate": (lambda x: x >= 0.0, "at least 0"),
    "discriminator_learning_rate": (lambda x: x >= 0.0, "at least 0"),
    "clip_range": (lambda x: x > 0.0, "above 0"),
    "clip_range_vf": (lambda x: x > 0.0, "above 0, or None for no clipping"),
    "ent_coef": (lambda x: x >= 0.0, "at least 0"),
    "skill_ent_coef": (lambda x: x >= 0.0, "at least 0"),
    "team_reward_coef": (lambda x: x >= 0.0, "at least 0"),
    "team_diversity_coef": (lambda x: x >= 0.0, "at least 0"),
    "agent_diversity_coef": (lambda x: x >= 0.0, "at least 0"),
    "discriminator_noise": (lambda x: x >= 0.0, "at least 0"),
}
"""Hyperparameters that take a schedule, with the range that their first value must lie in."""


def check_hyperparameters(values: dict[str, Any]) -> None:
    """Check every hyperparameter by name; ``values`` maps constructor arguments to what was passed.

    :raises ValueError: naming the argument, the value met and what is allowed
    """
    for name in _COUNTS:
        check_count(name, values[name])
    check_count("stats_window_size", values["stats_window_size"])
    check_count("n_envs", values.get("n_envs", 1))  # no argument, but a file could hold anything
    if values["seed"] is not None and not (_is_integer(values["seed"]) and 0 <= values["seed"] < 2**32):
        raise ValueError(f"seed must be a whole number from 0 to 2**32 - 1, or None, got {values['seed']!r}.")
    if not isinstance(values["tensorboard_log"], str | os.PathLike | None):
        raise ValueError(f"tensorboard_log must be a folder's path or None, got {values['tensorboard_log']!r}.")
    for name in _SWITCHES:
        if not isinstance(values[name], bool):
            raise ValueError(f"{name} must be True or False, got {values[name]!r}.")
    for name in _OPTIONAL_COUNTS:
        value = values[name]
        if value is not None and (not _is_integer(value) or value < 1):
            raise ValueError(f"{name} must be a whole number of at least 1, or None, got {value!r}.")
    for name, choices in _CHOICES.items():
        if values[name] not in choices:
            raise ValueError(f"{name} must be one of {choices}, got {values[name]!r}.")
    for name, (holds, wanted) in _RANGES.items():
        value = values[name]
        if not (value is None and name in _OPTIONAL):
            _check_number(name, value, holds, wanted)
    for name, (holds, wanted) in SCHEDULED.items():
        value = values[name]
        if value is None and name == "clip_range_vf":
            continue
        _check_number(name, value_of(name, value, 1.0) if callable(value) else value, holds, wanted)


def value_of(name: str, schedule: Callable[[float], Any], progress_remaining: float) -> Any:
    """What a schedule gives.

    :raises ValueError: naming the hyperparameter, if it is a class or cannot be called with the remaining progress
    """
    if isinstance(schedule, type):  # calling it would make an object, whatever the class is
        raise ValueError(f"{name} is the class {schedule.__name__}; pass an object of it, {schedule.__name__}(...).")
    try:
        return schedule(progress_remaining)
    except Exception as error:
        raise ValueError(
            f"The schedule {name} cannot be called with the remaining progress, a number from 1 to 0 "
            f"({type(error).__name__}: {error}). Pass such a function, a schedule object, or a number; got {schedule!r}."
        ) from error


def check_device(device: Any) -> None:
    """Check the name of a device, which may not be there all the same.

    :raises ValueError: if torch knows none of that name
    """
    try:
        if device != "auto":
            th.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device must be 'auto', 'cpu', 'cuda', 'cuda:0' or another of torch's, got {device!r}.") from error


def check_count(name: str, value: Any, least: int = 1) -> None:
    """Check a whole number.

    :raises ValueError: naming the argument, the value met and what is allowed
    """
    if not _is_integer(value) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}.")


def check_learn_arguments(total_timesteps: Any, callback: Any, log_interval: Any, schedule_timesteps: Any) -> None:
    """Check what ``learn`` is given, before anything of the run is touched.

    :raises ValueError: for a number out of its range
    :raises TypeError: for a callback that is none
    """
    for name, value in (("total_timesteps", total_timesteps), ("schedule_timesteps", schedule_timesteps)):
        if not (name == "schedule_timesteps" and value is None):
            _check_number(name, value, lambda x: 0.0 <= x < float("inf"), "of environment steps, at least 0")
    if log_interval is not None:
        check_count("log_interval", log_interval)
    for one in callback if isinstance(callback, list) else [callback]:
        if isinstance(one, type):
            raise TypeError(f"callback is the class {one.__name__}; pass an object of it, {one.__name__}(...).")
        # SB3 takes a function too, though not within a list.
        if not (one is None or isinstance(one, BaseCallback) or (callable(one) and one is callback)):
            raise TypeError(f"callback must be a BaseCallback, a list of them, a function, or None; got {one!r}.")


def check_scheduled(name: str, value: float) -> float:
    """Check what a schedule gives now, and return it.

    :raises ValueError: naming the hyperparameter, the value met and what is allowed
    """
    _check_number(name, value, *SCHEDULED[name])
    return value


def resolve_policy(policy: str | type, aliases: Mapping[str, type], base: type) -> Any:
    """The policy class that an alias names, or the class itself.

    SB3's base class would refuse "MlpPolicy" for Dict observations, so aliases are turned into classes before it looks.

    :raises ValueError: for an unknown alias, or a class that does not derive from ``base``
    """
    if isinstance(policy, str):
        if policy not in aliases:
            known = sorted(aliases)
            raise ValueError(f"Policy {policy!r} is unknown; HMASD has {known}.{nearest(policy, known)}")
        return aliases[policy]
    if not (isinstance(policy, type) and issubclass(policy, base)):
        raise ValueError(f"policy must be 'MlpPolicy' or a subclass of {base.__name__}, got {policy!r}.")
    return policy


def check_policy_kwargs(policy_class: type, policy_kwargs: dict[str, Any] | None) -> None:
    """Refuse ``policy_kwargs`` that the policy class does not take.

    :raises ValueError: naming the argument and the nearest valid one, or a class that is of another kind
    """
    if not isinstance(policy_kwargs, dict | None):
        raise ValueError(f"policy_kwargs must be a dict or None, got {policy_kwargs!r}.")
    names: set[str] = set()
    for cls in policy_class.__mro__:  # a class with **kwargs hands them on to the next one that has an __init__
        if "__init__" not in vars(cls):
            continue
        parameters = inspect.signature(cls).parameters.values()
        names |= {p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    known = sorted(names - {"observation_space", "action_space", "lr_schedule", *_COUNTS})
    for name in policy_kwargs or {}:
        if name not in known:
            raise ValueError(f"policy_kwargs has no {name!r}; {policy_class.__name__} takes {known}.{nearest(name, known)}")
    for name, base in _CLASSES.items():
        value = (policy_kwargs or {}).get(name)
        if value is not None and not (isinstance(value, type) and issubclass(value, base)):
            raise ValueError(f"policy_kwargs' {name} must be a subclass of {base.__module__}.{base.__name__}, got {value!r}.")
    for name in known:
        value = (policy_kwargs or {}).get(name)
        if name.endswith("_kwargs") and value is not None and not isinstance(value, dict):
            raise ValueError(f"policy_kwargs' {name} must be a dict or None, got {value!r}.")


def _check_number(name: str, value: Any, holds: Callable[[float], bool], wanted: str) -> None:
    # A NaN satisfies no comparison, so it is refused by the range.
    # A whole number may be too large for a float, and the limit is too large for NumPy's shorter floats.
    size = abs(value if isinstance(value, int) else float(value)) if _is_number(value) else 0
    if size > sys.float_info.max and (name not in _MAY_BE_INFINITE or isinstance(value, int)):
        raise ValueError(f"{name} must be finite, got {value!r}.")
    if not _is_number(value) or not holds(float(value)):
        raise ValueError(f"{name} must be a number {wanted}, got {value!r}.")


def check_batch_size(batch_size: int | Schedule | None, n_steps: int, n_envs: int) -> None:
    """Check the size of minibatches for this rollout, a schedule at both its ends.

    :raises ValueError: see :func:`resolve_batch_size`
    """
    for progress_remaining in (1.0, 0.0):
        resolve_batch_size(batch_size, n_steps, n_envs, progress_remaining)


def resolve_batch_size(batch_size: int | Schedule | None, n_steps: int, n_envs: int, progress_remaining: float = 1.0) -> float:
    """Environment steps per minibatch.

    :param batch_size: None takes a quarter of the rollout; half or all of it where that is no whole number
    :param progress_remaining: where a schedule is looked up
    :raises ValueError: if a number does not divide the rollout, or a schedule gives none between 1 and the rollout
    """
    rollout = n_steps * n_envs
    if batch_size is None:
        return rollout // next(parts for parts in (4, 2, 1) if rollout % parts == 0)
    if callable(batch_size):
        return _scheduled_batch_size(
            value_of("batch_size", batch_size, progress_remaining), n_steps, n_envs, progress_remaining
        )
    if not _is_integer(batch_size) or batch_size < 1:
        raise ValueError(f"batch_size must be a whole number of at least 1, a schedule, or None, got {batch_size!r}.")
    if rollout % batch_size:
        below = next(size for size in range(min(batch_size, rollout), 0, -1) if rollout % size == 0)
        kind = "is larger than" if batch_size > rollout else "does not divide"
        raise ValueError(
            f"batch_size={batch_size} {kind} the rollout of n_steps * n_envs = {n_steps} * {n_envs} = {rollout} "
            f"environment steps. Use a divisor such as {below}, or change n_steps."
        )
    return int(batch_size)


def _scheduled_batch_size(value: Any, n_steps: int, n_envs: int, progress_remaining: float) -> float:
    rollout = n_steps * n_envs
    if not (_is_number(value) and 1.0 <= float(value) <= rollout):  # NaN satisfies no comparison
        raise ValueError(
            f"The schedule batch_size gives {value!r} at progress_remaining={progress_remaining:g}; it must give numbers from "
            f"1 to the rollout of n_steps * n_envs = {n_steps} * {n_envs} = {rollout} environment steps."
        )
    return float(value)


def nearest(name: str, known: list[str]) -> str:
    """ " Did you mean ...?" with the closest known name, or an empty string."""
    close = get_close_matches(name, known, n=1, cutoff=0.6)
    return f" Did you mean {close[0]!r}?" if close else ""


def check_transition(
    observation: dict[str, np.ndarray],
    rewards: np.ndarray | None,
    step: int,
    source: str = "observation",
    first_env: int = 0,
) -> None:
    """Refuse NaN and infinity before they reach the buffer.

    :param observation: arrays with axis B
    :param rewards: (B,) or None at a reset
    :param step: environment steps taken so far, for the message
    :param source: what the arrays are, for the message
    :param first_env: index of the environment in the first row
    :raises InvalidTransitionError: naming environment, step and what was not finite
    """
    if rewards is not None and not np.isfinite(rewards).all():
        env = int(np.flatnonzero(~np.isfinite(rewards))[0])
        raise InvalidTransitionError(
            f"Environment {env} returned the reward {rewards[env]} at timestep {step}. Fix the game's reward; "
            "nothing of this step was learnt from."
        )
    for key, value in observation.items():
        # One sum is far cheaper than a test of every entry; it is finite unless an entry is not (or it overflows).
        with np.errstate(over="ignore", invalid="ignore"):
            total = value.sum() if value.dtype.kind == "f" else 0.0
        if not np.isfinite(total):
            bad = ~np.isfinite(value.reshape(len(value), -1)).all(axis=1)
            if bad.any():
                env = first_env + int(np.flatnonzero(bad)[0])
                raise InvalidTransitionError(
                    f"Environment {env} returned NaN or infinity in {source} {key!r} at timestep {step}. Fix the "
                    "game's observation; nothing of this step was learnt from."
                )
