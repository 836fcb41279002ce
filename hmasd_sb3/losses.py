"""Losses as pure functions of tensors; knows no network, buffer or optimizer."""

from __future__ import annotations

from typing import NamedTuple

import torch as th
from torch.nn import functional as F


class PolicyLoss(NamedTuple):
    """Clipped surrogate and what is worth knowing about it."""

    loss: th.Tensor
    """Scalar, to be minimised."""
    ratio: th.Tensor
    """Shape of the log-probabilities."""
    approx_kl: th.Tensor
    """Scalar, without gradient."""
    clip_fraction: th.Tensor
    """Scalar, without gradient."""


def weighted_mean(values: th.Tensor, weights: th.Tensor | None) -> th.Tensor:
    """Mean of ``values`` where ``weights`` (broadcastable) is 1; the plain mean without weights; 0 if nothing counts."""
    if weights is None:
        return values.mean()
    return (values * weights).sum() / weights.expand_as(values).sum().clamp(min=1.0)


def clipped_policy_loss(
    log_probs: th.Tensor,
    old_log_probs: th.Tensor,
    advantages: th.Tensor,
    clip_range: float,
    weights: th.Tensor | None = None,
) -> PolicyLoss:
    r"""PPO's clipped surrogate (Schulman et al. 2017, Eq. 7; Eq. 5 of the HMASD paper).

    .. math:: L = -\mathbb{E}\left[\min(\rho A,\ \mathrm{clip}(\rho, 1-\epsilon, 1+\epsilon) A)\right],
              \qquad \rho = \pi(a)/\pi_{old}(a)

    The KL estimate is :math:`\mathbb{E}[(\rho - 1) - \ln\rho]` (J. Schulman, "Approximating KL divergence").

    :param weights: 1 for samples that count, 0 for padding; same shape as ``log_probs``
    :raises ValueError: where the shapes disagree
    """
    if not log_probs.shape == old_log_probs.shape == advantages.shape:
        raise ValueError(
            "log_probs, old_log_probs and advantages must have one shape, got "
            f"{tuple(log_probs.shape)}, {tuple(old_log_probs.shape)} and {tuple(advantages.shape)}."
        )
    log_ratio = log_probs - old_log_probs
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1.0 - clip_range, 1.0 + clip_range)
    loss = -weighted_mean(th.min(ratio * advantages, clipped * advantages), weights)
    with th.no_grad():
        approx_kl = weighted_mean((ratio - 1.0) - log_ratio, weights)
        clip_fraction = weighted_mean(((ratio - 1.0).abs() > clip_range).float(), weights)
    return PolicyLoss(loss, ratio, approx_kl, clip_fraction)


def value_loss(
    values: th.Tensor,
    old_values: th.Tensor,
    returns: th.Tensor,
    clip_range_vf: float | None,
    huber_delta: float,
    weights: th.Tensor | None = None,
) -> th.Tensor:
    r"""Huber value loss, optionally clipped around the old prediction (pessimistic maximum of the two, as in PPO2/MAPPO).

    .. math:: L = \mathbb{E}\left[\max\big(h_\delta(R - V),\ h_\delta(R - V_{old} -
              \mathrm{clip}(V - V_{old}, -\epsilon, \epsilon))\big)\right]

    All values share one unit (the critic's normalised one), in which ``clip_range_vf`` is counted.
    """
    loss = F.huber_loss(values, returns, reduction="none", delta=huber_delta)
    if clip_range_vf is not None:
        near_old = old_values + (values - old_values).clamp(-clip_range_vf, clip_range_vf)
        loss = th.max(loss, F.huber_loss(near_old, returns, reduction="none", delta=huber_delta))
    return weighted_mean(loss, weights)


def discriminator_loss(logits: th.Tensor, skills: th.Tensor, weights: th.Tensor | None = None) -> th.Tensor:
    """Cross-entropy of the skill that was active (Eq. 8).

    :param logits: (..., n_skills)
    :param skills: (...) int64
    :param weights: (...), 1 for pairs that count, else 0; all count without it
    """
    if weights is None:
        return F.cross_entropy(logits.flatten(0, -2), skills.flatten())
    losses = F.cross_entropy(logits.flatten(0, -2), skills.flatten(), reduction="none")
    return weighted_mean(losses, weights.flatten())
