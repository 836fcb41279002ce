"""The algorithm itself: on-policy to float precision, exact at the boundaries, and every hyperparameter does what it names."""

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv
from teams import FAST, RandomTeam, make_model, parameters_of, random_team_vec_env, randomise, same

from hmasd_sb3 import HMASD, ConfusionGatedNoise, paper_settings
from hmasd_sb3.schedules import ExponentialSchedule
from hmasd_sb3.type_aliases import SegmentEnd

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
    model = make_model(env_kwargs={"p_terminate": 0.3}, team_reward_coef=0.0)
    randomise(model)
    _, callback = model._setup_learn(1000)
    model.collect_rollouts(model.env, callback, model.rollout_buffer, 12)
    buffer = model.rollout_buffer
    with th.no_grad():
        scaled = model.policy.discriminators
        row = buffer.terminal_rows[0]
        buffer.finish(model._last_obs)
        pairs = buffer.discriminator_data()
        scaled.update_scalers(pairs.state, pairs.obs.flatten(0, 1))
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
        ("team_reward_coef", 0.0),
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


def test_old_values_are_in_the_units_in_which_the_critic_speaks():
    """With a value clip and returns that drift, the first prediction of an update must equal the stored one."""
    model = make_model(clip_range_vf=0.2, env_kwargs={"reward": 5.0}, team_reward_coef=1.0)
    randomise(model)
    _, callback = model._setup_learn(1000)
    from hmasd_sb3.rollouts import evaluate_rollout

    for _ in range(3):
        model.collect_rollouts(model.env, callback, model.rollout_buffer, 12)
        kept = {key: value.clone() for key, value in model.policy.state_dict().items()}
        before = model._critic_hidden.clone()
        model.sync_update()
    after = model._critic_hidden
    model.policy.load_state_dict(kept)
    evaluate_rollout(model.policy, model.rollout_buffer, before, model._return_settings())
    assert model.policy.low_value_norm.statistics() != (0.0, 1.0)
    batch = next(model.rollout_buffer.critic_batches(4, 48, np.random.default_rng(0)))
    high = model.rollout_buffer.coordinator_batch()
    with th.no_grad():
        low = model.policy.critic.evaluate(batch.state, batch.team_skill, batch.agent_skills, batch.hidden)
        th.testing.assert_close(low * batch.weights, batch.old_values * batch.weights, atol=1e-5, rtol=0)
        th.testing.assert_close(model.policy.coordinator.values(high.state, high.obs), high.old_values, atol=1e-5, rtol=0)
    assert after.abs().max() > 0


def test_advantages_without_spread_and_without_a_floor_are_zero():
    from hmasd_sb3.policies import RandomCoordinator

    kwargs = {"hidden_size": 16, "coordinator_class": RandomCoordinator}
    model = make_model(skill_advantage_floor=0.0, env_kwargs={"reward": 0.0}, policy_kwargs=kwargs)
    model.learn(48)
    assert not model.rollout_buffer.skill_advantages.any()


def test_paper_settings_are_complete_and_run():
    import inspect

    settings = paper_settings("alice_and_bob", n_envs=4)
    left_open = {"policy", "env", "stats_window_size", "tensorboard_log", "verbose", "seed", "device", "_init_setup_model"}
    left_open |= {"on_nan", "max_rollbacks"}  # they change no result
    assert set(inspect.signature(HMASD).parameters) - left_open == set(settings), "defaults must not leak into comparisons"
    model = HMASD("MlpPolicy", random_team_vec_env(4), **{**settings, "n_steps": 8, "batch_size": 32}, device="cpu")
    model.learn(32)
    with pytest.raises(ValueError, match=r"no scenario '4m'; choose one of .*'3m'"):
        paper_settings("4m")


def test_noise_grows_while_skills_are_told_apart_and_shrinks_while_they_are_confused():
    noise = ConfusionGatedNoise(low=0.3, high=1.0, accuracy=0.7, growth=1.1, shrink=0.5)
    assert noise(1.0) == 0.3
    noise.observe(0.7)
    assert noise(0.5) == pytest.approx(0.33)
    for _ in range(50):
        noise.observe(0.9)
    assert noise(0.0) == 1.0
    noise.observe(0.69)
    assert noise(0.0) == 0.5
    for _ in range(5):
        noise.observe(0.0)
    assert noise(0.0) == 0.3
    with pytest.raises(ValueError, match="needs 0 < low <= high"):
        ConfusionGatedNoise(low=2.0)


def test_the_default_noise_follows_the_run_and_belongs_to_one_model(tmp_path):
    first, second = make_model(), make_model()
    assert first.discriminator_noise is not second.discriminator_noise
    first.discriminator_noise.accuracy = 0.01  # everything counts as told apart
    first.learn(48 * 3)
    levels = [0.4 * 1.06**n for n in range(4)]
    assert first.discriminator_noise.level == pytest.approx(levels[3])
    assert second.discriminator_noise.level == 0.4
    assert first.logger.name_to_value["train/discriminators_noise"] == pytest.approx(levels[3])
    first.save(tmp_path / "model")
    loaded = HMASD.load(tmp_path / "model", random_team_vec_env(4), "cpu")
    assert loaded.scheduled("discriminator_noise") == pytest.approx(levels[3])
