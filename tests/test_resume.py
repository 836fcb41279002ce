"""A run that is saved, loaded in another process and gone on with is the run that was never interrupted, to the last bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from resumable import KINDS, evaluation, in_new_process, make_env, make_run, outcome, with_log
from stable_baselines3.common.callbacks import BaseCallback, CallbackList

STEPS = 2 * 48


class StopAfter(BaseCallback):
    """Stops after some calls."""

    def __init__(self, calls: int) -> None:
        super().__init__()
        self.left = calls

    def _on_step(self) -> bool:
        self.left -= 1
        return self.left > 0


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


@pytest.mark.parametrize("calls", [5, 24, 31])
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
