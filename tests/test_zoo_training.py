"""RL Zoo's train program on HMASD: the same training as ``hmasd train``, and everything that it offers around it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
import yaml
from commands import hmasd, metrics
from zoo_runs import SMALL, newest, train, zoo

from hmasd_sb3 import HMASD, make_team_vec_env

pytest.importorskip("rl_zoo3")

EVALUATED = ["--eval-freq", "96", "--eval-episodes", "4", "--n-eval-envs", "4"]


@pytest.fixture(autouse=True)
def in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "small.yml").write_text(SMALL)
    return tmp_path


@pytest.fixture
def noisy() -> Iterator[None]:
    gym.register("Noisy-v0", entry_point="zoo_games:NoisyTeam")
    yield
    del gym.registry["Noisy-v0"]


def assert_same_weights(first: Path, second: Path) -> None:
    ours, theirs = (HMASD.load(path, device="cpu").get_parameters()["policy"] for path in (first, second))
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert th.equal(ours[name], theirs[name]), name


def tensorboard_scalars(folder: Path) -> dict[str, dict[int, float]]:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    (file,) = folder.rglob("events.out.tfevents.*")
    events = accumulator.EventAccumulator(str(file), size_guidance={"scalars": 0}).Reload()
    return {tag: {event.step: event.value for event in events.Scalars(tag)} for tag in events.Tags()["scalars"]}


def assert_same_run(run: Path, experiment: Path, tensorboard: Path) -> int:
    """The same networks, evaluations and logged figures; returns how many figures were compared."""
    env = experiment.name.rpartition("_")[0]
    assert_same_weights(run / "model.zip", experiment / f"{env}.zip")
    ours, theirs = (np.load(folder / "evaluations.npz") for folder in (run, experiment))
    assert set(ours.files) == set(theirs.files)
    for name in ours.files:
        assert np.array_equal(ours[name], theirs[name]), name
    scalars, compared = tensorboard_scalars(tensorboard), 0
    for line in metrics(run):
        for name, value in line.items():
            if name == "step" or name.startswith("time/") or name in ("sync/collection_time", "sync/update_time"):
                continue
            assert np.float32(value) == np.float32(scalars[name][line["step"]]), (name, line["step"])
            compared += 1
    return compared


@pytest.mark.parametrize("env_id", ["AliceAndBob-v0", "Noisy-v0"])
def test_one_file_and_seed_give_one_learning_curve(in_tmp: Path, noisy: None, env_id: str) -> None:
    """With `hmasd train`, which steps natively vectorised games, and with RL Zoo, which steps single ones."""
    if env_id == "Noisy-v0":  # its evaluations tell seeds apart
        text = SMALL.replace("AliceAndBob-v0", env_id).replace("env_kwargs: {size: 5}", "normalize: true")
        (in_tmp / "small.yml").write_text(text)
    ours = ["--eval-freq", "96", "--eval-episodes", "4", "--no-tensorboard"]
    assert hmasd("train", "--env", env_id, "--config", "small.yml", "--seed", "3", "--run-dir", "ours", *ours) == 0
    assert train("--env", env_id, "-tb", "tb", *EVALUATED) == 0
    compared = assert_same_run(in_tmp / "ours", newest(in_tmp / "logs", env_id), in_tmp / "tb")
    assert compared > 100
    assert len(np.load(in_tmp / "ours/evaluations.npz")["timesteps"]) == 2


def test_the_shipped_file_is_the_default_of_both(in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = {"n_envs": 2, "n_steps": 10, "n_epochs": 1, "skill_n_epochs": 1, "discriminator_n_updates": 1}
    settings = [text for name, value in small.items() if name != "n_envs" for text in ("--set", f"{name}={value}")]
    steps = ["--total-timesteps", "40", "--n-envs", "2", "--eval-freq", "0", "--no-tensorboard"]
    assert hmasd("train", "--seed", "5", "--run-dir", "ours", *steps, *settings) == 0
    assert "hmasd.yml" in capsys.readouterr().out
    changes = [f"{name}:{value}" for name, value in small.items()]
    assert zoo("train", "--env", "AliceAndBob-v0", "--seed", "5", "-n", "40", "--eval-freq", "-1", "-params", *changes) == 0
    assert "hmasd.yml" in capsys.readouterr().out
    assert_same_weights(in_tmp / "ours/model.zip", newest(in_tmp / "logs") / "AliceAndBob-v0.zip")


def test_evaluations_are_of_the_same_game(in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`env_kwargs` of the file reach it; RL Zoo gives it those of the command line alone."""
    assert train("--eval-freq", "96", "--eval-episodes", "1") == 0
    assert np.load(newest(in_tmp / "logs") / "evaluations.npz")["timesteps"].tolist() == [96, 192]
    assert train("--eval-freq", "96", "--eval-env-kwargs", "size:5", "max_steps:7", "--eval-episodes", "2") == 0
    assert np.load(newest(in_tmp / "logs") / "evaluations.npz")["ep_lengths"].max() <= 7


