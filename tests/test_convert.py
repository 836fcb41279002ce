"""Whatever kind of game or vector environment is given: what becomes of it, and what it is told if nothing can."""

from types import SimpleNamespace
from typing import Any

import pytest
import supersuit as ss
from games import TimeLimitGame
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor
from teams import make_model

from hmasd_sb3 import HMASD, TeamEnv
from hmasd_sb3.wrappers import GymVectorTeamVecEnv, SuperSuitTeamVecEnv, as_team_vec_env
from hmasd_sb3.wrappers.worker_handle import NOBODY, error_from_loss


def pipeline(num_cpus: int = 0, **kwargs: Any) -> Any:
    return ss.concat_vec_envs_v1(ss.pettingzoo_env_to_vec_env_v1(TimeLimitGame()), 2, num_cpus=num_cpus, **kwargs)


@pytest.mark.parametrize("base_class", ["gymnasium", "stable_baselines3"])
def test_pipelines_become_monitored_teams(base_class: str) -> None:
    teams = as_team_vec_env(pipeline(base_class=base_class))
    assert isinstance(teams, VecMonitor)
    assert isinstance(teams.venv, SuperSuitTeamVecEnv)
    assert isinstance(as_team_vec_env(pipeline(), monitor=False), SuperSuitTeamVecEnv)


def test_gymnasium_vector_environments_become_monitored_teams() -> None:
    vector_env = SyncVectorEnv([lambda: TeamEnv(TimeLimitGame())] * 2, autoreset_mode=AutoresetMode.SAME_STEP)
    teams = as_team_vec_env(vector_env)
    assert isinstance(teams, VecMonitor)
    assert isinstance(teams.venv, GymVectorTeamVecEnv)


def test_vector_environments_stay_as_they_are() -> None:
    venv = DummyVecEnv([lambda: TeamEnv(TimeLimitGame())])
    assert as_team_vec_env(venv) is venv


@pytest.mark.parametrize("num_cpus", [0, 2])
def test_a_pipeline_serves_one_model(num_cpus: int) -> None:
    venv = pipeline(num_cpus)
    teams = as_team_vec_env(venv)
    with pytest.raises(ValueError, match="taken over by another model"):
        as_team_vec_env(venv)
    teams.close()


def test_monitors_belong_around_the_teams_of_a_pipeline() -> None:
    with pytest.raises(TypeError, match=r"VecMonitor\(SuperSuitTeamVecEnv"):
        HMASD("MlpPolicy", VecMonitor(pipeline(base_class="stable_baselines3")))


@pytest.mark.parametrize("name", ["action_space", "observation_space"])
def test_spaces_must_be_methods(name: str) -> None:
    game = TimeLimitGame()
    setattr(game, name, spaces.Discrete(5))
    with pytest.raises(ValueError, match=rf"must be a method of the agent, {name}\(agent\); got Discrete\(5\)"):
        TeamEnv(game)


def test_learning_needs_an_environment(tmp_path: Any) -> None:
    make_model().save(tmp_path / "model")
    with pytest.raises(ValueError, match="set_env"):
        HMASD.load(tmp_path / "model").learn(100)


def test_a_worker_that_never_began_says_what_scripts_need() -> None:
    worker: Any = SimpleNamespace(
        index=0, rows=range(2), making=None, has_begun=False, fate="process 7 ended with exit code 1"
    )
    assert "__main__" in str(error_from_loss(worker, NOBODY, "in its step 0", 0))
    worker.has_begun = True
    assert "no environment was at work" in str(error_from_loss(worker, NOBODY, "in its step 0", 0))
