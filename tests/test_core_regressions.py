"""Defects that once slipped, or could slip, through: each test names the one it guards against."""

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv
from teams import FAST, RandomTeam, make_model, randomise

from hmasd_sb3 import HMASD
from hmasd_sb3.losses import discriminator_loss
from hmasd_sb3.policies.flat import FlatOptimizer
from hmasd_sb3.policies.policy import NETWORKS
from hmasd_sb3.rollouts import evaluate_rollout
from hmasd_sb3.sync import SyncError
from hmasd_sb3.updates import (
    DiscriminatorSettings,
    PPOSettings,
    update_actor,
    update_coordinator,
    update_critic,
    update_discriminators,
)

ENDS = {"p_terminate": 0.15, "p_truncate": 0.2}


def collected(rollouts=2, **kwargs):
    """A model with skewed parameters and its last rollout not learnt from yet; the ones before it were."""
    model = make_model(**{"env_kwargs": ENDS, **kwargs})
    randomise(model)
    _, callback = model._setup_learn(1000)
    for number in range(rollouts):
        model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
        if number < rollouts - 1:
            model.sync_update()
    return model


def evaluated(**kwargs):
    """As :func:`collected`, with rewards, values and advantages filled in; also the critic's memory before and after."""
    model = collected(**kwargs)
    before = model._critic_hidden.clone()
    model.rollout_buffer.finish(model._last_obs)
    after, stats = evaluate_rollout(model.policy, model.rollout_buffer, before, model._return_settings())
    return model, before, after, stats


# ---------------------------------------------------------------- values, bootstraps and rewards of a rollout


def critic_walk(model, critic_hidden):
    """Low-level values of one environment after the other, one step at a time, in reward units without any offset.

    Returns the value at each step, the value that follows it, and the memory after the rollout.
    """
    critic, buffer = model.policy.critic, model.rollout_buffer
    last_rows = {(row.step, row.env): row.observation["state"] for row in buffer.terminal_rows}
    values, following = np.zeros((2, *buffer.values.shape))
    after = th.zeros_like(critic_hidden)

    def step(state, t, b, memory):
        z, skills = th.tensor(buffer.team_skill[t, b])[None], th.tensor(buffer.agent_skills[t, b])[None]
        inputs = critic._inputs(th.tensor(state)[None], z, skills)
        memory = critic.gru(inputs[None], memory[None])[1][0]
        return critic._values(memory)[0].numpy(), memory

    with th.no_grad():
        for b in range(buffer.n_envs):
            memory = critic_hidden[b : b + 1]
            for t in range(buffer.n_steps):
                if buffer.episode_starts[t, b]:
                    memory = th.zeros_like(memory)
                values[t, b], memory = step(buffer.observations["state"][t, b], t, b, memory)
                if buffer.truncated[t, b]:
                    following[t, b] = step(last_rows[t, b], t, b, memory)[0]
                elif t == buffer.n_steps - 1:
                    following[t, b] = step(model._last_obs["state"][b], t, b, memory)[0]
            after[b] = memory[0]
    return values, following, after


@pytest.mark.parametrize("offset", [False, True])
def test_low_level_targets_in_every_case(offset):
    """Guards: a bootstrap from the wrong state, memory or skill; the value normalisation used in the wrong direction; the
    constant added or taken off in one place only; the critic's memory lost or handed on one step old."""
    model = collected(critic_chance_offset=offset, normalize_advantage=False, team_reward_coef=1.0)
    before, norm = model._critic_hidden.clone(), model.policy.low_value_norm
    assert before.abs().max() > 0.01, "the case must have a memory from the rollout before"
    model.rollout_buffer.finish(model._last_obs)
    raw_values, raw_following, expected_after = critic_walk(model, before)
    mean, std = norm.statistics()
    assert abs(std - 1.0) > 0.05
    constant = -(0.1 * np.log(2) + 0.2 * np.log(4)) / (1 - 0.99) if offset else 0.0
    values, following = raw_values * std + mean + constant, raw_following * std + mean + constant
    after, _ = evaluate_rollout(model.policy, model.rollout_buffer, before, model._return_settings())
    buffer = model.rollout_buffer
    assert buffer.truncated[:-1].any()
    assert buffer.terminated[:-1].any()
    assert not buffer.episode_ends[-1].all()
    following[buffer.terminated] = 0.0
    runs_on = ~buffer.episode_ends
    runs_on[-1] = False
    following[:-1][runs_on[:-1]] = values[1:][runs_on[:-1]]
    advantages = np.zeros_like(values)
    running = 0.0
    for t in reversed(range(buffer.n_steps)):
        keep = 0.99 * 0.95 * (1.0 - buffer.episode_ends[t])[:, None]
        running = buffer.agent_rewards[t] + 0.99 * following[t] - values[t] + keep * running
        advantages[t] = running
    np.testing.assert_allclose(buffer.advantages, advantages, atol=2e-4)
    np.testing.assert_allclose(buffer.values, values, atol=2e-4)
    np.testing.assert_allclose(buffer.returns, advantages + values - constant, atol=3e-4)
    th.testing.assert_close(after, expected_after, atol=1e-5, rtol=0)


