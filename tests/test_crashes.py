"""Signals and errors in the middle of a training by one's own script: what can be gone on with, and how."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from resumable import ResumableTeam, digest, make_env, make_run
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv
from teams import FAST, RandomTeam, make_model, parameters_of, random_team_vec_env, same

from hmasd_sb3 import HMASD, WorkerError, make_team_vec_env
from hmasd_sb3.monitoring import CheckpointFolder, TrainingCheckpoint
from hmasd_sb3.monitoring.stopping import StopRequest, StopRequestCallback

ROLLOUT = 48
TOTAL = 8 * ROLLOUT


# ------------------------------------------------------------------ signals, in a script of its own


class Ready(BaseCallback):
    """Tells the parent where training is, and waits there for its signal."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at

    def _on_step(self) -> bool:
        if self.n_calls == self.at:
            print("ready", flush=True)
            sys.stdin.readline()
        return True


def script(folder: str, at: str) -> None:
    """What somebody might write; run in a process of its own."""
    th.set_num_threads(1)
    checkpoints = CheckpointFolder(folder)
    newest = checkpoints.newest()
    env = make_env("masked", seed=0 if newest is None else 5)
    model = make_run("masked", env) if newest is None else HMASD.load(newest, env=env, device="cpu")
    with StopRequest() as stop, stop.deferred():
        model.learn(
            TOTAL - model.num_timesteps,
            callback=[StopRequestCallback(stop), TrainingCheckpoint(folder, 2 * ROLLOUT), Ready(int(at))],
            reset_num_timesteps=newest is None,
            schedule_timesteps=TOTAL,
        )
    print(json.dumps({"stopped": stop.requested, "steps": model.num_timesteps, "digest": digest(model)}))


def run_script(folder: Path, at: int, number: signal.Signals) -> tuple[int, dict[str, Any]]:
    here = Path(__file__).parent
    path = os.pathsep.join([str(here.parent), str(here), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [sys.executable, __file__, str(folder), str(at)],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        if number is not signal.SIGKILL:
            process.stdin.write("\n")
            process.stdin.flush()
        out, _ = process.communicate(timeout=120)
    finally:
        process.kill()
    return process.returncode, json.loads(out.splitlines()[-1]) if out.strip() else {}


@pytest.fixture(scope="module")
def uninterrupted() -> str:
    model = make_run("masked", make_env("masked"))
    model.learn(TOTAL)
    return digest(model)


@pytest.mark.parametrize(
    ("number", "at"), [(signal.SIGTERM, 31), (signal.SIGINT, 36), (signal.SIGKILL, 55)], ids=lambda value: str(value)
)
def test_a_signal_and_a_second_start_make_one_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], uninterrupted: str, number: signal.Signals, at: int
) -> None:
    code, said = run_script(tmp_path, at, number)
    newest = CheckpointFolder(tmp_path).newest()
    assert newest is not None
    if number is signal.SIGKILL:
        assert code == -signal.SIGKILL
        assert newest.name == "checkpoint_000000000192.zip"  # the last one, of up to save_freq steps before
    else:
        assert code == 0
        assert said["stopped"]
        # At the step after the signal, or the same one: the one who listens is called first.
        assert said["steps"] in (4 * at, 4 * (at + 1))
        assert newest.name == f"checkpoint_{said['steps']:012d}.zip"
    script(str(tmp_path), "-1")
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (said["steps"], said["digest"]) == (TOTAL, uninterrupted)


# ------------------------------------------------------------------ errors within a step or an update


class Breaks(RandomTeam):
    """Raises at some steps."""

    error: BaseException | None = None
    at, steps = -1, 0

    def step(self, action: np.ndarray) -> Any:
        self.steps += 1
        if self.steps == self.at and self.error is not None:
            raise self.error
        return super().step(action)


def breaking_env(error: BaseException, at: int) -> DummyVecEnv:
    env = DummyVecEnv([Breaks for _ in range(4)])
    env.seed(0)
    env.envs[2].unwrapped.error, env.envs[2].unwrapped.at = error, at  # type: ignore[attr-defined]
    return env


