"""Defects that once slipped, or could slip, through: each test names the one it guards against."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv
from teams import FAST, RandomTeam, make_model, randomise

from hmasd_sb3 import HMASD, updates
from hmasd_sb3.losses import discriminator_loss
from hmasd_sb3.normalization import InputScaler, ValueNorm
from hmasd_sb3.policies.flat import FlatOptimizer
from hmasd_sb3.policies.policy import NETWORKS
from hmasd_sb3.returns import generalized_advantages
from hmasd_sb3.rollouts import evaluate_rollout
from hmasd_sb3.sync import SyncError
from hmasd_sb3.type_aliases import SegmentEnd
from hmasd_sb3.updates import DiscriminatorSettings, PPOSettings

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
    """As :func:`collected`, with rewards, values and advantages filled in; and the mean rewards."""
    model = collected(**kwargs)
    model.rollout_buffer.finish(model._last_obs)
    arguments = (model.policy, model.rollout_buffer, model._critic_hidden, model._return_settings())
    return model, evaluate_rollout(*arguments)[1]


def mix_skills(buffer):
    """Other skills at every step, so that reading them at a wrong place shows."""
    rng = np.random.default_rng(0)
    buffer.team_skill[:] = rng.integers(2, size=buffer.team_skill.shape)
    buffer.agent_skills[:] = rng.integers(3, size=buffer.agent_skills.shape)


def critic_walk(critic, buffer, hidden):
    """Low-level values of every step and of what follows it (normalised units), and the memory after the rollout."""
    successors = buffer.successors("state")
    values, following = np.zeros((2, *buffer.values.shape))
    hidden = hidden.clone()

    def step(state, t, b):
        skills = th.tensor(buffer.team_skill[t, b]), th.tensor(buffer.agent_skills[t, b])
        memory = critic.gru(critic._inputs(th.tensor(state), *skills)[None], hidden[b : b + 1])[1][0]
        return critic._values(memory).numpy(), memory

    with th.no_grad():
        for t, b in np.ndindex(buffer.rewards.shape):
            if buffer.episode_starts[t, b]:
                hidden[b] = 0.0
            values[t, b], hidden[b] = step(buffer.observations["state"][t, b], t, b)
            following[t, b] = step(successors[t, b], t, b)[0]
    return values, following, hidden


@pytest.mark.parametrize("offset", [False, True])
def test_low_level_targets_in_every_case(offset):
    """Guards: a bootstrap from the wrong state, memory or skill; the value normalisation used in the wrong direction; the
    constant added or taken off in one place only; the critic's memory lost or handed on one step old."""
    model = collected(critic_chance_offset=offset, normalize_advantage=False, team_reward_coef=1.0)
    before, buffer = model._critic_hidden, model.rollout_buffer
    mix_skills(buffer)
    buffer.finish(model._last_obs)
    raw_values, raw_following, expected_after = critic_walk(model.policy.critic, buffer, before)
    mean, std = model.policy.low_value_norm.statistics()
    constant = -(0.1 * np.log(2) + 0.2 * np.log(4)) / (1 - 0.99) if offset else 0.0
    values, following = raw_values * std + mean + constant, raw_following * std + mean + constant
    after, _ = evaluate_rollout(model.policy, buffer, before, model._return_settings())
    assert before.abs().max() > 0.01, "the case must have a memory from the rollout before"
    assert abs(std - 1.0) > 0.05
    assert min(buffer.truncated[:-1].sum(), buffer.terminated[:-1].sum()) > 0
    assert not buffer.episode_ends[-1].all()
    following[buffer.terminated] = 0.0
    runs_on = ~buffer.episode_ends
    runs_on[-1] = False
    following[:-1][runs_on[:-1]] = values[1:][runs_on[:-1]]
    advantages = generalized_advantages(buffer.agent_rewards, values, following, buffer.episode_ends, 0.99, 0.95)
    np.testing.assert_allclose(buffer.advantages, advantages, atol=2e-4)
    np.testing.assert_allclose(buffer.value_outputs, raw_values, atol=1e-5)
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

    def value(state, obs):
        with th.no_grad():
            return policy.coordinator.values(th.tensor(state)[None], th.tensor(obs)[None])[0].numpy() * std + mean

    current, successors = ([read(key) for key in ("state", "obs")] for read in (buffer.observations.get, buffer.successors))
    evaluate_rollout(policy, buffer, model._critic_hidden, model._return_settings())
    all_returns = []
    for b in range(buffer.n_envs):
        running = 0.0
        for start in reversed(np.flatnonzero(buffer.assigned[:, b])):
            end = next(t for t in range(start, buffer.n_steps) if buffer.segment_ends[t, b])
            here, follows = value(*(a[start, b] for a in current)), value(*(a[end, b] for a in successors))
            if buffer.terminated[end, b] or (buffer.truncated[end, b] and not bootstrap):
                follows = np.zeros(3)
            delta = buffer.rewards[start : end + 1, b].sum() + 0.99 * follows - here
            linked = not buffer.episode_ends[end, b] and end < buffer.n_steps - 1
            running = delta + (0.99 * 0.95 * running if linked else 0.0)
            np.testing.assert_allclose(buffer.skill_advantages[start, b], running, atol=1e-4)
            np.testing.assert_allclose(buffer.skill_value_outputs[start, b] * std + mean, here, atol=1e-4)
            np.testing.assert_allclose(buffer.skill_returns[start, b], running + here, atol=1e-4)
            all_returns.append(running + here)
    beta = policy.high_value_norm.beta
    expected = (beta * sums[0] + (1 - beta) * np.mean(all_returns)) / (beta * sums[1] + 1 - beta)
    assert policy.high_value_norm.statistics()[0] == pytest.approx(expected, abs=1e-4)


