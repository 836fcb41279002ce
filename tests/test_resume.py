"""A run that is saved, loaded in another process and gone on with is the run that was never interrupted, to the last bit."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from resumable import KINDS, digest, evaluation, fingerprint, in_new_process, make_env, make_run, outcome, with_log
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from teams import make_model, parameters_of, random_team_vec_env, same

from hmasd_sb3 import HMASD
from hmasd_sb3.saving.archive import read_archive
from hmasd_sb3.saving.trees import tree_from_bytes

STEPS = 2 * 48


class StopAfter(BaseCallback):
    """Stops after some calls."""

    def __init__(self, calls: int) -> None:
        super().__init__()
        self.left = calls

    def _on_step(self) -> bool:
        self.left -= 1
        return self.left > 0


def contents_of(name: str, data: bytes) -> str:
    if name.endswith(".json"):
        return data.decode()
    return fingerprint(tree_from_bytes(data))


def whole(kind: str) -> dict[str, Any]:
    env = make_env(kind)
    model = make_run(kind, env)
    recorded, callback = with_log(model), evaluation(kind)
    model.learn(2 * STEPS, callback=callback)
    result = outcome(model, recorded, callback)
    env.close()
    return result


@pytest.mark.parametrize("kind", KINDS)
def test_two_halves_in_two_processes_are_one_run(tmp_path: Path, kind: str) -> None:
    env = make_env(kind)
    model = make_run(kind, env)
    recorded, callback = with_log(model), evaluation(kind)
    model.learn(STEPS, callback=callback, schedule_timesteps=2 * STEPS)
    model.save(tmp_path / "half")
    env.close()
    second = in_new_process(kind, str(tmp_path / "half.zip"), str(STEPS))
    one = whole(kind)
    assert [*recorded.lines, *[tuple(line) for line in second["log"]]] == [tuple(line) for line in one["log"]]
    assert second["evaluations"] == one["evaluations"]
    assert len(one["evaluations"][0]) > 4
    assert second["best"] == one["best"]
    assert second["digest"] == one["digest"]


@pytest.mark.parametrize("calls", [5, 24, 48])
@pytest.mark.parametrize("kind", ["masked", "normalized"])
def test_a_stop_in_the_middle_of_a_rollout_changes_nothing(tmp_path: Path, kind: str, calls: int) -> None:
    env = make_env(kind)
    model = make_run(kind, env)
    recorded, callback = with_log(model), evaluation(kind)
    model.learn(2 * STEPS, callback=CallbackList([callback, StopAfter(calls)]), schedule_timesteps=2 * STEPS)
    assert model.num_timesteps == 4 * calls
    model.save(tmp_path / "stopped")
    env.close()
    second = in_new_process(kind, str(tmp_path / "stopped.zip"), str(2 * STEPS - 4 * calls))
    one = whole(kind)
    assert len(recorded.lines) + len(second["log"]) == len(one["log"])
    assert second["evaluations"] == one["evaluations"]
    assert second["digest"] == one["digest"]


def test_the_global_generators_go_on_where_they_were(tmp_path: Path) -> None:
    """Games and callbacks may draw from them, so all three count, whatever happens between loading and learning."""
    model = make_model()
    model.learn(48)
    model.save(tmp_path / "model")
    expected = (random.random(), np.random.random(), float(th.rand(())))
    drawn = []

    class Draw(BaseCallback):
        def _on_rollout_start(self) -> None:
            drawn.append((random.random(), np.random.random(), float(th.rand(()))))

        def _on_step(self) -> bool:
            return False

    loaded = HMASD.load(tmp_path / "model", env=random_team_vec_env(4))
    random.seed(1), np.random.seed(1), th.manual_seed(1)
    loaded.learn(48, callback=Draw(), reset_num_timesteps=False)
    assert drawn == [expected]


def test_what_a_file_says_survives_loading_and_saving_again(tmp_path: Path) -> None:
    env = make_env("masked")
    model = make_run("masked", env)
    model.learn(2 * STEPS, callback=StopAfter(17), schedule_timesteps=2 * STEPS)
    model.save(tmp_path / "first")
    HMASD.load(tmp_path / "first").save(tmp_path / "second")
    first, second = (read_archive(tmp_path / f"{name}.zip", "model").parts for name in ("first", "second"))
    assert first.keys() == second.keys()
    for name in first:
        assert contents_of(name, first[name]) == contents_of(name, second[name]), name


def test_going_on_in_the_same_process_is_the_same_too() -> None:
    env = make_env("masked")
    model = make_run("masked", env)
    recorded, callback = with_log(model), evaluation("masked")
    model.learn(STEPS, callback=callback, schedule_timesteps=2 * STEPS)
    model.learn(STEPS, callback=callback, reset_num_timesteps=False)
    one = whole("masked")
    assert outcome(model, recorded, callback)["digest"] == one["digest"]
    assert json.loads(json.dumps(recorded.lines)) == one["log"]


def test_a_fresh_count_takes_the_weights_and_nothing_else(tmp_path: Path) -> None:
    env = make_env("masked")
    model = make_run("masked", env)
    model.learn(STEPS, callback=StopAfter(17))
    model.save(tmp_path / "model")
    loaded = HMASD.load(tmp_path / "model", env=make_env("masked", seed=3))
    assert same(parameters_of(loaded), parameters_of(model))
    loaded.learn(48)
    assert loaded.num_timesteps == 48
    assert loaded.policy_version == model.policy_version + 1
    assert len(loaded.ep_info_buffer) < 48


def test_another_number_of_environments_goes_on_with_new_episodes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = make_run("masked", make_env("masked"))
    model.learn(STEPS, callback=StopAfter(17))
    model.save(tmp_path / "model")
    loaded = HMASD.load(tmp_path / "model", env=make_env("masked", n_envs=6))
    loaded.learn(72, reset_num_timesteps=False)
    assert "Training goes on at 68 environment steps with new episodes in all environments" in caplog.text
    assert "the state is of 4 environments, and here are 6" in caplog.text
    assert loaded.num_timesteps == 68 + 72


def test_episodes_that_cannot_be_gone_on_with_begin_anew_alike_each_time(tmp_path: Path, caplog: Any) -> None:
    model = make_model()  # its game has no state_dict()
    model.learn(96)
    model.save(tmp_path / "model")
    digests = set()
    for _ in range(2):
        loaded = HMASD.load(tmp_path / "model", env=random_team_vec_env(4))
        loaded.learn(48, reset_num_timesteps=False)
        digests.add(digest(loaded))
    assert len(digests) == 1
    assert "RandomTeam" in caplog.text, "the log names the class that cannot tell"
    assert "new episodes" in caplog.text


@pytest.mark.parametrize("forced", [False, True])
def test_forced_resets_begin_new_episodes(tmp_path: Path, forced: bool) -> None:
    class Look(BaseCallback):
        def _on_rollout_start(self) -> None:
            self.starts = self.model._last_episode_starts.copy()

        def _on_step(self) -> bool:
            return False

    model = make_run("masked", make_env("masked"))
    model.learn(48)
    model.save(tmp_path / "model")
    loaded, look = HMASD.load(tmp_path / "model", env=make_env("masked"), force_reset=forced), Look()
    loaded.learn(48, callback=look, reset_num_timesteps=False)
    assert bool(look.starts.all()) == forced


def test_schedules_cannot_end_before_training_does() -> None:
    model = make_model()
    with pytest.raises(ValueError, match="schedule_timesteps=96 ends before the training does, at 144 environment steps"):
        model.learn(144, schedule_timesteps=96)


def test_a_normalizer_that_is_missing_or_new_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_run("normalized", make_env("normalized")).save(tmp_path / "behind")
    HMASD.load(tmp_path / "behind", env=make_env("continuous"))
    assert "was trained behind a VecNormalize and the environment now has none" in caplog.text
    caplog.clear()
    make_run("continuous", make_env("continuous")).save(tmp_path / "without")
    HMASD.load(tmp_path / "without", env=make_env("normalized"))
    assert "was trained without a VecNormalize and the environment now has one" in caplog.text
