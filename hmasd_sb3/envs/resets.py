"""What ``reset(seed, options)`` of a vector environment asks for, row by row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def rows_to_reset(
    seed: int | Sequence[int | None] | None, options: dict[str, Any] | None, num_envs: int
) -> tuple[list[int | None], NDArray[np.bool_]]:
    """Read Gymnasium's arguments of a vector environment's reset.

    :param seed: an int s seeds row i with s + i; a sequence has one seed, or None, per row; None seeds no row
    :param options: ``{"reset_mask": (B,) bool}`` marks the rows to restart; other entries are ignored
    :param num_envs: number of rows, B
    :return: B seeds; (B,) bool, which rows to restart
    :raises ValueError: if there are not B seeds or B mask entries
    """
    if seed is None or isinstance(seed, (int, np.integer)):
        seeds: list[int | None] = [None if seed is None else int(seed) + row for row in range(num_envs)]
    else:
        seeds = list(seed)
    if len(seeds) != num_envs:
        raise ValueError(f"one seed per environment is needed: {num_envs}; got {len(seeds)}")
    mask = np.ones(num_envs, dtype=np.bool_)
    if options is not None and "reset_mask" in options:
        mask = np.asarray(options["reset_mask"], dtype=np.bool_)
        if mask.shape != (num_envs,):
            raise ValueError(f"reset_mask must have the shape ({num_envs},); got {mask.shape}")
    return seeds, mask
