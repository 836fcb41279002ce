"""The rollout buffer: a rollout's storage, and the batches that networks learn from. Knows no network."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
import torch as th

from hmasd_sb3.normalization import to_float
from hmasd_sb3.pieces import Batch, Piece, consecutive_groups, even_slices, n_minibatches, n_pieces, share_of
from hmasd_sb3.storage import RolloutStorage
from hmasd_sb3.type_aliases import ActorBatch, CoordinatorBatch, CriticBatch, DiscriminatorBatch


class SkillRolloutBuffer(RolloutStorage):
    """One rollout of ``n_steps`` steps in ``n_envs`` environments; arguments as :class:`RolloutStorage`."""

    def chunks(self, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Cut every environment's rollout into pieces of at most ``length`` steps in which no episode starts.

        A new piece begins at the rollout's start, at each episode start, where an agent joins (with an empty memory), and
        every ``length`` steps after one of these.

        :return: flat step index t*B+b of each entry (C, length) int64, padding repeating the piece's first step; and
            whether an entry is a real step (C, length) bool. Every step appears exactly once.
        """
        steps = np.arange(self.n_steps)[:, None]
        begins = self.episode_starts.copy()
        begins[0] = True
        if (present := self.present) is not None:
            begins[1:] |= (present[1:-1] & ~present[:-2]).any(axis=-1)
        offset = steps - np.maximum.accumulate(np.where(begins, steps, 0), axis=0)
        # from (T, B) to environment-major order, so that a chunk's steps are neighbours
        offset = (offset % length).T.reshape(-1)
        index = np.arange(self.n_steps * self.n_envs).reshape(self.n_steps, self.n_envs).T.reshape(-1)
        chunk = np.cumsum(offset == 0) - 1
        first = index[offset == 0]
        table = np.repeat(first[:, None], length, axis=1)
        real = np.zeros(table.shape, dtype=bool)
        table[chunk, offset] = index
        real[chunk, offset] = True
        return table, real

    def _chunk_minibatches(
        self, length: int, batch_size: float, micro_batch_size: int | None, rng: np.random.Generator
    ) -> Iterator[list[_Chunks]]:
        """Random groups of chunks, about ``batch_size`` environment steps each, in pieces; see :meth:`actor_minibatches`."""
        table, real = self.chunks(length)
        n_batches = n_minibatches(self.n_steps * self.n_envs, batch_size)
        order = rng.permutation(len(table)) if n_batches > 1 else np.arange(len(table))
        sizes = real.sum(axis=1)
        for group in consecutive_groups(sizes[order], n_batches):
            members = order[group]
            count = n_pieces(int(sizes[members].sum()), micro_batch_size)
            # from (C, L) to time-major (L, C)
            yield [
                _Chunks(*(th.from_numpy(array[members[part]].T.copy()).to(self.device) for array in (table, real)))
                for part in consecutive_groups(sizes[members], count)
            ]

    def _pieces(
        self, chunks: list[_Chunks], counts: th.Tensor | None, gather: Callable[[_Chunks, th.Tensor], Batch]
    ) -> list[Piece[Batch]]:
        """Pieces with their shares.

        :param counts: (T*B, N), 1 for samples that count; None: all do
        :param gather: makes a batch of chunks and their weights
        """

        def weights(part: _Chunks) -> th.Tensor:
            return _chunk_weights(part.real, part.steps, counts)

        def batch(part: _Chunks) -> Batch:
            return gather(part, weights(part))

        sums = [float(weights(part).sum(dtype=th.float64)) for part in chunks] if len(chunks) > 1 else [1.0]
        # At least one sample as in weighted_mean(), where nothing counts.
        whole = max(1.0, sum(sums))
        return [Piece(own / whole, partial(batch, part)) for part, own in zip(chunks, sums, strict=True)]

    # ------------------------------------------------------------------ batches

    def actor_minibatches(
        self, length: int, batch_size: float, rng: np.random.Generator, micro_batch_size: int | None = None
    ) -> Iterator[list[Piece[ActorBatch]]]:
        """One epoch over all steps for the actor: minibatches, each in pieces.

        :param length: L, longest sequence that gradients run through
        :param batch_size: environment steps per minibatch, about, as chunks are kept whole
        :param micro_batch_size: environment steps per piece, about; None: each minibatch is one piece
        """
        obs = self.flat_tensor(self.observations["obs"][:-1]).flatten(2)
        stores = [self.flat_tensor(a) for a in (self.agent_skills, self.actions, self.log_probs, self.advantages)]
        hidden = self.flat_tensor(self.hidden)
        masks = self.flat_tensor(self.observations["action_mask"][:-1]) if "action_mask" in self.observations else None
        counts = self._weights(self.counting_samples())

        def per_agent(store: th.Tensor, index: th.Tensor) -> th.Tensor:
            # from (T*B, N, ...) to (L, C, N, ...) to (L, C*N, ...)
            return store[index].flatten(1, 2)

        def gather(chunks: _Chunks, weights: th.Tensor) -> ActorBatch:
            index = chunks.steps
            skills, actions, log_probs, advantages = (per_agent(store, index) for store in stores)
            return ActorBatch(
                to_float(per_agent(obs, index)),
                skills,
                hidden[index[0]].flatten(0, 1),
                actions,
                None if masks is None else per_agent(masks, index).bool(),
                log_probs,
                advantages,
                weights.expand(-1, -1, self.n_agents).flatten(1, 2),
            )

        for chunks in self._chunk_minibatches(length, batch_size, micro_batch_size, rng):
            yield self._pieces(chunks, counts, gather)

    def actor_batches(self, length: int, batch_size: float, rng: np.random.Generator) -> Iterator[ActorBatch]:
        """As :meth:`actor_minibatches`, each minibatch whole."""
        return (whole.gather() for (whole,) in self.actor_minibatches(length, batch_size, rng))

    def critic_minibatches(
        self, length: int, batch_size: float, rng: np.random.Generator, micro_batch_size: int | None = None
    ) -> Iterator[list[Piece[CriticBatch]]]:
        """One epoch over all steps for the low-level critic; arguments as :meth:`actor_minibatches`."""
        assert self.critic_hidden is not None
        state, team_skill, agent_skills = (
            self.flat_tensor(a) for a in (self.observations["state"][:-1], self.team_skill, self.agent_skills)
        )
        values, returns = self.flat_tensor(self.value_outputs), self.flat_tensor(self.returns)
        hidden = self.critic_hidden.flatten(0, 1)
        counts = self._weights(self.counting_samples())

        def gather(chunks: _Chunks, weights: th.Tensor) -> CriticBatch:
            index = chunks.steps
            return CriticBatch(
                to_float(state[index]).flatten(2),
                team_skill[index],
                agent_skills[index],
                hidden[index[0]],
                values[index],
                returns[index],
                weights,
            )

        for chunks in self._chunk_minibatches(length, batch_size, micro_batch_size, rng):
            yield self._pieces(chunks, counts, gather)

    def critic_batches(self, length: int, batch_size: float, rng: np.random.Generator) -> Iterator[CriticBatch]:
        """As :meth:`critic_minibatches`, each minibatch whole."""
        return (whole.gather() for (whole,) in self.critic_minibatches(length, batch_size, rng))

    def coordinator_pieces(self, micro_batch_size: int | None = None) -> list[Piece[CoordinatorBatch]]:
        """All assignments of the rollout in pieces; none if there was no assignment (every skill ran through).

        :param micro_batch_size: assignments per piece, at most; None: one piece, which is made once and kept
        """
        n_rows = int(self.assigned.sum())
        if n_rows == 0:
            return []
        count = n_pieces(n_rows, micro_batch_size)
        if count == 1:
            batch = self._assignments(slice(None))
            return [Piece(1.0, lambda: batch)]
        tokens = self.counting_tokens()
        weights = None if tokens is None else th.from_numpy(tokens[self.assigned])
        return [
            Piece(share_of(part, n_rows, weights), partial(self._assignments, part)) for part in even_slices(n_rows, count)
        ]

    def coordinator_batch(self) -> CoordinatorBatch | None:
        """All assignments of the rollout, or None if there was none (every skill ran through)."""
        return self._assignments(slice(None)) if self.assigned.any() else None

    def _assignments(self, part: slice) -> CoordinatorBatch:
        """Some of the assignments, counted in time order."""
        rows = np.flatnonzero(self.assigned)[part]

        def select(array: np.ndarray) -> th.Tensor:
            # from (T, B, ...) to (R, ...)
            return th.from_numpy(array.reshape(-1, *array.shape[2:])[rows]).to(self.device)

        present, counts = self.present, self.counting_tokens()
        return CoordinatorBatch(
            to_float(select(self.observations["state"][:-1])).flatten(1),
            to_float(select(self.observations["obs"][:-1])).flatten(2),
            select(self.team_skill),
            select(self.agent_skills),
            select(self.skill_log_probs),
            select(self.skill_value_outputs),
            select(self.skill_advantages),
            select(self.skill_returns),
            None if present is None else select(present[:-1]),
            None if counts is None else select(counts).to(th.float32),
        )

    def discriminator_data(self) -> DiscriminatorBatch:
        """All T*B state-skill pairs, successors as the discriminators see them."""
        state = self.flat_tensor(self.successors(self.discriminator_key("state")))
        obs = self.flat_tensor(self.successors(self.discriminator_key("obs")))
        pairs = self._weights(self.counting_pairs())
        return DiscriminatorBatch(
            state.flatten(1),
            obs.flatten(2),
            self.flat_tensor(self.team_skill),
            self.flat_tensor(self.agent_skills),
            self._weights(~self.lost) if self.lost.any() else None,
            pairs,
        )

    def _weights(self, counts: np.ndarray | None) -> th.Tensor | None:
        """(T, B, ...) bool -> (T*B, ...) float32."""
        return None if counts is None else self.flat_tensor(counts).to(th.float32)


class _Chunks(NamedTuple):
    steps: th.Tensor
    """(L, C) int64, flat step of each entry."""
    real: th.Tensor
    """(L, C) bool, whether an entry is a real step."""


def _chunk_weights(real: th.Tensor, index: th.Tensor, counts: th.Tensor | None) -> th.Tensor:
    """(L, C, 1), or (L, C, N) where agents differ: 1 for real steps that count.

    :param real: (L, C) bool
    :param index: (L, C), row of each entry
    :param counts: (T*B, N)
    """
    weights = real.unsqueeze(-1).to(th.float32)
    return weights if counts is None else weights * counts[index]
