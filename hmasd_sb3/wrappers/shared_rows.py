"""Arrays with one row per environment, in memory that several processes share."""

from __future__ import annotations

import mmap
import os
import sys
import tempfile
import uuid
from dataclasses import dataclass
from multiprocessing import reduction
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

NOBODY = -1
"""In `SharedRows.at_work`: the worker is in no environment at the moment."""

_ALIGNMENT = 64  # bytes; a cache line, so that no two arrays share one


@dataclass(frozen=True)
class Layout:
    """Where each array lies in the shared block. Sent to the workers."""

    arrays: tuple[tuple[str, tuple[int, ...], str, int], ...]
    """Of each array: name, shape, dtype, offset in bytes."""
    obs_keys: tuple[str, ...]
    n_buffers: int
    size: int
    """Of the whole block, in bytes."""


class SharedRows:
    """What a vector environment of B environments and its W workers pass to each other at every step.

    The block is an unnamed file, so nothing is left behind however a process ends: the system frees it together with
    the last process that maps it. It does not count against ``/dev/shm`` on Linux.

    - ``observations``: per buffer, a dict of (B, ...) arrays, one per key of the observation space
    - ``actions``: (B, ...) in the action space's dtype
    - ``rewards``: (B,) float32; ``dones``: (B,) bool
    - ``at_work``: (W,) int64, the environment that each worker is in just now, or `NOBODY`

    :param layout: of the block
    :param block: the mapped memory
    """

    def __init__(self, layout: Layout, block: mmap.mmap) -> None:
        self.layout = layout
        arrays: dict[str, NDArray[Any]] = {
            name: np.ndarray(shape, np.dtype(dtype), buffer=block, offset=offset)
            for name, shape, dtype, offset in layout.arrays
        }
        self.observations = [
            {key: arrays[f"obs{buffer}/{key}"] for key in layout.obs_keys} for buffer in range(layout.n_buffers)
        ]
        self.actions = arrays["actions"]
        self.rewards = arrays["rewards"]
        self.dones = arrays["dones"]
        self.at_work = arrays["at_work"]


class SharedBlock:
    """The parent's side of the block: makes it and hands it to workers.

    :param layout: what it must hold
    """

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self._file: int | None = None
        self._tag: str | None = None
        if sys.platform == "win32":  # named by necessity, but freed with its last user all the same
            self._tag = f"hmasd-sb3-{uuid.uuid4()}"
            block = mmap.mmap(-1, layout.size, tagname=self._tag)
        else:
            self._file = _unnamed_file()
            os.ftruncate(self._file, layout.size)
            block = mmap.mmap(self._file, layout.size)
        self.rows = SharedRows(layout, block)
        self.rows.at_work[:] = NOBODY

    def send(self, connection: Any, pid: int) -> None:
        """Hand the block to a worker that is in `receive_rows`.

        :raises OSError: if the worker is gone
        """
        connection.send((self.layout, self._tag))
        if self._file is not None:
            reduction.send_handle(connection, self._file, pid)

    def close(self) -> None:
        """Hand it to nobody any more; the arrays stay usable."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


def receive_rows(connection: Any) -> SharedRows:
    """The worker's side of `SharedBlock.send`."""
    layout, tag = connection.recv()
    if sys.platform == "win32":
        return SharedRows(layout, mmap.mmap(-1, layout.size, tagname=tag))
    file = reduction.recv_handle(connection)
    try:
        return SharedRows(layout, mmap.mmap(file, layout.size))
    finally:
        os.close(file)  # the mapping stays


def make_layout(
    observation_space: spaces.Dict, action_space: spaces.Space[Any], n_envs: int, n_workers: int, n_buffers: int
) -> Layout:
    """Lay out the arrays for ``n_envs`` environments with these spaces.

    :param n_buffers: how many observations of each environment to hold
    :raises ValueError: if a space has no fixed shape and dtype
    """
    wanted: list[tuple[str, tuple[int, ...], np.dtype[Any]]] = [
        (f"obs{buffer}/{key}", (n_envs, *shape), dtype)
        for buffer in range(n_buffers)
        for key, (shape, dtype) in ((k, _array_kind(k, space)) for k, space in observation_space.spaces.items())
    ]
    action_shape, action_dtype = _array_kind("the action", action_space)
    wanted += [
        ("actions", (n_envs, *action_shape), action_dtype),
        ("rewards", (n_envs,), np.dtype(np.float32)),
        ("dones", (n_envs,), np.dtype(np.bool_)),
        ("at_work", (n_workers,), np.dtype(np.int64)),
    ]
    arrays, offset = [], 0
    for name, shape, dtype in wanted:
        arrays.append((name, shape, dtype.str, offset))
        n_bytes = int(np.prod(shape)) * dtype.itemsize
        offset += -(-n_bytes // _ALIGNMENT) * _ALIGNMENT
    return Layout(tuple(arrays), tuple(observation_space.spaces), n_buffers, offset)


def _array_kind(name: str, space: spaces.Space[Any]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    if not isinstance(space, (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)):
        raise ValueError(
            f"'{name}' has the space {space}; what workers share must be arrays of one shape and dtype: Box, Discrete, "
            "MultiDiscrete or MultiBinary."
        )
    assert space.shape is not None
    assert space.dtype is not None
    return tuple(space.shape), np.dtype(space.dtype)


def _unnamed_file() -> int:
    """The descriptor of an empty file that has no name, and so ends with its last user."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("hmasd-sb3")
    file, name = tempfile.mkstemp(prefix="hmasd-sb3-")
    os.unlink(name)
    return file
