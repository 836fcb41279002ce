"""The contract for learning: HMASD trains on every game of the contract, with the tools that SB3 users put around it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from contract import CASES, Case
from gymnasium import spaces
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecMonitor, VecNormalize
from teams import FAST, parameters_of, same

from hmasd_sb3 import HMASD, make_team_vec_env

# Games of others, in other versions.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")

MASKED = [case for case in CASES if "mask" in case.name]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # MuJoCo writes a log into the working directory


def make(case: Case, n_envs: int, seed: int = 0) -> VecEnv:
    """With SB3's monitors and its normalisation around it, pictures aside."""
    env: VecEnv = VecMonitor(make_team_vec_env(case.game, n_envs, seed=seed, vec_env_cls=DummyVecEnv))
    assert isinstance(env.observation_space, spaces.Dict)
    keys = [key for key in ("obs", "state") if env.observation_space[key].dtype != np.uint8]
    return VecNormalize(env, norm_obs_keys=keys) if keys else env


def settings(case: Case) -> dict[str, Any]:
    kwargs: dict[str, Any] = {"hidden_size": 16}
    if "picture" in case.name or "piston" in case.name:
        kwargs["features_extractor_kwargs"] = {"features_dim": 8}
        return {**FAST, "policy": "CnnPolicy", "policy_kwargs": kwargs}
    return {**FAST, "policy": "MlpPolicy", "policy_kwargs": kwargs}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_it_learns_is_evaluated_saved_and_loaded(case: Case, tmp_path: Path) -> None:
    env, eval_env = make(case, 2), make(case, 1, seed=9)
    model = HMASD(env=env, **settings(case))
    before = parameters_of(model)
    # Episodes of some of these games are long, so one evaluation of one episode.
    callback = EvalCallback(eval_env, n_eval_episodes=1, eval_freq=12, verbose=0) if not case.heavy else None
    model.learn(48, callback=callback)
    assert not same(before, parameters_of(model))
    logged = model.logger.name_to_value
    assert logged["sync/actor_first_ratio_deviation"] < 1e-4
    assert logged["sync/coordinator_first_ratio_deviation"] < 1e-4
    if callback is not None:
        assert np.isfinite(callback.last_mean_reward)

    model.save(tmp_path / "model")
    loaded = HMASD.load(tmp_path / "model", env=env)
    assert same(parameters_of(model), parameters_of(loaded))
    observation: Any = env.reset()
    np.testing.assert_array_equal(
        loaded.predict(observation, deterministic=True)[0], model.predict(observation, deterministic=True)[0]
    )
    loaded.learn(24, reset_num_timesteps=False)
    env.close()
    eval_env.close()


@pytest.mark.parametrize("n_actions", [2_000, pytest.param(100_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", MASKED, ids=lambda case: case.name)
def test_masks_hold_over_many_actions_of_the_policy(case: Case, n_actions: int) -> None:
    """`TeamEnv` refuses a forbidden action, so that training would end with an error; the games count them too."""
    env = make_team_vec_env(case.game, 32, seed=0, vec_env_cls=DummyVecEnv)
    model = HMASD("MlpPolicy", env, **FAST)
    model.learn(n_actions // len(env.get_attr("possible_agents", 0)[0]))
    games = env.get_attr("parallel_env")
    assert not any(getattr(game, "illegal_actions", 0) for game in games)
