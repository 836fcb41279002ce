"""The state of a whole ``VecEnv``, so that training goes on between two steps as if it had never stopped.

`collect_env_state` gives plain data, `restore_normalizer` and `restore_episodes` put it into a ``VecEnv`` made alike.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecCheckNan,
    VecEnv,
    VecEnvWrapper,
    VecExtractDictObs,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
    VecTransposeImage,
    VecVideoRecorder,
    unwrap_vec_normalize,
)
from stable_baselines3.common.vec_env.stacked_observations import StackedObservations

from hmasd_sb3.envs.plain_state import checked_entries, checked_like, checked_type, plain_copy
from hmasd_sb3.wrappers.layer_states import (
    STATELESS,
    EnvStateError,
    Known,
    LayerKind,
    State,
    attributes,
    collect_layers,
    restore_layers,
)
from hmasd_sb3.wrappers.reset_orders import checked_reset_orders, reset_orders, set_reset_orders
from hmasd_sb3.wrappers.row_states import check_row, restore_row, row_state

__all__ = [
    "EnvStateError",
    "collect_env_state",
    "collect_venv",
    "restore_episodes",
    "restore_normalizer",
    "restore_row",
    "restore_venv",
    "row_state",
]

_KEYS = ("n_envs", "normalizer", "episodes", "reason")


def collect_env_state(venv: VecEnv) -> dict[str, Any]:
    """What training needs of its environments to go on exactly, as far as they can give it.

    :param venv: between two steps; stays as it is
    :return: plain data: ``n_envs``; ``normalizer``, the statistics of the outermost ``VecNormalize``, or None;
        ``episodes``, the state of every layer from the outside in, the last one's with that of its environments, or None;
        and ``reason``, the text that says why ``episodes`` is None, or None. A game that cannot give its state, or raises
        while doing so, is such a reason, and so is a worker process that is gone.
    """
    normalizer = unwrap_vec_normalize(venv)
    state: dict[str, Any] = {
        "n_envs": int(venv.num_envs),
        "normalizer": None if normalizer is None else plain_copy(_statistics(normalizer), "the state of VecNormalize"),
        "episodes": None,
        "reason": None,
    }
    try:
        state["episodes"] = collect_venv(venv)
    except EnvStateError as error:
        state["reason"] = str(error)
    return state


def restore_normalizer(venv: VecEnv, state: dict[str, Any]) -> bool:
    """Give the outermost ``VecNormalize`` the statistics of another one.

    The discounted returns of the episodes under way count as well, if there are as many environments; a reset begins them
    anew in any case.

    :param state: from `collect_env_state`; stays as it is
    :return: whether there was something to restore and a ``VecNormalize`` to take it
    :raises ValueError: naming the keys or shapes that do not fit; nothing is changed then
    """
    checked_entries(state, _KEYS, "the environments")
    normalizer = unwrap_vec_normalize(venv)
    if state["normalizer"] is None or normalizer is None:
        return False
    statistics: State = plain_copy(state["normalizer"], "'normalizer'")
    if state["n_envs"] != venv.num_envs:
        statistics["returns"] = normalizer.returns
    _check_statistics(normalizer, statistics)
    _set_statistics(normalizer, statistics)
    return True


def restore_episodes(venv: VecEnv, state: dict[str, Any]) -> None:
    """Put everything back, a ``VecNormalize``'s statistics too: ``venv.step`` then goes on as the original would have.

    :param venv: made as the original was; it need not have been reset
    :param state: from `collect_env_state`; stays as it is
    :raises EnvStateError: if there is no state of the episodes, or it does not fit. Nothing is changed then, unless a game's
        own ``load_state_dict`` raised: then reset the environments.
    """
    try:
        checked_entries(state, _KEYS, "the environments")
    except ValueError as error:
        raise EnvStateError(str(error)) from error
    if state["episodes"] is None:
        raise EnvStateError(f"the state holds no episodes, since none could be collected: {state['reason']}")
    if state["n_envs"] != venv.num_envs:
        raise EnvStateError(f"the state is of {state['n_envs']} environments, and here are {venv.num_envs}. Make as many.")
    restore_venv(venv, state["episodes"])


def collect_venv(venv: VecEnv) -> list[State]:
    """The state of every layer of a ``VecEnv``, from the outside in.

    :raises EnvStateError: naming the class that cannot give its state
    """
    return collect_layers(_layers(venv), _KNOWN)


def restore_venv(venv: VecEnv, states: Any) -> None:
    """Put the states of all layers back.

    :param states: from `collect_venv`; stays as it is
    :raises EnvStateError: if they do not fit
    """
    restore_layers(_layers(venv), _KNOWN, states)


def _layers(venv: VecEnv) -> list[VecEnv]:
    layers = [venv]
    while isinstance(layers[-1], VecEnvWrapper):
        layers.append(layers[-1].venv)
    return layers


# ---- environments in this process


def _dummy_state(venv: DummyVecEnv) -> State:
    return {"rows": [row_state(env) for env in venv.envs], "resets": reset_orders(venv)}


def _check_dummy(venv: DummyVecEnv, state: State) -> None:
    checked_entries(state, ("rows", "resets"), "DummyVecEnv")
    checked_reset_orders(venv, state["resets"])
    if len(checked_type(state["rows"], list, "'rows'")) != venv.num_envs:
        raise EnvStateError(f"the state is of {len(state['rows'])} environments, and here are {venv.num_envs}. Make as many.")
    for env, row in zip(venv.envs, state["rows"], strict=True):
        check_row(env, row)


def _restore_dummy(venv: DummyVecEnv, state: State) -> None:
    for env, row in zip(venv.envs, state["rows"], strict=True):
        restore_row(env, row)
    set_reset_orders(venv, state["resets"])


def _refuse_subproc(venv: SubprocVecEnv, state: Any = None) -> Any:
    raise EnvStateError(
        "SubprocVecEnv cannot give or take the state of its processes. Run the environments in this one, or in worker "
        "processes by make_team_vec_env(..., n_workers=...)."
    )


# ---- VecNormalize


def _moments_of(normalizer: VecNormalize) -> dict[str, RunningMeanStd]:
    """By name: ``obs_rms/key`` for each key of a Dict, or ``obs_rms``; and ``ret_rms``."""
    # There is none with norm_obs=False, and asked for as an attribute it would be looked for in inner layers.
    found: Any = vars(normalizer).get("obs_rms", {})
    by_key = {f"obs_rms/{key}": rms for key, rms in found.items()} if isinstance(found, dict) else {"obs_rms": found}
    return {**by_key, "ret_rms": normalizer.ret_rms}


def _statistics(normalizer: VecNormalize) -> State:
    moments = {
        name: {"mean": np.asarray(rms.mean), "var": np.asarray(rms.var), "count": float(rms.count)}
        for name, rms in _moments_of(normalizer).items()
    }
    return {**moments, "returns": np.asarray(normalizer.returns)}


def _check_statistics(normalizer: VecNormalize, state: State) -> None:
    own = _statistics(normalizer)
    checked_entries(state, own, "VecNormalize")
    checked_like(state["returns"], own.pop("returns"), "'returns' of VecNormalize")
    for name, moments in own.items():
        checked_entries(state[name], moments, f"VecNormalize's {name!r}")
        checked_type(state[name]["count"], float, f"'count' in VecNormalize's {name!r}")
        for part in ("mean", "var"):
            checked_like(state[name][part], moments[part], f"{part!r} in VecNormalize's {name!r}")


def _set_statistics(normalizer: VecNormalize, state: State) -> None:
    for name, rms in _moments_of(normalizer).items():
        rms.mean, rms.var, rms.count = state[name]["mean"], state[name]["var"], state[name]["count"]
    normalizer.returns = state["returns"]


def _normalizer_state(normalizer: VecNormalize) -> State:
    # What get_original_obs() and get_original_reward() return until the next step; missing before the first reset.
    last = {"old_obs": vars(normalizer).get("old_obs"), "old_reward": normalizer.old_reward}
    return {"statistics": _statistics(normalizer), **last}


def _check_normalizer(normalizer: VecNormalize, state: State) -> None:
    checked_entries(state, ("statistics", "old_obs", "old_reward"), "VecNormalize")
    _check_statistics(normalizer, state["statistics"])


def _restore_normalizer(normalizer: VecNormalize, state: State) -> None:
    _set_statistics(normalizer, state["statistics"])
    normalizer.old_reward = state["old_reward"]
    if state["old_obs"] is not None:
        normalizer.old_obs = state["old_obs"]


# ---- VecFrameStack


def _frames(venv: VecFrameStack) -> dict[str, StackedObservations[NDArray[Any]]]:
    """By the observation's key; under ``""`` where it is no Dict."""
    stacks: Any = venv.stacked_obs
    return dict(getattr(stacks, "sub_stacked_observations", {"": stacks}))


