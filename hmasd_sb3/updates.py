"""One update of each network from a complete rollout. Knows policy and buffer, not the algorithm."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from typing import NamedTuple

import numpy as np
import torch as th

from hmasd_sb3.buffers import SkillRolloutBuffer
from hmasd_sb3.losses import clipped_policy_loss, value_loss, weighted_mean
from hmasd_sb3.pieces import Batch, Piece, even_slices, n_pieces, share_of
from hmasd_sb3.policies.discriminators import DrawnNoise
from hmasd_sb3.policies.flat import FlatOptimizer
from hmasd_sb3.policies.policy import HMASDPolicy
from hmasd_sb3.type_aliases import ActorBatch, CoordinatorBatch, CriticBatch, UpdateStats


class PPOSettings(NamedTuple):
    """Values in force for one PPO update (schedules already evaluated)."""

    n_epochs: int
    batch_size: float
    """Environment steps per minibatch (low level; the coordinator takes all its rows for one step)."""
    sequence_length: int
    clip_range: float
    clip_range_vf: float | None
    ent_coef: float
    vf_coef: float
    huber_delta: float
    max_grad_norm: float
    target_kl: float | None
    micro_batch_size: int | None = None
    """Environment steps (coordinator: assignments) whose gradient is computed at once; None: the whole minibatch's."""


class DiscriminatorSettings(NamedTuple):
    """Values in force for one discriminator update."""

    n_updates: int
    batch_size: int
    noise: float
    max_grad_norm: float
    micro_batch_size: int | None = None


class _Averages:
    """Means of named numbers over the minibatches of one update, each put together from its pieces."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = defaultdict(float)
        self._counts: dict[str, int] = defaultdict(int)
        self._parts: dict[str, float] = defaultdict(float)
        self.first_ratio_deviation = 0.0

    def add_part(self, share: float, **values: th.Tensor) -> None:
        """Add means over a piece to the minibatch at hand.

        :param share: of the piece in the minibatch
        """
        for name, value in values.items():
            self._parts[name] += share * float(value.detach())

    def settle(self, name: str) -> float:
        """The minibatch's mean of one number, which is complete now."""
        value = self._parts.pop(name)
        self._sums[name] += value
        self._counts[name] += 1
        return value

    def finish_minibatch(self, grad_norm: float) -> None:
        """Settle all numbers of the minibatch."""
        self._parts["grad_norm"] = grad_norm
        for name in list(self._parts):
            self.settle(name)

    def note_ratio(self, ratio: th.Tensor, weights: th.Tensor | None = None) -> None:
        """Remember how far the first minibatch's ratios are from 1; later calls change nothing."""
        if "approx_kl" not in self._counts:
            deviation = (ratio.detach() - 1.0).abs()
            largest = float((deviation if weights is None else deviation * weights).max())
            self.first_ratio_deviation = float(np.maximum(self.first_ratio_deviation, largest))  # keeps NaN

    def stats(self, **last: float) -> UpdateStats:
        means = {name: total / self._counts[name] for name, total in self._sums.items()}
        return UpdateStats({**means, **last}, self.first_ratio_deviation)


def _kl_exceeded(approx_kl: float, target_kl: float | None) -> bool:
    """SB3's rule: stop before a step once the estimate is past 1.5 times the target."""
    return target_kl is not None and approx_kl > 1.5 * target_kl


def _accumulate(flat: FlatOptimizer, parts: Sequence[Callable[[], th.Tensor]]) -> th.Tensor:
    """Backpropagate a minibatch's loss part by part, but for the last part, with which to step or not.

    A part's graph is gone before the next one is computed; the parts' sum is the minibatch's loss.
    """
    flat.discard()  # of a minibatch that was not stepped with
    *others, last = parts
    for part in others:
        flat.accumulate(part())
    return last()


def _epochs(n_epochs: int, minibatches: Callable[[], Iterator[list[Piece[Batch]]]]) -> Iterator[list[Piece[Batch]]]:
    """The minibatches of all epochs, each in pieces.

    A rollout that is one minibatch in one piece is the same in every epoch, so it is put together only once.

    :param minibatches: those of one epoch
    """
    for _ in range(n_epochs):
        epoch = list(minibatches())
        if len(epoch) == 1 and len(epoch[0]) == 1:
            yield from [[Piece(1.0, cache(epoch[0][0].gather))]] * n_epochs
            return
        yield from epoch


def update_coordinator(policy: HMASDPolicy, buffer: SkillRolloutBuffer, settings: PPOSettings) -> UpdateStats:
    """PPO on the assignments of the rollout: Z with V_h(s), each z^i with V_h(o^i) (Eq. 6)."""
    averages = _Averages()
    flat = policy.flat("coordinator")
    pieces = buffer.coordinator_pieces(settings.micro_batch_size) if flat.parameters else []
    if not pieces:
        return averages.stats(epochs=0.0)

    def part(gather: Callable[[], CoordinatorBatch], share: float) -> th.Tensor:
        batch = gather()
        scored = policy.coordinator.evaluate(batch.state, batch.obs, batch.team_skill, batch.agent_skills, batch.agent_mask)
        surrogate = clipped_policy_loss(
            scored.log_probs, batch.old_log_probs, batch.advantages, settings.clip_range, batch.weights
        )
        returns = policy.high_value_norm.normalize(batch.returns)
        critic_loss = value_loss(
            scored.values, batch.old_values, returns, settings.clip_range_vf, settings.huber_delta, batch.weights
        )
        entropy = weighted_mean(scored.entropies, batch.weights)
        averages.note_ratio(surrogate.ratio, batch.weights)
        averages.add_part(
            share,
            approx_kl=surrogate.approx_kl,
            policy_loss=surrogate.loss,
            value_loss=critic_loss,
            entropy=entropy,
            clip_fraction=surrogate.clip_fraction,
        )
        return share * (surrogate.loss - settings.ent_coef * entropy + settings.vf_coef * critic_loss)

    epochs = 0
    for _ in range(settings.n_epochs):
        loss = _accumulate(flat, [partial(part, piece.gather, piece.share) for piece in pieces])
        if _kl_exceeded(averages.settle("approx_kl"), settings.target_kl):
            break
        averages.finish_minibatch(flat.step(loss, settings.max_grad_norm))
        epochs += 1
    return averages.stats(epochs=float(epochs))


