"""Everything that travels between rooms, as tuples whose fields state their shapes.

``B`` environments, ``N`` agents, ``T`` steps of a rollout, ``L`` steps of a chunk, ``C`` chunks of a minibatch, ``R`` rows
(any flat batch), ``O`` / ``S`` observation / state size, ``H`` hidden size. ``A`` is empty for discrete actions and the
action size for continuous ones.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

import numpy as np
import torch as th

TensorDict = dict[str, th.Tensor]


class SkillState(NamedTuple):
    """What a team carries from one step to the next; callers of ``predict`` pass it back unread."""

    team_skill: np.ndarray
    """(B,) int64, the running team skill Z."""
    agent_skills: np.ndarray
    """(B, N) int64, the running individual skills z^1..z^N."""
    steps_left: np.ndarray
    """(B,) int64, steps that the running skills still last; 0 means: assign before the next action."""
    hidden: np.ndarray
    """(B, N, H) float32, hidden state of the recurrent actor, one row per agent."""


class SkillAssignment(NamedTuple):
    """One decision of the skill coordinator."""

    team_skill: th.Tensor
    """(R,) int64."""
    agent_skills: th.Tensor
    """(R, N) int64."""
    log_probs: th.Tensor
    """(R, 1+N): log pi_h of Z, then of each z^i given Z and the skills before it."""


class CoordinatorEvaluation(NamedTuple):
    """The coordinator's opinion of stored assignments (teacher forced)."""

    log_probs: th.Tensor
    """(R, 1+N)."""
    entropies: th.Tensor
    """(R, 1+N)."""
    values: th.Tensor
    """(R, 1+N), V_h on each token, in the critic's normalised units."""


class TeamDecision(NamedTuple):
    """One acting step of all environments."""

    actions: np.ndarray
    """(B, N, *A), as the policy scores them (continuous: unclipped, in units of [-1, 1])."""
    log_probs: np.ndarray
    """(B, N) float32, log pi_l of each agent's action."""
    assigned: np.ndarray
    """(B,) bool, whether skills were assigned at this step."""
    skill_log_probs: np.ndarray
    """(B, 1+N) float32, zero where nothing was assigned."""
    hidden: np.ndarray
    """(B, N, H) float32, the actor's hidden state *before* this step (already reset at episode starts)."""
    state: SkillState
    """What is carried to the next step."""
    policy_version: int = 0
    """Number of updates behind the policy that decided."""


class SegmentEnd(IntEnum):
    """Why a skill segment ended at a step."""

    NONE = 0
    INTERVAL = 1
    TERMINATED = 2
    TRUNCATED = 3
    ROLLOUT_END = 4


class TerminalRow(NamedTuple):
    """The true successor of a step that ended an episode, seen before the environment was reset."""

    step: int
    env: int
    observation: dict[str, np.ndarray]
    """Each key without batch axis."""


class ActorBatch(NamedTuple):
    """Chunks of consecutive steps for the actor's update; no episode boundary falls inside a chunk."""

    obs: th.Tensor
    """(L, C*N, O)."""
    agent_skills: th.Tensor
    """(L, C*N) int64."""
    hidden: th.Tensor
    """(C*N, H), stored hidden state at the chunk's first step."""
    actions: th.Tensor
    """(L, C*N, *A)."""
    action_masks: th.Tensor | None
    """(L, C*N, A) bool, legal actions, or the components that a continuous action has."""
    old_log_probs: th.Tensor
    """(L, C*N)."""
    advantages: th.Tensor
    """(L, C*N)."""
    weights: th.Tensor
    """(L, C*N), 1 for samples that count, 0 for padding, absent agents and lost transitions."""


class CriticBatch(NamedTuple):
    """Chunks of consecutive steps for the low-level critic's update."""

    state: th.Tensor
    """(L, C, S)."""
    team_skill: th.Tensor
    """(L, C) int64."""
    agent_skills: th.Tensor
    """(L, C, N) int64."""
    hidden: th.Tensor
    """(C, H), hidden state of the critic at the chunk's first step."""
    old_values: th.Tensor
    """(L, C, N), what the network said when the rollout was evaluated (its own units, whatever those mean by now)."""
    returns: th.Tensor
    """(L, C, N), reward units."""
    weights: th.Tensor
    """(L, C, 1) or (L, C, N), 1 for samples that count, 0 for padding, absent agents and lost transitions."""


class CoordinatorBatch(NamedTuple):
    """The rows of a rollout at which skills were assigned."""

    state: th.Tensor
    """(R, S)."""
    obs: th.Tensor
    """(R, N, O)."""
    team_skill: th.Tensor
    """(R,) int64."""
    agent_skills: th.Tensor
    """(R, N) int64."""
    old_log_probs: th.Tensor
    """(R, 1+N)."""
    old_values: th.Tensor
    """(R, 1+N), what the network said when the rollout was evaluated (its own units, whatever those mean by now)."""
    advantages: th.Tensor
    """(R, 1+N)."""
    returns: th.Tensor
    """(R, 1+N), reward units."""
    agent_mask: th.Tensor | None = None
    """(R, N) bool, who was there to be assigned a skill; None: everybody."""
    weights: th.Tensor | None = None
    """(R, 1+N), 1 for tokens that count, 0 for absent agents and lost transitions; None: all count."""


class DiscriminatorBatch(NamedTuple):
    """State-skill pairs: what a skill led to, and which skill it was."""

    state: th.Tensor
    """(R, D'), successor state as the discriminators see it, in the type it is stored in."""
    obs: th.Tensor
    """(R, N, D), successor observations as the discriminators see them, in the type they are stored in."""
    team_skill: th.Tensor
    """(R,) int64."""
    agent_skills: th.Tensor
    """(R, N) int64."""
    team_weights: th.Tensor | None = None
    """(R,), 1 for pairs that count, 0 for lost transitions; None: all count."""
    agent_weights: th.Tensor | None = None
    """(R, N), 1 for pairs that count, 0 for agents absent before or after and for lost transitions; None: all count."""

    def rows(self, index: th.Tensor) -> DiscriminatorBatch:
        """Some of the rows."""
        return DiscriminatorBatch(*(None if field is None else field[index] for field in self))  # type: ignore[arg-type]


class UpdateStats(NamedTuple):
    """What one network's update reports; every value is a plain float."""

    values: dict[str, float]
    """Name without group -> value, e.g. ``policy_loss``."""
    first_ratio_deviation: float
    """max |ratio - 1| over the first minibatch of the first epoch; 0 where no ratio exists."""
