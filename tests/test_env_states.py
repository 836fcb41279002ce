"""Exact resume: environments that were given another's state go on as that one does."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import supersuit as ss
from games import TimeLimitGame
from gymnasium.wrappers import TimeLimit
from pipelines import pipeline
from resumable_games import (
    Continuous,
    Dying,
    Fading,
    FaultyMaker,
    Joining,
    Masked,
    MaskedDying,
    Pictured,
    Skippable,
    TimeLimited,
    turns,
)
from resuming import ALICE, SMALL, assert_equal, play, resume, seeded, side_by_side, small_alice, teams, through_file
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    VecCheckNan,
    VecEnv,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
)
from worker_games import FAULT

from hmasd_sb3.wrappers import (
    SuperSuitTeamVecEnv,
    TeamEnv,
    WorkerTeamVecEnv,
    generator_state,
    restored_generator,
)
from hmasd_sb3.wrappers.game_states import game_state, restore_game
from hmasd_sb3.wrappers.states import collect_env_state, restore_episodes, restore_normalizer, restore_row, row_state


def stacked() -> Any:
    """Also without black_death_v3, which teams take out, and with what they put in its place."""
    return ss.frame_skip_v0(ss.frame_stack_v1(ss.black_death_v3(Skippable()), 3), 2)


# ---- environments go on as others would have


GAMES = [
    small_alice,
    TimeLimited,
    Masked,
    partial(Masked, mask_in="info"),
    Continuous,
    Dying,
    Joining,
    MaskedDying,
    Pictured,
    turns,
    stacked,
]


@pytest.mark.parametrize("game", GAMES)
def test_every_kind_of_game_goes_on(game: Callable[[], Any]) -> None:
    resume(lambda seed: teams(game, seed))


@pytest.mark.parametrize("before", [0, 1, 8, 9, 10])
def test_at_any_step_of_an_episode(before: int) -> None:
    resume(lambda seed: teams(MaskedDying, seed), before=before)


def test_the_bundled_vectorisation() -> None:
    resume(lambda seed: teams(ALICE, seed, env_kwargs=SMALL))


def test_registered_games_with_gymnasiums_own_wrappers() -> None:
    for before in (0, 1, 13):  # the checker looks at the first steps alone
        resume(lambda seed: teams(ALICE, seed, env_kwargs=SMALL, vec_env_cls=DummyVecEnv), before=before)


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("game", [small_alice, MaskedDying])
def test_worker_processes(game: Callable[[], Any], restart: bool) -> None:
    resume(lambda seed: teams(game, seed, n_workers=1 + seed % 2, restart_workers=restart))


@pytest.mark.parametrize("num_cpus", [0, 2])
def test_supersuits_pipelines(num_cpus: int) -> None:
    def make(seed: int) -> VecEnv:
        return seeded(VecMonitor(SuperSuitTeamVecEnv(pipeline(small_alice(), 3, num_cpus))), seed)

    resume(make)


def test_wrappers_of_one_environment() -> None:
    def bounded(env: gym.Env) -> gym.Env:
        return TimeLimit(env, 7)

    resume(lambda seed: teams(Dying, seed, wrappers=[Fading, bounded]))


def test_wrappers_of_all_environments(tmp_path: pathlib.Path) -> None:
    def make(seed: int) -> VecEnv:
        venv = VecMonitor(teams(Dying, seed, vec_env_cls=_without_monitors), str(tmp_path / str(seed)))
        return VecCheckNan(VecNormalize(venv, norm_obs_keys=["obs", "state"], gamma=0.9))

    resume(make)


def test_frames_stay_stacked() -> None:
    def unmasked(seed: int) -> VecEnv:
        return VecFrameStack(teams(Continuous, seed, team_kwargs={"agent_mask": False}), 3)

    resume(unmasked)


def _without_monitors(makers: list[Any]) -> VecEnv:
    return DummyVecEnv([maker.make_bare for maker in makers])


def test_a_checker_for_nan_can_complain_at_once() -> None:
    original, resumed = (VecCheckNan(teams(Continuous, seed), raise_exception=True) for seed in (1, 2))
    original.reset()
    restore_episodes(resumed, through_file(collect_env_state(original)))
    with pytest.raises(ValueError, match=r"found nan in actions"):
        resumed.step(np.full((3, 2, 2), np.nan, np.float32))


def test_monitors_keep_their_counts() -> None:
    original, resumed = (teams(Dying, seed) for seed in (1, 2))
    play(original, original.reset(), np.random.default_rng(0), 30)
    restore_episodes(resumed, through_file(collect_env_state(original)))
    for method in ("get_episode_rewards", "get_episode_lengths", "get_episode_times", "get_total_steps"):
        assert_equal(resumed.env_method(method), original.env_method(method))


def test_an_environment_that_has_not_begun_stays_so() -> None:
    for kwargs in ({}, {"env_kwargs": SMALL}, {"n_workers": 1}):
        original, resumed = (teams(ALICE if "env_kwargs" in kwargs else small_alice, seed, **kwargs) for seed in (1, 2))
        resumed.reset()
        restore_episodes(resumed, through_file(collect_env_state(original)))
        with pytest.raises(RuntimeError, match=r"reset"):
            resumed.step(np.zeros((3, 2), int))
        assert_equal(resumed.reset(), original.reset())  # by the seeds that the original was given
        original.close()
        resumed.close()


def test_options_for_the_next_reset_are_kept() -> None:
    original, resumed = (teams(small_alice, seed) for seed in (1, 2))
    original.reset()
    original.set_options({"positions": {"alice": (0, 0), "bob": (2, 2)}})
    restore_episodes(resumed, through_file(collect_env_state(original)))
    assert_equal(resumed.reset(), original.reset())


def test_restarts_go_on_alike() -> None:
    """The first step after the resume fails: what was seen before it, the new seeds and the counts are the original's."""

    def make(seed: int) -> WorkerTeamVecEnv:
        return seeded(WorkerTeamVecEnv([FaultyMaker(i) for i in range(3)], 2, restart_workers=True), seed)

    fault = np.array([[0, 0], [FAULT, 0], [0, 0]])
    original, resumed = make(1), make(2)
    try:
        original.reset()
        original.step(fault)
        state = through_file(collect_env_state(original))
        restore_episodes(resumed, state)
        # Twice more without a finished step is as often as is allowed.
        for _ in range(2):
            assert_equal(list(resumed.step(fault)), list(original.step(fault)))
        for venv in (original, resumed):
            with pytest.raises(Exception, match=r"restarted 3 times in a row"):
                venv.step(fault)
        assert resumed.n_restarts == original.n_restarts == 3
        assert_equal(resumed.restarts_by_env, original.restarts_by_env)
    finally:
        original.close()
        resumed.close()


