"""Defects around absent agents and lost transitions that could slip through: each test names the one it guards against.

Who counts is found here step by step and agent by agent, beside the buffer's own arrays of it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch as th
from teams import make_model, randomise

from hmasd_sb3 import HMASD, updates
from hmasd_sb3.buffers import SkillRolloutBuffer
from hmasd_sb3.policies.flat import FlatOptimizer
from hmasd_sb3.reporting import skill_report, team_skill_information
from hmasd_sb3.returns import normalize_advantages
from hmasd_sb3.rollouts import RewardStats, evaluate_rollout
from hmasd_sb3.schedules import ConfusionGatedNoise
from hmasd_sb3.updates import DiscriminatorSettings, PPOSettings

STEPS, ENVS, AGENTS = 24, 4, 3
LEAVING = {"n_agents": AGENTS, "p_leave": 0.25, "p_terminate": 0.05, "p_truncate": 0.08}
TEAMS: dict[str, dict[str, Any]] = {
    "leaving": LEAVING,
    "lost": {**LEAVING, "p_leave": 0.0, "p_lost": 0.2},
    "both": {**LEAVING, "p_lost": 0.2},
}
each_team = pytest.mark.parametrize("env", TEAMS.values(), ids=list(TEAMS))
SETTINGS = PPOSettings(
    n_epochs=1, batch_size=STEPS * ENVS, sequence_length=4, clip_range=0.05, clip_range_vf=0.1, ent_coef=0.07, vf_coef=0.3,
    huber_delta=0.2, max_grad_norm=0.6, target_kl=None,
)  # fmt: skip


def collected(env: dict[str, Any], **kwargs: Any) -> HMASD:
    """A model with skewed parameters and a complete rollout, not yet evaluated."""
    model = make_model(ENVS, env, **{"n_steps": STEPS, **kwargs})
    randomise(model)
    _, callback = model._setup_learn(10_000)
    model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
    model.rollout_buffer.finish(model._last_obs)
    return model


def evaluate(model: HMASD) -> RewardStats:
    return evaluate_rollout(model.policy, model.rollout_buffer, model._critic_hidden, model._return_settings())[1]


def there(buffer: SkillRolloutBuffer, step: int, env: int, agent: int) -> bool:
    """Whether the agent is there before the step, and the step was not lost."""
    masks = buffer.observations.get("agent_mask")
    return not buffer.lost[step, env] and (masks is None or bool(masks[step, env, agent]))


def there_after(buffer: SkillRolloutBuffer, step: int, env: int, agent: int) -> bool:
    masks = buffer.observations.get("agent_mask")
    for row in buffer.terminal_rows:
        if masks is not None and (row.step, row.env) == (step, env):
            return bool(row.observation["agent_mask"][agent])
    return masks is None or bool(masks[step + 1, env, agent])


def who_is_there(buffer: SkillRolloutBuffer) -> np.ndarray:
    """(T, B, N) bool."""
    shape = buffer.log_probs.shape
    return np.array([there(buffer, *place) for place in np.ndindex(shape)]).reshape(shape)


@pytest.fixture
def losses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What optimizers are asked to minimise from now on, instead of doing it."""
    asked: list[float] = []

    def record(self: FlatOptimizer, loss: th.Tensor, max_grad_norm: float) -> float:
        asked.append(float(loss.detach()))
        return 0.0

    monkeypatch.setattr(FlatOptimizer, "step", record)
    return asked


def moved(env: dict[str, Any]) -> HMASD:
    """A model whose parameters have moved since its rollout, so that no ratio is 1."""
    model = collected(env)
    evaluate(model)
    randomise(model, scale=0.1, seed=1)
    return model


def surrogate(new: np.ndarray, old: np.ndarray, advantage: np.ndarray) -> np.ndarray:
    return -np.minimum(np.exp(new - old) * advantage, np.clip(np.exp(new - old), 0.95, 1.05) * advantage)


