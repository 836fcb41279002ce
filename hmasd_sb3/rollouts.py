"""What happens between collecting and updating: values, bootstraps, rewards and advantages of a complete rollout.

Critic and discriminators are not needed for acting, so they run here, once, over the whole rollout.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch as th

from hmasd_sb3.buffers import SkillRolloutBuffer
from hmasd_sb3.normalization import to_float
from hmasd_sb3.policies.policy import HMASDPolicy
from hmasd_sb3.returns import (
    chance_level_return,
    generalized_advantages,
    intrinsic_rewards,
    normalize_advantages,
    segment_advantages,
)
from hmasd_sb3.type_aliases import DiscriminatorBatch, SegmentEnd


class ReturnSettings(NamedTuple):
    """Coefficients in force for one rollout (schedules already evaluated)."""

    gamma: float
    skill_gamma: float
    gae_lambda: float
    team_reward_coef: float
    team_diversity_coef: float
    agent_diversity_coef: float
    critic_chance_offset: bool
    skill_timeout_bootstrap: bool
    normalize_advantage: bool
    skill_advantage_floor: float


class RewardStats(NamedTuple):
    """Mean reward per environment step, by source and already weighted."""

    team: float
    team_diversity: float
    agent_diversity: float


def evaluate_rollout(
    policy: HMASDPolicy, buffer: SkillRolloutBuffer, critic_hidden: th.Tensor, settings: ReturnSettings
) -> tuple[th.Tensor, RewardStats]:
    """Fill the buffer's rewards, values, advantages and returns at both levels.

    :param critic_hidden: (B, H), the critic's hidden state before the rollout
    :return: the critic's hidden state after the rollout (B, H), and the mean rewards
    """
    with th.no_grad():
        pairs = buffer.discriminator_data()
        policy.discriminators.update_scalers(pairs.state, pairs.obs)
        stats = _fill_agent_rewards(policy, buffer, pairs, settings)
        critic_hidden = _fill_low_level(policy, buffer, critic_hidden, settings)
        _fill_high_level(policy, buffer, settings)
    return critic_hidden, stats


def _fill_agent_rewards(
    policy: HMASDPolicy, buffer: SkillRolloutBuffer, pairs: DiscriminatorBatch, settings: ReturnSettings
) -> RewardStats:
    team_log_probs, agent_log_probs = policy.discriminators.log_probs(pairs)
    shape = buffer.rewards.shape
    team = team_log_probs.cpu().numpy().reshape(shape)
    agents = agent_log_probs.cpu().numpy().reshape(*shape, -1)
    buffer.agent_rewards[:] = intrinsic_rewards(
        buffer.rewards,
        team,
        agents,
        settings.team_reward_coef,
        settings.team_diversity_coef,
        settings.agent_diversity_coef,
    )
    return RewardStats(
        settings.team_reward_coef * float(buffer.rewards.mean()),
        settings.team_diversity_coef * float(team.mean()),
        settings.agent_diversity_coef * float(agents.mean()),
    )


def _fill_low_level(
    policy: HMASDPolicy, buffer: SkillRolloutBuffer, critic_hidden: th.Tensor, settings: ReturnSettings
) -> th.Tensor:
    offset = 0.0
    if settings.critic_chance_offset:
        offset = chance_level_return(
            policy.n_team_skills,
            policy.n_agent_skills,
            settings.team_diversity_coef,
            settings.agent_diversity_coef,
            settings.gamma,
        )
    critic, norm, device = policy.critic, policy.low_value_norm, critic_hidden.device

    def tensor(array: np.ndarray) -> th.Tensor:
        return th.from_numpy(array).to(device)

    def in_reward_units(values: th.Tensor) -> np.ndarray:
        return norm.denormalize(values).cpu().numpy() + np.float32(offset)

    state = to_float(tensor(buffer.observations["state"]))
    team_skill, agent_skills = tensor(buffer.team_skill), tensor(buffer.agent_skills)
    values, before, after = critic.rollout(state[:-1], team_skill, agent_skills, critic_hidden, tensor(buffer.episode_starts))
    buffer.value_outputs[:] = values.cpu().numpy()
    buffer.values[:] = in_reward_units(values)
    buffer.critic_hidden = before
    next_values = np.empty_like(buffer.values)
    next_values[:-1] = buffer.values[1:]
    # Beyond the last step the running skills are taken to go on; which come next is not decided yet.
    next_values[-1] = in_reward_units(critic.step(state[-1], team_skill[-1], agent_skills[-1], after[-1]))
    next_values[buffer.terminated] = 0.0
    cut_off = [row for row in buffer.terminal_rows if buffer.truncated[row.step, row.env]]
    if cut_off:
        steps, envs = np.array([row.step for row in cut_off]), np.array([row.env for row in cut_off])
        last_states = to_float(tensor(np.stack([row.observation["state"] for row in cut_off])))
        next_values[steps, envs] = in_reward_units(
            critic.step(last_states, team_skill[steps, envs], agent_skills[steps, envs], after[steps, envs])
        )
    raw = generalized_advantages(
        buffer.agent_rewards, buffer.values, next_values, buffer.episode_ends, settings.gamma, settings.gae_lambda
    )
    # The network predicts what is left after the constant, so that is its target.
    buffer.returns[:] = raw + buffer.values - offset
    norm.update(buffer.returns)
    buffer.advantages[:] = normalize_advantages(raw) if settings.normalize_advantage else raw
    return after[-1]


def _fill_high_level(policy: HMASDPolicy, buffer: SkillRolloutBuffer, settings: ReturnSettings) -> None:
    norm, device = policy.high_value_norm, buffer.device

    def outputs_of(state: np.ndarray, obs: np.ndarray) -> th.Tensor:
        states = to_float(th.from_numpy(state).to(device))
        return policy.coordinator.values(states, to_float(th.from_numpy(obs).to(device)).flatten(2))

    def values_of(state: np.ndarray, obs: np.ndarray) -> np.ndarray:
        values: np.ndarray = norm.denormalize(outputs_of(state, obs)).cpu().numpy()
        return values

    state, obs = buffer.observations["state"], buffer.observations["obs"]
    assigned, values = buffer.assigned, buffer.skill_values
    values[:] = 0.0
    if assigned.any():
        outputs = outputs_of(state[:-1][assigned], obs[:-1][assigned])
        buffer.skill_value_outputs[assigned] = outputs.cpu().numpy()
        values[assigned] = norm.denormalize(outputs).cpu().numpy()
    end_values = np.zeros_like(values)
    end_values[:-1] = values[1:]  # a full interval: V_h where the next skills are assigned
    end_values[-1] = values_of(state[-1], obs[-1])
    end_values[buffer.terminated] = 0.0
    end_values[buffer.truncated] = 0.0
    cut_off = [row for row in buffer.terminal_rows if buffer.truncated[row.step, row.env]]
    if cut_off and settings.skill_timeout_bootstrap:
        steps, envs = np.array([row.step for row in cut_off]), np.array([row.env for row in cut_off])
        end_values[steps, envs] = values_of(
            np.stack([row.observation["state"] for row in cut_off]), np.stack([row.observation["obs"] for row in cut_off])
        )
    trace_ends = buffer.episode_ends.copy()
    trace_ends[-1] = True
    raw = segment_advantages(
        buffer.rewards,
        values,
        assigned,
        buffer.segment_ends != SegmentEnd.NONE,
        trace_ends,
        end_values,
        settings.skill_gamma,
        settings.gae_lambda,
    )
    buffer.skill_returns[:] = raw + values
    norm.update(buffer.skill_returns[assigned])
    buffer.skill_advantages[:] = 0.0
    if assigned.any():
        kept = raw[assigned]
        buffer.skill_advantages[assigned] = (
            normalize_advantages(kept, settings.skill_advantage_floor) if settings.normalize_advantage else kept
        )
