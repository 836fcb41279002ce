"""What happens between collecting and updating: values, bootstraps, rewards and advantages of a complete rollout.

Critic and discriminators are not needed for acting, so they run here, once, over the whole rollout.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch as th

from hmasd_sb3.buffers import SkillRolloutBuffer
from hmasd_sb3.normalization import ValueNorm, to_float
from hmasd_sb3.policies.flat import NonFiniteError
from hmasd_sb3.policies.policy import HMASDPolicy
from hmasd_sb3.returns import (
    chance_level_return,
    generalized_advantages,
    intrinsic_rewards,
    normalize_advantages,
    segment_advantages,
    with_absent_filled,
)
from hmasd_sb3.type_aliases import DiscriminatorBatch, SegmentEnd, TerminalRow


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
    micro_batch_size: int | None = None
    """Environment steps that the discriminators look at at once; None: the whole rollout."""


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
    :raises NonFiniteError: if any of them is NaN or infinite, before the value statistics take it in
    """
    with th.no_grad(), np.errstate(over="ignore", invalid="ignore"):  # what overflows is refused by name
        pairs = buffer.discriminator_data()
        team_counts, agent_counts = pairs.team_weights, pairs.agent_weights
        policy.discriminators.update_scalers(
            pairs.state if team_counts is None else pairs.state[team_counts > 0],
            pairs.obs.flatten(0, 1) if agent_counts is None else pairs.obs[agent_counts > 0],
        )
        stats = _fill_agent_rewards(policy, buffer, pairs, settings)
        critic_hidden = _fill_low_level(policy, buffer, critic_hidden, settings)
        _fill_high_level(policy, buffer, settings)
    return critic_hidden, stats


def _check_finite(sources: dict[str, np.ndarray]) -> None:
    """Refuse values and returns that are NaN or infinite, before anything is learnt from them.

    :param sources: (T, B, K) each, by what they are
    :raises NonFiniteError: naming what, and the environment and step of the rollout where it is first met
    """
    for name, array in sources.items():
        if not np.isfinite(array.sum()):
            bad = ~np.isfinite(array).all(axis=-1)
            if bad.any():
                step, env = np.argwhere(bad)[0]
                raise NonFiniteError(
                    f"The {name} hold NaN or infinity, first in environment {env} at step {step} of the rollout. Look at the "
                    "size of that environment's observations and rewards, or lower the learning rate."
                )


def _fill_agent_rewards(
    policy: HMASDPolicy, buffer: SkillRolloutBuffer, pairs: DiscriminatorBatch, settings: ReturnSettings
) -> RewardStats:
    team_log_probs, agent_log_probs = policy.discriminators.log_probs(pairs, settings.micro_batch_size)
    shape = buffer.rewards.shape
    team = team_log_probs.cpu().numpy().reshape(shape)
    agents = agent_log_probs.cpu().numpy().reshape(*shape, -1)
    counts, known = buffer.counting_pairs(), ~buffer.lost
    mean_agents = _mean(agents if counts is None else agents[counts])
    if counts is not None:
        agents = with_absent_filled(agents, counts, otherwise=-np.log(policy.n_agent_skills))
    buffer.agent_rewards[:] = intrinsic_rewards(
        buffer.rewards,
        team,
        agents,
        settings.team_reward_coef,
        settings.team_diversity_coef,
        settings.agent_diversity_coef,
    )
    return RewardStats(
        settings.team_reward_coef * _mean(buffer.rewards[known]),
        settings.team_diversity_coef * _mean(team[known]),
        settings.agent_diversity_coef * mean_agents,
    )


def _mean(values: np.ndarray) -> float:
    """Mean of what counts, 0 if nothing does."""
    return float(values.mean()) if values.size else 0.0


def _fill_low_level(
    policy: HMASDPolicy, buffer: SkillRolloutBuffer, critic_hidden: th.Tensor, settings: ReturnSettings
) -> th.Tensor:
    offset = _chance_offset(policy, settings)
    critic, norm, device = policy.critic, policy.low_value_norm, critic_hidden.device

    def tensor(array: np.ndarray) -> th.Tensor:
        return th.from_numpy(array).to(device)

    def in_reward_units(values: th.Tensor) -> np.ndarray:
        return norm.denormalize(values).cpu().numpy() + np.float32(offset)

    def for_absent_too(values: np.ndarray, present: np.ndarray | None) -> np.ndarray:
        return values if present is None else with_absent_filled(values, present)

    present = buffer.present
    state = tensor(buffer.observations["state"]).flatten(2)
    team_skill, agent_skills = tensor(buffer.team_skill), tensor(buffer.agent_skills)
    values, before, after = critic.rollout(state[:-1], team_skill, agent_skills, critic_hidden, tensor(buffer.episode_starts))
    buffer.value_outputs[:] = values.cpu().numpy()
    buffer.values[:] = for_absent_too(in_reward_units(values), None if present is None else present[:-1])
    buffer.critic_hidden = before
    next_values = np.empty_like(buffer.values)
    next_values[:-1] = buffer.values[1:]
    # Beyond the last step the running skills are taken to go on; which come next is not decided yet.
    following = in_reward_units(critic.step(state[-1], team_skill[-1], agent_skills[-1], after[-1]))
    next_values[-1] = for_absent_too(following, None if present is None else present[-1])
    next_values[buffer.terminated] = 0.0
    cut_off = [row for row in buffer.terminal_rows if buffer.truncated[row.step, row.env]]
    if cut_off:
        steps, envs = np.array([row.step for row in cut_off]), np.array([row.env for row in cut_off])
        last_states = to_float(tensor(np.stack([row.observation["state"] for row in cut_off]))).flatten(1)
        last_values = in_reward_units(
            critic.step(last_states, team_skill[steps, envs], agent_skills[steps, envs], after[steps, envs])
        )
        next_values[steps, envs] = for_absent_too(last_values, None if present is None else _last_present(cut_off))
    # What follows an absent agent's step is what follows the others': the value of one who joins is no news about them.
    next_values = for_absent_too(next_values, None if present is None else present[:-1])
    raw = generalized_advantages(
        buffer.agent_rewards,
        buffer.values,
        next_values,
        buffer.episode_ends,
        settings.gamma,
        settings.gae_lambda,
        buffer.lost,
    )
    # The network predicts what is left after the constant, so that is its target.
    buffer.returns[:] = raw + buffer.values - offset
    _check_finite(
        {
            "low-level rewards": buffer.agent_rewards,
            "critic's values": buffer.values,
            "low-level returns": buffer.returns,
        }
    )
    counts = buffer.counting_samples()
    norm.update(buffer.returns if counts is None else buffer.returns[counts])
    buffer.advantages[:] = normalize_advantages(raw, counts=counts) if settings.normalize_advantage else raw
    return after[-1]