def clipped_huber(value: np.ndarray, old: np.ndarray, target: np.ndarray) -> np.ndarray:
    def huber(error: np.ndarray) -> np.ndarray:
        return np.where(np.abs(error) <= 0.2, 0.5 * error**2, 0.2 * (np.abs(error) - 0.1))

    return np.maximum(huber(target - value), huber(target - old - np.clip(value - old, -0.1, 0.1)))


# ---- who counts


def test_absence_at_a_last_observation_alone_counts() -> None:
    """Guards: a mask looked for in the stored observations only, which last observations are not among."""
    model = collected({**LEAVING, "p_leave": 1e-12, "p_terminate": 0.2})
    buffer = model.rollout_buffer
    assert buffer.present is None
    assert buffer.counting_samples() is buffer.counting_pairs() is buffer.counting_tokens() is None
    row = buffer.terminal_rows[2]
    row.observation["agent_mask"] = np.array([1, 0, 1], dtype=np.int8)
    pairs = buffer.counting_pairs()
    assert np.argwhere(~pairs).tolist() == [[row.step, row.env, 1]]
    assert buffer.counting_samples().all()


@each_team
def test_who_counts_by_loops(env: dict[str, Any]) -> None:
    """Guards: lost steps overlooked in teams that nobody leaves; Z tied to an agent; lost assignments that count for Z."""
    buffer = collected(env).rollout_buffer
    samples, pairs, tokens = buffer.counting_samples(), buffer.counting_pairs(), buffer.counting_tokens()
    for t, b, i in np.ndindex(STEPS, ENVS, AGENTS):
        assert samples[t, b, i] == tokens[t, b, 1 + i] == there(buffer, t, b, i)
        assert pairs[t, b, i] == (there(buffer, t, b, i) and there_after(buffer, t, b, i))
        assert tokens[t, b, 0] == (not buffer.lost[t, b])
    data = buffer.discriminator_data()
    assert (data.team_weights is None) == (not buffer.lost.any())
    if data.team_weights is not None:
        np.testing.assert_array_equal(data.team_weights.numpy(), ~buffer.lost.ravel())


# ---- what is minimised


@each_team
def test_critic_learns_from_what_counts_alone(env: dict[str, Any], losses: list[float]) -> None:
    """Guards: values of absent agents and of lost steps in the critic's loss."""
    model = moved(env)
    critic, buffer = model.policy.critic, model.rollout_buffer
    mean, std = model.policy.low_value_norm.statistics()
    starts = buffer.episode_starts.copy()
    terms = []
    with th.no_grad():
        for b in range(ENVS):
            since = 0
            for t in range(STEPS):
                masks = buffer.observations.get("agent_mask")
                joined = t > 0 and masks is not None and bool((masks[t, b] > masks[t - 1, b]).any())
                since = 0 if t == 0 or starts[t, b] or joined else since + 1
                if since % 4 == 0:
                    memory = buffer.critic_hidden[t, b]
                arrays = (buffer.observations["state"], buffer.team_skill, buffer.agent_skills)
                inputs = critic._inputs(*(th.from_numpy(a[t : t + 1, b]) for a in arrays))
                memory = critic.gru(inputs[None], memory[None, None])[1][0, 0]
                target = (buffer.returns[t, b] - mean) / std
                found = clipped_huber(critic._values(memory).numpy(), buffer.value_outputs[t, b], target)
                terms += [found[i] for i in range(AGENTS) if there(buffer, t, b, i)]
    updates.update_critic(model.policy, buffer, SETTINGS, np.random.default_rng(0))
    assert losses == [pytest.approx(0.3 * np.mean(terms), abs=1e-5)]


