"""HMASD with the tools that SB3 users know: callbacks, evaluation, normalisation, saving and loading."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor, VecNormalize
from teams import FAST, RandomTeam, make_model, parameters_of, random_team_vec_env, same

from hmasd_sb3 import HMASD


def test_evaluating_in_the_middle_of_collection_changes_nothing():
    plain = make_model()
    plain.learn(48 * 3)
    evaluated = make_model()
    eval_env = VecMonitor(random_team_vec_env(3))
    evaluated.learn(48 * 3, callback=EvalCallback(eval_env, n_eval_episodes=3, eval_freq=5, verbose=0))
    first, second = plain.rollout_buffer, evaluated.rollout_buffer
    # Evaluation is deterministic, so not even random numbers are drawn.
    np.testing.assert_array_equal(first.actions, second.actions)
    np.testing.assert_array_equal(first.agent_skills, second.agent_skills)
    assert same(parameters_of(plain), parameters_of(evaluated))


def test_evaluate_policy_runs_on_any_number_of_environments():
    model = make_model()
    for n_envs in (1, 5):
        returns, lengths = evaluate_policy(model, VecMonitor(random_team_vec_env(n_envs)), 7, return_episode_rewards=True)
        assert len(returns) == len(lengths) == 7


@pytest.mark.parametrize("kind", ["discrete", "continuous", "masked"])
def test_save_and_load_give_the_same_model(tmp_path, kind):
    model = make_model(env_kwargs={"kind": kind}, learning_rate=lambda p: 1e-3 * p)
    model.learn(96)
    model.save(tmp_path / "model")
    env = random_team_vec_env(4, kind=kind)
    loaded = HMASD.load(tmp_path / "model", env=env, device="cpu", learning_rate=lambda p: 1e-3 * p)
    assert same(parameters_of(loaded), parameters_of(model))
    assert loaded.policy_version == model.policy_version == 2
    for name, state in model.get_parameters().items():
        if name != "policy":
            mine, theirs = state["state"][0], loaded.get_parameters()[name]["state"][0]
            th.testing.assert_close(mine["exp_avg_sq"], theirs["exp_avg_sq"], rtol=0, atol=0)
    obs = env.reset()
    np.testing.assert_array_equal(model.predict(obs, deterministic=True)[0], loaded.predict(obs, deterministic=True)[0])
    loaded.learn(96, reset_num_timesteps=False)
    assert loaded.num_timesteps == 192
    assert loaded.policy_version == 4


def test_load_with_another_number_of_environments_or_none(tmp_path):
    model = make_model(n_envs=4)
    model.learn(48)
    model.save(tmp_path / "model.zip")
    other = HMASD.load(tmp_path / "model.zip", env=random_team_vec_env(6), device="cpu")
    other.learn(72)
    assert other.rollout_buffer.n_envs == 6
    alone = HMASD.load(tmp_path / "model.zip", device="cpu")
    assert alone.predict(random_team_vec_env(2).reset())[0].shape == (2, 2)


def test_set_env_and_parameters_round_trip():
    model = make_model()
    model.set_env(random_team_vec_env(4))
    model.learn(48)
    other = make_model(seed=5)
    other.set_parameters(model.get_parameters())
    assert same(parameters_of(other), parameters_of(model))
    other.learn(48)


def test_vec_normalize_and_vec_monitor():
    env = VecNormalize(VecMonitor(random_team_vec_env(4, kind="masked")), norm_obs_keys=["obs", "state"])
    model = HMASD("MlpPolicy", env, **FAST)
    model.learn(96)
    assert model.get_vec_normalize_env() is env
    stored = model.rollout_buffer.observations["obs"]
    assert np.abs(stored.mean()) < 0.5
    assert len(model.ep_info_buffer) > 0


def test_callback_can_stop_and_training_can_go_on():
    class Stop(BaseCallback):
        def _on_step(self):
            return self.n_calls < 7

    model = make_model()
    model.learn(1000, callback=Stop())
    assert model.policy_version == 0
    assert model.num_timesteps == 28
    model.learn(96, reset_num_timesteps=False)
    assert model.num_timesteps == 144
    assert model.policy_version == 3, "the unfinished rollout is gone on with"


def test_registered_id_bare_game_and_policy_class():
    from hmasd_sb3 import HMASDPolicy
    from hmasd_sb3.envs.alice_and_bob import parallel_env

    small = {"n_steps": 8, "policy_kwargs": {"hidden_size": 16}, "device": "cpu"}
    for policy, env in (("MlpPolicy", "AliceAndBob-v0"), ("MultiInputPolicy", parallel_env()), (HMASDPolicy, parallel_env())):
        model = HMASD(policy, env, **small)
        model.learn(16)
        assert model.policy_version == 2


def test_tensorboard_groups_are_complete(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    model = HMASD("MlpPolicy", VecMonitor(random_team_vec_env(4)), **FAST, tensorboard_log=str(tmp_path))
    model.learn(48 * 3)
    events = EventAccumulator(str(next(tmp_path.iterdir())))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    wanted = {
        "rollout/ep_rew_mean", "time/fps", "sync/policy_version", "sync/samples_collected", "sync/collection_time",
        "sync/update_time", "sync/contribution_balance", "sync/segment_ends_interval", "sync/segment_ends_terminated",
        "sync/segment_ends_truncated", "sync/segment_ends_rollout_end", "reward/team", "reward/team_diversity",
        "reward/agent_diversity", "skills/team_usage_entropy", "skills/agent_usage_entropy", "skills/team_accuracy",
        "skills/team_chance", "skills/agent_accuracy", "skills/agent_chance", "skills/team_skill_information",
        "skills/redundancy", "train/coordinator_policy_loss", "train/actor_policy_loss", "train/critic_value_loss",
        "train/discriminators_team_loss", "train/discriminators_agent_loss",
    }  # fmt: skip
    assert wanted <= tags, wanted - tags
    assert [e.value for e in events.Scalars("sync/samples_collected")] == [48.0, 48.0]


@pytest.mark.parametrize("mode", ["continue", "reassign"])
def test_cycle_by_hand_gives_the_same_weights_as_learn(mode):
    learnt = make_model(skill_at_rollout_end=mode)
    learnt.learn(48 * 3)
    model = make_model(skill_at_rollout_end=mode)
    model.start_cycle(48 * 3)
    while model.num_timesteps < 48 * 3:
        model.enable_data_collection()
        while not model.should_sync_update():
            decision = model.decide()
            model.store_step(decision, *model.env.step(model.policy.to_env_actions(decision.actions)))
        model.disable_data_collection()
        model.sync_update()
    assert model.policy_version == 3
    assert same(parameters_of(model), parameters_of(learnt))
    assert model.policy.actor_optimizer.param_groups[0]["lr"] == learnt.policy.actor_optimizer.param_groups[0]["lr"]


def test_model_with_an_explicit_batch_size_loads_for_playing(tmp_path):
    model = make_model(batch_size=24)
    model.save(tmp_path / "model")
    loaded = HMASD.load(tmp_path / "model", random_team_vec_env(1), "cpu")
    assert loaded.predict(random_team_vec_env(1).reset())[0].shape == (1, 2)
    with pytest.raises(ValueError, match="batch_size=24 is larger than the rollout"):
        loaded.learn(12)


def test_saved_policy_kwargs_are_what_was_passed():
    kwargs = {"hidden_size": 16, "optimizer_kwargs": None}
    make_model(policy_kwargs=kwargs).learn(48)
    assert kwargs == {"hidden_size": 16, "optimizer_kwargs": None}


def test_discriminators_see_values_as_vec_normalize_gives_them():
    """VecNormalize keeps reporting the old bounds; scaled by those, its values would all be one point."""

    class Bounded(RandomTeam):
        def __init__(self):
            super().__init__()
            self.observation_space.spaces["obs"].low[:] = 0.0
            self.observation_space.spaces["obs"].high[:] = 4.0

    model = HMASD("MlpPolicy", VecNormalize(DummyVecEnv([Bounded for _ in range(4)]), norm_obs_keys=["obs"]), **FAST)
    model.learn(48 * 4)
    pairs = model.rollout_buffer.discriminator_data()
    scaled = model.policy.discriminators.obs_scaler(pairs.obs).flatten(0, 1)
    assert float(scaled.std(0).min()) > 0.5
    assert float(scaled.mean(0).abs().max()) < 0.5


class Pictures(RandomTeam):
    """More agents than the pictures are wide, so that the agent axis could be taken for channels or columns."""

    def __init__(self, n_agents=5):
        super().__init__(n_agents=n_agents)
        self.observation_space.spaces["obs"] = spaces.Box(0, 255, (n_agents, 4, 3), np.uint8)

    def _observe(self):
        obs = super()._observe()
        obs["obs"] = np.repeat(51 * np.arange(1, 6, dtype=np.uint8), 12).reshape(5, 4, 3)
        return obs


def test_pictures_keep_their_agents_and_are_scaled():
    model = HMASD("MlpPolicy", Pictures(), **{**FAST, "n_steps": 8})
    model.learn(16)
    stored = model.rollout_buffer.observations["obs"]
    assert stored.dtype == np.uint8
    for agent in range(5):
        assert set(stored[:, :, agent].ravel().tolist()) == {51 * (agent + 1)}
    batch = next(model.rollout_buffer.actor_batches(4, 8, np.random.default_rng(0)))
    seen = model.policy.flat_obs({"obs": th.from_numpy(stored[0])})
    th.testing.assert_close(seen[0, :, 0], th.tensor([0.2, 0.4, 0.6, 0.8, 1.0]))
    assert set(np.round(batch.obs[0, :, 0].numpy(), 4).tolist()) == {np.float32(x).round(4) for x in (0.2, 0.4, 0.6, 0.8, 1.0)}


def test_registered_games_named_by_place_and_by_id():
    for name in ("AliceAndBob-v0", "hmasd_sb3.envs.alice_and_bob:parallel_env"):
        assert HMASD("MlpPolicy", name, n_steps=8, device="cpu").n_envs == 1


def test_models_saved_by_the_first_release_can_be_loaded():
    """What loading asks for: parameters of the same names in the same order, as the optimizers hold them in one vector."""
    names = [name for name, _ in make_model().policy.coordinator.named_parameters()]
    assert names[1:5] == ["embed_state.0.weight", "embed_state.0.bias", "embed_obs.0.weight", "embed_obs.0.bias"]
    assert not [name for name in names if "features" in name or "absent" in name]
