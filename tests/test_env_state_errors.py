"""Exact resume: environments that cannot give their state say why, and states that do not fit are refused."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import supersuit as ss
from games import TimeLimitGame
from resumable_games import (
    Continuous,
    Dying,
    Fading,
    FaultyMaker,
    Forgetful,
    Joining,
)
from resuming import ALICE, SMALL, assert_equal, seeded, small_alice, teams, through_file
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecEnv,
    VecEnvWrapper,
    VecNormalize,
)

from hmasd_sb3.wrappers import (
    EnvStateError,
    TeamEnv,
    WorkerTeamVecEnv,
)
from hmasd_sb3.wrappers.states import collect_env_state, restore_episodes

# ---- reasons not to be able to


def reason(venv: VecEnv) -> str:
    """Why there are no episodes in the state, which is plain all the same."""
    state = through_file(collect_env_state(venv))
    assert state["episodes"] is None
    assert state["n_envs"] == venv.num_envs
    with pytest.raises(EnvStateError, match=r"holds no episodes"):
        restore_episodes(venv, state)
    return state["reason"]


@pytest.mark.parametrize("kwargs", [{}, {"n_workers": 2}])
def test_a_game_without_the_methods_is_named(kwargs: dict[str, Any]) -> None:
    venv = teams(TimeLimitGame, 1, **kwargs)
    venv.reset()
    assert "TimeLimitGame cannot give or take its state. Give its class state_dict()" in reason(venv)
    venv.step(np.zeros((3, 2), int))  # it plays on
    venv.close()
    with pytest.raises(EnvStateError, match=r"TimeLimitGame"):
        TeamEnv(TimeLimitGame()).state_dict()


def test_wrappers_without_the_methods_are_named() -> None:
    assert "Forgetful cannot give or take its state. Give the wrapper's class" in reason(teams(Dying, 1, wrappers=[Forgetful]))

    class Around(VecEnvWrapper):
        def reset(self) -> Any:
            return self.venv.reset()

        def step_wait(self) -> Any:
            return self.venv.step_wait()

    # It passes on state_dict, an attribute of the environments inside.
    inner = teams(ALICE, 1, env_kwargs=SMALL)
    assert callable(Around(inner).state_dict)
    assert "Around cannot give or take its state" in reason(Around(inner))

    class Counting(Around):
        def state_dict(self) -> dict[str, Any]:
            return {}

        def load_state_dict(self, state: dict[str, Any]) -> None: ...

    assert collect_env_state(Counting(inner))["episodes"] is not None


def test_games_wrapped_in_unknown_ways_are_named() -> None:
    assert (
        "could not give its state: TypeError: the state of shared_wrapper_parr['agents']['agent_0']['accumulator']"
        in reason(teams(lambda: ss.max_observation_v0(Continuous(), 2), 1))
    )
    assert "aec_observation_lambda cannot give" in reason(
        teams(lambda: ss.observation_lambda_v0(Continuous(), lambda obs, space: obs), 1)
    )


def test_subprocesses_of_sb3_cannot() -> None:
    venv = teams(small_alice, 1, 1, vec_env_cls=SubprocVecEnv)
    assert "SubprocVecEnv cannot give or take the state" in reason(venv)
    venv.close()


def test_closed_and_dead_workers_are_reasons() -> None:
    closed = teams(small_alice, 1, n_workers=1)
    closed.close()
    assert "WorkerTeamVecEnv could not give its state: RuntimeError: these environments are closed" in reason(closed)

    venv = seeded(WorkerTeamVecEnv([FaultyMaker(i) for i in range(2)], 1, restart_workers=True), 1)
    venv.reset()
    venv.step_async(np.zeros((2, 2), int))
    assert "a step is under way" in reason(venv)
    venv.step_wait()
    with pytest.raises(Exception, match=r"SIGKILL"):
        venv.env_method("die", indices=1)
    assert "WorkerTeamVecEnv could not give its state: WorkerError" in reason(venv)
    venv.step(np.zeros((2, 2), int))  # repaired
    assert collect_env_state(venv)["reason"] is None
    venv.close()


@pytest.mark.parametrize("workers", [False, True])
def test_what_a_game_raises_is_a_reason(workers: bool) -> None:
    makers = [FaultyMaker(i) for i in range(2)]
    venv: VecEnv = WorkerTeamVecEnv(makers, 1) if workers else DummyVecEnv(makers)
    venv.reset()
    venv.env_method("refuse", ZeroDivisionError("no state today"), indices=1)
    assert "Faulty could not give its state: ZeroDivisionError: no state today" in reason(venv)
    venv.env_method("refuse", None)
    assert collect_env_state(venv)["reason"] is None
    venv.close()


@pytest.mark.parametrize(
    ("value", "found"),
    [(np.float64(1), "float64"), (object(), "object"), ({1: 2}, "key 1"), (np.array([None]), "array of object")],
)
def test_what_is_no_plain_data_is_a_reason(value: Any, found: str) -> None:
    venv = teams(Dying, 1, 1)
    venv.reset()
    venv.envs[0].unwrapped.parallel_env.spans = {"agent_0": [(0, value)]}
    assert "Dying could not give its state: TypeError: the state of Dying['spans']['agent_0'][0][1] " in reason(venv)
    assert found in reason(venv)


# ---- states that do not fit


def test_other_environments_are_refused_untouched() -> None:
    state = collect_env_state(teams(Dying, 1))
    others: list[tuple[Callable[[], VecEnv], str]] = [
        (lambda: teams(Dying, 2, n_envs=2), r"of 3 environments, and here are 2"),
        (lambda: teams(Joining, 2), r"they were \['Dying'\], and here they are \['Joining'\]"),
        (lambda: teams(partial(Dying, n_agents=2), 2), r"'present' must be bool of the shape \(2,\)"),
        (lambda: teams(Dying, 2, wrappers=[Fading]), r"\['Monitor', 'Fading', 'TeamEnv'\]"),
        (lambda: VecNormalize(teams(Dying, 2), norm_obs=False), r"here they are \['VecNormalize', 'DummyVecEnv'\]"),
        (lambda: teams(Dying, 2, n_workers=1), r"here they are \['WorkerTeamVecEnv'\]"),
    ]
    for make, text in others:
        venv = make()
        venv.reset()
        before = through_file(collect_env_state(venv))
        with pytest.raises(EnvStateError, match=text):
            restore_episodes(venv, state)
        assert_equal(through_file(collect_env_state(venv)), before)
        venv.close()


def test_other_environments_in_workers_are_refused_untouched() -> None:
    state = collect_env_state(one := teams(Dying, 1, n_workers=1))
    one.close()
    for kwargs, text in (({"n_envs": 2}, r"here are 2"), ({"wrappers": [Fading]}, r"'Fading', 'TeamEnv'\]")):
        venv = teams(Dying, 2, n_workers=1, **kwargs)
        venv.reset()
        before = through_file(collect_env_state(venv))
        with pytest.raises(EnvStateError, match=text):
            restore_episodes(venv, state)
        assert_equal(through_file(collect_env_state(venv)), before)
        venv.close()


@pytest.mark.parametrize("workers", [False, True])
def test_nothing_is_restored_if_a_later_environment_does_not_fit(workers: bool) -> None:
    def make(wrapper: Callable[[gym.Env], gym.Env]) -> VecEnv:
        makers = [lambda: TeamEnv(Dying()), lambda: wrapper(TeamEnv(Dying()))]
        venv: VecEnv = WorkerTeamVecEnv(makers, 1) if workers else DummyVecEnv(makers)
        seeded(venv, 1 + (wrapper is Fading)).reset()
        return venv

    original, other = make(lambda env: env), make(Fading)
    before = through_file(collect_env_state(other))
    with pytest.raises(EnvStateError, match=r"they were \['TeamEnv'\], and here they are \['Fading', 'TeamEnv'\]"):
        restore_episodes(other, collect_env_state(original))
    assert_equal(through_file(collect_env_state(other)), before)
    original.close()
    other.close()


def test_broken_states_are_refused() -> None:
    venv = teams(ALICE, 1, env_kwargs=SMALL)
    venv.reset()
    good = collect_env_state(venv)
    with pytest.raises(EnvStateError, match=r"missing: \['reason'\]"):
        restore_episodes(venv, {key: part for key, part in good.items() if key != "reason"})
    for episodes in (5, [5], [{"class": "VecMonitor"}]):
        with pytest.raises(EnvStateError, match=r"no state of \['VecMonitor', 'GymVectorTeamVecEnv'\]"):
            restore_episodes(venv, {**good, "episodes": episodes})
    smaller = teams(ALICE, 1, env_kwargs={"size": 2})
    good["episodes"][1]["state"]["vector_env"][0]["state"]["cells"][:] = 8
    with pytest.raises(EnvStateError, match=r"AliceAndBobVectorEnv could not take this state: ValueError: cells must lie"):
        restore_episodes(smaller, good)


@pytest.mark.parametrize("key", ["cells", "collected", "steps", "running", "generator"])
def test_alice_and_bob_refuse_what_does_not_fit(key: str) -> None:
    game = small_alice()
    game.reset(seed=0)
    before = game.state_dict()
    with pytest.raises(ValueError, match=key):
        game.load_state_dict({**before, key: {"no": "state"}})
    assert_equal(game.state_dict(), before)
