"""Cutting a batch into about equal parts: minibatches, and the pieces that a minibatch's gradient is summed from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Generic, TypeVar

import numpy as np
import torch as th

Batch = TypeVar("Batch")


@dataclass(frozen=True)
class Piece(Generic[Batch]):
    """A part of a minibatch that is put together only when it is asked for, as all parts at once may need much memory."""

    share: float
    """What its samples count together, over what the whole minibatch's do; 1 where it is the whole."""
    gather: Callable[[], Batch]
    """Makes the batch."""


def n_minibatches(rollout: int, batch_size: float) -> int:
    """Number of minibatches whose size comes closest to ``batch_size`` environment steps; at least 1."""
    return max(1, round(rollout / batch_size))


def n_pieces(size: int, micro_batch_size: int | None) -> int:
    """Least number of equal pieces that are no larger than ``micro_batch_size``; 1 without it."""
    return 1 if micro_batch_size is None else -(-size // micro_batch_size)


def consecutive_groups(sizes: np.ndarray, n_groups: int) -> list[slice]:
    """Cut a row of indivisible things into runs of about equal size.

    :param sizes: (C,) size of each thing, above 0
    :param n_groups: at least 1; there are fewer where things are larger than a group
    :return: the runs, none of them empty; together they are everything
    """
    last_unit = np.cumsum(sizes) - 1
    group = last_unit * n_groups // (last_unit[-1] + 1)
    edges = [0, *(np.flatnonzero(np.diff(group)) + 1).tolist(), len(sizes)]
    return [slice(first, end) for first, end in pairwise(edges)]


def even_slices(size: int, n_slices: int) -> list[slice]:
    """Cut ``size`` rows into ``n_slices`` runs whose lengths differ by at most 1."""
    edges = [size * number // n_slices for number in range(n_slices + 1)]
    return [slice(first, end) for first, end in pairwise(edges)]


def share_of(part: slice, size: int, weights: th.Tensor | None) -> float:
    """What some rows count, over what all of them do; 0 where nothing counts.

    :param part: the rows
    :param size: number of rows
    :param weights: (R, ...), 1 for what counts, else 0; None: all count alike
    """
    if weights is None:
        return int(part.stop - part.start) / size
    # In float64, as float32 counts no further than 2^24.
    counted = float(weights[part].sum(dtype=th.float64))
    return counted / max(float(weights.sum(dtype=th.float64)), 1.0)
