"""Wrong input gets an early error that names it; nothing good is lost by it."""

import numpy as np
import pytest
import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv
from teams import FAST, RandomTeam, make_model, parameters_of, random_team_vec_env, same

from hmasd_sb3 import HMASD, make_team_vec_env
from hmasd_sb3.policies.flat import NonFiniteError
from hmasd_sb3.sync import SyncError
from hmasd_sb3.validation import InvalidTransitionError


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"skill_interval": 0}, "skill_interval must be a whole number of at least 1, got 0"),
        ({"skill_interval": 2.5}, "skill_interval must be a whole number"),
        ({"n_team_skills": 0}, "n_team_skills"),
        ({"n_agent_skills": -1}, "n_agent_skills"),
        ({"n_steps": 0}, "n_steps"),
        ({"batch_size": 96}, "batch_size=96 is larger than the rollout .* = 48 .* such as 48"),
        ({"batch_size": 7}, "batch_size=7 does not divide the rollout .* such as 6"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"gamma": 1.5}, r"gamma must be a number in \[0, 1\], got 1.5"),
        ({"gae_lambda": float("nan")}, "gae_lambda"),
        ({"clip_range": 0.0}, "clip_range must be a number above 0"),
        ({"learning_rate": -1.0}, "learning_rate"),
        ({"learning_rate": "fast"}, "learning_rate must be a number at least 0, got 'fast'"),
        ({"ent_coef": lambda p: -p}, "ent_coef"),
        ({"target_kl": 0.0}, "target_kl"),
        ({"skill_at_rollout_end": "drop"}, "skill_at_rollout_end must be one of"),
        ({"policy_kwargs": {"coordinator_kwargs": {"n_heads": 5}}}, "n_heads must divide"),
    ],
)
def test_bad_hyperparameters_are_refused_by_name(kwargs, message):
    with pytest.raises(ValueError, match=message):
        make_model(**kwargs)


def test_unknown_policy_names_the_known_ones():
    with pytest.raises(ValueError, match=r"Policy 'MlpPolcy' is unknown.*Did you mean 'MlpPolicy'"):
        HMASD("MlpPolcy", random_team_vec_env())
    with pytest.raises(ValueError, match="subclass of HMASDPolicy"):
        HMASD(PPO.policy_aliases["MlpPolicy"], random_team_vec_env())


def test_an_environment_that_is_no_team_is_refused():
    with pytest.raises(ValueError, match=r"TeamEnv|team"):
        HMASD("MlpPolicy", "CartPole-v1")


class Broken(RandomTeam):
    """Returns something that is not finite in the third step of the second environment."""

    what = "obs"
    bad = False
    steps = 0

    def step(self, action):
        obs, reward, terminated, truncated, info = super().step(action)
        self.steps += 1
        if self.bad and self.steps == 3:
            if self.what == "reward":
                reward = float("nan")
            else:
                obs[self.what][..., 0] = np.inf
        return obs, reward, terminated, truncated, info


@pytest.mark.parametrize("what", ["obs", "state", "reward"])
@pytest.mark.parametrize("ends", [False, True])
def test_nan_names_environment_and_step_and_nothing_is_learnt(what, ends):
    def make(index):
        def create():
            env = Broken(p_terminate=float(ends), p_truncate=0.0)
            env.what, env.bad = what, index == 1
            return env

        return create

    model = HMASD("MlpPolicy", DummyVecEnv([make(i) for i in range(4)]), **FAST)
    before = parameters_of(model)
    with pytest.raises(InvalidTransitionError, match=rf"Environment 1 returned .*{what if what != 'reward' else 'nan'}.* 12"):
        model.learn(1000)
    assert same(parameters_of(model), before)


def test_nan_in_the_first_observation_is_refused():
    model = make_model()
    _, callback = model._setup_learn(1000)
    model._last_obs["state"][2, 1] = np.nan
    with pytest.raises(InvalidTransitionError, match="Environment 2 returned NaN or infinity in observation 'state'"):
        model.collect_rollouts(model.env, callback, model.rollout_buffer, 12)