@each_team
def test_coordinator_learns_from_what_counts_alone(env: dict[str, Any], losses: list[float]) -> None:
    """Guards: weights left out of one part of the coordinator's loss, or of what is reported; the mask of another step."""
    model = moved(env)
    policy, buffer = model.policy, model.rollout_buffer
    mean, std = policy.high_value_norm.statistics()
    buffer.skill_log_probs[~np.concatenate([~buffer.lost[..., None], who_is_there(buffer)], axis=-1)] = -9.0
    parts: list[tuple[float, ...]] = []
    ratios: list[float] = []
    for t, b in np.argwhere(buffer.assigned):
        arrays = [buffer.observations["state"], buffer.observations["obs"], buffer.team_skill, buffer.agent_skills]
        if "agent_mask" in buffer.observations:
            arrays.append(buffer.observations["agent_mask"].astype(bool))
        with th.no_grad():
            scored = policy.coordinator.evaluate(*(th.from_numpy(a[t : t + 1, b]) for a in arrays))
        log_probs, entropy, values = (x[0].numpy() for x in scored)
        old = buffer.skill_log_probs[t, b]
        gain = surrogate(log_probs, old, buffer.skill_advantages[t, b])
        target = (buffer.skill_returns[t, b] - mean) / std
        error = clipped_huber(values, buffer.skill_value_outputs[t, b], target)
        counting = [0] * (not buffer.lost[t, b]) + [1 + i for i in range(AGENTS) if there(buffer, t, b, i)]
        log_ratio = log_probs - old
        parts += [(gain[k], entropy[k], error[k], np.exp(log_ratio[k]) - 1.0 - log_ratio[k]) for k in counting]
        ratios += [abs(np.exp(log_ratio[k]) - 1.0) for k in counting]
    stats = updates.update_coordinator(policy, buffer, SETTINGS)
    gains, entropies, errors, kl = np.mean(parts, axis=0)
    assert losses == [pytest.approx(gains - 0.07 * entropies + 0.3 * errors, abs=1e-5)]
    assert stats.first_ratio_deviation == pytest.approx(max(ratios), abs=1e-5)
    assert stats.values["entropy"] == pytest.approx(entropies, abs=1e-5)
    assert stats.values["clip_fraction"] == pytest.approx(np.mean(np.array(ratios) > 0.05))
    assert stats.values["approx_kl"] == pytest.approx(kl, abs=1e-5)


@each_team
def test_actor_learns_from_what_counts_alone(env: dict[str, Any], losses: list[float]) -> None:
    """Guards: entropy of absent agents in the actor's loss, their ratios in what is reported."""
    model = moved({**env, "kind": "masked"})
    buffer = model.rollout_buffer
    buffer.log_probs[~who_is_there(buffer)] = -9.0
    gains, entropies, ratios = [], [], []
    for batch in buffer.actor_batches(4, STEPS * ENVS, np.random.default_rng(0)):
        with th.no_grad():
            log_probs, entropy = model.policy.actor.evaluate(
                batch.obs, batch.agent_skills, batch.hidden, batch.actions, batch.action_masks
            )
        gain = surrogate(log_probs.numpy(), batch.old_log_probs.numpy(), batch.advantages.numpy())
        table, real = buffer.chunks(4)
        for place in zip(*np.nonzero(real), strict=True):
            t, b = divmod(int(table[place]), ENVS)
            for i in range(AGENTS):
                at = place[1], place[0] * AGENTS + i
                if there(buffer, t, b, i):
                    ratios.append(abs(np.exp(float(log_probs[at]) - buffer.log_probs[t, b, i]) - 1.0))
                    gains.append(gain[at])
                    entropies.append(float(entropy[at]))
    stats = updates.update_actor(model.policy, buffer, SETTINGS, np.random.default_rng(0))
    assert stats.first_ratio_deviation == pytest.approx(max(ratios), abs=1e-4)
    assert losses == [pytest.approx(np.mean(gains) - 0.07 * np.mean(entropies), abs=1e-5)]


