"""Helpers for tests of exact resume: what plain data is, a trip through a file, and two environments side by side."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import torch as th
from contract import legal_actions
from stable_baselines3.common.vec_env import VecEnv

from hmasd_sb3.envs import AliceAndBobParallelEnv
from hmasd_sb3.wrappers import make_team_vec_env
from hmasd_sb3.wrappers.states import collect_env_state, restore_episodes

ALICE = "AliceAndBob-v0"
SMALL = {"size": 3, "max_steps": 9}


def small_alice() -> AliceAndBobParallelEnv:
    return AliceAndBobParallelEnv(**SMALL)


def teams(env: Any, seed: int, n_envs: int = 3, **kwargs: Any) -> VecEnv:
    return make_team_vec_env(env, n_envs, seed=seed, **kwargs)


def seeded(venv: VecEnv, seed: int) -> VecEnv:
    venv.seed(seed)
    return venv


def assert_plain(value: Any, where: str = "state") -> None:
    """Exact types only: subclasses, such as NumPy's float64, are no plain data."""
    if type(value) is dict:
        for key, part in value.items():
            assert type(key) is str, f"{where}: key {key!r}"
            assert_plain(part, f"{where}[{key!r}]")
    elif type(value) in (list, tuple):
        for index, part in enumerate(value):
            assert_plain(part, f"{where}[{index}]")
    elif type(value) is np.ndarray:
        assert value.dtype.kind in "biuf", f"{where}: {value.dtype}"
        assert value.dtype.isnative, where
    else:
        assert value is None or type(value) in (bool, int, float, str, bytes), f"{where}: {type(value)}"


def through_file(state: Any) -> Any:
    """What comes back from a file that is loaded without running code."""
    assert_plain(state)
    file = io.BytesIO()
    th.save(_mapped(state, np.ndarray, lambda array: th.from_numpy(np.ascontiguousarray(array).reshape(array.shape))), file)
    file.seek(0)
    return _mapped(th.load(file, weights_only=True), th.Tensor, lambda tensor: tensor.numpy())


def _mapped(value: Any, kind: type, function: Callable[[Any], Any]) -> Any:
    if isinstance(value, dict):
        return {key: _mapped(part, kind, function) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_mapped(part, kind, function) for part in value)
    return function(value) if isinstance(value, kind) else value


def assert_equal(one: Any, other: Any, where: str = "") -> None:
    """Equal to the last bit, with types and shapes, but for the wall-clock times of episodes."""
    assert type(one) is type(other), f"{where}: {one!r} and {other!r}"
    if isinstance(one, dict):
        assert set(one) == set(other), f"{where}: {one} and {other}"
        for key in one:
            if not (where.endswith("['episode']") and key == "t"):
                assert_equal(one[key], other[key], f"{where}[{key!r}]")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for index, pair in enumerate(zip(one, other, strict=True)):
            assert_equal(*pair, f"{where}[{index}]")
    elif isinstance(one, np.ndarray):
        assert one.dtype == other.dtype, where
        np.testing.assert_array_equal(one, other, err_msg=where)
    else:
        assert one == other, f"{where}: {one!r} and {other!r}"


def play(venv: VecEnv, observation: Any, rng: np.random.Generator, steps: int) -> Any:
    """The observation after so many random legal steps."""
    for _ in range(steps):
        actions = legal_actions(venv.action_space, observation, rng, venv.num_envs)
        observation = venv.step(actions)[0]
    return observation


def side_by_side(original: VecEnv, resumed: VecEnv, observation: Any, rng: np.random.Generator, steps: int) -> int:
    """Step both by the same random legal actions; they must agree in all that they return.

    :return: how many episodes ended
    """
    ends = 0
    for step in range(steps):
        actions = legal_actions(original.action_space, observation, rng, original.num_envs)
        expected, found = original.step(actions), resumed.step(actions)
        assert_equal(list(found), list(expected), f"step {step}: ")
        observation = expected[0]
        ends += int(expected[2].sum())
    return ends


def resume(make: Callable[[int], VecEnv], before: int = 13, after: int = 40) -> None:
    """Play, collect, restore into fresh environments of another seed, and play on with both; then a reset of both.

    :param make: from a seed
    """
    rng = np.random.default_rng(0)
    original, resumed = make(1), make(1000)
    try:
        observation = play(original, original.reset(), rng, before)
        collected = collect_env_state(original)
        assert collected["reason"] is None
        # What was collected must not change as the game goes on, nor by being restored twice.
        state = through_file(collected)
        restore_episodes(resumed, state)
        assert side_by_side(original, resumed, observation, rng, after) > 2
        assert_equal(through_file(collected), state)
        restore_episodes(resumed, state)
        assert_equal(through_file(collect_env_state(resumed)), state)
        restore_episodes(resumed, collect_env_state(original))
        assert_equal(resumed.reset(), original.reset())
    finally:
        original.close()
        resumed.close()
