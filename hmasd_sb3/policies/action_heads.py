"""What an agent's action is drawn from; lean enough to be called at every environment step."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch as th
from torch import nn
from torch.nn import functional as F

from hmasd_sb3.policies.blocks import OUTPUT_GAIN, linear

_ILLEGAL = -1e9
"""Logit of an action that a mask forbids: finite, so that gradients stay finite; its probability is exactly 0."""


def sample_categorical(log_probs: th.Tensor, deterministic: bool) -> th.Tensor:
    """Draw from (..., n) log-probabilities by the Gumbel-max trick, or take the most likely entry. Returns (...) int64."""
    if deterministic:
        return log_probs.argmax(-1)
    # E ~ Exp(1): argmax(log p - log E) is a draw from p. The clamp keeps log away from 0.
    noise = th.empty_like(log_probs).exponential_().clamp_(min=1e-20).log_()
    return (log_probs - noise).argmax(-1)


def gather_log_prob(log_probs: th.Tensor, index: th.Tensor) -> th.Tensor:
    """(..., n), (...) int64 -> (...)."""
    return log_probs.gather(-1, index.unsqueeze(-1)).squeeze(-1)


def categorical_entropy(log_probs: th.Tensor) -> th.Tensor:
    """(..., n) -> (...), in nats; entries of probability 0 contribute 0."""
    return -(log_probs.exp() * log_probs).sum(-1)


class ActionHead(nn.Module, ABC):
    """Turns features of an agent into actions, log-probabilities and entropies."""

    @abstractmethod
    def act(self, features: th.Tensor, mask: th.Tensor | None, deterministic: bool) -> tuple[th.Tensor, th.Tensor]:
        """(R, H), optional (R, A) bool -> actions (R, *A), log-probabilities (R,)."""

    @abstractmethod
    def evaluate(self, features: th.Tensor, actions: th.Tensor, mask: th.Tensor | None) -> tuple[th.Tensor, th.Tensor]:
        """(..., H), (..., *A) -> log-probabilities (...), entropies (...)."""


class CategoricalHead(ActionHead):
    """Discrete actions, optionally masked."""

    def __init__(self, hidden_size: int, n_actions: int) -> None:
        super().__init__()
        self.logits = linear(hidden_size, n_actions, OUTPUT_GAIN)

    def log_probs(self, features: th.Tensor, mask: th.Tensor | None) -> th.Tensor:
        """(..., H) -> (..., n_actions)."""
        logits = self.logits(features)
        if mask is not None:
            logits = th.where(mask, logits, _ILLEGAL)
        return F.log_softmax(logits, dim=-1)

    def act(self, features: th.Tensor, mask: th.Tensor | None, deterministic: bool) -> tuple[th.Tensor, th.Tensor]:
        """See base class."""
        log_probs = self.log_probs(features, mask)
        actions = sample_categorical(log_probs, deterministic)
        return actions, gather_log_prob(log_probs, actions)

    def evaluate(self, features: th.Tensor, actions: th.Tensor, mask: th.Tensor | None) -> tuple[th.Tensor, th.Tensor]:
        """See base class."""
        log_probs = self.log_probs(features, mask)
        return gather_log_prob(log_probs, actions), categorical_entropy(log_probs)


class GaussianHead(ActionHead):
    """Continuous actions: a diagonal Gaussian in units where the action space spans [-1, 1].

    Log-probabilities are those of the unclipped draw; clipping and rescaling to the game's bounds happen outside. A mask
    says which components an agent has: the others are 0 and count in no log-probability and no entropy.

    :param log_std_init: log of the state-independent standard deviation at the start
    """

    def __init__(self, hidden_size: int, action_dim: int, log_std_init: float) -> None:
        super().__init__()
        self.mean = linear(hidden_size, action_dim, OUTPUT_GAIN)
        self.log_std = nn.Parameter(th.full((action_dim,), log_std_init))

    def _log_prob(self, mean: th.Tensor, actions: th.Tensor, mask: th.Tensor | None) -> th.Tensor:
        scaled = (actions - mean) * (-self.log_std).exp()
        terms = 0.5 * scaled.square() + self.log_std + 0.5 * math.log(2.0 * math.pi)
        return -(terms if mask is None else terms * mask).sum(-1)

    def act(self, features: th.Tensor, mask: th.Tensor | None, deterministic: bool) -> tuple[th.Tensor, th.Tensor]:
        """See base class."""
        mean = self.mean(features)
        actions = mean if deterministic else mean + self.log_std.exp() * th.randn_like(mean)
        if mask is not None:
            actions = actions * mask
        return actions, self._log_prob(mean, actions, mask)

    def evaluate(self, features: th.Tensor, actions: th.Tensor, mask: th.Tensor | None) -> tuple[th.Tensor, th.Tensor]:
        """See base class."""
        log_probs = self._log_prob(self.mean(features), actions, mask)
        terms = self.log_std + 0.5 * math.log(2.0 * math.pi * math.e)
        if mask is not None:
            return log_probs, (terms * mask).sum(-1)
        return log_probs, terms.sum().expand_as(log_probs)