class Raises(BaseCallback):
    def __init__(self, error: BaseException, at: int) -> None:
        super().__init__()
        self.error, self.at = error, at

    def _on_step(self) -> bool:
        if self.n_calls == self.at:
            raise self.error
        return True


def goes_on(model: HMASD, tmp_path: Path, rollouts: int = 3) -> None:
    """Learning goes on in this process and from a file, with whole rollouts and episodes that begin anew."""
    steps, version = model.num_timesteps, model.policy_version
    model.save(tmp_path / "after_crash")
    loaded = HMASD.load(tmp_path / "after_crash", env=random_team_vec_env())
    for one in (model, loaded):
        one.learn(rollouts * ROLLOUT, reset_num_timesteps=False)
        assert one.num_timesteps >= steps + rollouts * ROLLOUT
        assert version + rollouts <= one.policy_version <= version + rollouts + 1
        assert one.logger.name_to_value["sync/actor_first_ratio_deviation"] < 1e-4
        assert one.logger.name_to_value["sync/coordinator_first_ratio_deviation"] < 1e-4


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("the game broke"), SystemExit(3)])
@pytest.mark.parametrize("at", [1, 7, 24, 30])
def test_a_step_that_breaks_off(tmp_path: Path, error: BaseException, at: int) -> None:
    model = HMASD("MlpPolicy", breaking_env(error, at), **FAST)
    with pytest.raises(type(error)):
        model.learn(10 * ROLLOUT)
    assert model.num_timesteps == 4 * (at - 1)
    goes_on(model, tmp_path)


@pytest.mark.parametrize("at", [1, 7, 12, 24, 30])
def test_a_callback_that_raises(tmp_path: Path, at: int) -> None:
    model = make_model()
    with pytest.raises(KeyboardInterrupt):
        model.learn(10 * ROLLOUT, callback=Raises(KeyboardInterrupt(), at))
    assert model.num_timesteps == 4 * at
    goes_on(model, tmp_path)


@pytest.mark.parametrize(
    "network", ["update_coordinator", "update_actor", "update_critic", "update_discriminators", "evaluate_rollout"]
)
def test_an_update_that_breaks_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: str) -> None:
    """Its batch is spent, in the file as well: some networks have learnt from it already."""
    import hmasd_sb3.hmasd as module

    model = make_model()
    model.learn(ROLLOUT)

    def interrupted(*args: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, network, interrupted)
        with pytest.raises(KeyboardInterrupt):
            model.learn(ROLLOUT, reset_num_timesteps=False)
    model.save(tmp_path / "model")
    loaded = HMASD.load(tmp_path / "model", env=random_team_vec_env())
    assert loaded.policy_version == 2  # another policy than the one before
    assert float(loaded._critic_hidden.abs().max()) == 0.0
    loaded.learn(ROLLOUT, reset_num_timesteps=False)
    assert loaded.num_timesteps == 3 * ROLLOUT
    assert loaded.policy_version == 3
    goes_on(model, tmp_path)


def test_a_rollout_left_out_is_forgotten_by_the_critic_too(tmp_path: Path) -> None:
    env = make_env("discrete")
    model = make_run("discrete", env)
    model.learn(2 * ROLLOUT)
    assert float(model._critic_hidden.abs().max()) > 0.0
    with pytest.raises(KeyboardInterrupt):
        model.learn(ROLLOUT, callback=Raises(KeyboardInterrupt(), 5), reset_num_timesteps=False)
    for exclude, expected in (((), False), (("rollout_buffer",), True), (("env",), True)):
        model.save(tmp_path / "model", exclude=exclude)
        hidden = HMASD.load(tmp_path / "model")._critic_hidden
        assert (float(hidden.abs().max()) == 0.0) == expected


def test_a_new_environment_after_one_that_broke(tmp_path: Path) -> None:
    model = HMASD("MlpPolicy", breaking_env(RuntimeError("the game broke"), 30), **FAST)
    with pytest.raises(RuntimeError, match="the game broke"):
        model.learn(10 * ROLLOUT, callback=TrainingCheckpoint(tmp_path / "run", ROLLOUT))
    model.set_env(random_team_vec_env())
    model.learn(2 * ROLLOUT, callback=TrainingCheckpoint(tmp_path / "run", ROLLOUT), reset_num_timesteps=False)
    assert CheckpointFolder(tmp_path / "run").newest() is not None
    goes_on(model, tmp_path)


