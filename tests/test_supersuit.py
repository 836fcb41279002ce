"""SuperSuit's pipelines as teams: one test for each thing that SuperSuit 3.11 gets wrong on the way (named in it)."""

from __future__ import annotations

import multiprocessing
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import supersuit as ss
from games import TimeLimitGame, TinyGame
from pettingzoo.utils.conversions import parallel_to_aec
from pipelines import ClosedGame, DyingGame, LoggedGame, ReportingGame, pipeline, wrapped_spread
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecMonitor
from supersuit.vector import MakeCPUAsyncConstructor
from teams import FAST

from hmasd_sb3 import HMASD
from hmasd_sb3.wrappers import TeamEnv
from hmasd_sb3.wrappers.supersuit_games import check_games, describe_game
from hmasd_sb3.wrappers.supersuit_vec import SuperSuitTeamVecEnv

N_TEAMS = 4


@pytest.fixture(scope="module", params=[0, 2], ids=["here", "workers"])
def shared(request: pytest.FixtureRequest) -> Iterator[SuperSuitTeamVecEnv]:
    venv = SuperSuitTeamVecEnv(pipeline(ReportingGame(render_mode="rgb_array"), N_TEAMS, num_cpus=request.param))
    yield venv
    venv.close()


@pytest.fixture
def teams(shared: SuperSuitTeamVecEnv) -> SuperSuitTeamVecEnv:
    """Four teams, in this process and in workers; whoever takes them finds them freshly seeded and reset."""
    shared.seed(0)
    shared.reset()
    return shared


def play(venv: VecEnv, n_steps: int, action: int = 1) -> Iterator[tuple[Any, Any, Any, Any]]:
    for _ in range(n_steps):
        yield venv.step(np.full(venv.action_space.shape, action)[None].repeat(venv.num_envs, axis=0))


# ---- the same teams as by hand


@pytest.mark.parametrize(
    ("num_cpus", "base_class", "n_teams"), [(0, "gymnasium", 32), (1, "stable_baselines3", 2), (2, "stable_baselines3", 3)]
)
def test_equal_to_teams_stepped_by_hand(num_cpus: int, base_class: str, n_teams: int) -> None:
    venv = SuperSuitTeamVecEnv(pipeline(wrapped_spread(), n_teams, num_cpus, base_class))
    hands = [TeamEnv(wrapped_spread()) for _ in range(n_teams)]
    assert venv.seed(5) == [5 + i for i in range(n_teams)]
    rows = [hand.reset(seed=5 + i)[0] for i, hand in enumerate(hands)]
    assert_rows(venv.reset(), rows)
    venv.action_space.seed(1)
    for _ in range(18):
        actions = np.stack([venv.action_space.sample() for _ in range(n_teams)])
        observations, rewards, dones, infos = venv.step(actions)
        for i, hand in enumerate(hands):
            rows[i], reward, terminated, truncated, _ = hand.step(actions[i])
            assert rewards[i] == np.float32(reward)
            assert dones[i] == (terminated or truncated)
            assert infos[i]["TimeLimit.truncated"] == (truncated and not terminated)
            if dones[i]:
                assert_rows({k: v[None] for k, v in infos[i]["terminal_observation"].items()}, [rows[i]])
                rows[i] = hand.reset()[0]
        assert_rows(observations, rows)
    venv.close()


def assert_rows(batch: Any, rows: list[Any]) -> None:
    for key, values in batch.items():
        np.testing.assert_array_equal(values, np.stack([row[key] for row in rows]))


def test_a_bare_game_is_one_team() -> None:
    venv = SuperSuitTeamVecEnv(ss.pettingzoo_env_to_vec_env_v1(ReportingGame()))
    assert venv.num_envs == 1
    assert venv.reset()["obs"].shape == (1, 2, 3)


def test_rows_of_several_pipelines_in_one() -> None:
    rows = ss.pettingzoo_env_to_vec_env_v1(ReportingGame())
    venv = SuperSuitTeamVecEnv(ss.concat_vec_envs_v1(ss.concat_vec_envs_v1(rows, 3), 2))
    assert venv.num_envs == 6


@pytest.mark.parametrize("num_cpus", [0, 2])
def test_teams_keep_the_order_of_the_rows(num_cpus: int) -> None:
    rows = [ss.pettingzoo_env_to_vec_env_v1(ReportingGame()) for _ in range(5)]
    for index, row in enumerate(rows):
        row.par_env.difficulty = index
    makers = [lambda row=row: row for row in rows]
    spaces = rows[0].observation_space, rows[0].action_space
    venv = SuperSuitTeamVecEnv(MakeCPUAsyncConstructor(num_cpus)(makers, *spaces))
    assert venv.get_attr("difficulty") == [0, 1, 2, 3, 4]
    venv.close()


