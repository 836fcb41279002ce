"""Training goes through a worker that is killed, or ends with one error; either way nothing is left behind."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hard_games import DyingGame
from stable_baselines3.common.callbacks import BaseCallback
from teams import FAST, parameters_of, same

from hmasd_sb3 import HMASD, WorkerError, make_team_vec_env

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="workers are forked, to start quickly")


class KillAWorker(BaseCallback):
    """Kills the process of the last environments by SIGKILL, at one step, as the system does when memory runs out."""

    def __init__(self, at_step: int) -> None:
        super().__init__()
        self.at_step = at_step
        self.lost: list[float] = []

    def _on_step(self) -> bool:
        if self.n_calls == self.at_step:
            os.kill(self.training_env.unwrapped.worker_pids[-1], signal.SIGKILL)
        return True

    def _on_rollout_start(self) -> None:
        if "sync/lost_transitions" in self.logger.name_to_value:
            self.lost.append(self.logger.name_to_value["sync/lost_transitions"])


def make(**kwargs: Any) -> Any:
    return make_team_vec_env(DyingGame, 4, seed=0, n_workers=2, vec_env_kwargs={"start_method": "fork"}, **kwargs)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_without_restarts_training_ends_with_one_error_and_no_process_is_left() -> None:
    env = make()
    pids = env.unwrapped.worker_pids
    model = HMASD("MlpPolicy", env, **FAST)
    start = time.monotonic()
    with pytest.raises(WorkerError, match=r"environments 2 to 3.*SIGKILL"):
        model.learn(10_000, callback=KillAWorker(at_step=30))
    assert time.monotonic() - start < 30
    assert not any(alive(pid) for pid in pids)
    env.close()


def test_what_was_learnt_before_is_not_lost(tmp_path: Path) -> None:
    model = HMASD("MlpPolicy", make(), **FAST)
    with pytest.raises(WorkerError):
        model.learn(10_000, callback=KillAWorker(at_step=30))
    assert model.policy_version == 2
    model.save(tmp_path / "model")
    env = make()
    loaded = HMASD.load(tmp_path / "model", env=env)
    assert same(parameters_of(model), parameters_of(loaded))
    loaded.learn(96, reset_num_timesteps=False)
    env.close()


def test_with_restarts_training_goes_on_without_the_lost_steps() -> None:
    env = make(restart_workers=True)
    venv, pids = env.unwrapped, env.unwrapped.worker_pids
    model = HMASD("MlpPolicy", env, **FAST)
    callback = KillAWorker(at_step=30)
    model.learn(12 * 4 * 5, callback=callback)
    assert model.num_timesteps == 12 * 4 * 5
    assert model.policy_version == 5
    assert venv.n_restarts == 1
    np.testing.assert_array_equal(venv.restarts_by_env, [0, 0, 1, 1])
    # The third rollout: step 30 of 12 each. Both environments of the worker lost the step that was under way.
    assert [*callback.lost, model.logger.name_to_value["sync/lost_transitions"]] == [0, 0, 2, 0, 0]
    assert not alive(pids[1])
    pids = venv.worker_pids
    env.close()
    assert not any(alive(pid) for pid in pids)
