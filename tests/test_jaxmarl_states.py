"""Exact resume of JaxMARL's games."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
from resuming import assert_equal, play, resume, through_file
from stable_baselines3.common.vec_env import DummyVecEnv

from hmasd_sb3.wrappers import EnvStateError, make_team_vec_env
from hmasd_sb3.wrappers.states import collect_env_state, restore_episodes

# Code that is compiled in half the time; it has to be said before JAX starts.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

# Asked for without importing it: that takes seconds in every test process.
if find_spec("jaxmarl") is None:
    pytest.skip("needs the extra 'jaxmarl'", allow_module_level=True)

OVERCOOKED = {"game": "overcooked", "layout": "cramped_room", "max_steps": 9, "random_reset": True}
SPREAD = {"game": "MPE_simple_spread_v3", "max_steps": 9}
SMAX = {"game": "HeuristicEnemySMAX", "scenario": "3m", "max_steps": 9}


def teams(seed: int, kwargs: dict[str, Any], n_envs: int = 3, **more: Any) -> Any:
    return make_team_vec_env("JaxMARL-v0", n_envs, seed=seed, env_kwargs=kwargs, **more)


@pytest.mark.parametrize("kwargs", [OVERCOOKED, SPREAD, SMAX])
def test_games_go_on(kwargs: dict[str, Any]) -> None:
    resume(lambda seed: teams(seed, kwargs))


@pytest.mark.parametrize("kwargs", [OVERCOOKED, SMAX])
def test_single_games_go_on(kwargs: dict[str, Any]) -> None:
    resume(lambda seed: teams(seed, kwargs, vec_env_cls=DummyVecEnv))


def test_before_the_first_reset() -> None:
    for more in ({}, {"vec_env_cls": DummyVecEnv}):
        original, resumed = teams(1, SPREAD, **more), teams(2, SPREAD, **more)
        resumed.reset()
        restore_episodes(resumed, through_file(collect_env_state(original)))
        with pytest.raises(RuntimeError, match=r"reset"):
            resumed.step(np.zeros((3, 3), int))
        assert_equal(resumed.reset(), original.reset())


def test_rows_can_be_reset_by_themselves() -> None:
    original, resumed = (teams(seed, OVERCOOKED) for seed in (1, 2))
    play(original, original.reset(), np.random.default_rng(0), 4)
    restore_episodes(resumed, through_file(collect_env_state(original)))
    mask = {"reset_mask": np.array([True, False, False])}
    inner = [venv.unwrapped.vector_env.unwrapped.reset(options=mask)[0] for venv in (original, resumed)]
    assert_equal(inner[1], inner[0])


def test_keys_and_flags_keep_their_kinds() -> None:
    env = teams(1, SMAX).unwrapped.vector_env.unwrapped
    env.reset(seed=0)
    state = env.state_dict()
    assert state["keys"][0].dtype == np.uint32
    assert {"b", "f", "i"} <= {leaf.dtype.kind for leaf in state["states"]}
    env.load_state_dict(through_file(state))
    restored = kinds(env)
    env.reset(seed=0)
    assert restored == kinds(env)


def kinds(env: Any) -> list[tuple[Any, bool]]:
    """Of everything that JAX computes with: other kinds would be compiled anew."""
    import jax

    leaves = jax.tree.leaves((env._keys, env._states, env._observations))
    return [(leaf.dtype, getattr(leaf, "weak_type", False)) for leaf in leaves]


def without_last(state: dict[str, Any]) -> None:
    state["states"].pop()


def reshaped(state: dict[str, Any]) -> None:
    state["states"][0] = np.zeros((7,), np.float32)


def as_doubles(state: dict[str, Any]) -> None:
    state["states"] = [leaf.astype(np.float64) for leaf in state["states"]]


def half_begun(state: dict[str, Any]) -> None:
    state["keys"] = None


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (without_last, r"'states' must be \d+ arrays, as such a game has; got \d+"),
        (reshaped, r"array 0 of 'states' must be \w+ of the shape \(3.*\); got float32 of \(7,\)"),
        (as_doubles, r"array \d+ of 'states' must be .*; got float64"),
        (half_begun, r"'keys' must be list or tuple; got None"),
    ],
)
def test_what_does_not_fit_is_refused(change: Callable[[dict[str, Any]], None], text: str) -> None:
    venv = teams(1, SPREAD)
    venv.reset()
    state = collect_env_state(venv)
    before = through_file(state)
    change(state["episodes"][-1]["state"]["vector_env"][-1]["state"])
    with pytest.raises(EnvStateError, match=r"JaxMARLVectorEnv could not take this state: ValueError: " + text):
        restore_episodes(venv, state)
    assert_equal(through_file(collect_env_state(venv)), before)


def test_another_game_is_refused() -> None:
    venv = teams(1, SPREAD)
    venv.reset()
    with pytest.raises(EnvStateError, match=r"must be"):
        restore_episodes(teams(1, OVERCOOKED), collect_env_state(venv))
