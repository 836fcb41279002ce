"""Advantages and rewards as pure NumPy functions; knows no network and no buffer."""

from __future__ import annotations

import numpy as np

Array = np.ndarray


def _require_shape(name: str, array: Array, shape: tuple[int, ...]) -> None:
    if array.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {array.shape}.")


def generalized_advantages(
    rewards: Array,
    values: Array,
    next_values: Array,
    episode_ends: Array,
    gamma: float,
    gae_lambda: float,
    lost: Array | None = None,
) -> Array:
    r"""Generalised advantage estimation (Schulman et al. 2016, Eq. 16) over a synchronous rollout.

    .. math:: \delta_t = r_t + \gamma V(s_{t+1}) - V(s_t), \qquad
              A_t = \delta_t + \gamma\lambda\,(1 - e_t)\,A_{t+1}

    ``next_values`` decides what follows a step, so that every kind of ending is said in one place: the value of the next
    step while the episode runs, 0 after a termination, the value of the true last state after a truncation, and the
    value of the state after the last step at the end of the rollout.

    :param rewards: (T, B, N)
    :param values: (T, B, N), V(s_t)
    :param next_values: (T, B, N), V of the true successor of step t
    :param episode_ends: (T, B) bool, the episode ended with step t, for whichever reason
    :param lost: (T, B) bool, what came of step t is unknown. It has no advantage, and the step before it is followed by
        V(s_t), as if the episode had been cut off there
    :return: (T, B, N) advantages
    :raises ValueError: where the shapes disagree
    """
    _require_shape("values", values, rewards.shape)
    _require_shape("next_values", next_values, rewards.shape)
    _require_shape("episode_ends", episode_ends, rewards.shape[:2])
    deltas: Array = rewards + gamma * next_values - values
    if lost is not None:
        _require_shape("lost", lost, rewards.shape[:2])
        deltas[lost] = 0.0
    discounts = gamma * gae_lambda * (1.0 - episode_ends[..., None].astype(rewards.dtype))
    advantages: Array = np.empty_like(deltas)
    running = np.zeros_like(deltas[0])
    for step in range(len(deltas) - 1, -1, -1):
        running = deltas[step] + discounts[step] * running
        advantages[step] = running
    return advantages


def segment_advantages(
    rewards: Array,
    values: Array,
    assigned: Array,
    segment_ends: Array,
    trace_ends: Array,
    end_values: Array,
    gamma: float,
    gae_lambda: float,
) -> Array:
    r"""Generalised advantages of skill assignments, one decision per segment (the high level of Eq. 6).

    A segment j starts where skills are assigned, collects the undiscounted team reward up to its last step, and is
    followed by the value at its end:

    .. math:: \delta_j = \sum_{t \in j} r_t + \gamma V_{end(j)} - V_j, \qquad
              A_j = \delta_j + \gamma\lambda\,(1 - e_j)\,A_{j+1}

    Steps before an environment's first assignment (the tail of a skill that began in the rollout before) belong to no
    decision of this rollout and are left out.

    :param rewards: (T, B) team rewards
    :param values: (T, B, K), V_h at assignments (read nowhere else); K tokens share the segment's reward
    :param assigned: (T, B) bool, a segment starts at this step
    :param segment_ends: (T, B) bool, a segment ends with this step
    :param trace_ends: (T, B) bool, no later segment may be looked at from here (episode or rollout end)
    :param end_values: (T, B, K), value that follows a segment's last step: V_h of the next assignment, 0 after a
        termination, V_h of the true last state after a truncation or at the rollout's end (read at ``segment_ends``)
    :return: (T, B, K) advantages, zero where nothing was assigned
    :raises ValueError: where the shapes disagree
    """
    for name, array in (("assigned", assigned), ("segment_ends", segment_ends), ("trace_ends", trace_ends)):
        _require_shape(name, array, rewards.shape)
    _require_shape("end_values", end_values, values.shape)
    _require_shape("values", values, (*rewards.shape, values.shape[-1]))
    advantages = np.zeros_like(values)
    reward_sum = np.zeros_like(rewards[0])
    following_value = np.zeros_like(values[0])
    following_advantage = np.zeros_like(values[0])
    next_assigned_advantage = np.zeros_like(values[0])
    for step in range(len(rewards) - 1, -1, -1):
        ends, cuts = segment_ends[step], trace_ends[step]
        reward_sum = np.where(ends, 0.0, reward_sum) + rewards[step]
        following_value = np.where(ends[:, None], end_values[step], following_value)
        after_end = np.where(cuts[:, None], 0.0, next_assigned_advantage)
        following_advantage = np.where(ends[:, None], after_end, following_advantage)
        starts = assigned[step][:, None]
        delta = reward_sum[:, None] + gamma * following_value - values[step]
        advantage = delta + gamma * gae_lambda * following_advantage
        advantages[step] = np.where(starts, advantage, 0.0)
        next_assigned_advantage = np.where(starts, advantage, next_assigned_advantage)
    return advantages