def update_actor(
    policy: HMASDPolicy, buffer: SkillRolloutBuffer, settings: PPOSettings, rng: np.random.Generator
) -> UpdateStats:
    """PPO on every agent's actions (policy part of Eq. 7)."""
    averages = _Averages()
    flat = policy.flat("actor")

    def part(gather: Callable[[], ActorBatch], share: float) -> th.Tensor:
        batch = gather()
        log_probs, entropies = policy.actor.evaluate(
            batch.obs, batch.agent_skills, batch.hidden, batch.actions, batch.action_masks
        )
        surrogate = clipped_policy_loss(log_probs, batch.old_log_probs, batch.advantages, settings.clip_range, batch.weights)
        entropy = weighted_mean(entropies, batch.weights)
        averages.note_ratio(surrogate.ratio, batch.weights)
        averages.add_part(
            share,
            approx_kl=surrogate.approx_kl,
            policy_loss=surrogate.loss,
            entropy=entropy,
            clip_fraction=surrogate.clip_fraction,
        )
        return share * (surrogate.loss - settings.ent_coef * entropy)

    steps = 0
    cut = (settings.sequence_length, settings.batch_size, rng, settings.micro_batch_size)
    for pieces in _epochs(settings.n_epochs, partial(buffer.actor_minibatches, *cut)):
        loss = _accumulate(flat, [partial(part, piece.gather, piece.share) for piece in pieces])
        if _kl_exceeded(averages.settle("approx_kl"), settings.target_kl):
            return averages.stats(gradient_steps=float(steps))
        averages.finish_minibatch(flat.step(loss, settings.max_grad_norm))
        steps += 1
    return averages.stats(gradient_steps=float(steps))


def update_critic(
    policy: HMASDPolicy, buffer: SkillRolloutBuffer, settings: PPOSettings, rng: np.random.Generator
) -> UpdateStats:
    """Clipped Huber regression of the low-level values (value part of Eq. 7)."""
    averages = _Averages()
    flat, norm = policy.flat("critic"), policy.low_value_norm

    def part(gather: Callable[[], CriticBatch], share: float) -> th.Tensor:
        batch = gather()
        loss = value_loss(
            policy.critic.evaluate(batch.state, batch.team_skill, batch.agent_skills, batch.hidden),
            batch.old_values,
            norm.normalize(batch.returns),
            settings.clip_range_vf,
            settings.huber_delta,
            batch.weights,
        )
        averages.add_part(share, value_loss=loss)
        return share * (settings.vf_coef * loss)

    steps = 0
    cut = (settings.sequence_length, settings.batch_size, rng, settings.micro_batch_size)
    for pieces in _epochs(settings.n_epochs, partial(buffer.critic_minibatches, *cut)):
        loss = _accumulate(flat, [partial(part, piece.gather, piece.share) for piece in pieces])
        averages.finish_minibatch(flat.step(loss, settings.max_grad_norm))
        steps += 1
    return averages.stats(gradient_steps=float(steps))


def update_discriminators(
    policy: HMASDPolicy, buffer: SkillRolloutBuffer, settings: DiscriminatorSettings, rng: np.random.Generator
) -> UpdateStats:
    """Cross-entropy on random rows of the rollout's state-skill pairs (Eq. 8)."""
    averages = _Averages()
    flat = policy.flat("discriminators")
    pairs = buffer.discriminator_data()
    n_rows = len(pairs.team_skill)
    batch_size = min(settings.batch_size, n_rows)

    def part(rows: th.Tensor, noise: float | DrawnNoise, team_share: float = 1.0, agent_share: float = 1.0) -> th.Tensor:
        team_loss, agent_loss = policy.discriminators.losses(pairs.rows(rows), noise)
        averages.add_part(team_share, team_loss=team_loss)
        averages.add_part(agent_share, agent_loss=agent_loss)
        return team_share * team_loss + agent_share * agent_loss

    def parts(rows: th.Tensor) -> list[Callable[[], th.Tensor]]:
        slices = even_slices(len(rows), n_pieces(len(rows), settings.micro_batch_size))
        if len(slices) == 1:
            return [partial(part, rows, settings.noise)]
        # The rows get the noise that they would get all at once, so all of it is drawn here.
        noise = policy.discriminators.draw_noise(pairs, len(rows), settings.noise)
        counts = [None if weights is None else weights[rows] for weights in (pairs.team_weights, pairs.agent_weights)]
        return [
            partial(
                part,
                rows[piece],
                noise.rows(piece) if isinstance(noise, DrawnNoise) else noise,
                *(share_of(piece, len(rows), weights) for weights in counts),
            )
            for piece in slices
        ]

    for _ in range(settings.n_updates):
        rows = th.from_numpy(rng.permutation(n_rows)[:batch_size]).to(pairs.team_skill.device)
        loss = _accumulate(flat, parts(rows))  # no name for the parts: the next ones would be made beside them
        averages.finish_minibatch(flat.step(loss, settings.max_grad_norm))
    return averages.stats(noise=settings.noise)