# ------------------------------------------------------------------ workers


def workers(**kwargs: Any) -> Any:
    return make_team_vec_env(ResumableTeam, 4, seed=0, n_workers=2, vec_env_kwargs={"start_method": "fork"}, **kwargs)


class Kill(BaseCallback):
    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at

    def _on_step(self) -> bool:
        if self.n_calls == self.at:
            os.kill(self.training_env.unwrapped.worker_pids[0], signal.SIGKILL)
        return True


def test_after_a_worker_error_the_model_learns_on_elsewhere(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    env = workers()
    model = HMASD("MlpPolicy", env, **FAST)
    with pytest.raises(WorkerError, match="SIGKILL"):
        model.learn(10 * ROLLOUT, callback=[TrainingCheckpoint(tmp_path / "run", ROLLOUT), Kill(30)])
    model.save(tmp_path / "model")
    for path in (tmp_path / "model.zip", CheckpointFolder(tmp_path / "run").newest()):
        here = workers()
        loaded = HMASD.load(path, env=here)
        assert same(parameters_of(loaded), parameters_of(model))
        caplog.clear()
        loaded.learn(ROLLOUT, reset_num_timesteps=False)
        anew = any("new episodes in all environments" in record.message for record in caplog.records)
        assert anew == (path == tmp_path / "model.zip")  # the checkpoint holds the games as they were then
        here.close()
    env.close()


@pytest.mark.parametrize("normalize", [False, True])
def test_a_model_is_saved_while_its_workers_are_closed(tmp_path: Path, normalize: bool) -> None:
    from stable_baselines3.common.vec_env import VecNormalize

    env = VecNormalize(workers(), norm_obs_keys=["obs"]) if normalize else workers()
    model = HMASD("MlpPolicy", env, **FAST)
    model.learn(2 * ROLLOUT)
    env.close()
    model.save(tmp_path / "model")
    new = VecNormalize(random_team_vec_env(), norm_obs_keys=["obs"]) if normalize else random_team_vec_env()
    loaded = HMASD.load(tmp_path / "model", env=new)
    assert same(parameters_of(loaded), parameters_of(model))
    if normalize:
        np.testing.assert_array_equal(new.obs_rms["obs"].mean, env.obs_rms["obs"].mean)
    loaded.learn(ROLLOUT, reset_num_timesteps=False)


class Refuses(ResumableTeam):
    def state_dict(self) -> dict[str, Any]:
        raise OSError("lost")


def test_a_game_that_cannot_give_its_state_is_no_reason_not_to_save(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = HMASD("MlpPolicy", DummyVecEnv([Refuses] * 4), **FAST)
    model.learn(ROLLOUT)
    model.save(tmp_path / "model")
    loaded = HMASD.load(tmp_path / "model", env=DummyVecEnv([ResumableTeam] * 4))
    loaded.learn(ROLLOUT, reset_num_timesteps=False)
    assert any("Refuses could not give its state: OSError: lost" in record.message for record in caplog.records)


@pytest.mark.parametrize("what", [lambda: KeyboardInterrupt(), lambda: OSError("disk")])
def test_a_save_that_is_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: Callable[[], BaseException]
) -> None:
    import hmasd_sb3.saving.archive as archive

    model, path = make_model(), tmp_path / "model.zip"
    model.save(path)
    before = path.read_bytes()
    error = what()

    def interrupted(*args: Any) -> None:
        raise error

    monkeypatch.setattr(archive.os, "fsync", interrupted)
    model.num_timesteps = 5
    with pytest.raises(type(error)):
        model.save(path)
    assert path.read_bytes() == before
    assert [one.name for one in tmp_path.iterdir()] == ["model.zip"]


if __name__ == "__main__":
    script(*sys.argv[1:])
