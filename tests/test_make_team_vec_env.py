"""make_team_vec_env: every way to name a game, seeding, what a finished row reports, and the errors."""

import sys
from pathlib import Path
from typing import Any

import games
import gymnasium as gym
import numpy as np
import pettingzoo
import pytest
from games import ContinuousGame, MaskedGame, TimeLimitGame
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from pettingzoo.utils.conversions import parallel_to_aec
from stable_baselines3.common.monitor import Monitor, load_results
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecMonitor

from hmasd_sb3.envs import parallel_env as alice_and_bob
from hmasd_sb3.wrappers import GymVectorTeamVecEnv, TeamEnv, make_team_vec_env
from hmasd_sb3.wrappers.convert import as_team_vec_env

ID = "AliceAndBob-v0"
SMALL = {"size": 2, "max_steps": 6}


def first_states(vec_env: VecEnv) -> np.ndarray:
    observation = vec_env.reset()
    assert isinstance(observation, dict)
    return observation["state"]


def play(vec_env: VecEnv, n_steps: int, seed: int = 0) -> list[tuple[Any, ...]]:
    """Every step's observation, rewards, dones, infos under actions drawn from ``seed``."""
    rng = np.random.default_rng(seed)
    vec_env.reset()
    steps = []
    for _ in range(n_steps):
        if isinstance(vec_env.action_space, gym.spaces.MultiDiscrete):
            actions = rng.integers(vec_env.action_space.nvec, size=(vec_env.num_envs, len(vec_env.action_space.nvec)))
        else:
            actions = rng.uniform(-1, 1, (vec_env.num_envs, *vec_env.action_space.shape)).astype(np.float32)
        steps.append(vec_env.step(actions))
    return steps


class Renamed(gym.Wrapper):
    """A wrapper that leaves a trace."""

    def reset(self, **kwargs: Any) -> Any:
        observation, info = self.env.reset(**kwargs)
        return observation, {**info, "wrapped": True}


# ---- ways to name a game


@pytest.mark.parametrize(
    "env",
    [
        ID,
        gym.spec(ID),
        f"hmasd_sb3.envs:{ID}",
        "hmasd_sb3.envs.alice_and_bob:parallel_env",
        "hmasd_sb3.envs.alice_and_bob:AliceAndBobParallelEnv",
        alice_and_bob,
        lambda **kwargs: parallel_to_aec(alice_and_bob(**kwargs)),
        lambda **kwargs: TeamEnv(alice_and_bob(**kwargs)),
        lambda **kwargs: gym.make(ID, **kwargs),
    ],
)
def test_every_way_to_name_a_game_gives_the_same_teams(env: Any) -> None:
    vec_env = make_team_vec_env(env, 3, seed=7, env_kwargs=SMALL)
    expected = make_team_vec_env(ID, 3, seed=7, env_kwargs=SMALL)
    assert vec_env.num_envs == 3
    assert vec_env.observation_space == expected.observation_space
    assert vec_env.action_space == expected.action_space
    for ours, theirs in zip(play(vec_env, 30), play(expected, 30), strict=True):
        np.testing.assert_array_equal(ours[0]["state"], theirs[0]["state"])
        np.testing.assert_array_equal(ours[1], theirs[1])


def test_the_games_own_vectorisation_is_used_unless_single_environments_are_asked_for() -> None:
    native = make_team_vec_env(ID, 2)
    assert isinstance(native, VecMonitor)
    assert isinstance(native.venv, GymVectorTeamVecEnv)
    assert native.env_is_wrapped(Monitor) == [False, False]
    single = make_team_vec_env(ID, 2, vec_env_cls=DummyVecEnv)
    assert isinstance(single, DummyVecEnv)
    assert single.env_is_wrapped(Monitor) == [True, True]
    wrapped = make_team_vec_env(ID, 2, wrappers=[Renamed])
    assert isinstance(wrapped, DummyVecEnv)
    assert wrapped.env_is_wrapped(Renamed) == [True, True]
    wrapped.reset()
    assert wrapped.reset_infos == [{"wrapped": True}] * 2


