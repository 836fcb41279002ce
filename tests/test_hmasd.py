"""The algorithm as SB3 users meet it: on-policy to float precision, saved, loaded, evaluated, and strict about input."""

import numpy as np
import pytest
import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecMonitor, VecNormalize
from teams import FAST, RandomTeam, make_model, random_team_vec_env, randomise

from hmasd_sb3 import HMASD, make_team_vec_env
from hmasd_sb3.policies.flat import NonFiniteError
from hmasd_sb3.schedules import ExponentialSchedule
from hmasd_sb3.type_aliases import SegmentEnd
from hmasd_sb3.validation import InvalidTransitionError


def parameters_of(model):
    return {name: p.detach().clone() for name, p in model.policy.named_parameters()}


def same(first, second):
    return all(th.equal(first[name], second[name]) for name in first)


# ---------------------------------------------------------------- on-policy


@pytest.mark.parametrize("kind", ["discrete", "continuous", "masked"])
@pytest.mark.parametrize("mode", ["continue", "reassign"])
@pytest.mark.parametrize("n_steps", [12, 13])
def test_first_ratios_are_one_with_desynchronised_episodes(kind, mode, n_steps):
    """After several updates, with episodes ended in both ways at different times in every environment."""
    model = make_model(env_kwargs={"kind": kind}, skill_at_rollout_end=mode, n_steps=n_steps, batch_size=n_steps * 2)
    randomise(model)
    deviations = []

    class Watch(BaseCallback):
        def _on_step(self):
            return True

        def _on_rollout_start(self):
            logged = self.logger.name_to_value
            if "sync/actor_first_ratio_deviation" in logged:
                deviations.append([logged[f"sync/{n}_first_ratio_deviation"] for n in ("actor", "coordinator")])

    model.learn(n_steps * 4 * 8, callback=Watch(), log_interval=1000)
    assert len(deviations) == 7
    assert np.max(deviations) < 1e-5
    ends = model.rollout_buffer.segment_ends
    assert len(set(ends.ravel().tolist())) >= 4, "the case must contain several kinds of segment ends"


def test_a_ratio_taken_for_another_action_would_show():
    """The check above can fail: with resampled actions, or memories set to zero, ratios leave 1."""
    from hmasd_sb3.updates import update_actor

    for spoil in ("actions", "hidden"):
        model = make_model()
        randomise(model)
        _, callback = model._setup_learn(1000)
        for _ in range(2):
            model.collect_rollouts(model.env, callback, model.rollout_buffer, 12)
            if model.policy_version == 0:
                model.sync_update()
        if spoil == "actions":
            model.rollout_buffer.actions[:] = (model.rollout_buffer.actions + 1) % 3
        else:
            model.rollout_buffer.hidden[:] = 0.0
        settings = model._ppo_settings(1, "ent_coef", None)
        stats = update_actor(model.policy, model.rollout_buffer, settings, np.random.default_rng(0))
        assert stats.first_ratio_deviation > 1e-3


class Counting(RandomTeam):
    """Reward 1 in every step and an observation that never changes, so that values have closed forms."""

    def _observe(self):
        return {"obs": np.ones((2, 3), dtype=np.float32), "state": np.ones(4, dtype=np.float32)}


def constant_critics(model, low, high):
    """Make both critics say a constant in reward units."""
    with th.no_grad():
        for head, value in ((model.policy.critic.value, low), (model.policy.coordinator.value_head[-1], high)):
            head.weight.zero_()
            head.bias.fill_(value)


