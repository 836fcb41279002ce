"""One update of each network from a complete rollout. Knows policy and buffer, not the algorithm."""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple

import numpy as np
import torch as th

from hmasd_sb3.buffers import SkillRolloutBuffer
from hmasd_sb3.losses import clipped_policy_loss, value_loss, weighted_mean
from hmasd_sb3.policies.policy import HMASDPolicy
from hmasd_sb3.type_aliases import UpdateStats


class PPOSettings(NamedTuple):
    """Values in force for one PPO update (schedules already evaluated)."""

    n_epochs: int
    batch_size: int
    """Environment steps per minibatch (low level; the coordinator takes all its rows at once)."""
    sequence_length: int
    clip_range: float
    clip_range_vf: float | None
    ent_coef: float
    vf_coef: float
    huber_delta: float
    max_grad_norm: float
    target_kl: float | None


class DiscriminatorSettings(NamedTuple):
    """Values in force for one discriminator update."""

    n_updates: int
    batch_size: int
    noise: float
    max_grad_norm: float


class _Averages:
    """Means of named numbers over the minibatches of one update."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = defaultdict(float)
        self._counts: dict[str, int] = defaultdict(int)
        self.first_ratio_deviation = 0.0

    def add(self, **values: float | th.Tensor) -> None:
        for name, value in values.items():
            self._sums[name] += float(value)
            self._counts[name] += 1

    def note_ratio(self, ratio: th.Tensor, weights: th.Tensor | None = None) -> None:
        """Remember how far the very first ratios are from 1; later calls change nothing."""
        if "approx_kl" not in self._counts:
            deviation = (ratio.detach() - 1.0).abs()
            self.first_ratio_deviation = float((deviation if weights is None else deviation * weights).max())

    def stats(self, **last: float) -> UpdateStats:
        means = {name: total / self._counts[name] for name, total in self._sums.items()}
        return UpdateStats({**means, **last}, self.first_ratio_deviation)


def _kl_exceeded(approx_kl: float, target_kl: float | None) -> bool:
    """SB3's rule: stop before a step once the estimate is past 1.5 times the target."""
    return target_kl is not None and approx_kl > 1.5 * target_kl


def update_coordinator(policy: HMASDPolicy, buffer: SkillRolloutBuffer, settings: PPOSettings) -> UpdateStats:
    """PPO on the assignments of the rollout: Z with V_h(s), each z^i with V_h(o^i) (Eq. 6)."""
    averages = _Averages()
    batch = buffer.coordinator_batch()
    flat = policy.flat("coordinator")
    if batch is None or not flat.parameters:
        return averages.stats(epochs=0.0)
    returns = policy.high_value_norm.normalize(batch.returns)
    epochs = 0
    for _ in range(settings.n_epochs):
        scored = policy.coordinator.evaluate(batch.state, batch.obs, batch.team_skill, batch.agent_skills, batch.agent_mask)
        surrogate = clipped_policy_loss(
            scored.log_probs, batch.old_log_probs, batch.advantages, settings.clip_range, batch.weights
        )
        critic_loss = value_loss(
            scored.values, batch.old_values, returns, settings.clip_range_vf, settings.huber_delta, batch.weights
        )
        entropy = weighted_mean(scored.entropies, batch.weights)
        averages.note_ratio(surrogate.ratio, batch.weights)
        averages.add(approx_kl=surrogate.approx_kl)
        if _kl_exceeded(float(surrogate.approx_kl), settings.target_kl):
            break
        loss = surrogate.loss - settings.ent_coef * entropy + settings.vf_coef * critic_loss
        grad_norm = flat.step(loss, settings.max_grad_norm)
        epochs += 1
        averages.add(
            policy_loss=surrogate.loss.detach(),
            value_loss=critic_loss.detach(),
            entropy=entropy.detach(),
            clip_fraction=surrogate.clip_fraction,
            grad_norm=grad_norm,
        )
    return averages.stats(epochs=float(epochs))


def update_actor(
    policy: HMASDPolicy, buffer: SkillRolloutBuffer, settings: PPOSettings, rng: np.random.Generator
) -> UpdateStats:
    """PPO on every agent's actions (policy part of Eq. 7)."""
    averages = _Averages()
    flat = policy.flat("actor")
    steps = 0
    stopped = False
    for _ in range(settings.n_epochs):
        for batch in buffer.actor_batches(settings.sequence_length, settings.batch_size, rng):
            log_probs, entropies = policy.actor.evaluate(
                batch.obs, batch.agent_skills, batch.hidden, batch.actions, batch.action_masks
            )
            surrogate = clipped_policy_loss(
                log_probs, batch.old_log_probs, batch.advantages, settings.clip_range, batch.weights
            )
            entropy = weighted_mean(entropies, batch.weights)
            averages.note_ratio(surrogate.ratio, batch.weights)
            averages.add(approx_kl=surrogate.approx_kl)
            stopped = _kl_exceeded(float(surrogate.approx_kl), settings.target_kl)
            if stopped:
                break
            grad_norm = flat.step(surrogate.loss - settings.ent_coef * entropy, settings.max_grad_norm)
            steps += 1
            averages.add(
                policy_loss=surrogate.loss.detach(),
                entropy=entropy.detach(),
                clip_fraction=surrogate.clip_fraction,
                grad_norm=grad_norm,
            )
        if stopped:
            break
    return averages.stats(gradient_steps=float(steps))


def update_critic(
    policy: HMASDPolicy, buffer: SkillRolloutBuffer, settings: PPOSettings, rng: np.random.Generator
) -> UpdateStats:
    """Clipped Huber regression of the low-level values (value part of Eq. 7)."""
    averages = _Averages()
    flat, norm = policy.flat("critic"), policy.low_value_norm
    for _ in range(settings.n_epochs):
        for batch in buffer.critic_batches(settings.sequence_length, settings.batch_size, rng):
            values = policy.critic.evaluate(batch.state, batch.team_skill, batch.agent_skills, batch.hidden)
            loss = value_loss(
                values,
                batch.old_values,
                norm.normalize(batch.returns),
                settings.clip_range_vf,
                settings.huber_delta,
                batch.weights,
            )
            grad_norm = flat.step(settings.vf_coef * loss, settings.max_grad_norm)
            averages.add(value_loss=loss.detach(), grad_norm=grad_norm)
    return averages.stats()


def update_discriminators(
    policy: HMASDPolicy, buffer: SkillRolloutBuffer, settings: DiscriminatorSettings, rng: np.random.Generator
) -> UpdateStats:
    """Cross-entropy on random rows of the rollout's state-skill pairs (Eq. 8)."""
    averages = _Averages()
    flat = policy.flat("discriminators")
    pairs = buffer.discriminator_data()
    n_rows = len(pairs.team_skill)
    batch_size = min(settings.batch_size, n_rows)
    for _ in range(settings.n_updates):
        rows = th.from_numpy(rng.permutation(n_rows)[:batch_size]).to(pairs.team_skill.device)
        team_loss, agent_loss = policy.discriminators.losses(pairs.rows(rows), settings.noise)
        grad_norm = flat.step(team_loss + agent_loss, settings.max_grad_norm)
        averages.add(team_loss=team_loss.detach(), agent_loss=agent_loss.detach(), grad_norm=grad_norm)
    return averages.stats(noise=settings.noise)
