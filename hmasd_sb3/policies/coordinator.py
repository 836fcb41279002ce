"""Skill coordinators: who decides, every k steps, the team skill and each agent's skill.

:class:`SkillCoordinator` is the interface for a coordinator of your own (``policy_kwargs=dict(coordinator_class=...)``).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch as th
from torch import nn
from torch.nn import functional as F

from hmasd_sb3.policies.action_heads import categorical_entropy, gather_log_prob, sample_categorical
from hmasd_sb3.policies.blocks import GELU, OUTPUT_GAIN, Attention, causal_mask, linear
from hmasd_sb3.policies.spec import TeamSpec
from hmasd_sb3.type_aliases import CoordinatorEvaluation, SkillAssignment


class SkillCoordinator(nn.Module, ABC):
    """Assigns skills. ``assign`` and ``evaluate`` must agree on log-probabilities for the same parameters.

    Where agents may be absent, ``agent_mask`` (R, N) bool says who is there. Absent ones are assigned skills too (they may
    join before the next assignment), but what is returned for them counts nowhere.

    :param spec: sizes of the team
    :param n_team_skills: n_Z
    :param n_agent_skills: n_z
    """

    def __init__(self, spec: TeamSpec, n_team_skills: int, n_agent_skills: int) -> None:
        super().__init__()
        self.n_agents = spec.n_agents
        self.n_team_skills = n_team_skills
        self.n_agent_skills = n_agent_skills

    @abstractmethod
    def assign(
        self,
        state: th.Tensor,
        obs: th.Tensor,
        deterministic: bool = False,
        team_skill: th.Tensor | None = None,
        agent_mask: th.Tensor | None = None,
    ) -> SkillAssignment:
        """Decide skills one after the other.

        :param state: (R, S)
        :param obs: (R, N, O)
        :param team_skill: (R,) forces Z instead of choosing it (to see what Z changes)
        """

    @abstractmethod
    def evaluate(
        self,
        state: th.Tensor,
        obs: th.Tensor,
        team_skill: th.Tensor,
        agent_skills: th.Tensor,
        agent_mask: th.Tensor | None = None,
    ) -> CoordinatorEvaluation:
        """Score stored assignments in one pass (teacher forcing)."""

    @abstractmethod
    def values(self, state: th.Tensor, obs: th.Tensor, agent_mask: th.Tensor | None = None) -> th.Tensor:
        """V_h of every token, normalised units: (R, 1+N)."""


class RandomCoordinator(SkillCoordinator):
    """Uniformly random skills, nothing to learn (the paper's ablation "without the skill coordinator")."""

    def __init__(self, spec: TeamSpec, n_team_skills: int, n_agent_skills: int, **_: int) -> None:
        super().__init__(spec, n_team_skills, n_agent_skills)
        agent = [math.log(n_agent_skills)] * spec.n_agents
        self.register_buffer("entropy", th.tensor([math.log(n_team_skills), *agent]))

    entropy: th.Tensor

    def assign(
        self,
        state: th.Tensor,
        obs: th.Tensor,
        deterministic: bool = False,
        team_skill: th.Tensor | None = None,
        agent_mask: th.Tensor | None = None,
    ) -> SkillAssignment:
        """See base class; random whether ``deterministic`` or not, since no choice is preferred."""
        rows = state.shape[0]
        drawn = th.randint(self.n_team_skills, (rows,), device=state.device)
        skills = th.randint(self.n_agent_skills, (rows, self.n_agents), device=state.device)
        return SkillAssignment(drawn if team_skill is None else team_skill, skills, -self.entropy.expand(rows, -1))

    def evaluate(
        self,
        state: th.Tensor,
        obs: th.Tensor,
        team_skill: th.Tensor,
        agent_skills: th.Tensor,
        agent_mask: th.Tensor | None = None,
    ) -> CoordinatorEvaluation:
        """See base class."""
        entropies = self.entropy.expand(state.shape[0], -1)
        return CoordinatorEvaluation(-entropies, entropies, self.values(state, obs))

    def values(self, state: th.Tensor, obs: th.Tensor, agent_mask: th.Tensor | None = None) -> th.Tensor:
        """See base class: no value is learnt."""
        return state.new_zeros(state.shape[0], 1 + self.n_agents)


class _EncoderBlock(nn.Module):
    def __init__(self, width: int, n_heads: int) -> None:
        super().__init__()
        self.attention = Attention(width, n_heads)
        self.mlp = nn.Sequential(linear(width, width), GELU(), linear(width, width, OUTPUT_GAIN))
        self.norm_attention, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, tokens: th.Tensor) -> th.Tensor:
        tokens = self.norm_attention(tokens + self.attention(tokens, tokens))
        mixed: th.Tensor = self.norm_mlp(tokens + self.mlp(tokens))
        return mixed