def test_nan_in_a_loss_names_the_network_and_keeps_the_parameters():
    model = make_model(batch_size=48)
    _, callback = model._setup_learn(1000)
    model.collect_rollouts(model.env, callback, model.rollout_buffer, 12)
    before = parameters_of(model)
    model.rollout_buffer.log_probs[3, 1, 0] = np.nan
    with pytest.raises(NonFiniteError, match="Update 1, timestep 48: The actor's loss is nan"):
        model.sync_update()
    with pytest.raises(SyncError, match="only 0 were collected"):
        model.sync_update()  # the batch is spent: earlier networks have learnt from it
    after = parameters_of(model)
    assert all(th.equal(after[n], before[n]) for n in after if n.startswith("actor"))


def test_a_ruined_model_is_not_saved_over_a_good_one(tmp_path):
    model = make_model()
    path = tmp_path / "model.zip"
    model.save(path)
    good = path.read_bytes()
    with th.no_grad():
        next(model.policy.actor.parameters())[0] = float("nan")
    with pytest.raises(NonFiniteError, match=r"actor.*not saved"):
        model.save(path)
    assert path.read_bytes() == good


def test_a_save_that_breaks_off_leaves_the_old_file(tmp_path, monkeypatch):
    model = make_model()
    path = tmp_path / "model.zip"
    model.save(path)
    good = path.read_bytes()
    import stable_baselines3.common.save_util as save_util

    def full_disk(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(save_util.th, "save", full_disk)
    with pytest.raises(OSError, match="No space left"):
        model.save(path)
    assert path.read_bytes() == good
    assert [p.name for p in tmp_path.iterdir()] == ["model.zip"]


def test_files_of_others_are_refused(tmp_path):
    ppo = PPO("MultiInputPolicy", make_team_vec_env("AliceAndBob-v0", n_envs=1), n_steps=8, batch_size=8)
    ppo.save(tmp_path / "ppo")
    with pytest.raises(ValueError, match="was not saved by HMASD"):
        HMASD.load(tmp_path / "ppo")
    (tmp_path / "text.zip").write_text("no zip")
    with pytest.raises(ValueError, match="not a model file"):
        HMASD.load(tmp_path / "text.zip")
    with pytest.raises(FileNotFoundError, match="no model file"):
        HMASD.load(tmp_path / "nothing")


def test_loading_for_another_game_is_refused(tmp_path):
    make_model().save(tmp_path / "model")
    with pytest.raises(ValueError, match="spaces do not match"):
        HMASD.load(tmp_path / "model", env=random_team_vec_env(4, n_agents=3))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: HMASD("MlpPolicy", None), ValueError, "needs an environment"),
        (lambda: HMASD("MlpPolicy", random_team_vec_env), TypeError, r"make_team_vec_env\(function, n_envs\)"),
        (lambda: HMASD("MlpPolicy", "AliceAndBob-v7"), ValueError, "AliceAndBob-v0"),
        (lambda: make_model(policy_kwargs={"hiden_size": 8}), ValueError, "no 'hiden_size'.*Did you mean 'hidden_size'"),
        (lambda: make_model(policy_kwargs={"hidden_size": 0}), ValueError, "hidden_size must be at least 1"),
        (lambda: make_model(policy_kwargs={"value_norm_beta": 1.0}), ValueError, "value_norm_beta must be in"),
        (lambda: make_model().predict({"obs": np.zeros((2, 3))}), ValueError, r"keys \['obs'\], this model needs"),
    ],
)
def test_other_mistakes_are_named_too(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_schedule_that_leaves_its_range_stops_the_run():
    model = make_model(ent_coef=lambda progress: progress - 0.6)
    with pytest.raises(ValueError, match="ent_coef must be a number at least 0, got -0"):
        model.learn(48 * 4)