# ---- seeds


def test_copies_differ_without_a_seed() -> None:
    """SuperSuit copies one game, with its random stream, so all copies begin alike."""
    venv = SuperSuitTeamVecEnv(pipeline(ReportingGame(), 32))
    assert len({state.tobytes() for state in venv.reset()["state"]}) == 32


def test_unseeded_teams_follow_numpys_global_seed() -> None:
    states = []
    for _ in range(2):
        np.random.seed(3)
        states.append(SuperSuitTeamVecEnv(pipeline(ReportingGame(), 2)).reset()["state"])
    np.testing.assert_array_equal(*states)


def test_each_team_has_its_own_repeatable_stream(teams: SuperSuitTeamVecEnv) -> None:
    """SuperSuit's SB3 class has no seed() at all; from worker processes on, its seeds overlap: worker w counts from s + w."""
    first, second = [], []
    for kept in (first, second):
        assert teams.seed(11) == [11, 12, 13, 14]
        kept.append(teams.reset()["state"])
        kept.extend(observations["state"] for observations, *_ in play(teams, 12))
    np.testing.assert_array_equal(first, second)
    for states in (first[0], first[-1]):
        assert len({state.tobytes() for state in states}) == N_TEAMS


def test_a_seed_counts_once(teams: SuperSuitTeamVecEnv) -> None:
    teams.seed(0)
    assert not np.array_equal(teams.reset()["state"], teams.reset()["state"])


# ---- ends and infos


def test_ends_are_told_apart(teams: SuperSuitTeamVecEnv) -> None:
    """SuperSuit never sets ``TimeLimit.truncated``; dones are uint8 without worker processes."""
    truncated = []
    for _, rewards, dones, infos in play(teams, 40):
        assert dones.dtype == np.bool_
        assert rewards.dtype == np.float32
        for info in (infos[row] for row in np.flatnonzero(dones)):
            state = info["terminal_observation"]["state"]
            assert info["TimeLimit.truncated"] is bool(state[0] >= 0.5)
            assert state[2] == (5.0 if info["TimeLimit.truncated"] else 3.0)
            truncated.append(info["TimeLimit.truncated"])
    assert set(truncated) == {True, False}


def test_last_observation_has_its_own_state(teams: SuperSuitTeamVecEnv) -> None:
    """SuperSuit's rows have no state; the last one must be from before the restart, the next one from after it."""
    finished = 0
    for observations, _, dones, infos in play(teams, 6):
        for row in np.flatnonzero(dones):
            finished += 1
            last = infos[row]["terminal_observation"]
            assert last["obs"].shape == (2, 3)
            assert last["state"][2] >= 3
            assert observations["state"][row][2] == 0
    assert finished >= N_TEAMS


def test_infos_of_the_end_and_of_the_restart_are_apart(teams: SuperSuitTeamVecEnv) -> None:
    """SuperSuit lets the infos of a restart overwrite those of the end where they have the same key."""
    seen = []
    for observations, _, dones, infos in play(teams, 20):
        expected = restart_infos(observations)
        for row in np.flatnonzero(dones):
            assert infos[row]["is_success"] is True
            assert teams.reset_infos[row] == expected[row]
            seen.append(expected[row]["is_success"])
    assert set(seen) == {True, False}
    observations = teams.reset()
    assert teams.reset_infos == restart_infos(observations)


def restart_infos(observations: Any) -> list[dict[str, bool]]:
    return [{"is_success": bool(state[0] < 0.5)} for state in observations["state"]]


def test_every_row_has_its_own_info(teams: SuperSuitTeamVecEnv) -> None:
    """With worker processes, SuperSuit gives all rows without news one shared dict."""
    for _, _, _, infos in play(teams, 1):
        assert isinstance(infos, list)
        assert len({id(info) for info in infos}) == N_TEAMS
        infos[0]["mine"] = True
        assert "mine" not in infos[1]


# ---- the rest of a VecEnv


def test_attributes_and_methods_of_the_game(teams: SuperSuitTeamVecEnv) -> None:
    """SuperSuit's vector environments have no get_attr, set_attr or env_method."""
    assert teams.get_attr("possible_agents", 1) == [["agent_0", "agent_1"]]
    teams.set_attr("difficulty", 3)
    teams.set_attr("difficulty", 5, indices=[2])
    assert teams.get_attr("difficulty") == [3, 3, 5, 3]
    assert teams.env_method("harder", 2, indices=[0, 2]) == [5, 7]
    assert teams.env_is_wrapped(gym.Wrapper) == [False] * N_TEAMS