@pytest.mark.parametrize("bootstrap", [False, True])
def test_high_level_targets_in_every_case(bootstrap):
    """Guards: V_h read at another step than the assignment's; a bootstrap lost or taken from the wrong state; the value
    normalisation used in the wrong direction; a segment that looks into the next episode; statistics over empty rows."""
    model = collected(skill_timeout_bootstrap=bootstrap, normalize_advantage=False, skill_interval=3)
    policy, buffer = model.policy, model.rollout_buffer
    buffer.finish(model._last_obs)
    mean, std = policy.high_value_norm.statistics()
    sums = [float(s) for s in (policy.high_value_norm.mean_sum, policy.high_value_norm.weight_sum)]
    last_rows = {(row.step, row.env): row.observation for row in buffer.terminal_rows}

    def value(obs):
        with th.no_grad():
            return (
                policy.coordinator.values(th.tensor(obs["state"])[None], th.tensor(obs["obs"])[None])[0].numpy() * std + mean
            )

    def stored(t, b):
        return {key: buffer.observations[key][t, b] for key in ("state", "obs")}

    evaluate_rollout(policy, buffer, model._critic_hidden, model._return_settings())
    all_returns = []
    for b in range(buffer.n_envs):
        running = 0.0
        for start in reversed(np.flatnonzero(buffer.assigned[:, b])):
            end = next(t for t in range(start, buffer.n_steps) if buffer.segment_ends[t, b])
            follows = np.zeros(3)
            if buffer.truncated[end, b]:
                follows = value(last_rows[end, b]) if bootstrap else follows
            elif not buffer.terminated[end, b]:
                follows = value(stored(end + 1, b))
            here = value(stored(start, b))
            delta = buffer.rewards[start : end + 1, b].sum() + 0.99 * follows - here
            linked = not buffer.episode_ends[end, b] and end < buffer.n_steps - 1
            running = delta + (0.99 * 0.95 * running if linked else 0.0)
            np.testing.assert_allclose(buffer.skill_advantages[start, b], running, atol=1e-4)
            np.testing.assert_allclose(buffer.skill_values[start, b], here, atol=1e-4)
            np.testing.assert_allclose(buffer.skill_returns[start, b], running + here, atol=1e-4)
            all_returns.append(running + here)
    expected = (0.99 * sums[0] + 0.01 * np.mean(all_returns)) / (0.99 * sums[1] + 0.01)
    assert policy.high_value_norm.statistics()[0] == pytest.approx(expected, abs=1e-4)
    assert not buffer.assigned.all()


def test_high_level_advantages_are_scaled_over_assignments_alone():
    """Guards: the zeros between assignments entering mean and deviation."""
    buffer = evaluated(skill_advantage_floor=0.0)[0].rollout_buffer
    kept = buffer.skill_advantages[buffer.assigned]
    assert kept.mean() == pytest.approx(0.0, abs=1e-5)
    assert kept.std() == pytest.approx(1.0, abs=1e-4)


def test_logged_rewards_are_weighted_and_add_up():
    """Guards: a part of the reward logged without its coefficient."""
    model, _, _, stats = evaluated(team_reward_coef=2.0, team_diversity_coef=0.3, agent_diversity_coef=0.7)
    assert sum(stats) == pytest.approx(float(model.rollout_buffer.agent_rewards.mean()), abs=1e-5)
    assert stats.team == pytest.approx(2.0 * model.rollout_buffer.rewards.mean(), abs=1e-5)


def test_running_statistics_follow_the_rollouts():
    """Guards: value statistics or input scales that are never updated."""
    policy = collected().policy
    assert policy.low_value_norm.statistics() != (0.0, 1.0)
    assert policy.high_value_norm.statistics() != (0.0, 1.0)
    assert float(policy.discriminators.state_scaler.count) == 48
    assert float(policy.discriminators.obs_scaler.count) == 48 * 2