def test_the_default_is_32_teams() -> None:
    assert make_team_vec_env(ID).num_envs == 32


def test_worker_processes_play_the_same_game() -> None:
    kwargs = {"seed": 3, "env_kwargs": SMALL}
    workers = make_team_vec_env(ID, 2, vec_env_cls=SubprocVecEnv, vec_env_kwargs={"start_method": "fork"}, **kwargs)
    try:
        for ours, theirs in zip(play(workers, 10), play(make_team_vec_env(ID, 2, **kwargs), 10), strict=True):
            np.testing.assert_array_equal(ours[0]["obs"], theirs[0]["obs"])
            np.testing.assert_array_equal(ours[2], theirs[2])
    finally:
        workers.close()


@pytest.mark.parametrize("factory", [TimeLimitGame, ContinuousGame, lambda: TeamEnv(TimeLimitGame())])
def test_games_without_registration(factory: Any) -> None:
    steps = play(make_team_vec_env(factory, 3, seed=0), 12)
    for _, _, dones, infos in steps:
        for done, info in zip(dones, infos, strict=True):
            assert info["TimeLimit.truncated"] == done
            assert ("episode" in info) == done


def test_masked_games() -> None:
    vec_env = make_team_vec_env(MaskedGame, 3, seed=0)
    observation = vec_env.reset()
    for _ in range(12):
        observation, *_ = vec_env.step(observation["action_mask"].argmax(axis=-1))
        assert observation["action_mask"].shape == (3, 2, 3)


# ---- seeding


@pytest.mark.parametrize("kwargs", [{}, {"vec_env_cls": DummyVecEnv}])
def test_copies_differ_and_streams_are_reproducible(kwargs: dict[str, Any]) -> None:
    first = make_team_vec_env(ID, 8, seed=11, **kwargs)
    states = first_states(first)
    assert len(np.unique(states, axis=0)) == 8
    np.testing.assert_array_equal(states, first_states(make_team_vec_env(ID, 8, seed=11, **kwargs)))
    assert (states != first_states(make_team_vec_env(ID, 8, seed=12, **kwargs))).any()
    # Environment i counts upwards: the second of seed 11 is the first of seed 12.
    np.testing.assert_array_equal(states[1:], first_states(make_team_vec_env(ID, 7, seed=12, **kwargs)))
    assert (first_states(first) != states).any()  # the seed counts once
    first.seed(11)
    np.testing.assert_array_equal(states, first_states(first))


@pytest.mark.parametrize("seed", [None, 5])
def test_copies_differ_even_if_the_game_always_starts_alike(seed: int | None) -> None:
    alone = TimeLimitGame()
    np.testing.assert_array_equal(alone.reset()[0]["agent_0"], TimeLimitGame().reset()[0]["agent_0"])
    assert len(np.unique(first_states(make_team_vec_env(TimeLimitGame, 6, seed=seed)), axis=0)) == 6


def test_without_a_seed_numpys_global_one_decides() -> None:
    np.random.seed(0)
    states = first_states(make_team_vec_env(ID, 4))
    assert (states != first_states(make_team_vec_env(ID, 4))).any()
    np.random.seed(0)
    np.testing.assert_array_equal(states, first_states(make_team_vec_env(ID, 4)))


def test_the_action_space_is_seeded_too() -> None:
    samples = [make_team_vec_env(ID, 1, seed=4).action_space.sample().tolist() for _ in range(3)]
    assert samples[0] == samples[1] == samples[2]


# ---- what finished rows report