@pytest.mark.parametrize(
    ("p_terminate", "p_truncate", "bootstraps"), [(1.0, 0.0, False), (0.0, 1.0, True)], ids=["terminated", "truncated"]
)
def test_two_bootstraps_kept_apart_at_one_step_episodes(p_terminate, p_truncate, bootstraps):
    """Every episode lasts one step of reward 1; critics say 3 (low) and 5 (high): advantages are known exactly."""
    from stable_baselines3.common.vec_env import DummyVecEnv

    env = DummyVecEnv([lambda: Counting(p_terminate=p_terminate, p_truncate=p_truncate, reward=1.0) for _ in range(3)])
    model = HMASD(
        "MlpPolicy", env, **{**FAST, "normalize_advantage": False, "critic_chance_offset": False, "team_reward_coef": 2.0},
        gamma=0.9, skill_gamma=0.5, team_diversity_coef=0.0, agent_diversity_coef=0.0, skill_timeout_bootstrap=True,
    )  # fmt: skip
    constant_critics(model, 3.0, 5.0)
    model.learn(36)
    buffer = model.rollout_buffer
    np.testing.assert_allclose(buffer.advantages, 2.0 + (0.9 * 3.0 if bootstraps else 0.0) - 3.0, rtol=1e-5)
    np.testing.assert_allclose(
        buffer.skill_advantages[buffer.assigned], 1.0 + (0.5 * 5.0 if bootstraps else 0.0) - 5.0, rtol=1e-5
    )
    assert buffer.assigned.all()
    kind = SegmentEnd.TRUNCATED if bootstraps else SegmentEnd.TERMINATED
    assert (buffer.segment_ends == kind).all()


def test_time_limit_can_be_an_end_at_the_high_level_alone():
    from stable_baselines3.common.vec_env import DummyVecEnv

    env = DummyVecEnv([lambda: Counting(p_terminate=0.0, p_truncate=1.0, reward=1.0) for _ in range(3)])
    kwargs = {**FAST, "normalize_advantage": False, "critic_chance_offset": False, "team_reward_coef": 1.0}
    model = HMASD("MlpPolicy", env, **kwargs, team_diversity_coef=0, agent_diversity_coef=0)
    assert not model.skill_timeout_bootstrap, "the default"
    constant_critics(model, 3.0, 5.0)
    model.learn(36)
    np.testing.assert_allclose(model.rollout_buffer.advantages, 1.0 + 0.99 * 3.0 - 3.0, rtol=1e-5)
    np.testing.assert_allclose(model.rollout_buffer.skill_advantages, 1.0 - 5.0, rtol=1e-5)


def test_one_agent_one_skill_one_step_is_ppo():
    """N = 1, k = 1, one skill, no intrinsic reward: both levels give PPO's advantages for the same values."""
    model = make_model(
        env_kwargs={"n_agents": 1}, skill_interval=1, n_team_skills=1, n_agent_skills=1, team_reward_coef=1.0,
        team_diversity_coef=0.0, agent_diversity_coef=0.0, normalize_advantage=False, skill_timeout_bootstrap=True,
    )  # fmt: skip
    randomise(model)
    _, callback = model._setup_learn(1000)
    model.collect_rollouts(model.env, callback, model.rollout_buffer, 12)
    last_obs, ends = model._last_obs, model._last_episode_starts
    before = {key: value.clone() for key, value in model.policy.state_dict().items()}
    model.sync_update()
    buffer = model.rollout_buffer

    # SB3's own buffer, fed with the same rewards and values; its bootstrap goes into the reward.
    model.policy.load_state_dict(before)
    from gymnasium import spaces
    from stable_baselines3.common.buffers import RolloutBuffer

    for level, values in (("low", buffer.values[..., 0]), ("high", buffer.skill_values[..., 0])):
        reference = RolloutBuffer(
            12, spaces.Box(-1, 1, (1,)), spaces.Discrete(2), device="cpu", gamma=0.99, gae_lambda=0.95, n_envs=4
        )
        rewards = buffer.rewards.copy()
        for row in buffer.terminal_rows:
            if buffer.truncated[row.step, row.env]:
                rewards[row.step, row.env] += 0.99 * terminal_value(model, buffer, row, level)
        for t in range(12):
            reference.add(
                np.zeros((4, 1)), np.zeros((4, 1)), rewards[t], buffer.episode_starts[t], th.tensor(values[t]), th.zeros(4)
            )
        reference.compute_returns_and_advantage(th.tensor(last_value(model, buffer, last_obs, level)), ends)
        ours = buffer.advantages[..., 0] if level == "low" else buffer.skill_advantages[..., 0]
        np.testing.assert_allclose(ours, reference.advantages, atol=2e-5)


