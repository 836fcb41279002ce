"""make_team_vec_env and its adapter where arguments, registries and endings are unusual."""

import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pettingzoo
import pytest
from games import TimeLimitGame
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from stable_baselines3.common.monitor import load_results
from stable_baselines3.common.vec_env import DummyVecEnv

from hmasd_sb3.wrappers import GymVectorTeamVecEnv, TeamEnv, make_team_vec_env
from hmasd_sb3.wrappers.vec import TeamMaker


@pytest.mark.skipif(not hasattr(pettingzoo, "register"), reason="PettingZoo has a registry since 1.27")
def test_a_game_registered_with_pettingzoo_alone_is_found() -> None:
    pettingzoo.register("parallel", "tests/limit-v3", TimeLimitGame)
    try:
        venv = make_team_vec_env("tests/limit-v3", 2, env_kwargs={"n_agents": 3})
        assert venv.reset()["obs"].shape == (2, 3, 3)
        with pytest.raises(ValueError, match=r"Did you mean 'tests/limit-v3'"):
            make_team_vec_env("tests/limits-v3", 2)
    finally:
        del pettingzoo.parallel_registry["tests/limit-v3"]


def test_team_kwargs_reach_the_team() -> None:
    venv = make_team_vec_env(TimeLimitGame, 2, team_kwargs={"reward": "mean"})
    venv.reset()
    assert venv.step(np.ones((2, 2), np.int64))[1].tolist() == [1.5, 1.5]


def test_team_kwargs_for_what_is_a_team_already_are_refused_even_if_it_has_a_vectorisation() -> None:
    with pytest.raises(TypeError, match=r"\['reward'\] are for PettingZoo games"):
        make_team_vec_env("AliceAndBob-v0", 2, team_kwargs={"reward": "mean"})


def test_ways_to_run_environments_that_exclude_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match=r"n_workers=2 and vec_env_cls=.* both say"):
        make_team_vec_env(TimeLimitGame, 2, n_workers=2, vec_env_cls=DummyVecEnv)
    with pytest.raises(ValueError, match="restart_workers=True is for environments in worker processes"):
        make_team_vec_env(TimeLimitGame, 2, restart_workers=True)


def test_a_team_made_once_more_writes_on_in_the_same_file(tmp_path: Path) -> None:
    maker = TeamMaker(partial(TimeLimitGame, horizon=1), {}, monitor_dir=str(tmp_path))
    for make, episodes in ((maker, 1), (maker.remake, 2), (maker.remake, 3), (maker, 1)):
        team = make()
        team.reset()
        team.step(np.zeros(2, np.int64))
        team.close()
        assert len(load_results(str(tmp_path))) == episodes


class BothEnds(TeamEnv):
    """Terminates and runs out of time in the same step, as Gymnasium allows; counts its restarts."""

    restarts = 0

    def reset(self, **kwargs: Any) -> Any:
        self.restarts += 1
        observation, info = super().reset(**kwargs)
        return observation, {**info, "restarts": self.restarts}

    def step(self, action: Any) -> Any:
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, reward, terminated or truncated, truncated, {**info, "restarts": -1}


def test_an_end_in_both_ways_is_no_time_limit_and_the_restart_has_its_own_info() -> None:
    makers = [lambda: BothEnds(TimeLimitGame(horizon=2))] * 2
    venv = GymVectorTeamVecEnv(SyncVectorEnv(makers, autoreset_mode=AutoresetMode.SAME_STEP))
    venv.reset()
    assert venv.reset_infos == [{"restarts": 1}] * 2
    for expected in (1, 2, 2, 3):
        _, _, dones, infos = venv.step(np.zeros((2, 2), np.int64))
        assert venv.reset_infos == [{"restarts": expected}] * 2
        for done, info in zip(dones, infos, strict=True):
            assert info["TimeLimit.truncated"] is False
            assert ("terminal_observation" in info) == done
            assert info["restarts"] == -1


def test_an_unknown_id_with_none_near_names_the_own_games_alone() -> None:
    with pytest.raises(
        ValueError, match=r"This package's own are AliceAndBob-v0, .*SMAX-3m-v0, .*package\.module:function"
    ) as met:
        make_team_vec_env("rendezvous", 2)
    assert "CartPole" not in str(met.value)


@pytest.mark.parametrize(
    ("env", "place"),
    [("meeting", "meeting"), ("meeting.py", "meeting"), ("own/meeting.py", "own.meeting"), ("own.meeting", "own.meeting")],
)
def test_a_file_that_was_meant_is_named(env: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for file in (Path("meeting.py"), Path("own/meeting.py")):
        file.parent.mkdir(exist_ok=True)
        file.touch()
    message = f"There is a file {place.replace('.', '/')}.py here: name its function too, as in '{place}:parallel_env'"
    with pytest.raises(ValueError, match=re.escape(message)):
        make_team_vec_env(env, 2)
