"""Everything that a run goes on from beyond weights and optimizers: taken from a model between two steps, and put back.

What only concerns the model is put back when it is loaded; what lies outside it (environments, global random generators,
callbacks, log) when training goes on, so that nothing done in between can disturb it.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from typing import TYPE_CHECKING, Any

import numpy as np
import torch as th

from hmasd_sb3.buffers import SkillRolloutBuffer
from hmasd_sb3.saving.callback_states import callback_states, logger_state, restore_callbacks, restore_logger
from hmasd_sb3.saving.checks import COUNTERS, ROLLOUT_ARRAYS
from hmasd_sb3.saving.generators import global_generators_state, restore_global_generators
from hmasd_sb3.saving.trees import is_single, tree_to_bytes
from hmasd_sb3.type_aliases import SkillState, TerminalRow
from hmasd_sb3.validation import SCHEDULED
from hmasd_sb3.wrappers.states import EnvStateError, collect_env_state, restore_episodes, restore_normalizer

if TYPE_CHECKING:
    from hmasd_sb3.persistence import PersistentAlgorithm

_logger = logging.getLogger("hmasd_sb3")

SECTIONS = ("rollout_buffer", "env", "callback", "logger")
"""Parts of the state that ``save(exclude=...)`` can leave out."""


def capture(model: PersistentAlgorithm, exclude: set[str]) -> dict[str, Any]:
    """The state of a model and of its run, as nested plain data.

    :param model: between two steps
    :param exclude: of :data:`SECTIONS`
    """
    state: dict[str, Any] = {
        "counters": {name: getattr(model, name) for name in COUNTERS},
        "run": model.run_id,
        # What an update that broke off has left behind is another policy than the one before it.
        "policy_version": model.policy_version + int(model._gate.update_broke_off),
        "minibatch_generator": model._rng.bit_generator.state,
        "skill_state": None if model.skill_state is None else tuple(model.skill_state),
        "critic_hidden": model._critic_hidden,
        "inert_updates": model._inert_watch.inert_updates,
        "schedules": {name: one.state_dict() for name, one in _stateful_schedules(model).items()},
        "ep_info_buffer": [_numbers(info) for info in model.ep_info_buffer or ()],
        "ep_success_buffer": list(model.ep_success_buffer or ()),
        **capture_run(model),
    }
    if "rollout_buffer" in exclude:
        state["rollout"] = None
    if "env" in exclude:
        state["env"], state["rollout"] = None, None
    if model._saved_run is None and state["rollout"] is None and model._gate.has_unlearnt_steps:
        # The critic has not followed the steps that are left out, so it starts afresh.
        state["critic_hidden"] = th.zeros_like(model._critic_hidden)
    if "callback" in exclude:
        state["callbacks"] = []
    if "logger" in exclude:
        state["logger"] = None
    return state


def capture_run(model: PersistentAlgorithm) -> dict[str, Any]:
    """What lies outside the model. Of a file whose run has not gone on yet it is what that file says."""
    if model._saved_run is not None:
        return model._saved_run
    consistent = not model._mid_step and model._last_obs is not None
    return {
        "generators": global_generators_state(),
        "seconds": (time.time_ns() - model.start_time) / 1e9 if model.num_timesteps else 0.0,
        "last_obs": model._last_obs if consistent else None,
        "last_episode_starts": model._last_episode_starts if consistent else None,
        "env": _storable_env_state(model),
        "rollout": _rollout_state(model) if consistent else None,
        "callbacks": [
            _storable(model, state, _drop_own, f"what {state['class']} says by state_dict()")
            for state in callback_states(model._callback)
        ],
        "logger": None if model._logger_or_none() is None else logger_state(model.logger),
    }


def _storable_env_state(model: PersistentAlgorithm) -> dict[str, Any] | None:
    if model.env is None:
        return None

    def without_episodes(state: dict[str, Any], error: TypeError) -> dict[str, Any]:
        return {
            **state,
            "episodes": None,
            "reason": f"state_dict() of the game gives something that cannot be stored: {error}",
        }

    state = _storable(model, collect_env_state(model.env), without_episodes, "the state of the environments")
    if model._mid_step:
        return {
            **state,
            "episodes": None,
            "reason": "an error broke off a step, after which they and the model do not fit together",
        }
    return state


def _drop_own(state: dict[str, Any], error: TypeError) -> dict[str, Any]:
    return {**state, "state": {name: part for name, part in state["state"].items() if name == "known"}}


def _storable(model: PersistentAlgorithm, state: dict[str, Any], otherwise: Any, what: str) -> dict[str, Any]:
    """``state`` if it is plain data; else what ``otherwise`` makes of it, since the model must not be lost over it."""
    try:
        tree_to_bytes(state)
    except TypeError as error:
        if what not in model._told_left_out:  # once, not at every checkpoint
            model._told_left_out |= {what}
            _logger.warning("A saved model lacks %s: %s", what, error)
        return dict(otherwise(state, error))
    return state


def _stateful_schedules(model: PersistentAlgorithm) -> dict[str, Any]:
    """Schedules that remember something, by hyperparameter."""
    values = {name: getattr(model, name) for name in SCHEDULED}
    return {name: value for name, value in values.items() if hasattr(value, "load_state_dict")}


def _numbers(info: dict[str, Any]) -> dict[str, Any]:
    """What an episode reported, as far as it can be averaged."""
    return {key: value for key, value in info.items() if is_single(value)}


# ------------------------------------------------------------------ putting back


def restore_model(model: PersistentAlgorithm, state: dict[str, Any]) -> None:
    """Put back what concerns the model alone; environments may be others than they were.

    :param state: of :func:`capture`
    """
    for name in COUNTERS:
        setattr(model, name, state["counters"][name])
    model.run_id = state["run"]
    policy_version = int(state["policy_version"])
    model._gate.restart(policy_version)
    model._rng.bit_generator.state = state["minibatch_generator"]
    model._inert_watch.inert_updates = int(state["inert_updates"])
    for name, schedule in _stateful_schedules(model).items():
        if name in state["schedules"]:
            schedule.load_state_dict(state["schedules"][name])
    model.ep_info_buffer = deque(state["ep_info_buffer"], maxlen=model._stats_window_size)
    model.ep_success_buffer = deque(state["ep_success_buffer"], maxlen=model._stats_window_size)
    skills = state["skill_state"]
    if skills is not None and len(skills[0]) == model.n_envs:
        model.skill_state = SkillState(*skills)
        model._critic_hidden = state["critic_hidden"].to(model.device)
    if model.env is not None and state["env"] is not None:
        _restore_normalizer(model, state["env"])


def _restore_normalizer(model: PersistentAlgorithm, env_state: dict[str, Any]) -> None:
    had, has = env_state["normalizer"] is not None, model.get_vec_normalize_env() is not None
    if had != has:
        _logger.warning(
            "The model was trained %s a VecNormalize and the environment now has %s, so it sees other numbers than it knows.",
            "behind" if had else "without",
            "one" if has else "none",
        )
    assert model.env is not None
    restore_normalizer(model.env, env_state)


def restore_environments(model: PersistentAlgorithm, run: dict[str, Any]) -> None:
    """Let the environments go on where they were, or begin new episodes and say why.

    :param run: of :func:`capture_run`
    """
    model._last_obs, model._paused = None, False  # by which they will be reset
    assert model.env is not None
    if run["env"] is None:
        reason = "the file does not hold their state"
    else:
        restore_normalizer(model.env, run["env"])
        try:
            restore_episodes(model.env, run["env"])
        except EnvStateError as error:
            reason = str(error)
        else:
            if run["last_obs"] is None:  # the run had not begun, or new episodes are wanted
                return
            model._last_obs = run["last_obs"]
            model._last_episode_starts = run["last_episode_starts"]
            if run["rollout"] is not None:
                _restore_rollout(model, run["rollout"])
            return
    if model.seed is not None:
        # Not the episodes that the run began with, and the same ones whenever it is resumed from here.
        model.env.seed(int(np.random.SeedSequence([model.seed, model.num_timesteps]).generate_state(1)[0] >> 2))
    _logger.warning(
        "Training goes on at %d environment steps with new episodes in all environments: %s",
        model.num_timesteps,
        reason,
    )


def restore_surroundings(model: PersistentAlgorithm, run: dict[str, Any]) -> None:
    """Give callbacks, log and the global random generators their state back, just before the next step."""
    if run["callbacks"]:
        restore_callbacks(model._callback, run["callbacks"])
    if run["logger"] is not None:
        restore_logger(model.logger, run["logger"])
    restore_global_generators(run["generators"])


# ------------------------------------------------------------------ unfinished rollouts


def _rollout_state(model: PersistentAlgorithm) -> dict[str, Any] | None:
    """The steps of a rollout under way, or None between two rollouts."""
    buffer, gate = model.rollout_buffer, model._gate
    if not gate.samples_collected or gate.update_broke_off:  # some networks have learnt from it already
        return None
    steps = buffer.pos
    return {
        "steps": steps,
        "collection_time": time.perf_counter() - gate._phase_start if gate.collecting else gate.collection_time,
        "arrays": {name: getattr(buffer, name)[:steps] for name in ROLLOUT_ARRAYS},
        "observations": {key: array[:steps] for key, array in buffer.observations.items()},
        "terminal_rows": [tuple(row) for row in buffer.terminal_rows],
    }


def _restore_rollout(model: PersistentAlgorithm, state: dict[str, Any]) -> None:
    buffer: SkillRolloutBuffer = model.rollout_buffer
    gate, steps = model._gate, int(state["steps"])
    if steps > buffer.n_steps or any(len(array[0]) != buffer.n_envs for array in state["arrays"].values()):
        _logger.warning(
            "The %d steps of the unfinished rollout are dropped: it was begun for other n_steps or environments.", steps
        )
        model._critic_hidden = th.zeros_like(model._critic_hidden)
        return
    buffer.reset()
    for name in ROLLOUT_ARRAYS:
        getattr(buffer, name)[:steps] = state["arrays"][name]
    for key, array in buffer.observations.items():
        array[:steps] = state["observations"][key]
    buffer.terminal_rows = [TerminalRow(*row) for row in state["terminal_rows"]]
    buffer.pos = steps
    gate.contributions[:] = steps
    gate.collection_time = float(state["collection_time"])
    model._paused = True
