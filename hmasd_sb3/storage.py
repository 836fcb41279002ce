"""Storage of a synchronised multi-agent rollout: steps, segment ends, what counts. Knows no network and no minibatch.

Everything is kept as (T, B, ...). Samples come from one policy version; the gate (``sync.py``) refuses others.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces

from hmasd_sb3.sync import SyncError, SyncGate
from hmasd_sb3.type_aliases import SegmentEnd, TeamDecision, TerminalRow

_STORED_KEYS = ("obs", "state", "action_mask", "agent_mask", "discriminator_obs", "discriminator_state")


class RolloutStorage:
    """One rollout of ``n_steps`` steps in ``n_envs`` environments.

    :param n_steps: T
    :param n_envs: B
    :param n_agents: N
    :param action_shape: shape of one agent's action, () if discrete
    :param observation_space: Dict space of a team
    :param hidden_size: H of the actor
    :param gate: decides whether a sample may enter
    :param device: where batches are made
    """

    def __init__(
        self,
        n_steps: int,
        n_envs: int,
        n_agents: int,
        action_shape: tuple[int, ...],
        observation_space: spaces.Dict,
        hidden_size: int,
        gate: SyncGate,
        device: th.device | str = "cpu",
    ) -> None:
        self.n_steps, self.n_envs, self.n_agents = n_steps, n_envs, n_agents
        self.action_shape = action_shape
        self.gate = gate
        self.device = device
        rows, agents = (n_steps, n_envs), (n_steps, n_envs, n_agents)
        # One row more than steps: the last one is the observation that follows the rollout.
        self.observations = {
            key: np.zeros((n_steps + 1, n_envs, *(space.shape or ())), dtype=_storage_dtype(space))
            for key, space in observation_space.spaces.items()
            if key in _STORED_KEYS
        }
        action_dtype = np.float32 if action_shape else np.int64
        self.actions = np.zeros((*agents, *action_shape), dtype=action_dtype)
        self.log_probs = np.zeros(agents, dtype=np.float32)
        self.hidden = np.zeros((*agents, hidden_size), dtype=np.float32)
        self.rewards = np.zeros(rows, dtype=np.float32)
        self.episode_starts = np.zeros(rows, dtype=bool)
        self.terminated = np.zeros(rows, dtype=bool)
        self.truncated = np.zeros(rows, dtype=bool)
        self.lost = np.zeros(rows, dtype=bool)
        self.team_skill = np.zeros(rows, dtype=np.int64)
        self.agent_skills = np.zeros(agents, dtype=np.int64)
        self.assigned = np.zeros(rows, dtype=bool)
        self.skill_log_probs = np.zeros((n_steps, n_envs, 1 + n_agents), dtype=np.float32)
        self.segment_ends = np.zeros(rows, dtype=np.int8)
        # Filled once the rollout is complete, by the algorithm; values in reward units, outputs in the network's own.
        self.agent_rewards = np.zeros(agents, dtype=np.float32)
        self.values = np.zeros(agents, dtype=np.float32)
        self.value_outputs = np.zeros(agents, dtype=np.float32)
        self.advantages = np.zeros(agents, dtype=np.float32)
        self.returns = np.zeros(agents, dtype=np.float32)
        self.critic_hidden: th.Tensor | None = None
        self.skill_values = np.zeros((n_steps, n_envs, 1 + n_agents), dtype=np.float32)
        self.skill_value_outputs = np.zeros_like(self.skill_values)
        self.skill_advantages = np.zeros_like(self.skill_values)
        self.skill_returns = np.zeros_like(self.skill_values)
        self.terminal_rows: list[TerminalRow] = []
        self.pos = 0

    # ------------------------------------------------------------------ filling

    @property
    def full(self) -> bool:
        """Whether all ``n_steps`` steps are stored."""
        return self.pos == self.n_steps

    def reset(self) -> None:
        """Forget the rollout."""
        self.pos = 0
        self.terminal_rows = []
        self.critic_hidden = None

    def add(
        self,
        observation: dict[str, np.ndarray],
        decision: TeamDecision,
        rewards: np.ndarray,
        episode_starts: np.ndarray,
        terminated: np.ndarray,
        truncated: np.ndarray,
        terminal_rows: list[TerminalRow],
        lost: np.ndarray | None = None,
    ) -> None:
        """Store one step of all environments.

        :param observation: what the decision was made on, arrays with axis B
        :param decision: what the policy decided, and which version of it
        :param rewards: (B,) team rewards
        :param episode_starts: (B,) bool, the observation began an episode
        :param terminated: (B,) bool, the episode ended by the game's rules
        :param truncated: (B,) bool, the episode was cut off (time limit)
        :param terminal_rows: true successors of the rows that ended
        :param lost: (B,) bool, what came of this step is unknown (a worker broke down), so nothing is learnt from it; such
            rows are truncated, and the observation they were decided on stands in for their successor
        :raises SyncError: see :meth:`SyncGate.admit`; and when ``terminal_rows`` misses a row that ended
        """
        ended = set(np.flatnonzero(terminated | truncated).tolist())
        if ended != {row.env for row in terminal_rows}:
            raise SyncError(
                f"Environments {sorted(ended)} ended an episode, but the true last observation came for "
                f"{sorted(row.env for row in terminal_rows)}. The vector environment must report "
                "info['terminal_observation'] for every environment it resets."
            )
        self.gate.admit(decision.policy_version)
        step = self.pos
        self._store_observation(step, observation)
        self.actions[step] = decision.actions
        self.log_probs[step] = decision.log_probs
        self.hidden[step] = decision.hidden
        self.rewards[step] = rewards
        self.episode_starts[step] = episode_starts
        self.terminated[step] = terminated
        self.truncated[step] = truncated
        self.lost[step] = False if lost is None else lost
        self.team_skill[step] = decision.state.team_skill
        self.agent_skills[step] = decision.state.agent_skills
        self.assigned[step] = decision.assigned
        self.skill_log_probs[step] = decision.skill_log_probs
        reasons = np.where(decision.state.steps_left == 0, SegmentEnd.INTERVAL, SegmentEnd.NONE)
        reasons = np.where(truncated, SegmentEnd.TRUNCATED, reasons)
        self.segment_ends[step] = np.where(terminated, SegmentEnd.TERMINATED, reasons)
        self.terminal_rows.extend(terminal_rows)
        self.pos += 1

    def finish(self, last_observation: dict[str, np.ndarray]) -> None:
        """Close the rollout: store what follows it and end the skills that still run.

        :param last_observation: observation after the last step (already of the next episode where one ended)
        :raises SyncError: if steps are missing
        """
        if not self.full:
            raise SyncError(f"The rollout holds {self.pos} of {self.n_steps} steps; collect the rest before finishing it.")
        self._store_observation(self.n_steps, last_observation)
        last = self.segment_ends[-1]
        last[last == SegmentEnd.NONE] = SegmentEnd.ROLLOUT_END

    def _store_observation(self, step: int, observation: dict[str, np.ndarray]) -> None:
        for key, store in self.observations.items():
            store[step] = observation[key]

    # ------------------------------------------------------------------ reading

    @property
    def episode_ends(self) -> np.ndarray:
        """(T, B) bool, the episode ended with this step, for whichever reason."""
        return self.terminated | self.truncated

    def successors(self, key: str) -> np.ndarray:
        """(T, B, ...) the true successor of every step: the terminal observation where an episode ended."""
        following = self.observations[key][1:].copy()
        for row in self.terminal_rows:
            following[row.step, row.env] = row.observation[key]
        return following

    def discriminator_key(self, which: str) -> str:
        """Key that the discriminators look at: ``discriminator_<which>`` if the game gives it, else ``<which>``."""
        own = f"discriminator_{which}"
        return own if own in self.observations else which

    @property
    def present(self) -> np.ndarray | None:
        """(T+1, B, N) bool, which agents were there at each observation; None if all of them always were.

        Absence at a terminal observation, which stands outside this array, counts too.
        """
        mask = self.observations.get("agent_mask")
        if mask is None or (mask.all() and all(row.observation["agent_mask"].all() for row in self.terminal_rows)):
            return None
        return mask.astype(bool)

    def counting_samples(self) -> np.ndarray | None:
        """(T, B, N) bool, which agents' steps are to be learnt from; None: all. Not: absent agents' and lost ones."""
        present = self.present
        if present is None and not self.lost.any():
            return None
        counts = np.ones(self.actions.shape[:3], dtype=bool) if present is None else present[:-1].copy()
        counts[self.lost] = False
        return counts

    def counting_tokens(self) -> np.ndarray | None:
        """(T, B, 1+N) bool, of what is assigned at a step, which is to be learnt from: Z, and the skills of agents there."""
        samples = self.counting_samples()
        if samples is None:
            return None
        return np.concatenate([~self.lost[..., None], samples], axis=-1)

    def counting_pairs(self) -> np.ndarray | None:
        """(T, B, N) bool, which agents were there before and after a step, so that skills can be recognised; None: all."""
        counts = self.counting_samples()
        if counts is None or self.present is None:
            return counts
        return np.asarray(counts & self.successors("agent_mask").astype(bool))

    def segment_end_counts(self) -> dict[str, np.ndarray]:
        """Reason -> (B,) number of segments that ended for it in each environment."""
        return {reason.name.lower(): (self.segment_ends == reason).sum(axis=0) for reason in SegmentEnd if reason.value > 0}

    def flat_tensor(self, array: np.ndarray) -> th.Tensor:
        """(T, B, ...) -> (T*B, ...) tensor on the batch device."""
        return th.from_numpy(array.reshape(-1, *array.shape[2:])).to(self.device)


def _storage_dtype(space: spaces.Space[Any]) -> np.dtype:
    """float64 is stored as float32 (networks compute in it); every other type as it is."""
    dtype = np.dtype(space.dtype) if space.dtype is not None else np.dtype(np.float32)
    return np.dtype(np.float32) if dtype == np.float64 else dtype
