"""Looks at what a file says about a run before any of it reaches a model: types, shapes and keys, all of them by name.

``torch.load(weights_only=True)`` runs no code, but numbers, texts, containers and tensors may still stand where others belong.
"""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING, Any

import numpy as np
import torch as th
from gymnasium import spaces

from hmasd_sb3.envs.plain_state import checked_entries, checked_like, checked_type

if TYPE_CHECKING:
    from hmasd_sb3.persistence import PersistentAlgorithm

COUNTERS = (
    "num_timesteps",
    "_num_timesteps_at_start",
    "_n_updates",
    "_n_iterations",
    "_current_progress_remaining",
    "_learning_rate_scale",
    "_n_rollbacks",
)
_NUMBERS = ("policy_version", "inert_updates", "seconds")
_WITH_FRACTION = ("_current_progress_remaining", "_learning_rate_scale", "seconds")
ROLLOUT_ARRAYS = (
    "actions",
    "log_probs",
    "hidden",
    "rewards",
    "episode_starts",
    "terminated",
    "truncated",
    "lost",
    "team_skill",
    "agent_skills",
    "assigned",
    "skill_log_probs",
    "segment_ends",
)


def check_training_state(model: PersistentAlgorithm, state: Any, n_envs: int) -> None:
    """Refuse a training state that is none of such a model. Changes nothing.

    :param state: as ``run_state.capture`` gives it
    :param n_envs: number of environments that it is of
    :raises Exception: of many kinds, naming what does not fit
    """
    numbers = {**{name: state["counters"][name] for name in COUNTERS}, **{name: state[name] for name in _NUMBERS}}
    for name, value in numbers.items():
        (_finite if name in _WITH_FRACTION else _count)(value, name)
    checked_type(state["run"], (str, type(None)), "run")
    if state["skill_state"] is not None:
        _check_skills(model, state["skill_state"], n_envs)
    _tensor(state["critic_hidden"], (n_envs, model.policy.hidden_size), "critic_hidden")
    checked_type(state["schedules"], dict, "schedules")
    for info in checked_type(state["ep_info_buffer"], list, "ep_info_buffer"):
        for key in ("r", "l"):
            _number(info[key], f"ep_info_buffer's {key!r}")
    for success in checked_type(state["ep_success_buffer"], list, "ep_success_buffer"):
        float(success)
    checked_type(state["env"], (dict, type(None)), "env")
    _check_last_observation(model, state, n_envs)
    if state["rollout"] is not None:
        _check_rollout(model, state["rollout"], n_envs)
    _check_generators(state["generators"])
    _check_callbacks(state["callbacks"])
    if state["logger"] is not None:
        _check_logger(state["logger"])


def check_optimizer_state(name: str, optimizer: th.optim.Optimizer, state: Any) -> None:
    """Refuse an optimizer's state that is none of such an optimizer.

    :param name: for messages
    :raises ValueError: naming what does not fit
    """
    checked_entries(state, ("state", "param_groups"), name)
    (own,) = optimizer.param_groups
    groups = checked_type(state["param_groups"], list, f"{name}'s param_groups")
    if len(groups) != 1 or not isinstance(groups[0], dict) or groups[0].get("params") != [0]:
        raise ValueError(f"{name}'s param_groups must be one group with one parameter")
    for key, value in groups[0].items():
        if key != "params" and key in own and _kind(value) != _kind(own[key]):
            raise ValueError(f"{name}'s {key!r} is {value!r}, and should be such as {own[key]!r}")
    (vector,) = own["params"]
    checked_type(state["state"], dict, f"{name}'s state")
    if set(state["state"]) - {0}:
        raise ValueError(f"{name}'s state is of parameters that there are none of")
    for key, value in state["state"].get(0, {}).items():
        if isinstance(value, th.Tensor) and value.shape not in ((), (1,), vector.shape):
            raise ValueError(f"{name}'s {key!r} has the shape {tuple(value.shape)}, and should have {tuple(vector.shape)}")


def _kind(value: Any) -> Any:
    """What may stand for one another: numbers with or without a fraction, or None."""
    if isinstance(value, th.Tensor) and value.numel() == 1:
        return "number"
    if isinstance(value, bool) or value is None:
        return "switch"
    if isinstance(value, int | float):
        return "number"
    if isinstance(value, list | tuple):
        return [_kind(part) for part in value]
    return type(value)