def test_ends_of_an_earlier_rollout_are_forgotten():
    """Guards: last observations of the rollout before, put where this one has no end."""
    buffer = collected(rollouts=3).rollout_buffer
    assert sorted([row.step, row.env] for row in buffer.terminal_rows) == np.argwhere(buffer.episode_ends).tolist()


# ---------------------------------------------------------------- what each network's update minimises

SETTINGS = PPOSettings(
    n_epochs=1, batch_size=48, sequence_length=4, clip_range=0.05, clip_range_vf=0.1, ent_coef=0.07, vf_coef=0.3,
    huber_delta=0.2, max_grad_norm=0.6, target_kl=None,
)  # fmt: skip
"""No two values alike, and small enough that every clip and every Huber tail is in use."""


@pytest.fixture
def moved(monkeypatch):
    """Makes a model with a complete rollout and parameters that have moved since, so that no ratio is 1.

    Also returns what optimizers are asked to do from then on, instead of doing it: (network, loss, largest norm).
    """

    def make(**kwargs):
        model = evaluated(**kwargs)[0]
        randomise(model, scale=0.1, seed=1)
        steps = []

        def record(self, loss, max_grad_norm):
            steps.append((self.name, float(loss.detach()), max_grad_norm))
            return 0.0

        monkeypatch.setattr(FlatOptimizer, "step", record)
        return model, steps

    return make


def surrogate(new, old, advantage):
    ratio = np.exp(new - old)
    return -np.minimum(ratio * advantage, np.clip(ratio, 0.95, 1.05) * advantage)


def clipped_huber(value, old, target):
    def huber(error):
        error = np.abs(error)
        return np.where(error <= 0.2, 0.5 * error**2, 0.2 * (error - 0.1))

    return np.maximum(huber(target - value), huber(target - old - np.clip(value - old, -0.1, 0.1)))


def steps_by_environment(buffer):
    """Every step (t, b), environment after environment, and whether a sequence starts there from the stored memory."""
    for b in range(buffer.n_envs):
        since = 0
        for t in range(buffer.n_steps):
            since = 0 if t == 0 or buffer.episode_starts[t, b] else since + 1
            yield t, b, since % SETTINGS.sequence_length == 0


def test_coordinator_minimises_the_stated_loss(moved):
    """Guards: a coefficient, clip or Huber delta that the coordinator ignores; the entropy's sign; values and targets in
    reward units; the wrong step's observations."""
    model, steps = moved()
    policy, buffer = model.policy, model.rollout_buffer
    mean, std = policy.high_value_norm.statistics()
    policy_terms, value_terms, entropies = [], [], []
    for t, b in np.argwhere(buffer.assigned):
        arrays = (buffer.observations["state"], buffer.observations["obs"], buffer.team_skill, buffer.agent_skills)
        with th.no_grad():
            scored = policy.coordinator.evaluate(*(th.from_numpy(a[t : t + 1, b]) for a in arrays))
        log_probs, entropy, values = (x[0].numpy() for x in scored)
        policy_terms.append(surrogate(log_probs, buffer.skill_log_probs[t, b], buffer.skill_advantages[t, b]))
        target = (buffer.skill_returns[t, b] - mean) / std
        value_terms.append(clipped_huber(values, buffer.skill_value_outputs[t, b], target))
        entropies.append(entropy)
    update_coordinator(policy, buffer, SETTINGS)
    expected = np.mean(policy_terms) - 0.07 * np.mean(entropies) + 0.3 * np.mean(value_terms)
    assert steps == [("coordinator", pytest.approx(expected, abs=1e-5), 0.6)]


def test_actor_minimises_the_stated_loss_over_real_steps(moved):
    """Guards: padding that counts in loss or entropy; the entropy's sign; memories of another step; masks left out."""
    model, steps = moved(env_kwargs={"kind": "masked", **ENDS})
    actor, buffer = model.policy.actor, model.rollout_buffer
    policy_terms, entropies = [], []
    with th.no_grad():
        for t, b, begins in steps_by_environment(buffer):
            if begins:
                memory = th.from_numpy(buffer.hidden[t, b])
            inputs = actor._inputs(th.from_numpy(buffer.observations["obs"][t, b]), th.from_numpy(buffer.agent_skills[t, b]))
            memory = actor.gru(inputs[None], memory[None])[1][0]
            log_probs = actor.head.log_probs(
                actor.norm(memory), th.from_numpy(buffer.observations["action_mask"][t, b]).bool()
            ).numpy()
            taken = log_probs[range(2), buffer.actions[t, b]]
            policy_terms.append(surrogate(taken, buffer.log_probs[t, b], buffer.advantages[t, b]))
            entropies.append(-(np.exp(log_probs) * log_probs).sum(-1))
    stats = update_actor(model.policy, buffer, SETTINGS, np.random.default_rng(0))
    assert len(policy_terms) == 48
    assert steps == [("actor", pytest.approx(np.mean(policy_terms) - 0.07 * np.mean(entropies), abs=1e-5), 0.6)]
    assert stats.first_ratio_deviation > 0.01