def _frame_state(venv: VecFrameStack) -> State:
    return {key: stack.stacked_obs for key, stack in _frames(venv).items()}


def _check_frames(venv: VecFrameStack, state: State) -> None:
    present = _frame_state(venv)
    checked_entries(state, present, "VecFrameStack")
    for key, array in present.items():
        checked_like(state[key], array, f"{key!r} of VecFrameStack")


def _restore_frames(venv: VecFrameStack, state: State) -> None:
    for key, stack in _frames(venv).items():
        stack.stacked_obs = state[key]


_NAN_FLAGS = attributes("_user_warned")


def _restore_check_nan(venv: VecCheckNan, state: State) -> None:
    _NAN_FLAGS.restore(venv, state)
    if "_observations" not in vars(venv):  # named in its message, and missing before the first reset
        venv._observations = {}


_KNOWN: Known = {
    DummyVecEnv: LayerKind(_dummy_state, _check_dummy, _restore_dummy),
    SubprocVecEnv: LayerKind(_refuse_subproc, _refuse_subproc, _refuse_subproc),
    VecCheckNan: LayerKind(_NAN_FLAGS.collect, _NAN_FLAGS.check, _restore_check_nan),
    VecExtractDictObs: STATELESS,
    VecFrameStack: LayerKind(_frame_state, _check_frames, _restore_frames),
    VecMonitor: attributes("episode_count", "episode_returns", "episode_lengths"),
    VecNormalize: LayerKind(_normalizer_state, _check_normalizer, _restore_normalizer),
    VecTransposeImage: STATELESS,
    # A film that is being made is cut off; the next ones begin as they would have.
    VecVideoRecorder: attributes("step_id"),
}