@pytest.mark.parametrize("kwargs", [{}, {"vec_env_cls": DummyVecEnv}])
def test_finished_rows(kwargs: dict[str, Any]) -> None:
    vec_env = make_team_vec_env(ID, 4, seed=0, env_kwargs={"size": 2, "max_steps": 9}, **kwargs)
    returns, lengths = np.zeros(4), np.zeros(4, dtype=int)
    seen = {"success": 0, "limit": 0}
    for observation, rewards, dones, infos in play(vec_env, 200):
        returns += rewards
        lengths += 1
        assert rewards.dtype == np.float32
        for row in np.flatnonzero(dones):
            info = infos[row]
            assert info["episode"]["r"] == returns[row]
            assert info["episode"]["l"] == lengths[row]
            assert info["is_success"] is bool(returns[row] == 1.0)
            assert info["TimeLimit.truncated"] is not info["is_success"]
            # The last observation of the episode that ended, not the first of the next: its flags tell.
            last = info["terminal_observation"]
            assert (last["state"][-2:].sum() == 2) == info["is_success"]
            assert observation["state"][row, -2:].sum() == 0
            assert vec_env.observation_space.contains(last)
            seen["success" if info["is_success"] else "limit"] += 1
            returns[row] = lengths[row] = 0
        for row in np.flatnonzero(~dones):
            assert infos[row] == {"TimeLimit.truncated": False}
    assert min(seen.values()) >= 5


def test_terminal_observations_precede_the_restart() -> None:
    """The clock in the observation: 1 at the end, 0 at the start."""
    vec_env = make_team_vec_env(lambda: TimeLimitGame(horizon=3), 2, seed=0)
    observation, _, dones, infos = play(vec_env, 3)[-1]
    assert dones.all()
    assert infos[1]["terminal_observation"]["obs"][:, 2].tolist() == [1, 1]
    assert observation["obs"][1, :, 2].tolist() == [0, 0]


def test_monitor_files(tmp_path: Path) -> None:
    for name, kwargs in {"native": {}, "single": {"vec_env_cls": DummyVecEnv}}.items():
        folder = tmp_path / name
        vec_env = make_team_vec_env(ID, 2, env_kwargs=SMALL, monitor_dir=str(folder), **kwargs)
        finished = sum(int(dones.sum()) for _, _, dones, _ in play(vec_env, 20))
        vec_env.close()
        assert finished > 0
        assert len(load_results(str(folder))) == finished


# ---- the adapter


def sync_vector_env(mode: AutoresetMode, n_envs: int = 2, game: Any = TimeLimitGame) -> SyncVectorEnv:
    return SyncVectorEnv([lambda: TeamEnv(game())] * n_envs, autoreset_mode=mode)


class Chatty(TimeLimitGame):
    """Says whether it succeeded at restarts, too."""

    def info(self, agent: str) -> dict[str, Any]:
        return {"is_success": self.clock == self.horizon}


def test_any_gymnasium_vector_env_over_teams_will_do() -> None:
    adapted = GymVectorTeamVecEnv(sync_vector_env(AutoresetMode.SAME_STEP, game=Chatty))
    dummy = DummyVecEnv([lambda: TeamEnv(Chatty())] * 2)
    for vec_env in (adapted, dummy):
        vec_env.seed(9)
    for ours, theirs in zip(play(adapted, 12), play(dummy, 12), strict=True):
        for key in ours[0]:
            np.testing.assert_array_equal(ours[0][key], theirs[0][key])
        for left, right in zip(ours[3], theirs[3], strict=True):
            assert set(left) == set(right)
            assert left["is_success"] is right["is_success"]
            if "terminal_observation" in left:
                for key, value in left["terminal_observation"].items():
                    np.testing.assert_array_equal(value, right["terminal_observation"][key])
    # The restart's info is not the finished episode's.
    assert adapted.reset_infos == dummy.reset_infos == [{"is_success": False}] * 2
    assert adapted.get_attr("n_agents", indices=[1]) == [2]
    assert adapted.env_method("render") == [None, None]


@pytest.mark.parametrize("monitor", [True, False])
def test_a_single_game_is_monitored_once_and_a_vector_of_them_too(monitor: bool) -> None:
    watched = Monitor(TeamEnv(TimeLimitGame()))
    assert as_team_vec_env(watched, monitor).envs == [watched]
    assert as_team_vec_env(DummyVecEnv([lambda: watched]), monitor).envs == [watched]
    assert isinstance(as_team_vec_env(TimeLimitGame(), monitor).envs[0], Monitor) == monitor
    adapted = as_team_vec_env(sync_vector_env(AutoresetMode.SAME_STEP), monitor)
    assert isinstance(adapted, VecMonitor) == monitor
    assert isinstance(adapted.unwrapped, GymVectorTeamVecEnv)


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED])
def test_other_ways_to_restart_are_refused(mode: AutoresetMode) -> None:
    with pytest.raises(ValueError, match=r"SAME_STEP.*autoreset_mode=.*DummyVecEnv"):
        GymVectorTeamVecEnv(sync_vector_env(mode))


