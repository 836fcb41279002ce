"""Alice and Bob's three ways to be played, alone, as a team and vectorised, agree step by step."""

from typing import Any

import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from stable_baselines3.common.vec_env import DummyVecEnv

from hmasd_sb3.envs import parallel_env
from hmasd_sb3.envs.alice_and_bob_vector import AliceAndBobVectorEnv
from hmasd_sb3.wrappers import GymVectorTeamVecEnv, TeamEnv


def same_observation(left: Any, right: Any) -> None:
    assert set(left) == set(right)
    for key in left:
        assert left[key].dtype == right[key].dtype, key
        np.testing.assert_array_equal(left[key], right[key], err_msg=key)


@pytest.mark.parametrize("kwargs", [{"size": 3, "max_steps": 60}, {"size": 2, "max_steps": 9, "allow_stay": True}])
def test_single_games_in_a_dummy_vec_env_equal_the_native_ones(kwargs: dict[str, Any]) -> None:
    n_envs, n_steps = 8, 500
    dummy = DummyVecEnv([lambda: TeamEnv(parallel_env(**kwargs))] * n_envs)
    native = GymVectorTeamVecEnv(AliceAndBobVectorEnv(n_envs, **kwargs))
    assert dummy.observation_space == native.observation_space
    assert dummy.action_space == native.action_space
    for vec_env in (dummy, native):
        vec_env.seed(5)
    same_observation(dummy.reset(), native.reset())

    rng = np.random.default_rng(0)
    endings = {True: 0, False: 0}
    for _ in range(n_steps):
        actions = rng.integers(dummy.action_space.nvec[0], size=(n_envs, 2))
        ours, theirs = native.step(actions), dummy.step(actions)
        same_observation(ours[0], theirs[0])
        for left, right in zip(ours[1:3], theirs[1:3], strict=True):
            assert left.dtype == right.dtype
            np.testing.assert_array_equal(left, right)
        for done, left, right in zip(ours[2], ours[3], theirs[3], strict=True):
            assert set(left) == set(right)
            assert left["TimeLimit.truncated"] == right["TimeLimit.truncated"]
            if done:
                endings[left["is_success"]] += 1
                assert left["is_success"] is right["is_success"]
                same_observation(left["terminal_observation"], right["terminal_observation"])
    assert min(endings.values()) >= 10


def test_parallel_env_equals_the_team_env() -> None:
    alone, team = parallel_env(size=3, max_steps=20), TeamEnv(parallel_env(size=3, max_steps=20))
    rng = np.random.default_rng(1)
    for episode in range(20):
        observations, _ = alone.reset(seed=episode)
        team_observation, _ = team.reset(seed=episode)
        done = False
        while not done:
            np.testing.assert_array_equal(team_observation["obs"], np.stack([*observations.values()]))
            np.testing.assert_array_equal(team_observation["state"], alone.state())
            actions = rng.integers(4, size=2)
            observations, rewards, terminations, truncations, infos = alone.step(
                dict(zip(alone.possible_agents, actions.tolist(), strict=True))
            )
            team_observation, reward, terminated, truncated, info = team.step(actions)
            assert reward == sum(rewards.values())
            assert terminated == terminations["alice"]
            assert truncated == truncations["alice"]
            assert info == infos["alice"]
            done = terminated or truncated


def test_native_infos_have_the_layout_of_gymnasiums_own() -> None:
    kwargs = {"size": 2, "max_steps": 9}
    ours = AliceAndBobVectorEnv(4, **kwargs)
    theirs = SyncVectorEnv([lambda: TeamEnv(parallel_env(**kwargs))] * 4, autoreset_mode=AutoresetMode.SAME_STEP)
    assert ours.observation_space == theirs.observation_space
    assert ours.action_space == theirs.action_space
    same_observation(ours.reset(seed=2)[0], theirs.reset(seed=2)[0])
    rng = np.random.default_rng(0)
    ended = 0
    for _ in range(100):
        actions = rng.integers(4, size=(4, 2))
        left, right = ours.step(actions), theirs.step(actions)
        same_observation(left[0], right[0])
        for a, b in zip(left[1:4], right[1:4], strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)
        left_info, right_info = left[4], right[4]
        assert set(left_info) == set(right_info)
        if not left_info:
            continue
        ended += 1
        for key in ("_final_obs", "_final_info"):
            np.testing.assert_array_equal(left_info[key], right_info[key])
        assert set(left_info["final_info"]) == set(right_info["final_info"])
        for key, value in left_info["final_info"].items():
            assert value.dtype == right_info["final_info"][key].dtype
            np.testing.assert_array_equal(value, right_info["final_info"][key])
        for a, b in zip(left_info["final_obs"], right_info["final_obs"], strict=True):
            assert (a is None) == (b is None)
            if a is not None:
                same_observation(a, b)
    assert ended > 20


def test_native_rows_depend_on_their_own_seed_alone() -> None:
    together, alone = AliceAndBobVectorEnv(3, size=2, max_steps=5), AliceAndBobVectorEnv(1, size=2, max_steps=5)
    first, _ = together.reset(seed=10)
    again, _ = alone.reset(seed=12)
    rng = np.random.default_rng(0)
    for _ in range(50):
        np.testing.assert_array_equal(first["obs"][2], again["obs"][0])
        actions = rng.integers(4, size=(3, 2))
        first, again = together.step(actions)[0], alone.step(actions[2:])[0]


def test_native_observations_are_new_arrays_at_every_step() -> None:
    env = AliceAndBobVectorEnv(2)
    first, _ = env.reset(seed=0)
    kept = {key: value.copy() for key, value in first.items()}
    env.step(np.zeros((2, 2), dtype=np.int64))
    same_observation(first, kept)


def test_native_reset_mask_restarts_the_marked_rows_alone() -> None:
    env = AliceAndBobVectorEnv(3)
    before, _ = env.reset(seed=0)
    after, _ = env.reset(seed=[None, 77, None], options={"reset_mask": np.array([False, True, False])})
    np.testing.assert_array_equal(before["state"][[0, 2]], after["state"][[0, 2]])
    assert (before["state"][1] != after["state"][1]).any()


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        (np.array([[0, 1], [0, 4]]), "'bob' of environment 1 was given the action 4"),
        (np.array([[-1, 1], [0, 0]]), "'alice' of environment 0 was given the action -1"),
        (np.zeros((2, 3), dtype=int), r"\(2, 2\)"),
        (np.zeros((2, 2)), "integers"),
    ],
)
def test_native_step_refuses_bad_actions(actions: np.ndarray, message: str) -> None:
    env = AliceAndBobVectorEnv(2)
    env.reset(seed=0)
    with pytest.raises(ValueError, match=message):
        env.step(actions)


def test_native_frames_show_each_row() -> None:
    env = AliceAndBobVectorEnv(3, size=3, render_mode="rgb_array")
    env.reset(seed=0)
    frames = env.render()
    assert [frame.shape for frame in frames] == [(4 * 48, 4 * 48, 3)] * 3
    assert (frames[0] != frames[1]).any()