class _DecoderBlock(nn.Module):
    """Two masked attentions and an MLP; the second one's query is the encoder's output."""

    def __init__(self, width: int, n_heads: int) -> None:
        super().__init__()
        self.self_attention = Attention(width, n_heads)
        self.cross_attention = Attention(width, n_heads)
        self.mlp = nn.Sequential(linear(width, width), GELU(), linear(width, width, OUTPUT_GAIN))
        self.norm_self, self.norm_cross, self.norm_mlp = (nn.LayerNorm(width) for _ in range(3))

    def forward(self, tokens: th.Tensor, encoded: th.Tensor, mask: th.Tensor) -> th.Tensor:
        tokens = self.norm_self(tokens + self.self_attention(tokens, tokens, mask))
        tokens = self.norm_cross(encoded + self.cross_attention(encoded, tokens, mask))
        mixed: th.Tensor = self.norm_mlp(tokens + self.mlp(tokens))
        return mixed


class TransformerCoordinator(SkillCoordinator):
    """Encoder over (s, o^1..o^N), autoregressive decoder over (Z, z^1..z^N).

    :param hidden_size: token width
    :param n_heads: attention heads
    :param n_blocks: encoder blocks, and as many decoder blocks
    """

    def __init__(
        self,
        spec: TeamSpec,
        n_team_skills: int,
        n_agent_skills: int,
        hidden_size: int = 64,
        n_heads: int = 1,
        n_blocks: int = 1,
    ) -> None:
        super().__init__(spec, n_team_skills, n_agent_skills)
        self.state_features, self.obs_features = spec.state_features(), spec.obs_features()
        self.embed_state = nn.Sequential(linear(self.state_features.dim, hidden_size), GELU())
        self.embed_obs = nn.Sequential(linear(self.obs_features.dim, hidden_size), GELU())
        self.norm_tokens = nn.LayerNorm(hidden_size)
        self.encoder = nn.ModuleList(_EncoderBlock(hidden_size, n_heads) for _ in range(n_blocks))
        self.value_head = nn.Sequential(
            linear(hidden_size, hidden_size), GELU(), nn.LayerNorm(hidden_size), linear(hidden_size, 1, OUTPUT_GAIN)
        )
        # The decoder's inputs: start symbol Z^0, then the skills chosen so far (the last agent's is never read).
        self.start_symbol = nn.Parameter(th.randn(hidden_size) * 0.1)
        self.embed_team_skill = nn.Embedding(n_team_skills, hidden_size)
        self.embed_agent_skill = nn.Embedding(n_agent_skills, hidden_size)
        for embedding in (self.embed_team_skill, self.embed_agent_skill):
            nn.init.orthogonal_(embedding.weight)
        self.norm_symbols = nn.LayerNorm(hidden_size)
        self.decoder = nn.ModuleList(_DecoderBlock(hidden_size, n_heads) for _ in range(n_blocks))
        self.team_head = _skill_head(hidden_size, n_team_skills)
        self.agent_head = _skill_head(hidden_size, n_agent_skills)
        # What stands in place of an absent agent's observation and skill, so that neither changes anything.
        self.absent_obs = self.absent_skill = None
        if spec.has_agent_mask:
            self.absent_obs = nn.Parameter(th.zeros(hidden_size))
            self.absent_skill = nn.Parameter(th.zeros(hidden_size))

    def _encode(self, state: th.Tensor, obs: th.Tensor, agent_mask: th.Tensor | None) -> th.Tensor:
        """(R, S), (R, N, O) -> (R, 1+N, W)."""
        seen = _where_present(agent_mask, self.embed_obs(self.obs_features(obs)), self.absent_obs)
        tokens: th.Tensor = th.cat([self.embed_state(self.state_features(state)).unsqueeze(1), seen], dim=1)
        tokens = self.norm_tokens(tokens)
        for block in self.encoder:
            tokens = block(tokens)
        return tokens

    def _decode(
        self, encoded: th.Tensor, team_skill: th.Tensor, agent_skills: th.Tensor, agent_mask: th.Tensor | None
    ) -> th.Tensor:
        """Outputs of positions 0..n for the prefix (Z, z^1..z^{n-1}); n = 0 when ``team_skill`` is empty.

        :param encoded: (R, 1+N, W)
        :param team_skill: (R, 0) or (R, 1)
        :param agent_skills: (R, n) skills of the first n agents
        """
        start = self.start_symbol.expand(encoded.shape[0], 1, -1)
        chosen = self.embed_agent_skill(agent_skills)
        if agent_mask is not None:
            chosen = _where_present(agent_mask[:, : chosen.shape[1]], chosen, self.absent_skill)
        symbols = th.cat([start, self.embed_team_skill(team_skill), chosen], dim=1)
        length = symbols.shape[1]
        tokens: th.Tensor = self.norm_symbols(symbols)
        mask = causal_mask(length, encoded.device)
        for block in self.decoder:
            tokens = block(tokens, encoded[:, :length], mask)
        return tokens

    def _value(self, encoded: th.Tensor) -> th.Tensor:
        return self.value_head(encoded).squeeze(-1)  # type: ignore[no-any-return]

    def assign(
        self,
        state: th.Tensor,
        obs: th.Tensor,
        deterministic: bool = False,
        team_skill: th.Tensor | None = None,
        agent_mask: th.Tensor | None = None,
    ) -> SkillAssignment:
        """See base class."""
        encoded = self._encode(state, obs, agent_mask)
        rows = state.shape[0]
        nothing = th.empty(rows, 0, dtype=th.long, device=state.device)
        team_log_probs = F.log_softmax(self.team_head(self._decode(encoded, nothing, nothing, agent_mask)[:, -1]), dim=-1)
        if team_skill is None:
            team_skill = sample_categorical(team_log_probs, deterministic)
        log_probs = [gather_log_prob(team_log_probs, team_skill)]
        skills = nothing
        for _ in range(self.n_agents):
            last = self._decode(encoded, team_skill.unsqueeze(1), skills, agent_mask)[:, -1]
            agent_log_probs = F.log_softmax(self.agent_head(last), dim=-1)
            skill = sample_categorical(agent_log_probs, deterministic)
            log_probs.append(gather_log_prob(agent_log_probs, skill))
            skills = th.cat([skills, skill.unsqueeze(1)], dim=1)
        return SkillAssignment(team_skill, skills, th.stack(log_probs, dim=1))

    def evaluate(
        self,
        state: th.Tensor,
        obs: th.Tensor,
        team_skill: th.Tensor,
        agent_skills: th.Tensor,
        agent_mask: th.Tensor | None = None,
    ) -> CoordinatorEvaluation:
        """See base class."""
        encoded = self._encode(state, obs, agent_mask)
        decoded = self._decode(encoded, team_skill.unsqueeze(1), agent_skills[:, :-1], agent_mask)
        team = F.log_softmax(self.team_head(decoded[:, 0]), dim=-1)
        agents = F.log_softmax(self.agent_head(decoded[:, 1:]), dim=-1)
        log_probs = th.cat([gather_log_prob(team, team_skill).unsqueeze(1), gather_log_prob(agents, agent_skills)], dim=1)
        entropies = th.cat([categorical_entropy(team).unsqueeze(1), categorical_entropy(agents)], dim=1)
        return CoordinatorEvaluation(log_probs, entropies, self._value(encoded))

    def values(self, state: th.Tensor, obs: th.Tensor, agent_mask: th.Tensor | None = None) -> th.Tensor:
        """See base class."""
        return self._value(self._encode(state, obs, agent_mask))


def _where_present(agent_mask: th.Tensor | None, tokens: th.Tensor, absent: th.Tensor | None) -> th.Tensor:
    """(R, n, W) with ``absent`` (W,) in place of the tokens of agents that are not there; ``agent_mask`` (R, n)."""
    if agent_mask is None or absent is None:
        return tokens
    return th.where(agent_mask.unsqueeze(-1), tokens, absent)


def _skill_head(width: int, n_skills: int) -> nn.Sequential:
    return nn.Sequential(linear(width, width), GELU(), nn.LayerNorm(width), linear(width, n_skills, OUTPUT_GAIN))
