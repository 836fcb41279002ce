"""What callbacks and log outputs remember from step to step, as plain data.

Callbacks of Stable-Baselines3 are known by name. One's own say what they remember by ``state_dict()`` and
``load_state_dict(state)``, in plain data; without these, and for a class that is not known, only the counters that every
callback has are kept.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
from stable_baselines3.common import callbacks as sb3
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import VecEnv

from hmasd_sb3.saving.trees import is_single
from hmasd_sb3.wrappers.states import EnvStateError, collect_env_state, restore_episodes, restore_normalizer

_logger = logging.getLogger("hmasd_sb3")

_REMEMBERED: dict[type[Any], tuple[str, ...]] = {
    sb3.BaseCallback: ("n_calls",),
    sb3.EvalCallback: (
        "best_mean_reward",
        "last_mean_reward",
        "evaluations_results",
        "evaluations_timesteps",
        "evaluations_length",
        "evaluations_successes",
    ),
    sb3.EveryNTimesteps: ("last_time_trigger",),
    sb3.StopTrainingOnMaxEpisodes: ("n_episodes",),
    sb3.StopTrainingOnNoModelImprovement: ("last_best_mean_reward", "no_improvement_evals"),
}


def callback_states(callback: sb3.BaseCallback | None) -> list[dict[str, Any]]:
    """State of a callback and all those inside it, each with its class."""
    return [{"class": _class_of(one), "state": _state_of(one)} for one in _walk(callback)]


def restore_callbacks(callback: sb3.BaseCallback | None, states: list[dict[str, Any]]) -> None:
    """Give callbacks back what they remembered, the first of a class what the first of that class did, and so on.

    One without counterpart in the other run begins afresh, and one that is not there any more is logged.
    """
    present = list(_walk(callback))
    for saved in states:
        one = next((one for one in present if _class_of(one) == saved["class"]), None)
        if one is not None:
            present.remove(one)
            _restore(one, saved["state"])
        elif set(saved["state"]) - {"known"} or set(saved["state"]["known"]) - {"n_calls"}:
            name = saved["class"].rpartition(".")[2]
            _logger.warning("The callback %s of the saved run is not there now: what it remembered is dropped.", name)


def _walk(callback: sb3.BaseCallback | None) -> Iterator[sb3.BaseCallback]:
    """A callback and all those inside it. Progress bars come and go between runs and remember nothing."""
    if callback is None or isinstance(callback, sb3.ProgressBarCallback):
        return
    if isinstance(callback, sb3.CallbackList):
        for one in callback.callbacks:
            yield from _walk(one)
        return
    yield callback
    for name in ("callback", "callback_on_new_best"):
        inner = getattr(callback, name, None)
        if isinstance(inner, sb3.BaseCallback):
            yield from _walk(inner)


def _class_of(callback: Any) -> str:
    return f"{type(callback).__module__}.{type(callback).__qualname__}"


def _remembered(callback: sb3.BaseCallback) -> list[str]:
    return [name for cls, names in _REMEMBERED.items() if isinstance(callback, cls) for name in names]


def _state_of(callback: sb3.BaseCallback) -> dict[str, Any]:
    state: dict[str, Any] = {"known": {name: getattr(callback, name) for name in _remembered(callback)}}
    if hasattr(callback, "state_dict"):
        state["own"] = callback.state_dict()
    evaluated_on = getattr(callback, "eval_env", None)
    if isinstance(evaluated_on, VecEnv):
        state["eval_env"] = collect_env_state(evaluated_on)
    return state


def _restore(callback: sb3.BaseCallback, state: dict[str, Any]) -> None:
    for name in _remembered(callback):  # never whatever names a file may hold
        if name in state["known"]:
            value = state["known"][name]
            kept_as_list = isinstance(getattr(callback, name), list)
            if not isinstance(value, list if kept_as_list else int | float | np.number):
                raise ValueError(
                    f"the file gives {type(callback).__name__} a {name} of {value!r}, which fits no such callback."
                )
            setattr(callback, name, value)
    if "own" in state and hasattr(callback, "load_state_dict"):
        callback.load_state_dict(state["own"])
    evaluated_on = getattr(callback, "eval_env", None)
    if "eval_env" in state and isinstance(evaluated_on, VecEnv):
        restore_normalizer(evaluated_on, state["eval_env"])
        try:
            restore_episodes(evaluated_on, state["eval_env"])
        except EnvStateError as error:
            _logger.warning("Evaluations play other episodes than they would have without the interruption: %s", error)


def find_callbacks(callback: sb3.BaseCallback | None, cls: type[sb3.BaseCallback]) -> list[Any]:
    """All callbacks of a class among a callback and those inside it."""
    return [one for one in _walk(callback) if isinstance(one, cls)]


# ------------------------------------------------------------------ log


def logger_state(logger: Logger) -> dict[str, Any]:
    """What was recorded but not written yet, and where outputs that can tell (by ``state_dict``) have got to."""
    pending = {
        key: (value, logger.name_to_count.get(key, 0), logger.name_to_excluded.get(key, ()))
        for key, value in logger.name_to_value.items()
        if is_single(value)  # pictures and the like are recorded again
    }
    outputs = [
        {"class": _class_of(output), "state": output.state_dict()}
        for output in logger.output_formats
        if hasattr(output, "state_dict")
    ]
    return {"pending": pending, "outputs": outputs}


def restore_logger(logger: Logger, state: dict[str, Any]) -> None:
    """Go on where the log was; outputs are told apart by their class and order."""
    for key, (value, count, excluded) in state["pending"].items():
        logger.name_to_value[key] = value
        logger.name_to_excluded[key] = tuple(excluded)
        if count:
            logger.name_to_count[key] = count
    waiting = list(state["outputs"])
    for output in logger.output_formats:
        saved = next((one for one in waiting if one["class"] == _class_of(output)), None)
        if saved is not None and hasattr(output, "load_state_dict"):
            waiting.remove(saved)
            output.load_state_dict(saved["state"])
