"""HMASD trains on JaxMARL's games by their ids."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from stable_baselines3.common.vec_env import VecNormalize
from teams import FAST, parameters_of, same

from hmasd_sb3 import HMASD, make_team_vec_env

if find_spec("jaxmarl") is None:
    pytest.skip("needs the extra 'jaxmarl'", allow_module_level=True)


@pytest.mark.parametrize(
    ("env_id", "env_kwargs"),
    [("SMAX-3m-v0", {"max_steps": 20}), ("Overcooked-CrampedRoom-v0", {"max_steps": 20})],
)
def test_it_learns_and_is_saved_and_loaded(env_id: str, env_kwargs: dict[str, Any], tmp_path: Path) -> None:
    env = VecNormalize(make_team_vec_env(env_id, 4, seed=0, env_kwargs=env_kwargs), norm_obs_keys=["obs", "state"])
    model = HMASD("MlpPolicy", env, **FAST)
    before = parameters_of(model)
    model.learn(12 * 4 * 3)
    assert not same(before, parameters_of(model))
    logged = model.logger.name_to_value
    assert logged["sync/actor_first_ratio_deviation"] < 1e-4
    assert logged["sync/coordinator_first_ratio_deviation"] < 1e-4
    assert ("sync/agents_present" in logged) == env_id.startswith("SMAX")  # units die, cooks do not
    model.save(tmp_path / "model")
    assert same(parameters_of(model), parameters_of(HMASD.load(tmp_path / "model", env=env)))