def intrinsic_rewards(
    team_rewards: Array,
    team_log_probs: Array,
    agent_log_probs: Array,
    team_reward_coef: float,
    team_diversity_coef: float,
    agent_diversity_coef: float,
) -> Array:
    r"""Low-level reward of each agent (Eq. 4).

    .. math:: r^i_t = \lambda_e r_t + \lambda_D \log q_D(Z|s_{t+1}) + \lambda_d \log q_d(z^i|o^i_{t+1}, Z)

    :param team_rewards: (T, B)
    :param team_log_probs: (T, B), log q_D(Z | s_{t+1})
    :param agent_log_probs: (T, B, N), log q_d(z^i | o^i_{t+1}, Z)
    :return: (T, B, N)
    """
    _require_shape("team_log_probs", team_log_probs, team_rewards.shape)
    shared = team_reward_coef * team_rewards + team_diversity_coef * team_log_probs
    return np.asarray(shared[..., None] + agent_diversity_coef * agent_log_probs)


def chance_level_return(
    n_team_skills: int, n_agent_skills: int, team_diversity_coef: float, agent_diversity_coef: float, gamma: float
) -> float:
    r"""Discounted return of an endless episode whose skills no discriminator can tell apart.

    Each step then earns :math:`-C` with :math:`C = \lambda_D \ln n_Z + \lambda_d \ln n_z`, so the return is
    :math:`-C / (1 - \gamma)`. A critic that starts there need not travel from 0 before its errors become small beside
    the differences between skills. Every TD error is what it would be with a critic that has learnt the constant.
    """
    if gamma >= 1.0:
        return 0.0
    per_step = team_diversity_coef * np.log(n_team_skills) + agent_diversity_coef * np.log(n_agent_skills)
    return float(-per_step / (1.0 - gamma))


def normalize_advantages(advantages: Array, std_floor: float = 0.0, counts: Array | None = None) -> Array:
    """Centre and scale advantages; the divisor never falls below ``std_floor``.

    A floor above zero keeps value noise from being blown up to unit size while no reward has been seen yet.

    :param advantages: any shape; statistics are taken over all of it
    :param counts: same shape, bool: take the statistics over these only
    """
    sample = advantages if counts is None else advantages[counts]
    if sample.size == 0:
        return np.zeros_like(advantages)
    std = sample.std() if sample.size > 1 else 0.0
    return np.asarray((advantages - sample.mean()) / max(float(std), std_floor, 1e-8))


def with_absent_filled(values: Array, present: Array, otherwise: Array | float | None = None) -> Array:
    r"""Give absent agents what the present ones have on average.

    A team's reward goes on after an agent has left it, and so does the return of what that agent did before. From then on
    it is given the others' mean reward and the others' mean value, which fit each other: if each present agent's values
    satisfy :math:`V^i(s) = E[r^i + \gamma V^i(s')]`, so do their means, as long as both sides of a step are means over
    those who were there before it. Leaving is neither rewarded nor punished, and no network is asked about a state in
    which it never acted.

    :param values: (..., N)
    :param present: (..., N) bool
    :param otherwise: (...,) or a number, where nobody is present; by default the mean over all agents
    :return: (..., N), a copy
    """
    n_present = present.sum(axis=-1)
    mean = np.where(present, values, 0.0).sum(axis=-1) / np.maximum(n_present, 1)
    fallback = values.mean(axis=-1) if otherwise is None else otherwise
    mean = np.where(n_present > 0, mean, fallback)
    return np.asarray(np.where(present, values, mean[..., None]).astype(values.dtype))