def test_one_environment_alone() -> None:
    original, resumed = (TeamEnv(Joining()) for _ in range(2))
    original.reset(seed=5)
    for _ in range(3):
        original.step(np.ones(3, int))
    restore_row(resumed, through_file(row_state(original)))
    for _ in range(4):
        assert_equal(list(resumed.step(np.ones(3, int))), list(original.step(np.ones(3, int))))
    assert resumed.np_random_seed == original.np_random_seed == 5
    assert resumed.np_random.random() == original.np_random.random()


def test_a_game_with_its_wrappers_need_not_have_been_reset() -> None:
    original, resumed = turns(), turns()
    original.reset(seed=3)
    for _ in range(2):
        original.step({"first": 1, "second": 2})
    restore_game(resumed, through_file(game_state(original)))
    assert resumed.agents == original.agents
    for _ in range(2):
        expected, found = (game.step({"first": 2, "second": 0}) for game in (original, resumed))
        assert_equal([dict(part) for part in found], [dict(part) for part in expected])
    assert resumed.agents == original.agents == []


# ---- random generators


@pytest.mark.parametrize("kind", ["MT19937", "PCG64", "PCG64DXSM", "Philox", "SFC64"])
def test_generators_go_on(kind: str) -> None:
    rng = np.random.Generator(getattr(np.random, kind)(np.random.SeedSequence([2**70, 3], spawn_key=(4,))))
    rng.spawn(2)
    rng.integers(5, dtype=np.uint32)  # leaves half of a draw for the next
    copy = restored_generator(through_file(generator_state(rng)))
    assert_equal(copy.integers(2**32, size=5, dtype=np.uint32), rng.integers(2**32, size=5, dtype=np.uint32))
    assert_equal(copy.normal(size=3), rng.normal(size=3))
    assert_equal(copy.spawn(1)[0].random(3), rng.spawn(1)[0].random(3))