def test_an_unknown_name_is_an_attribute_error(teams: SuperSuitTeamVecEnv) -> None:
    for look_up in (
        lambda: teams.get_attr("dificulty"),
        lambda: teams.set_attr("dificulty", 2),
        lambda: teams.env_method("dificulty"),
    ):
        with pytest.raises(AttributeError, match="dificulty"):
            look_up()
    teams.reset()  # worker processes are still there


def test_attributes_below_wrappers_are_set_where_they_are() -> None:
    game = ss.frame_stack_v1(ss.dtype_v0(ReportingGame(), "float32"), 2)
    venv = SuperSuitTeamVecEnv(pipeline(game, 2))
    venv.set_attr("difficulty", 4, indices=1)
    assert [team.parallel_env.unwrapped.difficulty for team in venv._teams.envs] == [1, 4]  # type: ignore[attr-defined]


def test_pictures(teams: SuperSuitTeamVecEnv) -> None:
    """SuperSuit shows the first environment only."""
    list(play(teams, 2))
    assert teams.render_mode == "rgb_array"
    assert teams.metadata["render_fps"] == 7
    assert [image.mean() for image in teams.get_images()] == [2.0] * N_TEAMS
    assert teams.render().shape == (8, 8, 3)


def test_no_pictures_without_the_mode() -> None:
    assert SuperSuitTeamVecEnv(pipeline(TinyGame(), 2)).get_images() == [None, None]


def test_options_reach_the_games() -> None:
    class Opted(TinyGame):
        def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict, dict]:
            self.options = options
            return super().reset(seed, options)

    venv = SuperSuitTeamVecEnv(pipeline(Opted(), 2))
    venv.set_options([{"a": 1}, {"a": 2}])
    venv.reset()
    assert venv.get_attr("options") == [{"a": 1}, {"a": 2}]


def test_closing_leaves_no_process() -> None:
    before = set(multiprocessing.active_children())
    rows = pipeline(ReportingGame(), 2, num_cpus=2, base_class="gymnasium")
    theirs = list(rows.procs)
    venv = SuperSuitTeamVecEnv(rows)
    assert not any(process.is_alive() for process in theirs)
    venv.close()
    venv.close()
    assert set(multiprocessing.active_children()) == before


@pytest.mark.parametrize(("num_cpus", "n_closed"), [(0, 2), (2, 5)])
def test_every_game_is_closed_once(num_cpus: int, n_closed: int, tmp_path: pathlib.Path) -> None:
    """SuperSuit's worker processes take its request to close for an error and leave their games open.

    With worker processes: two games there, one that was tried here, and two in the new ones.
    """
    log = tmp_path / "closed"
    venv = SuperSuitTeamVecEnv(pipeline(LoggedGame(log), 2, num_cpus))
    venv.close()
    venv.close()
    lines = log.read_text().split()
    assert len(lines) == n_closed
    assert lines.count(str(os.getpid())) == (2 if num_cpus == 0 else 1)


