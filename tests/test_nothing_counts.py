"""Rollouts in which little or nothing counts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.vec_env import DummyVecEnv
from teams import FAST, RandomTeam, make_model, parameters_of, randomise, same

from hmasd_sb3 import HMASD
from hmasd_sb3.buffers import SkillRolloutBuffer
from hmasd_sb3.rollouts import RewardStats, evaluate_rollout

ENDLESS: dict[str, Any] = {"p_terminate": 0.0, "p_truncate": 0.0}


class TakingTurns(RandomTeam):
    """Two agents, of which one is there at even steps and the other at odd ones."""

    def _observe(self) -> dict[str, np.ndarray]:
        observation = super()._observe()
        self.turn = 1 - getattr(self, "turn", 0)
        observation["agent_mask"] = np.array([self.turn, 1 - self.turn], dtype=np.int8)
        return observation


def evaluated(model: HMASD) -> tuple[SkillRolloutBuffer, RewardStats]:
    """A complete rollout of a model with random weights, with its advantages."""
    randomise(model)
    _, callback = model._setup_learn(10_000)
    buffer = model.rollout_buffer
    model.collect_rollouts(model.env, callback, buffer, buffer.n_steps)
    buffer.finish(model._last_obs)
    _, stats = evaluate_rollout(model.policy, buffer, model._critic_hidden, model._return_settings())
    return buffer, stats


@pytest.mark.parametrize("noise", ["gated", 0.4])
def test_a_rollout_of_lost_steps_teaches_nothing(noise: Any) -> None:
    settings = {} if noise == "gated" else {"discriminator_noise": noise}
    model = make_model(2, ENDLESS, **settings)
    model.learn(2 * 12)  # so that the optimizers have momentum
    before = parameters_of(model)
    for env in model.env.envs:
        env.p_lost = 1.0
    model.learn(2 * 12, reset_num_timesteps=False)
    assert model.policy_version == 2
    assert same(before, parameters_of(model))
    logged = model.logger.name_to_value
    assert logged["sync/lost_transitions"] == 24
    assert logged["reward/team"] == logged["reward/team_diversity"] == logged["reward/agent_diversity"] == 0.0


def test_agents_that_are_never_there_twice_in_a_row_can_be_learnt_with() -> None:
    model = HMASD("MlpPolicy", DummyVecEnv([lambda: TakingTurns(p_leave=0.1, **ENDLESS)]), **FAST)
    level = model.discriminator_noise.level
    model.learn(24)
    assert model.policy_version == 2
    assert model.discriminator_noise.level == level, "nothing is known about whether skills can be told apart"


def test_rewards_of_lost_steps_are_in_no_mean() -> None:
    model = make_model(4, {"n_agents": 3, "p_lost": 0.3})
    buffer, stats = evaluated(model)
    assert 0 < buffer.lost.sum() < buffer.lost.size
    pairs = buffer.discriminator_data()
    with th.no_grad():
        team, agents = (x.numpy() for x in model.policy.discriminators.log_probs(pairs))
    known = ~buffer.lost.reshape(-1)
    assert stats.team == pytest.approx(buffer.rewards.reshape(-1)[known].mean(), abs=1e-6)
    assert stats.team_diversity == pytest.approx(0.1 * team[known].mean(), abs=1e-6)
    assert stats.agent_diversity == pytest.approx(0.2 * agents[known].mean(), abs=1e-6)


def test_the_assignment_before_a_lost_one_is_followed_by_its_value_alone() -> None:
    model = make_model(4, {"p_lost": 0.3, **ENDLESS}, n_steps=60, skill_interval=2, normalize_advantage=False)
    buffer, _ = evaluated(model)
    values, checked = buffer.skill_values, 0
    for t, b in np.argwhere(buffer.lost & buffer.assigned):
        if t < 2 or buffer.episode_ends[t - 1, b] or not buffer.assigned[t - 2, b]:
            continue
        expected = buffer.rewards[t - 2 : t, b].sum() + 0.99 * values[t, b] - values[t - 2, b]
        np.testing.assert_allclose(buffer.skill_advantages[t - 2, b], expected, atol=1e-5)
        checked += 1
    assert checked > 3
    assert np.abs(values[buffer.assigned]).max() > 0.1


class LosingTeam(RandomTeam):
    """Reports a lost step as the end of the episode, without the word that it was cut off."""

    def step(self, action: np.ndarray) -> Any:
        *rest, _, info = super().step(action)
        return rest[0], rest[1], "transition_lost" in info, False, info


def test_a_lost_step_never_ends_an_episode_by_the_rules() -> None:
    model = HMASD("MlpPolicy", DummyVecEnv([lambda: LosingTeam(p_lost=0.3, **ENDLESS)]), **FAST, skill_timeout_bootstrap=True)
    buffer, _ = evaluated(model)
    assert buffer.lost.any()
    np.testing.assert_array_equal(buffer.truncated, buffer.lost)
    assert not buffer.terminated.any()
