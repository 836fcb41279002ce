"""What Alice and Bob's world is: its map, how a step changes it and how it is turned into numbers.

Everything here is a pure function of arrays with any number of leading axes, so the single game and the vectorised one
share one set of rules. Knows no API: neither PettingZoo's nor Gymnasium's.

Letters in shapes: ``...`` any leading axes, 2 agents in the order of `AGENTS`, 2 colours in the order of `COLOURS`,
C = size * size cells, P = length of one encoded position.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

AGENTS = ("alice", "bob")
COLOURS = ("red", "blue")
ACTIONS = ("up", "down", "left", "right", "stay")
# (dx, dy) of each action; x counts columns to the right, y counts rows downwards.
_MOVES = ((0, -1), (0, 1), (-1, 0), (1, 0), (0, 0))

TEAM_REWARD = 1.0

FloatArray = NDArray[np.float32]
BoolArray = NDArray[np.bool_]
CellArray = NDArray[np.int64]


def encode_positions(size: int) -> FloatArray:
    """The numbers by which a policy knows where somebody stands: here one-hot.

    This is the only place that decides it: observations, states and their spaces follow from what is returned. Values
    must lie in [0, 1].

    :param size: free cells along each side
    :return: (C, P) array whose row c encodes cell c; here P = C
    """
    return np.eye(size * size, dtype=np.float32)


def scale_coordinates(size: int) -> FloatArray:
    """Cell centres as (x, y), each from -1 (left, top) to 1 (right, bottom).

    :return: (C, 2) array
    """
    axis = np.linspace(-1.0, 1.0, size, dtype=np.float32)
    x, y = np.meshgrid(axis, axis)
    return np.stack([x.ravel(), y.ravel()], axis=-1)


def move_table(size: int, n_actions: int) -> CellArray:
    """Where each action leads from each cell; bumping into the wall stands still.

    :return: (C, n_actions) array of cells
    """
    y, x = np.divmod(np.arange(size * size), size)
    columns = [np.clip(y + dy, 0, size - 1) * size + np.clip(x + dx, 0, size - 1) for dx, dy in _MOVES[:n_actions]]
    return np.stack(columns, axis=-1).astype(np.int64)


@dataclass(frozen=True, eq=False)
class World:
    """The fixed map of a game of one size, as lookup tables indexed by cell = y * size + x.

    Made by `World.create`.
    """

    size: int
    n_actions: int
    moves: CellArray
    """(C, n_actions): the cell an action leads to."""
    positions: FloatArray
    """(C, P): see `encode_positions`."""
    coordinates: FloatArray
    """(C, 2): see `scale_coordinates`."""
    buttons: CellArray
    """(2,): the cell of each colour's button: red at the top right, blue at the top left."""
    diamonds: CellArray
    """(2,): the cell of each colour's diamond: red at the bottom left, blue at the bottom right."""

    @classmethod
    def create(cls, size: int, allow_stay: bool) -> World:
        """Lay out the map.

        :param size: free cells along each side, at least 2
        :param allow_stay: whether the fifth action exists
        :raises ValueError: if ``size`` is smaller than 2, so that a corner would be two things at once
        """
        if size < 2:
            raise ValueError(f"size must be at least 2, so that the four corners differ; got {size}")
        n_actions = len(ACTIONS) if allow_stay else len(ACTIONS) - 1
        last = size - 1
        return cls(
            size=size,
            n_actions=n_actions,
            moves=move_table(size, n_actions),
            positions=encode_positions(size),
            coordinates=scale_coordinates(size),
            buttons=np.array([last, 0], dtype=np.int64),
            diamonds=np.array([last * size, last * size + last], dtype=np.int64),
        )

    @property
    def n_cells(self) -> int:
        """Number of free cells, C."""
        return self.size * self.size

    def cell(self, x: int, y: int) -> int:
        """The cell in column x and row y, both counted from 0 at the top left.

        :raises ValueError: if there is no such cell
        """
        if not (0 <= x < self.size and 0 <= y < self.size):
            raise ValueError(f"a position (x, y) must lie within 0..{self.size - 1}; got ({x}, {y})")
        return y * self.size + x

    def checked_cells(self, cells: CellArray) -> CellArray:
        """The cells themselves.

        :raises ValueError: if there are no such cells
        """
        if (cells < 0).any() or (cells >= self.n_cells).any():
            raise ValueError(
                f"cells must lie within 0..{self.n_cells - 1}, as the room is {self.size} x {self.size}; got {cells.tolist()}"
            )
        return cells

    def draw_start(self, rng: np.random.Generator) -> CellArray:
        """Uniformly random cells of the two agents, who may share one.

        :return: (2,)
        """
        return rng.integers(self.n_cells, size=2)

    def collect(self, cells: CellArray, collected: BoolArray) -> BoolArray:
        """Which diamonds are in hand once the agents stand on these cells.

        A diamond is collected while one agent stands on it and the *other* one stands on its colour's button.

        :param cells: (..., 2) cells of the agents
        :param collected: (..., 2) diamonds in hand before, per colour
        :return: (..., 2) diamonds in hand now
        """
        at_diamond = cells[..., None, :] == self.diamonds[:, None]  # (..., colour, agent)
        partner_at_button = cells[..., None, ::-1] == self.buttons[:, None]  # (..., colour, agent)
        now: BoolArray = (at_diamond & partner_at_button).any(axis=-1)
        return collected | now

    def observations(self, cells: CellArray, collected: BoolArray) -> FloatArray:
        """What each agent sees: its own position and which diamonds are in hand.

        :return: (..., 2, P + 2), values in [0, 1]
        """
        width = self.positions.shape[1]
        out = np.empty((*cells.shape, width + 2), dtype=np.float32)
        out[..., :width] = self.positions[cells]
        out[..., width:] = collected[..., None, :]
        return out

    def state(self, cells: CellArray, collected: BoolArray) -> FloatArray:
        """The whole game: both agents' positions and which diamonds are in hand.

        :return: (..., 2 * P + 2), values in [0, 1]
        """
        return _joined(self.positions[cells], collected)

    def discriminator_observations(self, cells: CellArray, collected: BoolArray) -> FloatArray:
        """What tells an individual skill apart: the agent's scaled coordinates, and the diamonds as -1 or 1.

        :return: (..., 2, 4), values in [-1, 1]
        """
        out = np.empty((*cells.shape, 4), dtype=np.float32)
        out[..., :2] = self.coordinates[cells]
        out[..., 2:] = _plus_minus_one(collected)[..., None, :]
        return out

    def discriminator_state(self, cells: CellArray, collected: BoolArray) -> FloatArray:
        """What tells a team skill apart: both agents' scaled coordinates, and the diamonds as -1 or 1.

        :return: (..., 6), values in [-1, 1]
        """
        return _joined(self.coordinates[cells], _plus_minus_one(collected))


def _plus_minus_one(flags: BoolArray) -> FloatArray:
    return 2.0 * flags.astype(np.float32) - 1.0


def _joined(per_agent: FloatArray, flags: NDArray[Any]) -> FloatArray:
    """Both agents' codes and the flags in one row: (..., 2, K) and (..., 2) -> (..., 2 * K + 2)."""
    lead, width = per_agent.shape[:-2], 2 * per_agent.shape[-1]
    out = np.empty((*lead, width + 2), dtype=np.float32)
    out[..., :width] = per_agent.reshape(*lead, width)
    out[..., width:] = flags
    return out
