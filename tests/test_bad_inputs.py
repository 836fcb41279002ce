"""One table of wrong inputs: each is refused with its name, what it was and what to do, and no file is changed by it."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import EveryNTimesteps
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import DummyVecEnv
from teams import RandomTeam, make_model, random_team_vec_env
from torch import nn

from hmasd_sb3 import HMASD, ConfusionGatedNoise, ExponentialSchedule, make_team_vec_env
from hmasd_sb3.monitoring import CheckpointFolder, TrainingCheckpoint
from hmasd_sb3.policies.policy import HMASDPolicy
from hmasd_sb3.saving import ForeignFileError, ModelFileError

Call = Callable[[Path], Any]


class Spaces(RandomTeam):
    """A team with spaces of one's choice."""

    def __init__(self, action_space: spaces.Space[Any] | None = None, **observations: spaces.Space[Any] | None) -> None:
        super().__init__()
        for key, space in observations.items():
            if space is None:
                del self.observation_space.spaces[key]
            else:
                self.observation_space.spaces[key] = space
        self.action_space = self.action_space if action_space is None else action_space


def made(**kwargs: Any) -> Call:
    return lambda folder: make_model(**kwargs)


def learned(*args: Any, **kwargs: Any) -> Call:
    return lambda folder: make_model().learn(*(args or (48,)), **kwargs)


def saved(path: Any, **kwargs: Any) -> Call:
    return lambda folder: make_model().save(path, **kwargs)


def loaded(name: str = "model.zip", **kwargs: Any) -> Call:
    return lambda folder: HMASD.load(folder / name, **kwargs)


def on(*args: Any, **kwargs: Any) -> Call:
    return lambda folder: HMASD("MlpPolicy", DummyVecEnv([lambda: Spaces(*args, **kwargs)]), n_steps=4)


def resumed(folder: Path) -> HMASD:
    return HMASD.load(folder / "model.zip", env=random_team_vec_env())


def box(*shape: int, low: float = -1.0, high: float = 1.0, dtype: Any = np.float32) -> spaces.Box:
    return spaces.Box(low, high, shape, dtype)


