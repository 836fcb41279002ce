"""Skill discriminators q_D(Z | s) and q_d(z^i | o^i, Z): can a skill be told from what it does?"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn
from torch.nn import functional as F

from hmasd_sb3.losses import discriminator_loss
from hmasd_sb3.normalization import InputScaler
from hmasd_sb3.policies.action_heads import gather_log_prob
from hmasd_sb3.policies.blocks import linear, mlp_trunk
from hmasd_sb3.policies.discoverer import one_hot
from hmasd_sb3.policies.features import Features, is_picture
from hmasd_sb3.type_aliases import DiscriminatorBatch


class DrawnNoise(NamedTuple):
    """Noise for the inputs of some rows, drawn beforehand."""

    state: th.Tensor
    """(R, D')."""
    obs: th.Tensor
    """(R, N, D)."""

    def rows(self, part: slice) -> DrawnNoise:
        """Some of the rows."""
        return DrawnNoise(self.state[part], self.obs[part])


class SkillDiscriminators(nn.Module):
    """Both discriminators; inputs are brought to about [-1, 1] first, so that noise has one scale in every game.

    :param state_space: space of what q_D looks at, without batch axis
    :param obs_space: space of what q_d looks at for one agent
    :param n_team_skills: n_Z
    :param n_agent_skills: n_z
    :param hidden_size: width of the two hidden layers
    :param features_extractor_class: reads what is a picture
    :param features_extractor_kwargs: its arguments
    """

    def __init__(
        self,
        state_space: spaces.Box,
        obs_space: spaces.Box,
        n_team_skills: int,
        n_agent_skills: int,
        hidden_size: int,
        features_extractor_class: type[BaseFeaturesExtractor] | None = None,
        features_extractor_kwargs: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.n_team_skills = n_team_skills
        self.n_agent_skills = n_agent_skills
        self.state_scaler = InputScaler(state_space)
        self.obs_scaler = InputScaler(obs_space)
        self.state_features, self.obs_features = (
            Features(space, features_extractor_class if is_picture(space) else None, features_extractor_kwargs)
            for space in (state_space, obs_space)
        )
        self.team = nn.Sequential(
            mlp_trunk(self.state_features.dim, hidden_size, layer_norm=False), linear(hidden_size, n_team_skills, 1.0)
        )
        self.agent = nn.Sequential(
            mlp_trunk(self.obs_features.dim + n_team_skills, hidden_size, layer_norm=False),
            linear(hidden_size, n_agent_skills, 1.0),
        )

    def update_scalers(self, state: th.Tensor, obs: th.Tensor) -> None:
        """Let unbounded inputs move their running scale: (R, D'), and (R', D) of any agents."""
        self.state_scaler.update(state)
        self.obs_scaler.update(obs)

    def draw_noise(self, batch: DiscriminatorBatch, n_rows: int, noise: float) -> DrawnNoise | float:
        """Noise for ``n_rows`` rows like those of ``batch``: the numbers that :meth:`losses` itself would draw for them all.

        :param noise: standard deviation; 0 is returned as it is
        """
        if noise <= 0.0:
            return noise

        def draw(scaler: InputScaler, *shape: int) -> th.Tensor:
            return th.randn(n_rows, *shape, dtype=scaler.centre.dtype, device=scaler.centre.device).mul_(noise)

        state = draw(self.state_scaler, *batch.state.shape[1:])  # drawn first in logits() too
        return DrawnNoise(state, draw(self.obs_scaler, *batch.obs.shape[1:]))

    def logits(
        self, state: th.Tensor, obs: th.Tensor, team_skill: th.Tensor, noise: float | DrawnNoise = 0.0
    ) -> tuple[th.Tensor, th.Tensor]:
        """(..., D'), (..., N, D), (...) -> (..., n_Z), (..., N, n_z).

        :param noise: Gaussian noise on the scaled inputs (for training only): its standard deviation, or what was drawn
        """

        def scaled(scaler: InputScaler, drawn: th.Tensor | None, inputs: th.Tensor) -> th.Tensor:
            clean: th.Tensor = scaler(inputs)
            if drawn is not None:
                return clean + drawn.reshape(clean.shape)
            return clean + deviation * th.randn_like(clean) if deviation > 0.0 else clean

        state_noise, obs_noise = noise if isinstance(noise, DrawnNoise) else (None, None)
        deviation = 0.0 if isinstance(noise, DrawnNoise) else noise
        state_features = self.state_features(state, partial(scaled, self.state_scaler, state_noise))
        obs_features = self.obs_features(obs, partial(scaled, self.obs_scaler, obs_noise))
        given = one_hot(team_skill, self.n_team_skills).unsqueeze(-2).expand(*obs_features.shape[:-1], -1)
        return self.team(state_features), self.agent(th.cat([obs_features, given], dim=-1))

    def clean_logits(self, batch: DiscriminatorBatch, rows_at_once: int | None = None) -> tuple[th.Tensor, th.Tensor]:
        """:meth:`logits` of a whole batch without noise.

        :param rows_at_once: R of one pass; where no gradient is wanted, fewer rows need less memory. None: all
        """
        inputs = batch[:3]
        if rows_at_once is None:
            return self.logits(*inputs)
        passes = [self.logits(*part) for part in zip(*(th.split(rows, rows_at_once) for rows in inputs), strict=True)]
        team, agents = (th.cat(outputs) for outputs in zip(*passes, strict=True))
        return team, agents

    def log_probs(self, batch: DiscriminatorBatch, rows_at_once: int | None = None) -> tuple[th.Tensor, th.Tensor]:
        """log q_D(Z | s) (R,) and log q_d(z^i | o^i, Z) (R, N); ``rows_at_once`` as in :meth:`clean_logits`."""
        team, agents = self.clean_logits(batch, rows_at_once)
        return (
            gather_log_prob(F.log_softmax(team, dim=-1), batch.team_skill),
            gather_log_prob(F.log_softmax(agents, dim=-1), batch.agent_skills),
        )

    def losses(self, batch: DiscriminatorBatch, noise: float | DrawnNoise) -> tuple[th.Tensor, th.Tensor]:
        """Cross-entropies of both discriminators on one batch (Eq. 8), scalars; ``noise`` as in :meth:`logits`."""
        team, agents = self.logits(batch.state, batch.obs, batch.team_skill, noise)
        return (
            discriminator_loss(team, batch.team_skill, batch.team_weights),
            discriminator_loss(agents, batch.agent_skills, batch.agent_weights),
        )
