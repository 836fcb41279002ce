"""Advantages and rewards against slow references that spell the equations out."""

import math

import numpy as np
import pytest

from hmasd_sb3.returns import (
    chance_level_return,
    generalized_advantages,
    intrinsic_rewards,
    normalize_advantages,
    segment_advantages,
)

GAMMA, LAM = 0.9, 0.7


def random_rollout(seed, steps=23, envs=3, agents=2):
    rng = np.random.default_rng(seed)
    rewards = rng.normal(size=(steps, envs, agents))
    values = rng.normal(size=(steps, envs, agents))
    ends = rng.random((steps, envs)) < 0.15
    next_values = rng.normal(size=(steps, envs, agents))
    next_values[:-1] = np.where(ends[:-1, :, None], next_values[:-1], values[1:])
    return rewards, values, next_values, ends


def slow_gae(rewards, values, next_values, ends):
    """Sum of discounted TD errors up to the end of the episode, one entry at a time."""
    steps, envs, agents = rewards.shape
    out = np.zeros_like(rewards)
    for b in range(envs):
        for n in range(agents):
            for t in range(steps):
                weight = 1.0
                for u in range(t, steps):
                    delta = rewards[u, b, n] + GAMMA * next_values[u, b, n] - values[u, b, n]
                    out[t, b, n] += weight * delta
                    if ends[u, b]:
                        break
                    weight *= GAMMA * LAM
    return out


@pytest.mark.parametrize("seed", range(5))
def test_gae_equals_the_sum_of_td_errors(seed):
    rollout = random_rollout(seed)
    np.testing.assert_allclose(generalized_advantages(*rollout, GAMMA, LAM), slow_gae(*rollout), atol=1e-12)


def test_gae_with_lambda_one_is_return_minus_value():
    rewards = np.ones((5, 1, 1))
    values = np.full((5, 1, 1), 2.0)
    next_values = np.full((5, 1, 1), 2.0)
    next_values[-1] = 0.0
    ends = np.zeros((5, 1), dtype=bool)
    ends[-1] = True
    advantages = generalized_advantages(rewards, values, next_values, ends, 0.5, 1.0)
    expected = [sum(0.5**i for i in range(5 - t)) - 2.0 for t in range(5)]
    np.testing.assert_allclose(advantages[:, 0, 0], expected)


def test_nothing_leaks_over_an_episode_end():
    rewards, values, next_values, ends = random_rollout(7)
    ends[:] = False
    ends[10] = True
    before = generalized_advantages(rewards, values, next_values, ends, GAMMA, LAM)[:11]
    rewards[11:] += 100.0
    after = generalized_advantages(rewards, values, next_values, ends, GAMMA, LAM)[:11]
    np.testing.assert_array_equal(before, after)


def test_gae_refuses_disagreeing_shapes():
    rewards, values, next_values, ends = random_rollout(0)
    with pytest.raises(ValueError, match="episode_ends must have shape"):
        generalized_advantages(rewards, values, next_values, ends[:-1], GAMMA, LAM)


def random_segments(seed, steps=31, envs=4, tokens=3, interval=5):
    """Skill segments as collection makes them, with episode ends at random and tails at the rollout's start."""
    rng = np.random.default_rng(seed)
    assigned = np.zeros((steps, envs), dtype=bool)
    segment_ends, episode_ends = assigned.copy(), assigned.copy()
    left = rng.integers(0, interval, envs)
    for t in range(steps):
        for b in range(envs):
            if left[b] == 0:
                assigned[t, b] = True
                left[b] = interval
            left[b] -= 1
            if rng.random() < 0.1:
                episode_ends[t, b] = True
                left[b] = 0
            segment_ends[t, b] = left[b] == 0 or t == steps - 1
    trace_ends = episode_ends.copy()
    trace_ends[-1] = True
    values = rng.normal(size=(steps, envs, tokens)) * assigned[..., None]
    end_values = rng.normal(size=(steps, envs, tokens))
    for t in range(steps - 1):
        for b in range(envs):
            if segment_ends[t, b] and not episode_ends[t, b]:
                end_values[t, b] = values[t + 1, b]
    return rng.normal(size=(steps, envs)), values, assigned, segment_ends, trace_ends, end_values