def terminal_value(model, buffer, row, level):
    state = th.tensor(row.observation["state"])[None]
    obs = th.tensor(row.observation["obs"])[None]
    return float(value_at(model, buffer, state, obs, row.step, [row.env], level)[0])


def last_value(model, buffer, last_obs, level):
    return value_at(model, buffer, th.tensor(last_obs["state"]), th.tensor(last_obs["obs"]), 11, list(range(4)), level).numpy()


def value_at(model, buffer, state, obs, step, envs, level):
    zeros = th.zeros(len(envs), dtype=th.long)
    with th.no_grad():
        if level == "high":
            return model.policy.coordinator.values(state, obs)[:, 0]
        before = buffer.critic_hidden[step, envs]
        now = th.tensor(buffer.observations["state"][step, envs])
        inputs = model.policy.critic._inputs(now, zeros, zeros[:, None])
        after = th.gru_cell(
            inputs,
            before,
            *(getattr(model.policy.critic.gru, n) for n in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")),
        )
        return model.policy.critic.step(state, zeros, zeros[:, None], after)[:, 0]


def test_intrinsic_reward_looks_at_the_terminal_observation():
    model = make_model(env_kwargs={"p_terminate": 0.3})
    randomise(model)
    _, callback = model._setup_learn(1000)
    model.collect_rollouts(model.env, callback, model.rollout_buffer, 12)
    buffer = model.rollout_buffer
    with th.no_grad():
        scaled = model.policy.discriminators
        row = buffer.terminal_rows[0]
        buffer.finish(model._last_obs)
        pairs = buffer.discriminator_data()
        scaled.update_scalers(pairs.state, pairs.obs)
        z, skills = buffer.team_skill[row.step, row.env], buffer.agent_skills[row.step, row.env]
        team, agents = scaled.logits(
            th.tensor(row.observation["state"])[None], th.tensor(row.observation["obs"])[None], th.tensor([z])
        )
        expected = 0.1 * th.log_softmax(team, -1)[0, z] + 0.2 * th.log_softmax(agents, -1)[0, range(2), skills]
    from hmasd_sb3.rollouts import evaluate_rollout

    # the scalers are up to date already; a second look at the same data must not be needed
    scaled.update_scalers = lambda *_: None
    evaluate_rollout(model.policy, buffer, model._critic_hidden, model._return_settings())
    np.testing.assert_allclose(buffer.agent_rewards[row.step, row.env], expected, atol=1e-5)


def test_chance_offset_moves_the_critics_start_and_no_td_error():
    """With critics that say (offset + x) directly or through the offset, advantages agree."""
    models = []
    for use_offset in (True, False):
        model = make_model(critic_chance_offset=use_offset, normalize_advantage=False)
        constant = -(0.1 * np.log(2) + 0.2 * np.log(4)) / (1 - 0.99)
        if not use_offset:
            with th.no_grad():
                model.policy.critic.value.bias.add_(float(constant))
        model.learn(48)
        models.append(model)
    with_offset, without = (m.rollout_buffer for m in models)
    np.testing.assert_allclose(with_offset.advantages, without.advantages, atol=1e-3)
    np.testing.assert_allclose(with_offset.returns, without.returns - constant, atol=1e-3)


# ---------------------------------------------------------------- hyperparameters do what they name


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("learning_rate", 1e-5),
        ("batch_size", 24),
        ("n_epochs", 3),
        ("gamma", 0.5),
        ("gae_lambda", 0.1),
        ("clip_range", 1e-4),
        ("clip_range_vf", 1e-4),
        ("normalize_advantage", False),
        ("ent_coef", 1.0),
        ("vf_coef", 0.1),
        ("max_grad_norm", 1e-6),
        ("target_kl", 1e-9),
        ("skill_interval", 2),
        ("n_team_skills", 3),
        ("n_agent_skills", 2),
        ("team_reward_coef", 1.0),
        ("team_diversity_coef", 0.5),
        ("agent_diversity_coef", 0.5),
        ("skill_ent_coef", 1.0),
        ("skill_n_epochs", 4),
        ("skill_gamma", 0.1),
        ("skill_target_kl", 1e-9),
        ("skill_advantage_floor", 5.0),
        ("skill_timeout_bootstrap", True),
        ("skill_at_rollout_end", "reassign"),
        ("sequence_length", 2),
        ("critic_chance_offset", False),
        ("huber_delta", 0.01),
        ("discriminator_learning_rate", 1e-5),
        ("discriminator_n_updates", 5),
        ("discriminator_batch_size", 8),
        ("discriminator_noise", 3.0),
        ("policy_kwargs", {"hidden_size": 16, "value_norm": False}),
        ("policy_kwargs", {"hidden_size": 16, "value_norm_beta": 0.0}),
        ("policy_kwargs", {"hidden_size": 16, "critic_sees_agent_skills": False}),
        ("policy_kwargs", {"hidden_size": 16, "coordinator_kwargs": {"n_heads": 2}}),
        ("policy_kwargs", {"hidden_size": 16, "coordinator_kwargs": {"n_blocks": 2}}),
        ("policy_kwargs", {"hidden_size": 16, "optimizer_class": th.optim.SGD}),
    ],
)
def test_hyperparameter_changes_what_is_learnt(name, value, baseline):
    model = make_model(**{**LEARNABLE, name: value})
    model.learn(48 * 3)
    changed = parameters_of(model)
    assert set(changed) != set(baseline) or any(
        p.shape != baseline[n].shape or not th.equal(p, baseline[n]) for n, p in changed.items()
    )


