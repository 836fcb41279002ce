"""One network, one parameter vector: gradient norm, clipping and the optimizer's step each become a single operation."""

from __future__ import annotations

import math
from itertools import chain
from typing import Any

import torch as th
from torch import nn


class NonFiniteError(RuntimeError):
    """NaN or infinity where training would go on with ruined numbers."""


class FlatOptimizer:
    """Steps all parameters of a module through one contiguous vector.

    The module's parameters become views of that vector, and their gradients views of its gradient. Small networks spend
    most of an optimizer step on per-tensor overhead, which this removes; element-wise optimizers give the same result.

    Move the module to its device first: a later move would leave the vector behind.

    :param module: owner of the parameters
    :param name: network's name, for messages
    :param optimizer_class: any element-wise torch optimizer
    :param optimizer_kwargs: passed to it
    :param learning_rate: initial learning rate
    """

    def __init__(
        self,
        module: nn.Module,
        name: str,
        learning_rate: float,
        optimizer_class: type[th.optim.Optimizer],
        optimizer_kwargs: dict[str, Any],
    ) -> None:
        self.name = name
        self.parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        # A network without parameters (random skills) still has an optimizer; it has nothing to do.
        pieces = [parameter.detach().reshape(-1) for parameter in self.parameters]
        flat = th.cat(pieces) if pieces else th.zeros(0)
        self.vector = nn.Parameter(flat)
        self.gradient = th.zeros_like(flat)
        offset = 0
        for parameter in self.parameters:
            end = offset + parameter.numel()
            parameter.data = self.vector.data[offset:end].view_as(parameter)
            parameter.grad = self.gradient[offset:end].view_as(parameter)
            offset = end
        self.vector.grad = self.gradient
        self.optimizer = optimizer_class([self.vector], lr=learning_rate, **optimizer_kwargs)  # type: ignore[call-arg]
        self._part_losses: list[float] = []

    def accumulate(self, loss: th.Tensor) -> None:
        """Backpropagate one part of what the next step is to minimise; gradients of all parts are summed."""
        if not self._part_losses:
            self.gradient.zero_()
        loss.backward()  # type: ignore[no-untyped-call]
        self._part_losses.append(float(loss.detach()))

    def discard(self) -> None:
        """Forget what was accumulated since the last step."""
        self._part_losses = []

    def step(self, loss: th.Tensor, max_grad_norm: float) -> float:
        """Backpropagate ``loss``, the last part or all there is, and step with the sum of the gradients.

        :return: gradient norm before clipping
        :raises NonFiniteError: when loss or gradient is NaN or infinite; parameters are left as they were
        """
        self.accumulate(loss)
        return self._apply(max_grad_norm)

    def _apply(self, max_grad_norm: float) -> float:
        """Clip the norm of the accumulated gradient and step; a gradient of zero moves nothing."""
        norm = float(self.gradient.norm())
        # A finite norm means every entry is finite; the loss can be infinite with a zero gradient, so look at both.
        loss_value = sum(self._part_losses)
        self.discard()
        if not (math.isfinite(loss_value) and math.isfinite(norm)):
            raise NonFiniteError(
                f"The {self.name}'s loss is {loss_value} and its gradient norm {norm}. Parameters were left unchanged. "
                "Lower the learning rate or max_grad_norm, and check the scale of rewards and observations."
            )
        if norm == 0.0:
            return norm  # nothing counted; momentum would move the parameters all the same
        if norm > max_grad_norm:
            self.gradient.mul_(max_grad_norm / (norm + 1e-6))
        self.optimizer.step()
        return norm


def check_parameters_finite(policy: nn.Module) -> None:
    """Refuse to save ruined networks.

    :raises NonFiniteError: naming the first parameter, or running statistic, with NaN or infinity
    """
    # What is registered beside parameters, such as statistics, ruins the networks as well.
    for name, tensor in chain(policy.named_parameters(), policy.named_buffers()):
        if not bool(th.isfinite(tensor).all()):
            raise NonFiniteError(
                f"Parameter {name!r} holds NaN or infinity, so the model was not saved and any existing file was kept. "
                "Go back to the last good checkpoint and lower the learning rate."
            )