def _number(value: Any, name: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise ValueError(f"{name} is {value!r}, which is no number")


def _finite(value: Any, name: str) -> None:
    _number(value, name)
    if not math.isfinite(value):
        raise ValueError(f"{name} is {value!r}, which is not finite")


def _count(value: Any, name: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 0:
        raise ValueError(f"{name} is {value!r}, which is no whole number of at least 0")


def _tensor(value: Any, shape: tuple[int, ...], name: str) -> None:
    if not isinstance(value, th.Tensor) or tuple(value.shape) != shape or value.dtype != th.float32:
        raise ValueError(f"{name} is no tensor of the shape {shape}")


def _check_skills(model: PersistentAlgorithm, skills: Any, n_envs: int) -> None:
    fresh = model.policy.initial_skill_state(n_envs)
    if not isinstance(skills, tuple) or len(skills) != len(fresh):
        raise ValueError("skill_state is no state of skills")
    limits = (model.policy.n_team_skills, model.policy.n_agent_skills)
    for name, array, like in zip(fresh._fields, skills, fresh, strict=True):
        checked_like(array, like, f"{name!r} of skill_state")
    for array, limit in zip(skills[:2], limits, strict=True):
        if array.size and not (array.min() >= 0 and array.max() < limit):
            raise ValueError(f"skill_state names skills outside 0..{limit - 1}")


def _check_last_observation(model: PersistentAlgorithm, state: dict[str, Any], n_envs: int) -> None:
    if state["last_obs"] is None:
        return
    _check_observation(model, state["last_obs"], (n_envs,), "last_obs")
    checked_like(state["last_episode_starts"], np.zeros(n_envs, dtype=bool), "last_episode_starts")


def _check_observation(model: PersistentAlgorithm, observation: Any, leading: tuple[int, ...], what: str) -> None:
    assert isinstance(model.observation_space, spaces.Dict)
    checked_entries(observation, model.observation_space.spaces, what)
    for key, space in model.observation_space.spaces.items():
        array = checked_type(observation[key], np.ndarray, f"{key!r} in {what}")
        if array.shape != (*leading, *(space.shape or ())):
            raise ValueError(f"{key!r} in {what} has the shape {array.shape}")


def _check_rollout(model: PersistentAlgorithm, rollout: Any, n_envs: int) -> None:
    checked_entries(rollout, ("steps", "collection_time", "arrays", "observations", "terminal_rows"), "the rollout")
    steps = checked_type(rollout["steps"], int, "'steps' of the rollout")
    _number(rollout["collection_time"], "'collection_time' of the rollout")
    buffer = model.rollout_buffer
    own = {name: getattr(buffer, name) for name in ROLLOUT_ARRAYS}
    for name, arrays, likes in (
        ("arrays", rollout["arrays"], own),
        ("observations", rollout["observations"], buffer.observations),
    ):
        checked_entries(arrays, likes, f"the rollout's {name}")
        for key, like in likes.items():
            array = checked_type(arrays[key], np.ndarray, f"{key!r} of the rollout")
            if array.shape != (steps, n_envs, *like.shape[2:]) or array.dtype != like.dtype:
                raise ValueError(f"{key!r} of the rollout is {array.dtype} of the shape {array.shape}")
    for step, env, observation in checked_type(rollout["terminal_rows"], list, "'terminal_rows' of the rollout"):
        if not (0 <= int(step) < steps and 0 <= int(env) < n_envs):
            raise ValueError(f"an episode of the rollout ends at step {step} in environment {env}")
        _check_observation(model, observation, (), "terminal_rows")


def _check_generators(state: Any) -> None:
    """Try the states on generators that nobody draws from."""
    checked_entries(state, ("python", "numpy", "torch", "torch_cuda"), "the random generators")
    version, internal, gauss = state["python"]
    random.Random().setstate((version, tuple(internal), gauss))
    np.random.RandomState().set_state(tuple(state["numpy"]))
    th.Generator().set_state(state["torch"].cpu())
    checked_type(state["torch_cuda"], list, "'torch_cuda'")


def _check_callbacks(states: Any) -> None:
    for one in checked_type(states, list, "'callbacks'"):
        checked_entries(one, ("class", "state"), "a callback")
        checked_type(one["class"], str, "the class of a callback")
        checked_type(checked_type(one["state"], dict, "the state of a callback")["known"], dict, "'known' of a callback")


def _check_logger(state: Any) -> None:
    checked_entries(state, ("pending", "outputs"), "the log")
    for key, (_, count, excluded) in checked_type(state["pending"], dict, "'pending' of the log").items():
        checked_type(key, str, "the name of a number in the log")
        checked_type(count, int, f"the count of {key!r} in the log")
        tuple(excluded)
    for output in checked_type(state["outputs"], list, "'outputs' of the log"):
        checked_entries(output, ("class", "state"), "an output of the log")