def test_high_level_advantages_are_scaled_over_assignments_alone():
    """Guards: the zeros between assignments entering mean and deviation."""
    buffer = evaluated(skill_advantage_floor=0.0)[0].rollout_buffer
    kept = buffer.skill_advantages[buffer.assigned]
    assert kept.mean() == pytest.approx(0.0, abs=1e-5)
    assert kept.std() == pytest.approx(1.0, abs=1e-4)


def test_logged_rewards_are_weighted_and_add_up():
    """Guards: a part of the reward logged without its coefficient."""
    model, stats = evaluated(team_reward_coef=2.0, team_diversity_coef=0.3, agent_diversity_coef=0.7)
    assert sum(stats) == pytest.approx(float(model.rollout_buffer.agent_rewards.mean()), abs=1e-5)
    assert stats.team == pytest.approx(2.0 * model.rollout_buffer.rewards.mean(), abs=1e-5)


def test_running_scales():
    """Guards: input scales never updated or blind to a drift; a value scale that follows constant targets down to zero."""
    assert float(collected().policy.discriminators.obs_scaler.count) == 48 * 2
    rows, scaler, norm = th.arange(12.0)[:, None] ** 2, InputScaler(spaces.Box(-np.inf, np.inf, (1,))), ValueNorm(min_std=0.1)
    scaler.update(rows[:5])
    scaler.update(rows[5:])
    assert float(scaler.half_range) == pytest.approx(float(rows.std(unbiased=False)))
    norm.update(np.full(9, 3.0))
    assert norm.statistics() == pytest.approx((3.0, 0.1))


def test_ends_of_an_earlier_rollout_are_forgotten():
    """Guards: last observations of the rollout before, put where this one has no end."""
    buffer = collected(rollouts=3).rollout_buffer
    assert sorted([row.step, row.env] for row in buffer.terminal_rows) == np.argwhere(buffer.episode_ends).tolist()


# No two values alike, and small enough that every clip and every Huber tail is in use.
SETTINGS = PPOSettings(
    n_epochs=1, batch_size=48, sequence_length=4, clip_range=0.05, clip_range_vf=0.1, ent_coef=0.07, vf_coef=0.3,
    huber_delta=0.2, max_grad_norm=0.6, target_kl=None,
)  # fmt: skip


@pytest.fixture
def moved(monkeypatch):
    """Makes a model whose parameters have moved since its rollout, so that no ratio is 1; and a list of what optimizers
    are asked to do from then on, instead of doing it: (network, loss, largest norm)."""

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
    return -np.minimum(np.exp(new - old) * advantage, np.clip(np.exp(new - old), 0.95, 1.05) * advantage)


def clipped_huber(value, old, target):
    def huber(error):
        return np.where(np.abs(error) <= 0.2, 0.5 * error**2, 0.2 * (np.abs(error) - 0.1))

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
    updates.update_coordinator(policy, buffer, SETTINGS)
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
            mask = th.from_numpy(buffer.observations["action_mask"][t, b]).bool()
            log_probs = actor.head.log_probs(actor.norm(memory), mask).numpy()
            taken = log_probs[range(2), buffer.actions[t, b]]
            policy_terms.append(surrogate(taken, buffer.log_probs[t, b], buffer.advantages[t, b]))
            entropies.append(-(np.exp(log_probs) * log_probs).sum(-1))
    stats = updates.update_actor(model.policy, buffer, SETTINGS, np.random.default_rng(0))
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
    updates.update_critic(model.policy, buffer, SETTINGS, np.random.default_rng(0))
    assert steps == [("critic", pytest.approx(0.3 * np.mean(terms), abs=1e-5), 0.6)]


