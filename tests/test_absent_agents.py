"""Agents that die and join, and transitions that were lost: what counts for learning, what does not, and the values between.

The references here are plain loops over one environment and one agent at a time.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch as th
from teams import make_model, parameters_of, randomise, same

from hmasd_sb3 import HMASD
from hmasd_sb3.buffers import SkillRolloutBuffer
from hmasd_sb3.returns import generalized_advantages, normalize_advantages, with_absent_filled
from hmasd_sb3.rollouts import evaluate_rollout

COMING_AND_GOING: dict[str, Any] = {"n_agents": 3, "p_leave": 0.25, "p_terminate": 0.05, "p_truncate": 0.08}
STEPS = 24


def collected(n_envs: int = 4, env: dict[str, Any] | None = None, **kwargs: Any) -> HMASD:
    """A model with random weights and a complete rollout, not yet evaluated."""
    model = make_model(n_envs, {**COMING_AND_GOING, **(env or {})}, n_steps=STEPS, **kwargs)
    randomise(model)
    _, callback = model._setup_learn(10_000)
    model.collect_rollouts(model.env, callback, model.rollout_buffer, STEPS)
    model.rollout_buffer.finish(model._last_obs)
    return model


def evaluate(model: HMASD) -> SkillRolloutBuffer:
    evaluate_rollout(model.policy, model.rollout_buffer, model._critic_hidden, model._return_settings())
    return model.rollout_buffer


def present_after(buffer: SkillRolloutBuffer, step: int, env: int) -> np.ndarray:
    """(N,) bool at the true successor of a step, found the slow way."""
    for row in buffer.terminal_rows:
        if (row.step, row.env) == (step, env):
            return np.asarray(row.observation["agent_mask"], dtype=bool)
    return buffer.observations["agent_mask"][step + 1, env].astype(bool)


def spoil(model: HMASD) -> None:
    """Put nonsense wherever nobody was, and where the outcome was lost."""
    buffer, rng = model.rollout_buffer, np.random.default_rng(1)
    nobody = ~buffer.present
    buffer.observations["obs"][nobody] = rng.normal(size=(nobody.sum(), 3)) * 50
    absent = ~buffer.counting_samples()
    buffer.log_probs[absent] = rng.normal(size=absent.sum())
    buffer.hidden[absent] = rng.normal(size=(absent.sum(), buffer.hidden.shape[-1]))
    if buffer.actions.dtype == np.int64:
        buffer.actions[absent] = rng.integers(3, size=absent.sum())
    buffer.rewards[buffer.lost] = 1e6
    tokens = buffer.counting_tokens()
    buffer.skill_log_probs[~tokens] = rng.normal(size=(~tokens).sum())


def update(model: HMASD) -> dict[str, th.Tensor]:
    evaluate(model)
    th.manual_seed(0)  # of the noise on the discriminators' inputs
    model._update_networks()
    return parameters_of(model)


# ---- who counts


def test_the_team_has_what_these_tests_are_about() -> None:
    model = collected(env={"p_lost": 0.1})
    buffer = model.rollout_buffer
    present = buffer.present
    assert present is not None
    joins = present[1:-1] & ~present[:-2] & ~buffer.episode_starts[1:, :, None]
    assert joins.sum() > 20
    assert (~present).sum() > 20
    assert buffer.lost.sum() > 2
    assert buffer.terminated.sum() > 0
    assert buffer.truncated.sum() > buffer.lost.sum()
    absent_at_assignment = ~present[:-1][buffer.assigned]
    assert absent_at_assignment.sum() > 5


@pytest.mark.parametrize("kind", ["discrete", "masked", "continuous", "ragged"])
def test_nothing_about_absent_agents_or_lost_steps_reaches_an_update(kind: str) -> None:
    models = [collected(env={"kind": kind, "p_lost": 0.1}, learning_rate=1e-3) for _ in range(2)]
    spoil(models[1])
    before = parameters_of(models[0])
    first, second = (update(model) for model in models)
    assert not [name for name, value in first.items() if th.equal(value, before[name])]
    for name, value in first.items():
        th.testing.assert_close(second[name], value, atol=2e-5, rtol=0, msg=name)


def test_what_present_agents_did_does_reach_it() -> None:
    """The test above could not fail if nothing reached an update."""
    models = [collected(learning_rate=1e-3) for _ in range(2)]
    buffer = models[1].rollout_buffer
    counts = buffer.counting_samples()
    buffer.observations["obs"][:-1][counts] += 0.5
    assert not same(*(update(model) for model in models))


@pytest.mark.parametrize("kind", ["discrete", "masked", "continuous", "ragged"])
@pytest.mark.parametrize("rollout_end", ["continue", "reassign"])
def test_first_ratios_are_one_with_agents_coming_and_going(kind: str, rollout_end: str) -> None:
    model = make_model(4, {**COMING_AND_GOING, "kind": kind, "p_lost": 0.1}, n_steps=STEPS, skill_at_rollout_end=rollout_end)
    randomise(model)
    for _ in range(2):
        _, callback = model._setup_learn(10_000, reset_num_timesteps=False)
        model.collect_rollouts(model.env, callback, model.rollout_buffer, STEPS)
        model.rollout_buffer.finish(model._last_obs)
        evaluate(model)
        stats = model._update_networks()
        assert stats["actor"].first_ratio_deviation < 1e-5
        assert stats["coordinator"].first_ratio_deviation < 1e-5
        model._gate.begin_update()
        model._gate.finish_update()


def test_a_memory_kept_over_an_absence_shows_in_the_ratio() -> None:
    model = collected()
    buffer = model.rollout_buffer
    present = buffer.present
    joined = np.zeros_like(present[:-1])
    joined[1:] = present[1:-1] & ~present[:-2]
    assert not buffer.hidden[joined].any()
    buffer.hidden[joined] = 0.5
    evaluate(model)
    assert model._update_networks()["actor"].first_ratio_deviation > 1e-3


def test_chunks_start_where_an_agent_joins() -> None:
    buffer = collected().rollout_buffer
    table, real = buffer.chunks(4)
    present, seen = buffer.present, set()
    for chunk, is_real in zip(table, real, strict=True):
        steps = [divmod(int(i), buffer.n_envs) for i in chunk[is_real]]
        seen.update(steps)
        for (t, b), (u, c) in itertools.pairwise(steps):
            assert (u, c) == (t + 1, b)
            assert not (present[u, b] & ~present[t, b]).any(), "an agent joins inside a chunk"
            assert not buffer.episode_starts[u, b]
    assert len(seen) == real.sum() == STEPS * buffer.n_envs


# ---- rewards and values


def test_agents_rewards_against_loops() -> None:
    model = collected(env={"p_lost": 0.1})
    buffer = evaluate(model)
    pairs = buffer.discriminator_data()
    with th.no_grad():
        team_log_probs, agent_log_probs = (x.numpy() for x in model.policy.discriminators.log_probs(pairs))
    for t in range(STEPS):
        for b in range(4):
            before, after = buffer.present[t, b], present_after(buffer, t, b)
            counting = [i for i in range(3) if before[i] and after[i] and not buffer.lost[t, b]]
            own = agent_log_probs[t * 4 + b]
            mean = sum(own[i] for i in counting) / len(counting) if counting else -np.log(4)
            shared = buffer.rewards[t, b] + 0.1 * team_log_probs[t * 4 + b]
            for i in range(3):
                expected = shared + 0.2 * (own[i] if i in counting else mean)
                assert buffer.agent_rewards[t, b, i] == pytest.approx(expected, abs=1e-5)


def test_advantages_against_loops() -> None:
    model = collected(env={"p_lost": 0.1}, normalize_advantage=False)
    buffer = evaluate(model)
    policy, offset = model.policy, -(0.1 * np.log(2) + 0.2 * np.log(4)) / (1 - 0.99)

    def filled(values: np.ndarray, present: np.ndarray) -> np.ndarray:
        mean = values[present].mean()
        return np.array([value if there else mean for value, there in zip(values, present, strict=True)])

    def critic_values(state: np.ndarray, t: int, b: int, hidden: th.Tensor) -> np.ndarray:
        with th.no_grad():
            values = policy.critic.step(
                th.tensor(state)[None],
                th.tensor(buffer.team_skill[t, b])[None],
                th.tensor(buffer.agent_skills[t, b])[None],
                hidden,
            )
        return values[0].numpy() * std + mean + offset

    # The statistics were updated by this very rollout, after its values had been read with the initial ones.
    mean, std = 0.0, 1.0
    for b in range(4):
        hidden = th.zeros(1, policy.hidden_size)
        values, afters = [], []
        for t in range(STEPS):
            if buffer.episode_starts[t, b]:
                hidden = th.zeros_like(hidden)
            values.append(filled(critic_values(buffer.observations["state"][t, b], t, b, hidden), buffer.present[t, b]))
            with th.no_grad():
                _, _, after = policy.critic.rollout(
                    *(th.tensor(x[t, b])[None, None] for x in (buffer.observations["state"], buffer.team_skill)),
                    th.tensor(buffer.agent_skills[t, b])[None, None],
                    hidden,
                    th.zeros(1, 1, dtype=th.bool),
                )
            hidden = after[0]
            afters.append(hidden)
        for i in range(3):
            running = 0.0
            for t in reversed(range(STEPS)):
                there = buffer.present[t, b]
                if buffer.lost[t, b]:
                    running = 0.0  # no advantage of its own, and nothing passes through it
                    continue
                ended = buffer.terminated[t, b] or buffer.truncated[t, b]
                if buffer.terminated[t, b]:
                    next_value = 0.0
                elif ended or t == STEPS - 1:
                    state = buffer.successors("state")[t, b]
                    following = filled(critic_values(state, t, b, afters[t]), present_after(buffer, t, b))
                    next_value = following[i] if there[i] else following[there].mean()
                else:
                    # Who joins with this step is not among those that an absent agent's value is the mean of.
                    next_value = values[t + 1][i] if there[i] else values[t + 1][there].mean()
                delta = buffer.agent_rewards[t, b, i] + 0.99 * next_value - values[t][i]
                running = delta + (0.0 if ended else 0.99 * 0.95 * running)
                assert buffer.advantages[t, b, i] == pytest.approx(running, abs=2e-4)


def test_a_lost_step_is_as_if_the_episode_had_been_cut_off_before_it() -> None:
    rng = np.random.default_rng(0)
    rewards, values = rng.normal(size=(2, 6, 1, 2))
    next_values = np.concatenate([values[1:], rng.normal(size=(1, 1, 2))])
    ends, lost = np.zeros((6, 1), dtype=bool), np.zeros((6, 1), dtype=bool)
    ends[3] = lost[3] = True
    whole = generalized_advantages(rewards, values, next_values, ends, 0.9, 0.8, lost)
    cut = np.zeros((3, 1), dtype=bool)
    before = generalized_advantages(rewards[:3], values[:3], values[1:4], cut, 0.9, 0.8)
    np.testing.assert_allclose(whole[:3], before)
    assert not whole[3].any()
    after = generalized_advantages(rewards[4:], values[4:], next_values[4:], cut[:2], 0.9, 0.8)
    np.testing.assert_allclose(whole[4:], after)


def test_high_level_goes_on_at_a_lost_step_and_absent_agents_are_valued_by_the_state() -> None:
    model = collected(env={"p_lost": 0.2, "p_terminate": 0.0, "p_truncate": 0.0}, normalize_advantage=False)
    buffer = evaluate(model)
    coordinator = model.policy.coordinator

    def values(state: Any, obs: Any, present: Any) -> np.ndarray:
        with th.no_grad():
            found = coordinator.values(th.tensor(state)[None], th.tensor(obs)[None], th.tensor(present)[None].bool())[0]
        return np.where([True, *present], found.numpy(), found[0].numpy())

    checked = 0
    for b in range(4):
        for start in np.flatnonzero(buffer.assigned[:, b]):
            end = start
            while buffer.segment_ends[end, b] == 0:
                end += 1
            if not buffer.lost[end, b]:
                continue
            row = next(r for r in buffer.terminal_rows if (r.step, r.env) == (end, b))
            last = values(row.observation["state"], row.observation["obs"], row.observation["agent_mask"])
            first = values(*(buffer.observations[key][start, b] for key in ("state", "obs", "agent_mask")))
            expected = buffer.rewards[start : end + 1, b].sum() + 0.99 * last - first
            np.testing.assert_allclose(buffer.skill_advantages[start, b], expected, atol=1e-4)
            checked += 1
    assert checked > 5


def test_a_perfect_critic_sees_no_advantage_however_agents_come_and_go() -> None:
    """If values satisfy the Bellman equation, nobody's return holds a surprise: not by a death, a join or a return."""
    rng, gamma = np.random.default_rng(0), 0.99
    model = collected(normalize_advantage=False, gamma=gamma, env={"p_terminate": 0.0, "p_truncate": 0.0})
    buffer, policy = model.rollout_buffer, model.policy
    present = buffer.present
    assert present is not None
    evaluate(model)  # for the rewards, which do not depend on the critic
    perfect = with_absent_filled(rng.normal(size=present.shape), present)
    for t in reversed(range(STEPS)):
        perfect[t] = with_absent_filled(buffer.agent_rewards[t] + gamma * perfect[t + 1], present[t])
    offset = -(0.1 * np.log(2) + 0.2 * np.log(4)) / (1 - gamma)
    outputs = th.tensor(perfect - offset, dtype=th.float32)
    hidden = th.zeros(STEPS, 4, policy.hidden_size)
    policy.critic.rollout = lambda *_: (outputs[:-1], hidden, hidden)
    policy.critic.step = lambda *_: outputs[-1]
    policy.low_value_norm.weight_sum.zero_()
    rewards = buffer.agent_rewards.copy()
    evaluate(model)
    np.testing.assert_allclose(buffer.agent_rewards, rewards, atol=1e-6)
    np.testing.assert_allclose(buffer.advantages[buffer.counting_samples()], 0.0, atol=1e-4)