@each_team
def test_discriminators_learn_from_what_counts_alone(env: dict[str, Any], losses: list[float]) -> None:
    """Guards: lost steps in the loss of q_D, absent agents in that of q_d; weights of other rows than the pairs'."""
    model = moved(env)
    policy, buffer = model.policy, model.rollout_buffer
    data = buffer.discriminator_data()
    with th.no_grad():
        team, agents = (x.log_softmax(-1).numpy() for x in policy.discriminators.logits(*data[:3]))
    team_terms, agent_terms = [], []
    for t, b in np.ndindex(STEPS, ENVS):
        row = t * ENVS + b
        if not buffer.lost[t, b]:
            team_terms.append(-team[row, buffer.team_skill[t, b]])
        for i in range(AGENTS):
            if there(buffer, t, b, i) and there_after(buffer, t, b, i):
                agent_terms.append(-agents[row, i, buffer.agent_skills[t, b, i]])
    settings = DiscriminatorSettings(1, STEPS * ENVS, 0.0, 0.6)
    updates.update_discriminators(policy, buffer, settings, np.random.default_rng(0))
    assert losses == [pytest.approx(np.mean(team_terms) + np.mean(agent_terms), abs=1e-5)]


# ---- statistics and logs


@each_team
def test_statistics_are_those_of_what_counts(env: dict[str, Any]) -> None:
    """Guards: lost states in a running scale; rewards of lost steps, or of absent agents, in the logged means and the
    statistics of returns."""
    model = collected(env, team_reward_coef=2.0, team_diversity_coef=0.3, agent_diversity_coef=0.7, skill_advantage_floor=0.0)
    buffer, policy = model.rollout_buffer, model.policy
    buffer.rewards[buffer.lost] = 1e3
    stats = evaluate(model)
    kept = ~buffer.lost
    assert float(policy.discriminators.state_scaler.count) == kept.sum()
    pairs = [ix for ix in np.ndindex(STEPS, ENVS, AGENTS) if there(buffer, *ix) and there_after(buffer, *ix)]
    assert float(policy.discriminators.obs_scaler.count) == len(pairs)
    with th.no_grad():
        team, agents = (x.numpy() for x in policy.discriminators.log_probs(buffer.discriminator_data()))
    own = [agents[t * ENVS + b, i] for t, b, i in pairs]
    assert stats.team == pytest.approx(2.0 * buffer.rewards[kept].mean(), abs=1e-5)
    assert stats.team_diversity == pytest.approx(0.3 * team[kept.ravel()].mean(), abs=1e-5)
    assert stats.agent_diversity == pytest.approx(0.7 * np.mean(own), abs=1e-5)
    returns = [buffer.returns[ix] for ix in np.ndindex(STEPS, ENVS, AGENTS) if there(buffer, *ix)]
    advantages = [buffer.advantages[ix] for ix in np.ndindex(STEPS, ENVS, AGENTS) if there(buffer, *ix)]
    assert policy.low_value_norm.statistics()[0] == pytest.approx(np.mean(returns), rel=1e-4)
    assert np.mean(advantages) == pytest.approx(0.0, abs=1e-4)
    assert np.std(advantages) == pytest.approx(1.0, abs=1e-3)
    tokens = [
        (buffer.skill_returns[t, b, k], buffer.skill_advantages[t, b, k])
        for t, b in np.argwhere(buffer.assigned)
        for k in range(1 + AGENTS)
        if (there(buffer, t, b, k - 1) if k else not buffer.lost[t, b])
    ]
    high_returns, high_advantages = zip(*tokens, strict=True)
    assert policy.high_value_norm.statistics()[0] == pytest.approx(np.mean(high_returns), rel=1e-4)
    assert np.mean(high_advantages) == pytest.approx(0.0, abs=1e-4)
    assert np.std(high_advantages) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("noise", [0.1, ConfusionGatedNoise()])
