"""What networks read instead of raw inputs: SB3 feature extractors, applied to one agent's observation at a time.

Between rooms, observations and states travel as flat rows; here, and only here, they get their shape back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space_channels_first
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

from hmasd_sb3.normalization import to_float

_ROWS_AT_ONCE = 1024
"""Rows per pass where no gradient is wanted: a whole rollout of pictures would need gigabytes as floats."""


class Features(nn.Module):
    """Flat inputs (..., D) -> features (..., F).

    :param space: of one input, without batch or agent axis
    :param extractor_class: SB3 feature extractor; None passes inputs on as they are
    :param extractor_kwargs: its arguments
    :raises ValueError: if the extractor cannot read pictures of that size
    """

    def __init__(
        self,
        space: spaces.Box,
        extractor_class: type[BaseFeaturesExtractor] | None = None,
        extractor_kwargs: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.shape = space.shape
        self.dim = int(np.prod(space.shape))
        self.channels_last = False
        self.extractor: BaseFeaturesExtractor | None = None
        if extractor_class is None:
            return
        if is_picture(space):
            space = self._channels_first(space)
        try:
            self.extractor = extractor_class(space, **(extractor_kwargs or {}))
        except (RuntimeError, AssertionError) as error:
            raise ValueError(
                f"{extractor_class.__name__} cannot read observations of shape {self.shape}: {error}. Resize pictures "
                "(NatureCNN needs at least 36 x 36), or pass policy_kwargs=dict(features_extractor_class=...)."
            ) from error
        self.dim = self.extractor.features_dim

    def forward(self, inputs: th.Tensor, prepare: Callable[[th.Tensor], th.Tensor] = to_float) -> th.Tensor:
        """See class.

        :param inputs: (..., D), pictures as bytes for as long as possible
        :param prepare: what makes of rows (R, D) the numbers to compute in
        """
        if self.extractor is None:
            return prepare(inputs)
        rows = inputs.reshape(-1, inputs.shape[-1])
        parts = (rows,) if th.is_grad_enabled() else th.split(rows, _ROWS_AT_ONCE)
        features = th.cat([self._extract(prepare(part)) for part in parts])
        return features.reshape(*inputs.shape[:-1], self.dim)

    def _extract(self, rows: th.Tensor) -> th.Tensor:
        """(R, D) -> (R, F)."""
        assert self.extractor is not None
        shaped = rows.reshape(-1, *self.shape)
        return self.extractor(shaped.movedim(-1, 1) if self.channels_last else shaped)  # type: ignore[no-any-return]

    def _channels_first(self, space: spaces.Box) -> spaces.Box:
        """The picture as SB3's extractors want it: (C, H, W), bytes (what arrives is scaled to [0, 1] already)."""
        if len(space.shape) == 2:
            self.shape = (1, *space.shape)
            return spaces.Box(0, 255, self.shape, np.uint8)
        if _channels_come_first(space):
            return spaces.Box(0, 255, space.shape, np.uint8)
        self.channels_last = True
        height, width, channels = space.shape
        return spaces.Box(0, 255, (channels, height, width), np.uint8)


def _channels_come_first(space: spaces.Box) -> bool:
    """SB3 takes the shortest axis for the channels, but the joined pictures of many agents have more of them than pixels."""
    first, middle, last = space.shape
    if (first == middle) != (middle == last):  # two equal axes are those of a square picture
        return bool(middle == last)
    return is_image_space_channels_first(space)


def is_picture(space: spaces.Space[Any]) -> bool:
    """Whether a space without agent axis has the axes of a picture."""
    return isinstance(space, spaces.Box) and len(space.shape) in (2, 3)