def test_absent_agents_get_the_others_mean() -> None:
    values = np.array([[1.0, 2.0, 6.0], [1.0, 2.0, 6.0], [1.0, 2.0, 6.0]])
    present = np.array([[True, False, True], [False, False, False], [True, True, True]])
    np.testing.assert_allclose(with_absent_filled(values, present), [[1.0, 3.5, 6.0], [3.0, 3.0, 3.0], [1.0, 2.0, 6.0]])
    np.testing.assert_allclose(with_absent_filled(values, present, otherwise=-7.0)[1], -7.0)


def test_advantages_are_normalised_over_those_that_count() -> None:
    raw, counts = np.array([1.0, 3.0, 1e9]), np.array([True, True, False])
    np.testing.assert_allclose(normalize_advantages(raw, counts=counts)[:2], [-1.0, 1.0])
    assert not normalize_advantages(raw, counts=np.zeros(3, dtype=bool)).any()


# ---- networks


def test_the_coordinator_does_not_see_absent_agents() -> None:
    model = collected()
    coordinator, rng = model.policy.coordinator, th.Generator().manual_seed(3)
    with th.no_grad():
        for parameter in coordinator.parameters():
            parameter.add_(0.3 * th.randn(parameter.shape, generator=rng))
        state, obs = th.randn(50, 4, generator=rng), th.randn(50, 3, 3, generator=rng)
        mask = th.rand(50, 3, generator=rng) < 0.6
        mask[:, 2] = True
        choice = coordinator.assign(state, obs, agent_mask=mask)
        scored = coordinator.evaluate(state, obs, choice.team_skill, choice.agent_skills, mask)
        th.testing.assert_close(scored.log_probs, choice.log_probs)
        other_obs = th.where(mask[..., None], obs, th.randn(50, 3, 3, generator=rng))
        other_skills = th.where(mask, choice.agent_skills, (choice.agent_skills + 1) % 4)
        again = coordinator.evaluate(state, other_obs, choice.team_skill, other_skills, mask)
    counts = th.cat([th.ones(50, 1, dtype=th.bool), mask], dim=1)
    th.testing.assert_close(again.log_probs[counts], scored.log_probs[counts])
    th.testing.assert_close(again.values[counts], scored.values[counts])
    with th.no_grad():
        unmasked = coordinator.evaluate(state, other_obs, choice.team_skill, other_skills)
    assert (unmasked.log_probs - scored.log_probs)[counts].abs().max() > 1e-2