def test_discriminators_minimise_cross_entropy_of_matching_rows(moved):
    """Guards: skills taken from other rows or steps than the states; training noise that is never added; the norm limit."""
    model, steps = moved()
    buffer, policy = model.rollout_buffer, model.policy
    mix_skills(buffer)
    state, obs = (th.from_numpy(buffer.successors(key)).flatten(0, 1) for key in ("state", "obs"))
    team_skill, agent_skills = (th.from_numpy(a).flatten(0, 1) for a in (buffer.team_skill, buffer.agent_skills))
    with th.no_grad():
        team, agents = policy.discriminators.logits(state, obs, team_skill)
        other = policy.discriminators.logits(state, obs, 1 - team_skill)[1]
    assert not th.allclose(agents, other), "q_d must see the team skill"
    expected = float(discriminator_loss(team, team_skill) + discriminator_loss(agents, agent_skills))
    for noise in (0.0, 5.0):
        updates.update_discriminators(policy, buffer, DiscriminatorSettings(1, 48, noise, 0.6), np.random.default_rng(0))
    assert steps[0] == ("discriminators", pytest.approx(expected, abs=1e-5), 0.6)
    assert abs(steps[1][1] - expected) > 1e-2


def test_every_epoch_takes_every_minibatch_in_a_new_order(moved):
    """Guards: later epochs that do nothing; minibatches that are the same in every epoch."""
    model, steps = moved()
    settings = SETTINGS._replace(n_epochs=3, batch_size=12)
    updates.update_actor(model.policy, model.rollout_buffer, settings, np.random.default_rng(0))
    updates.update_critic(model.policy, model.rollout_buffer, settings, np.random.default_rng(0))
    updates.update_coordinator(model.policy, model.rollout_buffer, settings)
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


def test_building_the_policy_leaves_policy_kwargs_alone():
    """Guards: entries added to the caller's dict, after which ``load`` refuses the same arguments."""
    kwargs = {"hidden_size": 16}
    assert make_model(policy_kwargs=kwargs).policy_kwargs == kwargs == {"hidden_size": 16}


def test_a_batch_is_learnt_from_once():
    """Guards: a second update on the batch of an older version."""
    model = collected(rollouts=1)
    model.sync_update()
    with pytest.raises(SyncError, match="An update needs 48 samples"):
        model.sync_update()


def test_predict_without_a_state_starts_afresh():
    """Guards: skills, timers or memories kept on the policy between calls, so that two users of it disturb each other."""
    model = make_model()
    randomise(model)
    obs = [{key: value + shift for key, value in model.env.reset().items()} for shift in (0.0, 2.0)]
    first = model.predict(obs[0], deterministic=True)[1]
    state = None
    for _ in range(3):
        state = model.predict(obs[1], state, deterministic=True)[1]
    assert not np.array_equal(state[2], first[2])
    for again, then in zip(model.predict(obs[0], deterministic=True)[1], first, strict=True):
        np.testing.assert_array_equal(again, then)


def test_a_stopping_callback_loses_no_step():
    """Guards: the step a callback stopped at being taken in the environments but not by the model."""
    model = make_model(env_kwargs=ENDS)
    model.learn(1000, callback=lambda *_: model.num_timesteps < 28)
    np.testing.assert_array_equal(model._last_obs["state"], model.env.buf_obs["state"])
    assert not model._gate.collecting, "the gate is closed after a stop"
    with pytest.raises(SyncError, match="collection is disabled"):
        model.store_step(model.decide(), model._last_obs, np.zeros(4), np.zeros(4, dtype=bool), [{}] * 4)


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


def test_the_log_of_an_update_is_that_of_its_rollout(monkeypatch):
    """Guards: a watch for an inert team skill that is never shown a report; segment ends counted under another reason."""
    model, reports = make_model(env_kwargs=ENDS), []
    monkeypatch.setattr(model._inert_watch, "look", reports.append)
    model.learn(48 * 2)
    logged = model.logger.name_to_value
    assert [r["team_accuracy"] for r in reports][1:] == [logged["skills/team_accuracy"]]
    for reason in list(SegmentEnd)[1:]:
        assert logged[f"sync/segment_ends_{reason.name.lower()}"] == (model.rollout_buffer.segment_ends == reason).sum()