def test_training_goes_on_where_everything_was_lost(noise: Any) -> None:
    """Guards: means over nothing, and a report of skills that nobody showed, which ended the run."""
    model = make_model(ENVS, {**LEAVING, "p_terminate": 0.0, "p_lost": 1.0}, discriminator_noise=noise)
    model.learn(48)
    assert model.logger.name_to_value["sync/lost_transitions"] == 48
    assert not any(name.startswith("skills/") and name.endswith("accuracy") for name in model.logger.name_to_value)
    stats = evaluate(collected({**LEAVING, "p_terminate": 0.0, "p_lost": 1.0}))
    assert stats == RewardStats(0.0, 0.0, 0.0)
    assert all(bool(th.isfinite(p).all()) for p in model.policy.parameters())
    assert float(normalize_advantages(np.array([3.0, 4.0]), counts=np.array([True, False]))[0]) == 0.0


@each_team
def test_the_report_counts_what_happened(env: dict[str, Any]) -> None:
    """Guards: accuracies, usage and chance that include lost steps or absent agents; a team skill paired with the skill of
    an agent in another row; redundancy with agents that are not there."""
    model = collected(env)
    buffer = model.rollout_buffer
    rng = np.random.default_rng(0)
    buffer.team_skill[:] = rng.integers(2, size=buffer.team_skill.shape)
    buffer.agent_skills[:] = (buffer.team_skill[..., None] + rng.integers(2, size=buffer.agent_skills.shape)) % 4
    report = skill_report(model.policy, buffer)
    data = buffer.discriminator_data()
    with th.no_grad():
        team, agents = (x.argmax(-1).numpy() for x in model.policy.discriminators.logits(*data[:3]))
    team_hits = [team[t * ENVS + b] == buffer.team_skill[t, b] for t, b in np.argwhere(~buffer.lost)]
    assert report["team_accuracy"] == pytest.approx(np.mean(team_hits))
    hits: dict[int, list[bool]] = {}
    together = np.zeros((2, 4))
    for t, b, i in np.ndindex(STEPS, ENVS, AGENTS):
        if there(buffer, t, b, i) and there_after(buffer, t, b, i):
            skill = int(buffer.agent_skills[t, b, i])
            hits.setdefault(skill, []).append(agents[t * ENVS + b, i] == skill)
            together[buffer.team_skill[t, b], skill] += 1
    assert report["agent_accuracy"] == pytest.approx(np.mean([hit for found in hits.values() for hit in found]))
    assert report["agent_worst_accuracy"] == pytest.approx(min(np.mean(found) for found in hits.values()))
    assert report["agent_chance"] == pytest.approx(together.max(axis=1).sum() / together.sum())
    counts = np.bincount(buffer.team_skill[~buffer.lost])
    assert report["team_chance"] == pytest.approx(counts.max() / counts.sum())


def test_redundancy_needs_two_agents_that_are_there() -> None:
    """Guards: a mean over no pairs."""
    model = collected(LEAVING)
    model.rollout_buffer.observations["agent_mask"][:] = [0, 1, 0]
    assert "redundancy" not in skill_report(model.policy, model.rollout_buffer)


def test_information_about_absent_agents_is_none() -> None:
    """Guards: skills assigned to nobody that inform about Z."""
    model = collected(LEAVING)
    policy, batch = model.policy, model.rollout_buffer.coordinator_batch()
    expected = []
    with th.no_grad():
        for row in range(len(batch.team_skill)):
            probs = []
            for z in range(2):
                one = (t[row : row + 1] for t in (batch.state, batch.obs))
                skills, mask = batch.agent_skills[row : row + 1], batch.agent_mask[row : row + 1]
                found = policy.coordinator.evaluate(*one, th.tensor([z]), skills, mask).log_probs[0].exp().numpy()
                probs.append((found[0], np.prod([found[1 + i] for i in range(AGENTS) if mask[0, i]])))
            marginal = sum(p_z * p_skills for p_z, p_skills in probs)
            expected.append(np.log(probs[batch.team_skill[row]][1] / marginal))
        assert team_skill_information(policy, batch) == pytest.approx(np.mean(expected), abs=1e-5)
    assert abs(np.mean(expected)) > 1e-3