@pytest.mark.slow
def test_a_script_needs_no_guard_where_supersuit_needs_none(tmp_path: pathlib.Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from pipelines import ReportingGame, pipeline\n"
        "from hmasd_sb3.wrappers.supersuit_vec import SuperSuitTeamVecEnv\n"
        "venv = SuperSuitTeamVecEnv(pipeline(ReportingGame(), 2, num_cpus=2))\n"
        "print(venv.reset()['obs'].shape)\n"
        "venv.close()\n"
    )
    tests = pathlib.Path(__file__).parent
    path = os.pathsep.join([str(tests), str(tests.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(script)], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.strip() == "(2, 2, 3)", done.stderr


def test_monitors_and_training_around_teams() -> None:
    """SuperSuit's SB3 class gives no episode statistics per team, and PPO(seed=...) on it is an AttributeError."""
    venv = VecMonitor(SuperSuitTeamVecEnv(pipeline(ReportingGame(), N_TEAMS)))
    model = HMASD("MlpPolicy", venv, **FAST).learn(48)
    assert {episode["l"] for episode in model.ep_info_buffer} <= {3, 5}
    assert len(model.ep_info_buffer) >= N_TEAMS


# ---- games that worker processes cannot hand over


def test_a_game_can_be_given_where_workers_keep_theirs() -> None:
    game = ClosedGame()
    rows = pipeline(game, 2, num_cpus=2, base_class="gymnasium")
    with pytest.raises(ValueError, match=r"game=game(.|\n)*open connection"):
        SuperSuitTeamVecEnv(rows)
    rows.reset(seed=0)  # a refusal leaves it as it was
    assert rows.env_is_wrapped(gym.Wrapper) == [False] * 4
    with pytest.raises(ValueError, match="no whole number of teams of the 3 agents"):
        SuperSuitTeamVecEnv(rows, game=TinyGame(n_agents=3))
    with pytest.raises(ValueError, match="with all its wrappers"):
        SuperSuitTeamVecEnv(rows, game=ss.frame_stack_v1(game, 2))
    rows.close()
    with pytest.raises(ValueError, match="have ended"):
        SuperSuitTeamVecEnv(rows)


def test_a_given_game_is_copied() -> None:
    game = ReportingGame()
    venv = SuperSuitTeamVecEnv(pipeline(ReportingGame(), 2), game=game)
    assert venv.num_envs == 2
    assert game.agents == []
    assert len({state.tobytes() for state in venv.reset()["state"]}) == 2


# ---- refused


@pytest.mark.filterwarnings("ignore:The `render_mode` attribute")
@pytest.mark.parametrize(
    ("venv", "hint"),
    [
        (lambda: TinyGame(), "make_team_vec_env"),
        (lambda: parallel_to_aec(TinyGame()), "make_team_vec_env"),
        (lambda: VecMonitor(pipeline(TinyGame(), 2)), r"VecMonitor\(SuperSuitTeamVecEnv\(venv\)\)"),
        (lambda: DummyVecEnv([lambda: TeamEnv(TinyGame())]), "no regrouping"),
        (lambda: SuperSuitTeamVecEnv(pipeline(TinyGame(), 2)), "no regrouping"),
        (lambda: "simple_spread", "concat_vec_envs_v1"),
        (lambda: gym.make_vec("CartPole-v1", 2), "concat_vec_envs_v1"),
        (lambda: ss.concat_vec_envs_v1(gym.make("CartPole-v1"), 2), "rows are no teams"),
    ],
)
def test_other_things_are_refused(venv: Any, hint: str) -> None:
    with pytest.raises(TypeError, match=hint):
        SuperSuitTeamVecEnv(venv())


def test_teams_of_different_games_are_refused() -> None:
    three, two, other = (describe_game(game) for game in (TinyGame(3), TinyGame(), ReportingGame()))
    with pytest.raises(ValueError, match="same number of rows"):
        check_games([two, three], 5)
    odd = TinyGame()
    odd.observation_spaces = dict.fromkeys(odd.possible_agents, gym.spaces.Box(0.0, 2.0, (3,)))
    with pytest.raises(ValueError, match="observation spaces of team 0"):
        check_games([two, describe_game(odd)], 4)
    with pytest.raises(ValueError, match="share one game"):
        check_games([two, two], 4)
    with pytest.raises(ValueError, match="cannot be 5 rows"):
        check_games([two, other], 5)


def test_a_game_that_is_no_team_is_refused_while_the_pipeline_lives() -> None:
    class Combined(TinyGame):
        def make_action_space(self) -> gym.spaces.Space[Any]:
            return gym.spaces.MultiDiscrete([2, 2])

    rows = pipeline(Combined(), 2, num_cpus=2, base_class="gymnasium")
    with pytest.raises(ValueError, match="must be Discrete"):
        SuperSuitTeamVecEnv(rows)
    assert all(process.is_alive() for process in rows.procs)
    rows.close()


# ---- deaths


def test_a_pipeline_loses_its_black_death() -> None:
    """TimeLimitGame's agents live on: what shows is that its time limit is a truncation again."""
    venv = SuperSuitTeamVecEnv(pipeline(ss.frame_stack_v1(ss.black_death_v3(TimeLimitGame()), 2), 2))
    venv.reset()
    steps = list(play(venv, 5))
    assert [bool(dones.any()) for _, _, dones, _ in steps] == [False] * 4 + [True]
    assert all(info["TimeLimit.truncated"] for info in steps[-1][3])


@pytest.mark.parametrize("wrapped", [True, False], ids=["black_death", "plain"])
@pytest.mark.parametrize("num_cpus", [0, 2])
def test_teams_see_deaths(num_cpus: int, wrapped: bool) -> None:
    """Without black death, SuperSuit's rows cannot be stepped at all once an agent has died; with it, nobody sees who."""
    game = ss.black_death_v3(DyingGame()) if wrapped else DyingGame()
    venv = SuperSuitTeamVecEnv(pipeline(ss.frame_stack_v1(game, 2), 2, num_cpus))
    venv.reset()
    steps = list(play(venv, 6))
    assert [observations["agent_mask"][1].tolist() for observations, *_ in steps[:5]] == [[1, 1, 1]] + [[0, 1, 1]] * 2 + [
        [0, 0, 1]
    ] * 2
    for observations, *_ in steps[1:5]:
        assert not observations["obs"][:, 0].any()
    assert [bool(dones.all()) for _, _, dones, _ in steps] == [False] * 5 + [True]
    for info in steps[-1][3]:
        assert info["TimeLimit.truncated"] is True
        assert info["terminal_observation"]["agent_mask"].tolist() == [0, 0, 1]
    venv.close()