BAD: dict[str, tuple[Call, type[Exception], str]] = {
    # ---- arguments of the algorithm
    "n_steps, True": (made(n_steps=True), ValueError, "n_steps must be a whole number of at least 1, got True"),
    "n_steps, a fraction": (made(n_steps=12.0), ValueError, "n_steps must be a whole number of at least 1, got 12.0"),
    "n_epochs": (made(n_epochs=0), ValueError, "n_epochs must be .* at least 1, got 0"),
    "gamma": (made(gamma="0.9"), ValueError, r"gamma must be a number in \[0, 1\], got '0.9'"),
    "gamma, without end": (made(gamma=10**400), ValueError, "gamma must be finite"),
    "learning_rate, infinite": (made(learning_rate=float("inf")), ValueError, "learning_rate must be finite, got inf"),
    "learning_rate, None": (made(learning_rate=None), ValueError, "learning_rate must be a number at least 0, got None"),
    "ent_coef, infinite": (made(ent_coef=float("inf")), ValueError, "ent_coef must be finite, got inf"),
    "vf_coef": (made(vf_coef=float("nan")), ValueError, "vf_coef must be a number at least 0, got nan"),
    "max_grad_norm": (made(max_grad_norm=0), ValueError, "max_grad_norm must be a number above 0, got 0"),
    "clip_range_vf": (made(clip_range_vf=0.0), ValueError, "clip_range_vf must be .*above 0, or None"),
    "seed, negative": (made(seed=-1), ValueError, r"seed must be a whole number from 0 to 2\*\*32 - 1, or None, got -1"),
    "seed, a text": (made(seed="0"), ValueError, "seed must be a whole number.*got '0'"),
    "stats_window_size": (made(stats_window_size=0), ValueError, "stats_window_size must be .* at least 1, got 0"),
    "tensorboard_log": (made(tensorboard_log=3), ValueError, "tensorboard_log must be a folder's path or None, got 3"),
    "normalize_advantage": (made(normalize_advantage="no"), ValueError, "normalize_advantage must be True or False, got 'no'"),
    "on_nan": (made(on_nan="ignore"), ValueError, r"on_nan must be one of \('stop', 'rollback'\), got 'ignore'"),
    "max_rollbacks": (made(max_rollbacks=0), ValueError, "max_rollbacks must be .* at least 1, got 0"),
    "device": (made(device="gpu"), ValueError, r"device must be .*'cpu', 'cuda'.*got 'gpu'"),
    "an unknown argument": (made(learn_rate=0.1), TypeError, "learn_rate"),
    # ---- sizes of batches
    "micro_batch_size": (made(micro_batch_size=0), ValueError, "micro_batch_size must be .* or None, got 0"),
    "batch_size, a text": (made(batch_size="12"), ValueError, "batch_size must be .*got '12'"),
    "batch_size, a schedule beyond the rollout": (
        made(batch_size=LinearSchedule(12, 96, 1.0)),
        ValueError,
        "The schedule batch_size gives 96.* at progress_remaining=0; it must give numbers from 1 to the rollout",
    ),
    "batch_size, a schedule that raises": (
        made(batch_size=lambda p: 1 / p),
        ValueError,
        "The schedule batch_size cannot be called.*ZeroDivisionError",
    ),
    "batch_size, for fewer environments": (
        lambda folder: HMASD.load(folder / "model.zip", env=random_team_vec_env(1), batch_size=48).learn(12),
        ValueError,
        r"batch_size=48 is larger than the rollout of n_steps \* n_envs = 12 \* 1.*Use a divisor such as 12",
    ),
    # ---- schedules
    "a schedule that gives a text": (made(ent_coef=lambda progress: "x"), ValueError, "ent_coef must be a number.*got 'x'"),
    "a schedule that takes nothing": (made(ent_coef=lambda: 0.1), ValueError, "schedule ent_coef cannot be called"),
    "a schedule that raises": (made(clip_range=lambda p: 1 / 0), ValueError, "schedule clip_range.*ZeroDivisionError"),
    "a class as a schedule": (
        made(learning_rate=LinearSchedule),
        ValueError,
        "learning_rate is the class LinearSchedule; pass",
    ),
    "ExponentialSchedule": (lambda folder: ExponentialSchedule(1.0, 0.0, 1.0), ValueError, "end > 0.*got start=1.0, end=0.0"),
    "ConfusionGatedNoise": (lambda folder: ConfusionGatedNoise(low=2.0), ValueError, "0 < low <= high.*low=2.0"),
    # ---- the policy
    "policy, no policy": (
        lambda folder: HMASD(nn.Linear, random_team_vec_env()),
        ValueError,
        "a subclass of HMASDPolicy, got",
    ),
    "policy, an object": (lambda folder: HMASD(3, random_team_vec_env()), ValueError, "a subclass of HMASDPolicy, got 3"),
    "policy_kwargs": (made(policy_kwargs=[1]), ValueError, r"policy_kwargs must be a dict or None, got \[1\]"),
    "hidden_size": (made(policy_kwargs={"hidden_size": 8.5}), ValueError, "hidden_size must be a whole number .*got 8.5"),
    "optimizer_class": (
        made(policy_kwargs={"optimizer_class": nn.Linear}),
        ValueError,
        "optimizer_class must be a subclass of torch.optim.*Optimizer, got .*Linear",
    ),
    "optimizer_kwargs": (
        made(policy_kwargs={"optimizer_kwargs": 3}),
        ValueError,
        "optimizer_kwargs must be a dict or None, got 3",
    ),
    "coordinator_class": (
        made(policy_kwargs={"coordinator_class": "Transformer"}),
        ValueError,
        "coordinator_class must be a subclass of SkillCoordinator, got 'Transformer'",
    ),
    # ---- spaces
    "one action for all": (on(spaces.Discrete(3)), ValueError, r"MultiDiscrete.*Discrete\(3\)"),
    "actions without bounds": (on(spaces.Box(-np.inf, np.inf, (2, 1))), ValueError, "bounds"),
    "agents with different numbers of actions": (on(spaces.MultiDiscrete([3, 2])), ValueError, r"\[3, 2\]|action_mask"),
    "actions of another number of agents": (
        on(spaces.MultiDiscrete([3] * 5)),
        ValueError,
        r"\* 2\), one entry per agent; got",
    ),
    "no state": (on(state=None), ValueError, "state"),
    "an obs without agents": (on(obs=box()), ValueError, "obs"),
    "an action_mask of other actions": (on(action_mask=spaces.MultiBinary((2, 9))), ValueError, "action_mask.*9"),
    "an agent_mask of other agents": (on(agent_mask=spaces.MultiBinary(7)), ValueError, "agent_mask.*7"),
    # ---- environments
    "no environment": (lambda folder: HMASD("MlpPolicy", 3), TypeError, "PettingZoo.*Gymnasium.*got int"),
    "a class": (lambda folder: HMASD("MlpPolicy", RandomTeam), TypeError, r"make_team_vec_env\(function, n_envs\)"),
    "a game for one": (lambda folder: HMASD("MlpPolicy", gym.make("CartPole-v1")), ValueError, "Dict|team"),
    "an unknown id": (lambda folder: make_team_vec_env("AliceAndBop-v0", 1), ValueError, "AliceAndBob-v0"),
    "no environments at all": (lambda folder: make_team_vec_env(RandomTeam, 0), ValueError, "n_envs must be.*got 0"),
    "another number of environments": (
        lambda folder: make_model().set_env(random_team_vec_env(3)),
        AssertionError,
        "number of environments to be set is different",
    ),
    # ---- learn
    "total_timesteps, a text": (
        learned("1000"),
        ValueError,
        "total_timesteps must be a number of environment steps.*got '1000'",
    ),
    "total_timesteps, negative": (learned(-1), ValueError, "total_timesteps must be .*at least 0, got -1"),
    "total_timesteps, without end": (learned(float("inf")), ValueError, "total_timesteps must be finite, got inf"),
    "log_interval": (learned(log_interval=0), ValueError, "log_interval must be .* at least 1, got 0"),
    "schedule_timesteps, too short": (
        learned(96, schedule_timesteps=48),
        ValueError,
        "schedule_timesteps=48 ends before .* 96",
    ),
    "schedule_timesteps, a text": (learned(48, schedule_timesteps="96"), ValueError, "schedule_timesteps must be .*got '96'"),
    "learning without an environment": (
        lambda folder: HMASD.load(folder / "model.zip").learn(48),
        ValueError,
        r"no environment to learn in: pass one to load\(path, env=...\) or to set_env",
    ),
    # ---- callbacks
    "callback, a class": (
        learned(callback=EveryNTimesteps),
        TypeError,
        r"callback is the class EveryNTimesteps; pass an object",
    ),
    "callback, a text": (learned(callback="checkpoint"), TypeError, "callback must be a BaseCallback.*got 'checkpoint'"),
    "callback, a list of anything": (learned(callback=[3]), TypeError, "callback must be a BaseCallback.*got 3"),
    "callback, a checkpoint within another": (
        lambda folder: make_model().learn(48, callback=EveryNTimesteps(4, TrainingCheckpoint(folder / "new", 48))),
        ValueError,
        r"TrainingCheckpoint is inside another callback.*Pass it to learn\(\) itself",
    ),
    "callback, a checkpoint of another algorithm": (
        lambda folder: PPO("MlpPolicy", "CartPole-v1", n_steps=8, batch_size=8).learn(
            8, TrainingCheckpoint(folder / "new", 8)
        ),
        TypeError,
        "TrainingCheckpoint is for HMASD, not for PPO",
    ),
    # ---- checkpoints
    "save_freq": (lambda folder: TrainingCheckpoint(folder, 0), ValueError, "save_freq must be .* at least 1, got 0"),
    "save_freq, a fraction": (lambda folder: TrainingCheckpoint(folder, 1.5), ValueError, "save_freq must be .*got 1.5"),
    "keep_last": (lambda folder: CheckpointFolder(folder, 0), ValueError, "keep_last must be .* at least 1, got 0"),
    "keep_last, a text": (
        lambda folder: TrainingCheckpoint(folder, 1, keep_last="3"),
        ValueError,
        "keep_last must be .*got '3'",
    ),
    "a file as a folder": (
        lambda folder: TrainingCheckpoint(folder / "text.zip", 48),
        ValueError,
        "text.zip is a file; checkpoints need a folder",
    ),
    "another run's folder": (
        lambda folder: make_model().learn(48, callback=TrainingCheckpoint(folder / "run", 48)),
        ValueError,
        "run already holds checkpoints of another run, up to checkpoint_000000000048.zip. Go on with that run",
    ),
    # ---- save
    "save, nowhere": (saved(None), TypeError, "given by its path, or as a binary stream to write it, not by None"),
    "save, without a name": (saved(""), ValueError, "A model file needs a name"),
    "save, into a text": (saved(io.StringIO()), TypeError, "binary stream"),
    "save, exclude a text": (
        saved("x", exclude="env"),
        TypeError,
        r"takes a list of parts, got the text 'env'. Write \['env'\]",
    ),
    "save, exclude unknown": (saved("x", exclude=["envs"]), ValueError, r"can leave out .*not 'envs'. Did you mean 'env'"),
    # ---- load
    "load, nothing there": (loaded("nothing"), FileNotFoundError, "no model file .*nothing.zip. Pass the path given to save"),
    "load, a folder": (loaded("run"), IsADirectoryError, r"run is a folder, not a model file.*CheckpointFolder.newest"),
    "load, no path": (lambda folder: HMASD.load(CheckpointFolder(folder).newest()), TypeError, "not by None"),
    "load, a text file": (loaded("text.zip"), ForeignFileError, "text.zip is not a model file: it is no zip archive"),
    "load, a policy": (loaded("policy.zip"), ForeignFileError, "holds a policy, not a model. Load it with the policy class's"),
    "load, a model as a policy": (
        lambda folder: HMASDPolicy.load(folder / "model.zip"),
        ForeignFileError,
        r"holds a model, not a policy. Load it with HMASD.load\(\)",
    ),
    "load, an unknown argument": (
        loaded(learn_rate=1e-3),
        TypeError,
        "no argument 'learn_rate'.*Did you mean 'learning_rate'",
    ),
    "load, a wrong value": (loaded(gamma=2.0), ValueError, r"gamma must be a number in \[0, 1\], got 2.0"),
    "load, other networks": (loaded(n_agent_skills=7), ValueError, "n_agent_skills=7 was given.*made for 4. Leave it out"),
    "load, other policy_kwargs": (
        loaded(policy_kwargs={"hidden_size": 32}),
        ValueError,
        "policy_kwargs given, .*32.* are not those that the model was made with, .*16.*Leave them out",
    ),
    "load, another game": (loaded(env=random_team_vec_env(4, n_agents=3)), ValueError, "spaces do not match"),
    "load, a device": (loaded(device="gpu"), ValueError, "device must be .*got 'gpu'"),
    "set_parameters of another game": (
        lambda folder: make_model(env_kwargs={"n_agents": 3}).set_parameters(folder / "model.zip"),
        ModelFileError,
        "model.zip holds the parameters of other networks than this model's",
    ),
    "a class as a schedule of batch sizes": (
        made(batch_size=nn.Identity),
        ValueError,
        r"batch_size is the class Identity; pass an object of it, Identity\(...\)",
    ),
    # ---- going on
    "a run in other spaces": (
        lambda folder: resumed(folder).set_env(random_team_vec_env(4, kind="continuous")),
        ValueError,
        "spaces do not match",
    ),
    "going back without checkpoints": (
        lambda folder: make_model(on_nan="rollback").learn(48),
        ValueError,
        r"on_nan='rollback' needs checkpoints to go back to: pass TrainingCheckpoint\(folder, save_freq\)",
    ),
    # ---- predict
    "predict, with the info": (
        lambda folder: make_model().predict(RandomTeam().reset(seed=0)),
        ValueError,
        "team's Dict observation, got tuple.*pass only obs",
    ),
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    model = make_model()
    model.learn(48, callback=TrainingCheckpoint(folder / "run", 48))
    model.save(folder / "model")
    model.policy.save(folder / "policy")
    (folder / "text.zip").write_text("no zip")
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("what", BAD)
def test_it_is_refused_by_name(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    call, error, message = BAD[what]
    monkeypatch.chdir(tmp_path)  # where relative paths lead to
    before = files(prepared)
    with pytest.raises(error, match=message):
        call(prepared)
    after = files(prepared)
    assert {name: content for name, content in after.items() if not name.startswith("new/")} == before
    assert set(after) - set(before) <= {"new/checkpoint_000000000000.zip"}
    for name in set(after) - set(before):
        (prepared / name).unlink()
    assert not list(tmp_path.iterdir())