def test_worker_processes_train_alike(in_tmp: Path) -> None:
    assert train("-n", "48", "-params", "n_envs:2") == 0
    assert train("-n", "48", "-params", "n_envs:2", "--vec-env", "subproc") == 0
    first, second = (in_tmp / f"logs/hmasd/AliceAndBob-v0_{number}/AliceAndBob-v0.zip" for number in (1, 2))
    assert_same_weights(first, second)


def test_training_goes_on_from_a_model(in_tmp: Path) -> None:
    (in_tmp / "small.yml").write_text(SMALL + "  normalize: true\n")
    assert train("--save-freq", "96") == 0
    first = newest(in_tmp / "logs")
    assert {"rl_model_96_steps.zip", "rl_model_192_steps.zip"} <= {path.name for path in first.iterdir()}
    before = HMASD.load(first / "AliceAndBob-v0.zip")
    assert train("-i", first / "AliceAndBob-v0.zip", "-n", "48", "-params", "learning_rate:0.0", "normalize:True") == 0
    after = HMASD.load(newest(in_tmp / "logs") / "AliceAndBob-v0.zip")
    weights, kept = before.policy.coordinator.state_dict(), after.policy.coordinator.state_dict()
    assert all(th.equal(weights[name], kept[name]) for name in weights)
    assert after.policy_version > before.policy_version


def test_one_thread_unless_asked_for_more() -> None:
    def threads(*arguments: str) -> int:
        th.set_num_threads(2)
        try:
            assert train("-n", "48", *arguments) == 0
            return th.get_num_threads()
        finally:
            th.set_num_threads(1)

    assert threads() == 1
    assert threads("--num-threads", "2") == 2
    assert threads("--num-threads=-1") == 2


def test_what_rl_zoo_does_itself_stays_possible(in_tmp: Path) -> None:
    (in_tmp / "small.yml").write_text(
        SMALL
        + "  frame_stack: 2\n"
        + "  env_wrapper: [{gymnasium.wrappers.TimeLimit: {max_episode_steps: 9}}]\n"
        + "  vec_env_wrapper: stable_baselines3.common.vec_env.VecMonitor\n"
        + "  callback: [{stable_baselines3.common.callbacks.StopTrainingOnMaxEpisodes: {max_episodes: 1000}}]\n"
        + "  monitor_kwargs: {info_keywords: [is_success]}\n"
    )
    assert train(*EVALUATED) == 0
    experiment = newest(in_tmp / "logs")
    model = HMASD.load(experiment / "AliceAndBob-v0.zip")
    single = gym.make("AliceAndBob-v0", size=5).observation_space
    assert model.observation_space["obs"].shape[-1] == 2 * single["obs"].shape[-1]
    assert (experiment / "0.monitor.csv").read_text().splitlines()[1] == "r,l,t,is_success"
    assert np.load(experiment / "evaluations.npz")["ep_lengths"].max() <= 9
    saved = yaml.unsafe_load((experiment / "AliceAndBob-v0/config.yml").read_text())
    assert saved["frame_stack"] == 2
    assert saved["learning_rate"] == "lin_1e-3_1e-4"