def test_a_vector_env_that_loses_the_last_observation_is_refused() -> None:
    class Forgetful(SyncVectorEnv):
        def step(self, actions: Any) -> Any:
            return *super().step(actions)[:4], {}

    vector_env = Forgetful([lambda: TeamEnv(TimeLimitGame(horizon=1))], autoreset_mode=AutoresetMode.SAME_STEP)
    with pytest.raises(ValueError, match="final_obs"):
        play(GymVectorTeamVecEnv(vector_env), 1)


def test_the_adapter_refuses_what_is_no_vector_of_teams() -> None:
    with pytest.raises(TypeError, match="VectorEnv is needed; got TeamEnv"):
        GymVectorTeamVecEnv(TeamEnv(TimeLimitGame()))
    with pytest.raises(ValueError, match="not a team environment"):
        GymVectorTeamVecEnv(gym.make_vec("CartPole-v1", 2))


def test_attributes_of_the_native_vectorisation() -> None:
    vec_env = make_team_vec_env(ID, 3, seed=0)
    assert vec_env.get_attr("max_steps") == [100, 100, 100]
    assert vec_env.get_attr("possible_agents", indices=0) == [["alice", "bob"]]
    assert vec_env.has_attr("n_agents")
    assert not vec_env.has_attr("no_such_thing")
    vec_env.set_attr("max_steps", 2)
    assert play(vec_env, 2)[-1][2].all()
    with pytest.raises(AttributeError):
        vec_env.set_attr("no_such_thing", 1)
    with pytest.raises(NotImplementedError, match=r"rows \[1\] alone.*DummyVecEnv"):
        vec_env.set_attr("max_steps", 3, indices=1)
    with pytest.raises(NotImplementedError, match="holds no single environments"):
        vec_env.env_method("state")


def test_options_reach_all_rows_or_none() -> None:
    vec_env = make_team_vec_env(ID, 2, seed=0)
    vec_env.reset()
    vec_env.set_options({"reset_mask": np.array([True, False])})
    vec_env.reset()
    vec_env.set_options([{"a": 1}, {"a": 2}])
    with pytest.raises(ValueError, match="same options"):
        vec_env.reset()


@pytest.mark.parametrize("kwargs", [{}, {"vec_env_cls": DummyVecEnv}])
def test_rendering(kwargs: dict[str, Any]) -> None:
    vec_env = make_team_vec_env(ID, 4, seed=0, env_kwargs={"size": 3, "render_mode": "rgb_array"}, **kwargs)
    vec_env.reset()
    images = vec_env.get_images()
    assert [image.shape for image in images] == [(4 * 48, 4 * 48, 3)] * 4
    assert vec_env.render().shape == (2 * 4 * 48, 2 * 4 * 48, 3)
    vec_env.close()
    text = make_team_vec_env(ID, 2, seed=0, env_kwargs={"render_mode": "ansi"}, **kwargs)
    text.reset()
    assert [frame.count("A") for frame in text.env_method("render")] == [1, 1]
    without = make_team_vec_env(ID, 2, **kwargs)
    without.reset()
    with pytest.warns(UserWarning, match="render_mode"):
        assert without.render() is None


# ---- errors


@pytest.mark.parametrize("n_envs", [0, -1, 2.0, True])
def test_the_number_of_teams_must_be_positive(n_envs: Any) -> None:
    with pytest.raises(ValueError, match="n_envs must be a positive integer"):
        make_team_vec_env(ID, n_envs)


