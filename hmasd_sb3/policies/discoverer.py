"""The skill discoverer: a shared decentralised recurrent actor and a centralised recurrent critic.

Both are MLP, GRU, MLP. Sequences come as padded chunks (L, R, ...) with a stored initial hidden state; no episode
boundary falls inside a chunk, so one GRU call does a whole minibatch.
"""

from __future__ import annotations

import torch as th
from torch import nn
from torch.nn import functional as F

from hmasd_sb3.policies.action_heads import ActionHead, CategoricalHead, GaussianHead
from hmasd_sb3.policies.blocks import gru_step, linear, mlp_trunk, orthogonal_gru
from hmasd_sb3.policies.spec import TeamSpec


def one_hot(index: th.Tensor, n_values: int) -> th.Tensor:
    """(...) int64 -> (..., n_values) float32."""
    return F.one_hot(index, n_values).to(th.float32)


class RecurrentActor(nn.Module):
    """pi_l(a^i | o^i, z^i), one network for all agents.

    :param spec: sizes of the team
    :param n_agent_skills: n_z
    :param hidden_size: width of every layer and of the GRU
    :param log_std_init: for continuous actions
    """

    def __init__(self, spec: TeamSpec, n_agent_skills: int, hidden_size: int, log_std_init: float) -> None:
        super().__init__()
        self.n_agent_skills = n_agent_skills
        self.features = spec.obs_features()
        self.trunk = mlp_trunk(self.features.dim + n_agent_skills, hidden_size)
        self.gru = orthogonal_gru(hidden_size, hidden_size)
        self.norm = nn.LayerNorm(hidden_size)
        self.head: ActionHead = (
            GaussianHead(hidden_size, spec.action_dim, log_std_init)
            if spec.continuous
            else CategoricalHead(hidden_size, spec.action_dim)
        )

    def _inputs(self, obs: th.Tensor, skills: th.Tensor) -> th.Tensor:
        return self.trunk(th.cat([self.features(obs), one_hot(skills, self.n_agent_skills)], dim=-1))  # type: ignore[no-any-return]

    def act(
        self,
        obs: th.Tensor,
        skills: th.Tensor,
        hidden: th.Tensor,
        mask: th.Tensor | None,
        deterministic: bool,
    ) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """One step: (R, O), (R,), (R, H) -> actions (R, *A), log-probabilities (R,), next hidden (R, H)."""
        hidden = gru_step(self.gru, self._inputs(obs, skills), hidden)
        actions, log_probs = self.head.act(self.norm(hidden), mask, deterministic)
        return actions, log_probs, hidden

    def evaluate(
        self,
        obs: th.Tensor,
        skills: th.Tensor,
        hidden: th.Tensor,
        actions: th.Tensor,
        mask: th.Tensor | None,
    ) -> tuple[th.Tensor, th.Tensor]:
        """Chunks: (L, R, O), (L, R), (R, H), (L, R, *A) -> log-probabilities (L, R), entropies (L, R)."""
        outputs, _ = self.gru(self._inputs(obs, skills), hidden.unsqueeze(0))
        return self.head.evaluate(self.norm(outputs), actions, mask)


class RecurrentCritic(nn.Module):
    """V_l(s, Z), or one value per agent V_l^i(s, Z, z^1..z^N) when it sees the individual skills too.

    A value that does not know which skills run must average over them, and the advantage then mixes "this skill earns
    little" with "this action was poor". The paper's critic is ``sees_agent_skills=False``.

    :param sees_agent_skills: also feed z^1..z^N and give each agent its own value
    """

    def __init__(
        self, spec: TeamSpec, n_team_skills: int, n_agent_skills: int, hidden_size: int, sees_agent_skills: bool
    ) -> None:
        super().__init__()
        self.n_agents = spec.n_agents
        self.n_team_skills = n_team_skills
        self.n_agent_skills = n_agent_skills
        self.sees_agent_skills = sees_agent_skills
        self.hidden_size = hidden_size
        skills_size = n_team_skills + (spec.n_agents * n_agent_skills if sees_agent_skills else 0)
        self.features = spec.state_features()
        self.trunk = mlp_trunk(self.features.dim + skills_size, hidden_size)
        self.gru = orthogonal_gru(hidden_size, hidden_size)
        self.norm = nn.LayerNorm(hidden_size)
        self.value = linear(hidden_size, spec.n_agents if sees_agent_skills else 1, gain=1.0)

    def _inputs(self, state: th.Tensor, team_skill: th.Tensor, agent_skills: th.Tensor) -> th.Tensor:
        parts = [self.features(state), one_hot(team_skill, self.n_team_skills)]
        if self.sees_agent_skills:
            parts.append(one_hot(agent_skills, self.n_agent_skills).flatten(-2))
        return self.trunk(th.cat(parts, dim=-1))  # type: ignore[no-any-return]

    def _values(self, hidden: th.Tensor) -> th.Tensor:
        values = self.value(self.norm(hidden))
        return values.expand(*values.shape[:-1], self.n_agents)  # type: ignore[no-any-return]

    def step(self, state: th.Tensor, team_skill: th.Tensor, agent_skills: th.Tensor, hidden: th.Tensor) -> th.Tensor:
        """Values one step further on: (R, S), (R,), (R, N), (R, H) -> (R, N), normalised units."""
        return self._values(gru_step(self.gru, self._inputs(state, team_skill, agent_skills), hidden))

    def rollout(
        self,
        state: th.Tensor,
        team_skill: th.Tensor,
        agent_skills: th.Tensor,
        hidden: th.Tensor,
        episode_starts: th.Tensor,
    ) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """A whole rollout in one pass, hidden states set to zero where episodes start.

        :param state: (T, B, S); skills (T, B) and (T, B, N)
        :param hidden: (B, H) before the first step
        :param episode_starts: (T, B) bool
        :return: values (T, B, N), hidden states before each step and after it, (T, B, H) each
        """
        inputs = self._inputs(state, team_skill, agent_skills)
        keep = (~episode_starts).to(inputs.dtype).unsqueeze(-1)
        before, after = [], []
        for step in range(inputs.shape[0]):
            hidden = hidden * keep[step]
            before.append(hidden)
            hidden = gru_step(self.gru, inputs[step], hidden)
            after.append(hidden)
        stacked = th.stack(after)
        return self._values(stacked), th.stack(before), stacked

    def evaluate(self, state: th.Tensor, team_skill: th.Tensor, agent_skills: th.Tensor, hidden: th.Tensor) -> th.Tensor:
        """Chunks: (L, R, S), (L, R), (L, R, N), (R, H) -> values (L, R, N), normalised units."""
        outputs, _ = self.gru(self._inputs(state, team_skill, agent_skills), hidden.unsqueeze(0))
        return self._values(outputs)