def test_a_game_of_ones_own_takes_the_default_entry(in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gym.register("OwnTeam-v0", entry_point="hmasd_sb3.envs:alice_and_bob_team_env", kwargs={"size": 4})
    try:
        assert zoo("train", "--env", "OwnTeam-v0", "-n", "20", "--eval-freq", "-1", "-params", "n_envs:2", "n_steps:10") == 0
        assert "Using 'default' hyperparameters" in capsys.readouterr().out
        assert zoo("train", "--env", "OwnTeam-v0", "-conf", "small.yml") == 2
        assert "no entry for 'OwnTeam-v0'" in capsys.readouterr().err
    finally:
        del gym.registry["OwnTeam-v0"]


def test_pictures_keep_their_axes(in_tmp: Path) -> None:
    """The first axis counts agents: what RL Zoo takes for a picture with its channels last may be a team of them."""
    gym.register("Pictures-v0", entry_point="zoo_games:picture_team")
    (in_tmp / "small.yml").write_text(SMALL.replace("AliceAndBob-v0", "Pictures-v0").replace("  env_kwargs: {size: 5}\n", ""))
    try:
        arguments = ["--env", "Pictures-v0", "-conf", "small.yml", "--eval-freq", "96", "-params", "policy:'CnnPolicy'"]
        assert zoo("train", *arguments) == 0
        model = HMASD.load(newest(in_tmp / "logs", "Pictures-v0") / "Pictures-v0.zip")
        for key, space in gym.make("Pictures-v0").observation_space.spaces.items():
            assert model.observation_space[key].shape == space.shape
    finally:
        del gym.registry["Pictures-v0"]


def test_simple_spread(in_tmp: Path) -> None:
    pytest.importorskip("mpe2")
    small = ["n_envs:2", "n_steps:10", "n_epochs:1", "skill_n_epochs:1", "discriminator_n_updates:1", "normalize:True"]
    arguments = ["--env", "SimpleSpread-v0", "-n", "40", "--eval-freq", "20", "--eval-episodes", "2"]
    assert zoo("train", *arguments, "--seed", "1", "-params", *small) == 0
    experiment = newest(in_tmp / "logs", "SimpleSpread-v0")
    assert (experiment / "SimpleSpread-v0/vecnormalize.pkl").is_file()
    assert zoo("enjoy", "--env", "SimpleSpread-v0", "-f", "logs", "-n", "30", "--no-render") == 0


def test_rl_zoos_own_entry_point_after_registering(in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rl_zoo3 import cli

    from hmasd_sb3.zoo import register

    register()
    register()
    arguments = ["rl_zoo3", "train", "--algo", "hmasd", "--env", "AliceAndBob-v0", "-conf", "small.yml", "-n", "48"]
    monkeypatch.setattr(sys, "argv", arguments)
    cli.main()
    assert (newest(in_tmp / "logs") / "AliceAndBob-v0.zip").is_file()


def test_time_limits_still_give_their_state() -> None:
    """Importing RL Zoo exchanges Gymnasium's class for one of its own."""
    from hmasd_sb3.zoo import register

    register()
    gym.register("Limited-v0", entry_point="hmasd_sb3.envs:alice_and_bob_team_env", max_episode_steps=9)
    try:
        env = make_team_vec_env("Limited-v0", 2, seed=0)
        assert type(env.envs[0].env) is gym.wrappers.TimeLimit  # type: ignore[attr-defined]
        env.reset()
        model = HMASD("MlpPolicy", env, n_steps=5, n_epochs=1, skill_n_epochs=1, device="cpu")
        model.learn(10)
        model.save("limited")
        loaded = HMASD.load("limited", env=make_team_vec_env("Limited-v0", 2, seed=1), device="cpu")
        loaded.learn(0, reset_num_timesteps=False)
        elapsed = loaded.get_env().get_attr("_elapsed_steps")  # type: ignore[union-attr]
        assert elapsed == [5, 5]
    finally:
        del gym.registry["Limited-v0"]


def test_the_device_may_be_in_the_file(in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (in_tmp / "small.yml").write_text(SMALL + "  device: meta\n")
    assert train("-n", "48") == 1
    assert "meta" in capsys.readouterr().err
    assert train("-n", "48", "--device", "cpu") == 0


def test_other_algorithms_are_left_alone(in_tmp: Path) -> None:
    arguments: list[Any] = ["--algo", "a2c", "--env", "CartPole-v1", "-n", "50", "--eval-freq", "-1", "--seed", "1"]
    assert zoo("train", *arguments) == 0
    assert (in_tmp / "logs/a2c/CartPole-v1_1/CartPole-v1.zip").is_file()


def test_as_a_module_in_a_process_of_its_own(in_tmp: Path) -> None:
    root = Path(__file__).parents[1]
    arguments = ["train", "--algo", "hmasd", "--env", "AliceAndBob-v0", "-conf", "small.yml", "-n", "48"]
    result = subprocess.run(
        [sys.executable, "-m", "hmasd_sb3.zoo", *arguments],
        env={"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert (newest(in_tmp / "logs") / "AliceAndBob-v0.zip").is_file()