def test_critic_minimises_the_stated_loss_over_real_steps(moved):
    """Guards: padding that counts; targets that are not normalised; a coefficient, clip or memory left out; skills or
    returns of another step."""
    model, steps = moved(n_agent_skills=3)
    critic, buffer = model.policy.critic, model.rollout_buffer
    mean, std = model.policy.low_value_norm.statistics()
    terms = []
    with th.no_grad():
        for t, b, begins in steps_by_environment(buffer):
            if begins:
                memory = buffer.critic_hidden[t, b]
            arrays = (buffer.observations["state"], buffer.team_skill, buffer.agent_skills)
            inputs = critic._inputs(*(th.from_numpy(a[t : t + 1, b]) for a in arrays))
            memory = critic.gru(inputs[None], memory[None, None])[1][0, 0]
            target = (buffer.returns[t, b] - mean) / std
            terms.append(clipped_huber(critic._values(memory).numpy(), buffer.value_outputs[t, b], target))
    update_critic(model.policy, buffer, SETTINGS, np.random.default_rng(0))
    assert len(terms) == 48
    assert steps == [("critic", pytest.approx(0.3 * np.mean(terms), abs=1e-5), 0.6)]


def test_discriminators_minimise_cross_entropy_of_matching_rows(moved):
    """Guards: skills taken from other rows or steps than the states; training noise that is never added; the norm limit."""
    model, steps = moved()
    buffer, policy = model.rollout_buffer, model.policy
    buffer.team_skill[:] = np.random.default_rng(0).integers(2, size=(12, 4))
    state, obs = (th.from_numpy(buffer.successors(key)).flatten(0, 1) for key in ("state", "obs"))
    team_skill, agent_skills = (th.from_numpy(a).flatten(0, 1) for a in (buffer.team_skill, buffer.agent_skills))
    with th.no_grad():
        team, agents = policy.discriminators.logits(state, obs, team_skill)
        other = policy.discriminators.logits(state, obs, 1 - team_skill)[1]
    assert not th.allclose(agents, other), "q_d must see the team skill"
    expected = float(discriminator_loss(team, team_skill) + discriminator_loss(agents, agent_skills))
    for noise in (0.0, 5.0):
        update_discriminators(policy, buffer, DiscriminatorSettings(1, 48, noise, 0.6), np.random.default_rng(0))
    assert steps[0] == ("discriminators", pytest.approx(expected, abs=1e-5), 0.6)
    assert abs(steps[1][1] - expected) > 1e-2


def test_every_epoch_takes_every_minibatch_in_a_new_order(moved):
    """Guards: later epochs that do nothing; minibatches that are the same in every epoch."""
    model, steps = moved()
    settings = SETTINGS._replace(n_epochs=3, batch_size=12)
    update_actor(model.policy, model.rollout_buffer, settings, np.random.default_rng(0))
    update_critic(model.policy, model.rollout_buffer, settings, np.random.default_rng(0))
    update_coordinator(model.policy, model.rollout_buffer, settings)
    names = [name for name, _, _ in steps]
    assert names == ["actor"] * 12 + ["critic"] * 12 + ["coordinator"] * 3
    losses = [loss for _, loss, _ in steps]
    assert sorted(losses[12:16]) != pytest.approx(sorted(losses[16:20]), abs=1e-7)


def test_kl_limit_ends_the_whole_update(monkeypatch):
    """Guards: a stop that leaves one epoch only, so that the next one goes on."""
    model = collected(target_kl=1e-9, n_epochs=5, batch_size=24)
    calls = []
    evaluate = model.policy.actor.evaluate
    monkeypatch.setattr(model.policy.actor, "evaluate", lambda *args: calls.append(1) or evaluate(*args))
    model.sync_update()
    assert len(calls) == 2, "a step, and the look that finds the limit passed"


