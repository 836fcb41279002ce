"""Running statistics: of value targets, and of what the discriminators look at."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from torch import nn

_LARGEST_BOUND = 10.0
"""Bounds beyond this are not scaled by: loose ones would flatten the input to a constant beside the noise."""


def to_float(inputs: th.Tensor) -> th.Tensor:
    """What networks compute in: float32, bytes (images) scaled from 0..255 to [0, 1]."""
    return inputs.to(th.float32) / 255.0 if inputs.dtype == th.uint8 else inputs.to(th.float32)


class ValueNorm(nn.Module):
    """Exponentially weighted mean and standard deviation of value targets (the PopArt-free "ValueNorm" of MAPPO).

    The critic predicts normalised values; targets are normalised with the current statistics and predictions are turned
    back with them. Early statistics are debiased as in Adam.

    :param beta: weight of the past at each update; 0 keeps only the newest batch
    :param enabled: when False both directions are the identity
    """

    mean_sum: th.Tensor
    square_sum: th.Tensor
    weight_sum: th.Tensor

    def __init__(self, beta: float = 0.9, enabled: bool = True, epsilon: float = 1e-5, min_std: float = 0.1) -> None:
        super().__init__()
        self.beta = beta
        self.enabled = enabled
        self.epsilon = epsilon
        self.min_std = min_std
        for name in ("mean_sum", "square_sum", "weight_sum"):
            self.register_buffer(name, th.zeros((), dtype=th.float64))

    def update(self, targets: np.ndarray) -> None:
        """Take in one batch of targets (any shape, reward units)."""
        if not self.enabled or targets.size == 0:
            return
        values = targets.astype(np.float64, copy=False)
        self.mean_sum.mul_(self.beta).add_((1.0 - self.beta) * float(values.mean()))
        self.square_sum.mul_(self.beta).add_((1.0 - self.beta) * float(np.square(values).mean()))
        self.weight_sum.mul_(self.beta).add_(1.0 - self.beta)

    def statistics(self) -> tuple[float, float]:
        """Mean and standard deviation used now; (0, 1) before the first update or when disabled."""
        weight = float(self.weight_sum)
        if not self.enabled or weight < self.epsilon * (1.0 - self.beta):
            return 0.0, 1.0
        mean = float(self.mean_sum) / weight
        variance = float(self.square_sum) / weight - mean**2
        return mean, max(variance, self.min_std**2) ** 0.5

    def normalize(self, values: th.Tensor) -> th.Tensor:
        """Reward units -> normalised units."""
        mean, std = self.statistics()
        return (values - mean) / std

    def denormalize(self, values: th.Tensor) -> th.Tensor:
        """Normalised units -> reward units."""
        mean, std = self.statistics()
        return values * std + mean


class InputScaler(nn.Module):
    """Brings a flat input to about [-1, 1], so that one noise scale means the same in every game.

    Entries with tight bounds are scaled by them (and never drift); the others by their running mean and deviation.

    :param space: Box (or MultiBinary) of the input without batch axis; it is flattened
    """

    centre: th.Tensor
    half_range: th.Tensor
    unbounded: th.Tensor
    count: th.Tensor

    def __init__(self, space: spaces.Space[Any]) -> None:
        super().__init__()
        if isinstance(space, spaces.Box):
            low, high = space.low.reshape(-1).astype(np.float64), space.high.reshape(-1).astype(np.float64)
        else:
            size = int(np.prod(space.shape or ()))
            low, high = np.zeros(size), np.ones(size)
        # Bytes mean pictures, whose range is known however large it is.
        largest = np.inf if space.dtype == np.uint8 else _LARGEST_BOUND
        bounded = (np.abs(low) < largest) & (np.abs(high) < largest) & (high > low)
        low, high = np.where(bounded, low, -1.0), np.where(bounded, high, 1.0)
        centre = (low + high) / 2.0
        half_range = (high - low) / 2.0
        self.register_buffer("centre", th.as_tensor(centre, dtype=th.float32))
        self.register_buffer("half_range", th.as_tensor(half_range, dtype=th.float32))
        self.register_buffer("unbounded", th.as_tensor(~bounded))
        self.register_buffer("count", th.zeros((), dtype=th.float64))

    def update(self, inputs: th.Tensor) -> None:
        """Take in (R, D) inputs; only entries without tight bounds move (parallel variance of Chan et al.)."""
        if not bool(self.unbounded.any()) or inputs.shape[0] == 0:
            return
        batch = inputs.to(th.float64)
        batch_mean, batch_var, batch_count = batch.mean(0), batch.var(0, unbiased=False), batch.shape[0]
        total = self.count + batch_count
        mean, variance = self.centre.to(th.float64), self.half_range.to(th.float64) ** 2
        shift = batch_mean - mean
        new_mean = mean + shift * batch_count / total
        spread = variance * self.count + batch_var * batch_count + shift**2 * self.count * batch_count / total
        # A constant entry would blow up any later change, so its scale stays at least 1e-2.
        new_scale = (spread / total).sqrt().clamp(min=1e-2)
        self.centre.copy_(th.where(self.unbounded, new_mean, mean))
        self.half_range.copy_(th.where(self.unbounded, new_scale, self.half_range.to(th.float64)))
        self.count.copy_(total)

    def forward(self, inputs: th.Tensor) -> th.Tensor:
        """(..., D) raw -> (..., D) scaled."""
        return (inputs - self.centre) / self.half_range