def test_no_generator_is_none() -> None:
    assert generator_state(None) is None
    assert restored_generator(None) is None


def test_foreign_generators_are_refused() -> None:
    class Own(np.random.PCG64): ...

    with pytest.raises(ValueError, match=r"Own cannot be kept: use one of NumPy's own"):
        generator_state(np.random.Generator(Own(0)))
    state = generator_state(np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"one of NumPy's MT19937, .*; got 'default_rng'"):
        restored_generator({**state, "bit_generator": "default_rng"})
    with pytest.raises(ValueError, match=r"no state of a SFC64"):
        restored_generator({**state, "bit_generator": "SFC64"})
    for broken in (5, {}, {"bit_generator": "PCG64"}):
        with pytest.raises(ValueError, match=r"state"):
            restored_generator(broken)


# ---- VecNormalize by itself


def normalized(seed: int, n_envs: int = 3, keys: tuple[str, ...] = ("obs", "state"), game: Any = TimeLimited) -> VecNormalize:
    return VecNormalize(teams(game, seed, n_envs), norm_obs_keys=list(keys))


def test_statistics_without_episodes() -> None:
    original, resumed = normalized(1, game=TimeLimitGame), normalized(2, game=TimeLimitGame)
    play(original, original.reset(), np.random.default_rng(0), 7)
    state = through_file(collect_env_state(original))
    assert state["episodes"] is None
    assert restore_normalizer(VecCheckNan(resumed), state)
    seen = {"obs": np.ones((1, 2, 3), np.float32), "state": np.ones((1, 6), np.float32), "agent_mask": np.ones((1, 2))}
    assert_equal(resumed.normalize_obs(seen), original.normalize_obs(seen))
    assert_equal(resumed.normalize_reward(np.ones(3)), original.normalize_reward(np.ones(3)))
    assert_equal(resumed.returns, original.returns)
    resumed.reset()  # changes the statistics in place: the state stays as it is
    assert_equal(through_file(collect_env_state(original)), state)


def test_statistics_of_another_number_of_environments() -> None:
    original, resumed = normalized(1), normalized(2, n_envs=1)
    play(original, original.reset(), np.random.default_rng(0), 7)
    assert restore_normalizer(resumed, collect_env_state(original))
    assert resumed.ret_rms.count == original.ret_rms.count
    assert resumed.returns.shape == (1,)


def test_no_statistics_to_restore() -> None:
    plain, wrapped = teams(TimeLimited, 1), normalized(1)
    assert not restore_normalizer(plain, collect_env_state(wrapped))
    assert not restore_normalizer(wrapped, collect_env_state(plain))


def test_statistics_that_do_not_fit_are_named() -> None:
    state = collect_env_state(normalized(1))
    for other, text in (
        (normalized(2, keys=("obs",)), r"not known: \['obs_rms/state'\]"),
        (normalized(2, game=partial(TimeLimited, n_agents=3)), r"'obs_rms/obs'.* must be float64 of the shape \(3, 3\)"),
    ):
        before = through_file(collect_env_state(other))
        with pytest.raises(ValueError, match=text):
            restore_normalizer(other, state)
        assert_equal(through_file(collect_env_state(other)), before)


def test_original_observations_are_kept() -> None:
    original, resumed = normalized(1), normalized(2)
    play(original, original.reset(), np.random.default_rng(0), 7)
    restore_episodes(resumed, collect_env_state(original))
    assert_equal(dict(resumed.get_original_obs()), dict(original.get_original_obs()))
    assert_equal(resumed.get_original_reward(), original.get_original_reward())


def test_going_on_is_no_accident() -> None:
    """Environments that were given no state differ, so the comparison of all these tests can fail."""
    original, other = (teams(small_alice, seed) for seed in (1, 2))
    observation, _ = original.reset(), other.reset()
    with pytest.raises(AssertionError):
        side_by_side(original, other, observation, np.random.default_rng(0), 20)