# ---------------------------------------------------------------- the algorithm around it


def test_every_network_follows_its_schedule():
    """Guards: a network whose learning rate stays at its first value; discriminators on the others' schedule."""
    model = make_model(learning_rate=lambda p: 1e-3 * (1 + p), discriminator_learning_rate=lambda p: 1e-4 * (1 + p))
    model.learn(48 * 2)
    rates = {name: getattr(model.policy, f"{name}_optimizer").param_groups[0]["lr"] for name in NETWORKS}
    assert rates == pytest.approx({"coordinator": 1e-3, "actor": 1e-3, "critic": 1e-3, "discriminators": 1e-4})


def test_every_optimizer_is_saved_and_restored(tmp_path):
    """Guards: an optimizer missing from the file, which a comparison of what is in the file cannot see."""
    model = make_model()
    model.learn(48 * 2)
    model.save(tmp_path / "model")
    loaded = HMASD.load(tmp_path / "model", device="cpu")
    for name in NETWORKS:
        mine, theirs = (m.policy.flat(name).optimizer.state_dict()["state"] for m in (model, loaded))
        assert mine[0]["exp_avg_sq"].abs().sum() > 0
        assert float(mine[0]["step"]) == float(theirs[0]["step"])
        th.testing.assert_close(mine[0]["exp_avg"], theirs[0]["exp_avg"], rtol=0, atol=0)


def test_building_the_policy_leaves_policy_kwargs_alone(tmp_path):
    """Guards: entries added to the caller's dict, after which ``load`` refuses the same arguments."""
    kwargs = {"hidden_size": 16}
    model = make_model(policy_kwargs=kwargs)
    assert kwargs == model.policy_kwargs == {"hidden_size": 16}
    model.save(tmp_path / "model")
    HMASD.load(tmp_path / "model", device="cpu", policy_kwargs={"hidden_size": 16})


def test_a_batch_is_learnt_from_once():
    """Guards: a second update on the batch of an older version."""
    model = collected(rollouts=1)
    model.sync_update()
    with pytest.raises(SyncError, match="An update needs 48 samples"):
        model.sync_update()
    assert model.policy_version == 1


def test_a_stopping_callback_loses_no_step():
    """Guards: the step a callback stopped at being taken in the environments but not by the model."""

    class Stop(BaseCallback):
        def _on_step(self):
            return self.n_calls < 7

    model = make_model(env_kwargs=ENDS)
    model.learn(1000, callback=Stop())
    for b, env in enumerate(model.env.buf_obs["state"]):
        np.testing.assert_array_equal(model._last_obs["state"][b], env)
    assert not model._gate.collecting, "the gate is closed after a stop"
    with pytest.raises(SyncError, match="collection is disabled"):
        model.store_step(model.decide(), model._last_obs, np.zeros(4), np.zeros(4, dtype=bool), [{}] * 4)


def test_callbacks_see_the_complete_rollout_at_its_end():
    """Guards: ``locals`` of the step before the last one at the end of a rollout."""
    seen = []

    class Watch(BaseCallback):
        def _on_step(self):
            return True

        def _on_rollout_end(self):
            seen.append((self.locals["rollout_buffer"].full, self.locals["rewards"].copy()))

    model = make_model()
    model.learn(48, callback=Watch())
    assert seen[0][0]
    np.testing.assert_array_equal(seen[0][1], model.rollout_buffer.rewards[-1].astype(np.float32))


class Succeeding(RandomTeam):
    """Says at every step that the game was won; only what is said at an episode's end counts."""

    def step(self, action):
        *rest, info = super().step(action)
        return *rest, {**info, "is_success": True}


def test_success_rate_counts_ended_episodes():
    """Guards: the success rate lost, or counted at every step."""
    model = HMASD("MlpPolicy", DummyVecEnv([lambda: Succeeding(p_terminate=0.2) for _ in range(4)]), **FAST)
    model.env.seed(0)
    model.learn(48)
    assert len(model.ep_success_buffer) == model.rollout_buffer.episode_ends.sum() > 0


def test_a_training_run_watches_for_an_inert_team_skill(monkeypatch):
    """Guards: a watch that exists but is never shown a report."""
    model = make_model()
    reports = []
    monkeypatch.setattr(model._inert_watch, "look", reports.append)
    model.learn(48 * 2)
    assert [r["team_accuracy"] for r in reports][-1] == model.logger.name_to_value["skills/team_accuracy"]
    assert len(reports) == 2