LEARNABLE = {"learning_rate": 0.02, "env_kwargs": {"p_truncate": 0.2}}


@pytest.fixture(scope="module")
def baseline():
    model = make_model(**LEARNABLE)
    model.learn(48 * 3)
    return parameters_of(model)


def test_same_seed_same_weights(baseline):
    model = make_model(**LEARNABLE)
    model.learn(48 * 3)
    assert same(parameters_of(model), baseline)
    other = make_model(**{**LEARNABLE, "seed": 1})
    other.learn(48 * 3)
    assert not same(parameters_of(other), baseline)


def test_schedules_are_followed():
    model = make_model(
        learning_rate=lambda p: 1e-3 * p, ent_coef=lambda p: p, discriminator_noise=ExponentialSchedule(0.1, 10.0, 0.5)
    )
    model._current_progress_remaining = 0.75
    assert model.scheduled("ent_coef") == 0.75
    assert model.scheduled("discriminator_noise") == pytest.approx(1.0)
    model._current_progress_remaining = 0.25
    assert model.scheduled("discriminator_noise") == pytest.approx(10.0)
    model.learn(48 * 2)
    assert model.policy.actor_optimizer.param_groups[0]["lr"] == 0.0, "progress is 0 at the last update"
    with pytest.raises(ValueError, match="start > 0"):
        ExponentialSchedule(0.0, 1.0, 0.5)


# ---------------------------------------------------------------- SB3's tools


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
    loaded = HMASD.load(tmp_path / "model", env=env, device="cpu")
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
    assert model.policy_version == 2


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


# ---------------------------------------------------------------- wrong input


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
    from stable_baselines3.common.vec_env import DummyVecEnv

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
    with pytest.raises(NonFiniteError, match="actor's loss is nan"):
        model.sync_update()
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