def slow_segments(rewards, values, assigned, segment_ends, trace_ends, end_values):
    """Walk every environment's segments one after the other, then do textbook GAE on them."""
    out = np.zeros_like(values)
    steps, envs, tokens = values.shape
    for b in range(envs):
        segments = []
        for start in np.flatnonzero(assigned[:, b]):
            end = next(t for t in range(start, steps) if segment_ends[t, b])
            segments.append((start, end, rewards[start : end + 1, b].sum()))
        for k in range(tokens):
            following = 0.0
            for start, end, reward in reversed(segments):
                delta = reward + GAMMA * end_values[end, b, k] - values[start, b, k]
                following = delta + (0.0 if trace_ends[end, b] else GAMMA * LAM * following)
                out[start, b, k] = following
    return out


@pytest.mark.parametrize("seed", range(8))
def test_segment_advantages_equal_gae_over_segments(seed):
    arrays = random_segments(seed)
    np.testing.assert_allclose(segment_advantages(*arrays, GAMMA, LAM), slow_segments(*arrays), atol=1e-12)


def test_one_agent_one_step_segments_are_ppo():
    """N = 1, k = 1 makes every step a decision: the high level is plain GAE."""
    rewards, values, next_values, ends = random_rollout(3, agents=1)
    everywhere = np.ones_like(ends)
    trace_ends = ends.copy()
    trace_ends[-1] = True
    high = segment_advantages(rewards[..., 0], values, everywhere, everywhere, trace_ends, next_values, GAMMA, LAM)
    np.testing.assert_allclose(high, generalized_advantages(rewards, values, next_values, ends, GAMMA, LAM), atol=1e-12)


def test_reward_before_the_first_assignment_belongs_to_no_decision():
    arrays = list(random_segments(1))
    first = [int(np.flatnonzero(arrays[2][:, b])[0]) for b in range(4)]
    expected = segment_advantages(*arrays, GAMMA, LAM)
    for b, t in enumerate(first):
        arrays[0][:t, b] += 50.0
    np.testing.assert_array_equal(segment_advantages(*arrays, GAMMA, LAM), expected)
    assert any(first), "the case must contain a tail"


def test_intrinsic_rewards_are_equation_4():
    rng = np.random.default_rng(0)
    team, log_team, log_agents = rng.normal(size=(4, 2)), rng.normal(size=(4, 2)), rng.normal(size=(4, 2, 3))
    mixed = intrinsic_rewards(team, log_team, log_agents, 100.0, 0.1, 0.5)
    for t, b, i in np.ndindex(4, 2, 3):
        assert mixed[t, b, i] == pytest.approx(100.0 * team[t, b] + 0.1 * log_team[t, b] + 0.5 * log_agents[t, b, i])


def test_chance_level_return_is_the_discounted_sum():
    per_step = 0.1 * math.log(2) + 0.2 * math.log(4)
    assert chance_level_return(2, 4, 0.1, 0.2, 0.99) == pytest.approx(sum(-per_step * 0.99**t for t in range(5000)))
    assert chance_level_return(2, 4, 0.1, 0.2, 1.0) == 0.0
    assert chance_level_return(1, 1, 0.1, 0.2, 0.99) == 0.0


def test_advantage_floor_keeps_noise_small():
    noise = np.random.default_rng(0).normal(size=1000) * 1e-4
    assert normalize_advantages(noise).std() == pytest.approx(1.0)
    assert normalize_advantages(noise, std_floor=0.1).std() < 2e-3
    assert normalize_advantages(np.array([3.0])).tolist() == [0.0]