def _chance_offset(policy: HMASDPolicy, settings: ReturnSettings) -> float:
    """The constant that the low-level critic starts at, in reward units."""
    if not settings.critic_chance_offset:
        return 0.0
    return chance_level_return(
        policy.n_team_skills,
        policy.n_agent_skills,
        settings.team_diversity_coef,
        settings.agent_diversity_coef,
        settings.gamma,
    )


def _fill_high_level(policy: HMASDPolicy, buffer: SkillRolloutBuffer, settings: ReturnSettings) -> None:
    norm = policy.high_value_norm
    state, obs, present = buffer.observations["state"], buffer.observations["obs"], buffer.present
    assigned, values = buffer.assigned, buffer.skill_values
    values[:] = 0.0
    if assigned.any():
        there = None if present is None else present[:-1][assigned]
        outputs = _skill_value_outputs(policy, state[:-1][assigned], obs[:-1][assigned], there)
        buffer.skill_value_outputs[assigned] = outputs
        values[assigned] = _in_reward_units(norm, outputs, there)
    end_values = np.zeros_like(values)
    end_values[:-1] = values[1:]  # a full interval: V_h where the next skills are assigned
    there = None if present is None else present[-1]
    end_values[-1] = _in_reward_units(norm, _skill_value_outputs(policy, state[-1], obs[-1], there), there)
    end_values[buffer.episode_ends] = 0.0
    # What a breakdown cut off would have gone on, whatever running out of time means in this game.
    goes_on = buffer.truncated if settings.skill_timeout_bootstrap else buffer.lost
    cut_off = [row for row in buffer.terminal_rows if goes_on[row.step, row.env]]
    if cut_off:
        steps, envs = np.array([row.step for row in cut_off]), np.array([row.env for row in cut_off])
        there = None if present is None else _last_present(cut_off)
        last_state, last_obs = (np.stack([row.observation[key] for row in cut_off]) for key in ("state", "obs"))
        end_values[steps, envs] = _in_reward_units(norm, _skill_value_outputs(policy, last_state, last_obs, there), there)
    trace_ends = buffer.episode_ends.copy()
    trace_ends[-1] = True
    # An assignment whose outcome was lost has no advantage that those before it could look at.
    trace_ends[:-1] |= (buffer.lost & assigned)[1:]
    raw = segment_advantages(
        np.where(buffer.lost, np.float32(0.0), buffer.rewards),
        values,
        assigned,
        buffer.segment_ends != SegmentEnd.NONE,
        trace_ends,
        end_values,
        settings.skill_gamma,
        settings.gae_lambda,
    )
    buffer.skill_returns[:] = raw + values
    _check_finite({"coordinator's values": values, "high-level returns": buffer.skill_returns})
    tokens = buffer.counting_tokens()
    counts = np.broadcast_to(assigned[..., None], raw.shape) if tokens is None else tokens & assigned[..., None]
    norm.update(buffer.skill_returns[counts])
    buffer.skill_advantages[:] = 0.0
    if assigned.any():
        kept = raw[assigned]
        buffer.skill_advantages[assigned] = (
            normalize_advantages(kept, settings.skill_advantage_floor, None if tokens is None else tokens[assigned])
            if settings.normalize_advantage
            else kept
        )


def _skill_value_outputs(policy: HMASDPolicy, state: np.ndarray, obs: np.ndarray, present: np.ndarray | None) -> np.ndarray:
    """V_h of every token, in the network's units: (R, ...), (R, N, ...), (R, N) -> (R, 1+N)."""
    device = policy.device
    values = policy.coordinator.values(
        to_float(th.from_numpy(state).to(device)).flatten(1),
        to_float(th.from_numpy(obs).to(device)).flatten(2),
        None if present is None else th.from_numpy(present).to(device),
    )
    return np.asarray(values.cpu().numpy())


def _in_reward_units(norm: ValueNorm, outputs: np.ndarray, present: np.ndarray | None) -> np.ndarray:
    """V_h (R, 1+N) in reward units; an absent agent's is that of the state, as all tokens value the same team reward."""
    values: np.ndarray = norm.denormalize(th.from_numpy(outputs)).numpy()
    if present is not None:
        values[:, 1:] = np.where(present, values[:, 1:], values[:, :1])
    return values


def _last_present(rows: list[TerminalRow]) -> np.ndarray:
    """(R, N) bool, who was there at the end of those episodes."""
    return np.stack([row.observation["agent_mask"] for row in rows]).astype(bool)
