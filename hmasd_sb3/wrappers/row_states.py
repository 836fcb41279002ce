"""The state of one environment, with its Gymnasium wrappers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import wrappers
from stable_baselines3.common.monitor import Monitor

from hmasd_sb3.envs.plain_state import checked_entries, checked_type
from hmasd_sb3.wrappers.layer_states import (
    STATELESS,
    EnvStateError,
    LayerKind,
    State,
    attributes,
    check_layers,
    collect_layers,
    restore_layers,
)

_MONITOR_LISTS = {
    "rewards": np.float64,
    "episode_returns": np.float64,
    "episode_lengths": np.int64,
    "episode_times": np.float64,
}
_MONITOR_REST = {"needs_reset": bool, "total_steps": int, "current_reset_info": dict}


def row_state(env: gym.Env[Any, Any]) -> State:
    """The state of an environment and of its wrappers.

    Monitors give their counts and the episode under way, not the file they write nor when they began.

    :param env: stays as it is
    :return: plain data
    :raises EnvStateError: naming the wrapper or game that cannot give its state
    """
    return {"layers": collect_layers(list(_layers(env)), _KNOWN)}


def check_row(env: gym.Env[Any, Any], state: Any) -> None:
    """Refuse a state that is not of such an environment, as far as this can be seen without touching it.

    :param state: from `row_state`
    :raises EnvStateError: naming what does not fit
    """
    check_layers(list(_layers(env)), _KNOWN, _layer_states(state))


def restore_row(env: gym.Env[Any, Any], state: Any) -> None:
    """Let an environment go on where another one was, without a reset.

    :param env: made as the other one was; it need not have been reset
    :param state: from `row_state`; stays as it is
    :raises EnvStateError: if it does not fit
    """
    restore_layers(list(_layers(env)), _KNOWN, _layer_states(state))


def _layers(env: gym.Env[Any, Any]) -> Iterator[gym.Env[Any, Any]]:
    while isinstance(env, gym.Wrapper):
        yield env
        env = env.env
    yield env


def _layer_states(state: Any) -> Any:
    try:
        checked_entries(state, ("layers",), "an environment")
    except ValueError as error:
        raise EnvStateError(str(error)) from error
    return state["layers"]


def _monitor_state(monitor: Monitor) -> State:
    lists = {name: np.array(getattr(monitor, name), dtype) for name, dtype in _MONITOR_LISTS.items()}
    return {**lists, **{name: getattr(monitor, name) for name in _MONITOR_REST}}


def _check_monitor(monitor: Monitor, state: State) -> None:
    checked_entries(state, (*_MONITOR_LISTS, *_MONITOR_REST), "Monitor")
    for name, dtype in _MONITOR_LISTS.items():
        array = checked_type(state[name], np.ndarray, f"{name!r} of Monitor")
        if array.dtype != dtype or array.ndim != 1:
            raise ValueError(f"{name!r} of Monitor must be one row of {np.dtype(dtype)}; got {array!r}")
    for name, kind in _MONITOR_REST.items():
        checked_type(state[name], kind, f"{name!r} of Monitor")


def _restore_monitor(monitor: Monitor, state: State) -> None:
    for name in _MONITOR_LISTS:
        setattr(monitor, name, state[name].tolist())
    for name in _MONITOR_REST:
        setattr(monitor, name, state[name])


def _check_nothing(layer: Any, state: State) -> None:
    checked_entries(state, (), type(layer).__name__)


def _mark_checked(checker: Any, state: State) -> None:
    # It compares the first two steps with the reset before them, which there was none of here.
    checker.checked_reset = checker.checked_step = checker.checked_data_reuse = True


_KNOWN: dict[type[Any], LayerKind] = {
    Monitor: LayerKind(_monitor_state, _check_monitor, _restore_monitor),
    wrappers.OrderEnforcing: attributes("_has_reset"),
    wrappers.PassiveEnvChecker: LayerKind(lambda layer: {}, _check_nothing, _mark_checked),
    wrappers.TimeLimit: attributes("_elapsed_steps"),
    # These only turn what passes through them into something else.
    wrappers.ClipAction: STATELESS,
    wrappers.ClipReward: STATELESS,
    wrappers.DtypeObservation: STATELESS,
    wrappers.FilterObservation: STATELESS,
    wrappers.FlattenObservation: STATELESS,
    wrappers.GrayscaleObservation: STATELESS,
    wrappers.RescaleAction: STATELESS,
    wrappers.RescaleObservation: STATELESS,
    wrappers.ReshapeObservation: STATELESS,
    wrappers.ResizeObservation: STATELESS,
    wrappers.TransformAction: STATELESS,
    wrappers.TransformObservation: STATELESS,
    wrappers.TransformReward: STATELESS,
}


def treat_as_its_base(layer: type[Any]) -> None:
    """Let a layer that adds no state of its own be treated as the class it derives from.

    :param layer: its class; nothing changes if it is known already
    """
    if layer not in _KNOWN:
        _KNOWN[layer] = _KNOWN[layer.__mro__[1]]