def test_masks_change_nothing_while_everybody_is_there() -> None:
    learnt = []
    for p_leave in (1e-12, 0.0):
        model = make_model(4, {"p_leave": p_leave}, n_steps=STEPS)
        for env in model.env.envs:
            env._observe = lambda env=env: plain_observation(env)
        learnt.append(parameters_of(model.learn(2 * STEPS * 4)))
    first, second = learnt
    assert {name for name in first if name not in second} == {"coordinator.absent_obs", "coordinator.absent_skill"}
    for name, value in second.items():
        # Not to the last bit: gradients are clipped by a norm that is summed over two parameters more.
        th.testing.assert_close(first[name], value, atol=1e-5, rtol=0, msg=name)


def plain_observation(env: Any) -> dict[str, np.ndarray]:
    """The same random stream with and without a mask."""
    obs = {
        "obs": env.np_random.normal(size=(env.n_agents, 3)).astype(np.float32),
        "state": env.np_random.normal(size=4).astype(np.float32),
    }
    return {**obs, "agent_mask": np.ones(env.n_agents, dtype=np.int8)} if env.p_leave else obs


def test_components_an_agent_lacks_are_zero_and_count_in_nothing() -> None:
    model = collected(env={"kind": "ragged"})
    buffer = model.rollout_buffer
    assert not buffer.actions[:, :, 0, 1].any()
    assert buffer.actions[:, :, 1, 1].any()
    head, mask = model.policy.actor.head, th.tensor([[True, False], [True, True]])
    features = th.randn(2, 16)
    actions = th.randn(2, 2)
    log_probs, entropies = head.evaluate(features, actions, mask)
    one = th.distributions.Normal(head.mean(features)[:, 0], head.log_std[0].exp())
    both = th.distributions.Normal(head.mean(features), head.log_std.exp())
    th.testing.assert_close(log_probs[0], one.log_prob(actions[:, 0])[0])
    th.testing.assert_close(log_probs[1], both.log_prob(actions).sum(-1)[1])
    th.testing.assert_close(entropies, th.stack([one.entropy()[0], both.entropy().sum(-1)[1]]))


def test_reports_count_what_happened() -> None:
    model = make_model(4, {**COMING_AND_GOING, "p_lost": 0.1}, n_steps=STEPS)
    model.learn(STEPS * 4)
    logged = model.logger.name_to_value
    buffer = model.rollout_buffer
    assert logged["sync/lost_transitions"] == buffer.lost.sum() > 0
    assert logged["sync/agents_present"] == pytest.approx(buffer.present[:-1].mean())
    batch = buffer.coordinator_batch()
    skills, there = batch.agent_skills.numpy(), batch.agent_mask.numpy()
    pairs = alike = 0
    for row in range(len(skills)):
        for i in range(3):
            for j in range(3):
                if i != j and there[row, i] and there[row, j]:
                    pairs += 1
                    alike += skills[row, i] == skills[row, j]
    assert logged["skills/redundancy"] == pytest.approx(alike / pairs)
