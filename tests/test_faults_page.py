"""docs/faults.md names a test for each fault, and each of them is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from stable_baselines3.common.callbacks import CheckpointCallback, EvalCallback
from teams import make_model, random_team_vec_env

from hmasd_sb3 import HMASD

PAGE = Path(__file__).parent.parent / "docs" / "faults.md"


def test_every_test_that_the_page_names_is_there() -> None:
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", PAGE.read_text())
    assert len(named) > 30
    for file, test in named:
        assert f"def {test}(" in (PAGE.parent.parent / "tests" / file).read_text(), f"{file}::{test}"


def test_other_callbacks(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = make_model()
    model.learn(48, callback=EvalCallback(random_team_vec_env(1), n_eval_episodes=1, eval_freq=6, verbose=0))
    model.save(tmp_path / "model")
    loaded = HMASD.load(tmp_path / "model", env=random_team_vec_env())
    new = CheckpointCallback(10**6, str(tmp_path))
    loaded.learn(48, callback=new, reset_num_timesteps=False)
    assert new.n_calls == 12
    (message,) = [record.message for record in caplog.records if "callback" in record.message]
    assert message == "The callback EvalCallback of the saved run is not there now: what it remembered is dropped."