@pytest.mark.parametrize("env_id", ["AliceAndBob-v1", "AliceAndBob", "AliceBob-v0", "Alice_and_Bob"])
def test_an_unknown_id_names_the_nearest(env_id: str) -> None:
    with pytest.raises(ValueError, match=rf"'{env_id}' is registered neither.*'AliceAndBob-v0'"):
        make_team_vec_env(env_id, 2)


def test_places_that_lead_nowhere() -> None:
    with pytest.raises(ValueError, match="cannot import 'no_such_module'"):
        make_team_vec_env("no_such_module:parallel_env")
    with pytest.raises(ValueError, match=r"has no 'paralel_env'. Did you mean parallel_env"):
        make_team_vec_env("hmasd_sb3.envs.alice_and_bob:paralel_env")
    with pytest.raises(ValueError, match="no function that makes a game"):
        make_team_vec_env("hmasd_sb3.envs.alice_and_bob:RENDER_FPS")


@pytest.mark.parametrize(
    "make",
    [
        TimeLimitGame,
        lambda: parallel_to_aec(TimeLimitGame()),
        lambda: TeamEnv(TimeLimitGame()),
        lambda: make_team_vec_env(ID, 1),
    ],
)
def test_an_existing_game_is_refused(make: Any) -> None:
    with pytest.raises(TypeError, match=r"exists already.*Pass the function that makes the game"):
        make_team_vec_env(make(), 2)


def test_other_things_are_refused() -> None:
    with pytest.raises(TypeError, match="games is a module"):
        make_team_vec_env(sys.modules[games.__name__])
    with pytest.raises(TypeError, match="got int"):
        make_team_vec_env(3)
    with pytest.raises(TypeError, match="got list"):
        make_team_vec_env(lambda: [], 1)


@pytest.mark.parametrize("kwargs", [{}, {"vec_env_cls": DummyVecEnv}])
def test_what_is_no_team_is_refused(kwargs: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"not a team environment.*TeamEnv"):
        make_team_vec_env("CartPole-v1", 2, **kwargs)
    with pytest.raises(ValueError, match="not a team environment"):
        make_team_vec_env(ID, 2, wrappers=[gym.wrappers.FlattenObservation], **kwargs)


def test_errors_of_worker_processes_are_met_beforehand() -> None:
    with pytest.raises(ValueError, match="not a team environment"):
        make_team_vec_env("CartPole-v1", 2, vec_env_cls=SubprocVecEnv)


def test_a_factory_that_returns_one_game_twice_is_refused() -> None:
    game = TimeLimitGame()
    with pytest.raises(ValueError, match="same game more than once"):
        make_team_vec_env(lambda: game, 2)


def test_vec_env_kwargs_need_a_class() -> None:
    with pytest.raises(ValueError, match=r"\['start_method'\].*none was given"):
        make_team_vec_env(ID, 2, vec_env_kwargs={"start_method": "fork"})


# ---- PettingZoo's own registry


@pytest.mark.skipif(not hasattr(pettingzoo, "register"), reason="this PettingZoo has no registry")
@pytest.mark.parametrize("kind", ["parallel", "aec"])
@pytest.mark.parametrize("as_spec", [False, True])
def test_ids_and_specs_of_pettingzoos_registry(kind: str, as_spec: bool, request: pytest.FixtureRequest) -> None:
    make = TimeLimitGame if kind == "parallel" else lambda **kwargs: parallel_to_aec(TimeLimitGame(**kwargs))
    pettingzoo.register(kind, "tiny/time_limit-v0", make)
    request.addfinalizer(lambda: getattr(pettingzoo, f"{kind}_registry").pop("tiny/time_limit-v0"))
    found = pettingzoo.spec(kind, "tiny/time_limit-v0") if as_spec else "tiny/time_limit-v0"
    venv = make_team_vec_env(found, 2, env_kwargs={"n_agents": 3}, vec_env_cls=DummyVecEnv)
    assert venv.observation_space["obs"].shape[0] == 3
    if not as_spec:
        with pytest.raises(ValueError, match="Did you mean 'tiny/time_limit-v0'"):
            make_team_vec_env("tiny/time_limits-v0", 2)
