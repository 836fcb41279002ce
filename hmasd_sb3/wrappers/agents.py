"""What one agent sees and does, as one row of what the team sees and does: shapes made equal, nothing lost on the way.

Agents whose spaces are alike keep their shapes (pictures stay pictures). Unlike ones are flattened and padded with zeros;
where an agent has fewer actions than others, a mask says which are its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from hmasd_sb3.wrappers.team_spaces import (
    INNER_MASK,
    INNER_OBS,
    box_between,
    checked_array,
    float_for_double,
    rows_of,
    with_zero,
)

_FLATTENED = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)


class AgentObservations:
    """The agents' observations as (N, ...).

    :param by_agent: each agent's observation space, in the order of ``possible_agents``, still with its action mask
    :param with_absent: whether agents may be absent; the space then also holds the zeros of those that are
    :raises ValueError: if an agent's space is of a kind that has no fixed size, or pictures differ in size
    """

    space: spaces.Box
    """(N, ...): the agents' common shape, or (N, O) with the longest flattened observation."""
    mask_in_obs: bool
    """Whether the observations are Dicts that hold an ``action_mask``."""

    def __init__(self, by_agent: dict[Any, spaces.Space[Any]], *, with_absent: bool) -> None:
        self._agents = list(by_agent)
        with_mask = [agent for agent, space in by_agent.items() if _has_mask(space)]
        self.mask_in_obs = bool(with_mask)
        if with_mask and len(with_mask) < len(by_agent):
            without = [agent for agent in by_agent if agent not in with_mask]
            raise ValueError(
                f"the observations of some agents hold an 'action_mask', but not those of {without}: give it to all."
            )
        self.mask_spaces = {
            a: space[INNER_MASK] for a, space in by_agent.items() if isinstance(space, spaces.Dict) and with_mask
        }
        self._spaces = [_without_mask(space) if with_mask else space for space in by_agent.values()]
        # Rows whose observation proper is the entry called "observation"; of other Dicts, what belongs to it is read by key.
        self._in_inner_key = {
            row
            for row, space in enumerate(by_agent.values())
            if with_mask and isinstance(space, spaces.Dict) and self._spaces[row] is space.spaces.get(INNER_OBS)
        }
        for agent, space in zip(by_agent, self._spaces, strict=True):
            _check_has_fixed_size(space, agent)
        self._alike = _are_alike(self._spaces)
        found = self._stacked() if self._alike else self._padded()
        self.space = with_zero(found) if with_absent else found
        assert self.space.dtype is not None
        self._dtype = self.space.dtype

    def encode(self, observations: Mapping[Any, Any], present: NDArray[np.bool_]) -> NDArray[Any]:
        """One row per agent; zeros for those that are not there.

        :param observations: by agent, as the game returned them
        :param present: (N,) bool, whose rows are wanted
        :raises ValueError: if one of them is missing or is not what its space says
        """
        out = np.zeros(self.space.shape, dtype=self._dtype)
        for index in rows_of(present):
            agent = self._agents[index]
            if agent not in observations:
                raise ValueError(
                    f"the game returned no observation for {agent!r}; every agent that acted or is to act needs one, "
                    "at the last step too. An agent listed in 'agents' and not reported as done is to act."
                )
            value = observations[agent]
            what = f"the observation of {agent!r}"
            if self.mask_in_obs and not isinstance(value, Mapping):
                raise ValueError(f"{what} must be a dict, as its space says; got {value!r}")
            if index in self._in_inner_key:
                if INNER_OBS not in value:
                    raise ValueError(f"{what} lacks {INNER_OBS!r}, which its space has; it holds {sorted(value)}.")
                value = value[INNER_OBS]
            if self._alike:
                out[index] = checked_array(value, self.space.shape[1:], self._dtype, what)
            else:
                flat: NDArray[Any] = np.asarray(
                    spaces.flatten(self._spaces[index], _checked(self._spaces[index], value, what))
                )
                out[index, : len(flat)] = flat
        return out

    def _stacked(self) -> spaces.Box:
        boxes = [space for space in self._spaces if isinstance(space, spaces.Box)]
        dtype = float_for_double(boxes[0].dtype)
        low, high = np.stack([box.low for box in boxes]), np.stack([box.high for box in boxes])
        return box_between(low, high, dtype)

    def _padded(self) -> spaces.Box:
        flat = [spaces.flatten_space(space) for space in self._spaces]
        boxes = [box for box in flat if isinstance(box, spaces.Box)]
        size = max(box.shape[0] for box in boxes)
        # Padding is zero, so 0 must lie within the bounds of a column that some agents do not have.
        low, high = np.zeros((len(boxes), size)), np.zeros((len(boxes), size))
        for row, box in enumerate(boxes):
            low[row, : box.shape[0]], high[row, : box.shape[0]] = box.low, box.high
        for row, box in enumerate(boxes):
            low[row, box.shape[0] :] = np.minimum(low[:, box.shape[0] :].min(axis=0), 0.0)
            high[row, box.shape[0] :] = np.maximum(high[:, box.shape[0] :].max(axis=0), 0.0)
        dtype = np.uint8 if all(box.dtype == np.uint8 for box in boxes) else np.float32
        return box_between(low, high, dtype)


class AgentActions:
    """The team's action taken apart: one legal action per agent, in its own space's terms.

    :param by_agent: each agent's action space, in the order of ``possible_agents``
    :raises ValueError: if an agent's space is of another kind than Discrete or Box, or kinds are mixed
    """

    space: spaces.MultiDiscrete | spaces.Box
    """MultiDiscrete([A] * N) counted from 0, or Box (N, A); A is that of the agent with the most."""
    own: NDArray[np.int8]
    """(N, A), 1 where an agent has such an action or such a component."""

    def __init__(self, by_agent: dict[Any, spaces.Space[Any]]) -> None:
        self._agents = list(by_agent)
        self._spaces = list(by_agent.values())
        self.discrete = isinstance(self._spaces[0], spaces.Discrete)
        for agent, space in by_agent.items():
            self._check_kind(agent, space)
        sizes = [int(s.n) if isinstance(s, spaces.Discrete) else int(np.prod(s.shape or ())) for s in self._spaces]
        n_agents, size = len(sizes), max(sizes)
        self.own = (np.arange(size) < np.array(sizes)[:, None]).astype(np.int8)
        if self.discrete:
            self.space = spaces.MultiDiscrete([size] * n_agents)
        else:
            dtype = np.result_type(*[space.dtype for space in self._spaces])
            low, high = -np.ones((n_agents, size), dtype), np.ones((n_agents, size), dtype)
            for row, box in enumerate(self._spaces):
                assert isinstance(box, spaces.Box)
                low[row, : sizes[row]], high[row, : sizes[row]] = box.low.ravel(), box.high.ravel()
            self.space = spaces.Box(low, high, dtype=dtype.type)

    @property
    def differ(self) -> bool:
        """Whether some agent has fewer actions, or components of one, than another."""
        return not self.own.all()

    def decode(self, action: Any, legal: NDArray[np.int8], present: NDArray[np.bool_]) -> dict[Any, Any]:
        """The actions of the agents that are there: int counted from ``start``, or an array of their own shape and dtype.

        :param action: (N,) integers, or (N, A) floats
        :param legal: (N, A), 1 where an action may be taken (discrete ones)
        :param present: (N,) bool; actions of others are not looked at
        :raises ValueError: if an action is illegal
        """
        array = np.asarray(action)
        if array.shape != self.space.shape:
            raise ValueError(f"a team's action must have the shape {self.space.shape}; got {array.shape}")
        rows = rows_of(present)
        if not self.discrete:
            if array.dtype.kind not in "fiu":
                raise ValueError(f"a team's action must be numbers; got {array.dtype}")
            return {self._agents[row]: self._box_action(row, array[row]) for row in rows}
        if array.dtype.kind not in "iu":
            raise ValueError(f"a team's action must be integers; got {array.dtype}")
        chosen = array.tolist()
        return {self._agents[row]: self._discrete_action(row, chosen[row], legal[row]) for row in rows}

    def _discrete_action(self, row: int, action: int, legal: NDArray[np.int8]) -> int:
        space = self._spaces[row]
        assert isinstance(space, spaces.Discrete)
        if not 0 <= action < space.n:
            raise ValueError(f"{self._agents[row]!r} has the actions 0..{space.n - 1}; got {action}")
        if not legal[action]:
            allowed = np.flatnonzero(legal).tolist()
            raise ValueError(
                f"the action mask forbids {self._agents[row]!r} the action {action}; legal now: {allowed}. Draw actions by "
                "the observation's 'action_mask'; what samples the action space freely cannot play such games."
            )
        return int(space.start) + action

    def _box_action(self, row: int, action: NDArray[Any]) -> NDArray[Any]:
        space = self._spaces[row]
        assert isinstance(space, spaces.Box)
        own = action[: int(np.prod(space.shape))]
        if not np.isfinite(own).all():
            raise ValueError(f"the action of {self._agents[row]!r} must be finite numbers; got {own}")
        # A copy, as a game may keep or change what it is given.
        return np.array(own, dtype=space.dtype).reshape(space.shape)

    def _check_kind(self, agent: Any, space: spaces.Space[Any]) -> None:
        if isinstance(space, spaces.Box) and space.dtype is not None and space.dtype.kind == "f":
            kind = "Box"
        elif isinstance(space, spaces.Discrete):
            kind = "Discrete"
        else:
            raise ValueError(
                f"An agent's action space must be Discrete, or a Box of floats; {agent!r} has {space}. Number the "
                "combinations of several discrete choices as one Discrete."
            )
        if self.discrete != (kind == "Discrete"):
            raise ValueError(
                "Either all agents of a team act by a Discrete or all by a Box, since they share one policy; "
                f"{self._agents[0]!r} has {self._spaces[0]} and {agent!r} has {space}. Let the Discrete ones act by a Box "
                "that the game rounds, or number a grid of the Box's values as a Discrete."
            )


def _has_mask(space: spaces.Space[Any]) -> bool:
    return isinstance(space, spaces.Dict) and INNER_MASK in space.spaces


def _without_mask(space: spaces.Space[Any]) -> spaces.Space[Any]:
    """The observation beside an ``action_mask``: the one other entry if it is called ``observation``, else all others."""
    assert isinstance(space, spaces.Dict)
    rest = {key: inner for key, inner in space.spaces.items() if key != INNER_MASK}
    if not rest:
        raise ValueError(f"An observation that is nothing but an 'action_mask' shows an agent nothing else; got {space}.")
    return rest[INNER_OBS] if set(rest) == {INNER_OBS} else spaces.Dict(rest)


def _check_has_fixed_size(space: spaces.Space[Any], agent: Any) -> None:
    if isinstance(space, spaces.Dict | spaces.Tuple):
        inner = space.spaces.values() if isinstance(space, spaces.Dict) else space.spaces
        for part in inner:
            _check_has_fixed_size(part, agent)
    elif not isinstance(space, _FLATTENED):
        raise ValueError(
            f"An agent's observation must be made of Box, Discrete, MultiDiscrete, MultiBinary, Dict and Tuple, which have a "
            f"fixed size; the observation of {agent!r} holds {space}. Encode it as a Box in the game."
        )


def _are_alike(found: list[spaces.Space[Any]]) -> bool:
    """Whether all are Boxes of one shape and dtype.

    :raises ValueError: if they are pictures that differ, which cannot be padded soundly
    """
    boxes = [space for space in found if isinstance(space, spaces.Box)]
    kinds = {(box.shape, box.dtype) for box in boxes}
    if len(boxes) == len(found) and len(kinds) == 1 and len(boxes[0].shape) > 0:
        return True
    pictures = {box.shape for box in boxes if box.dtype == np.uint8 and len(box.shape) >= 2}
    if pictures and len({space.shape for space in found}) > 1:
        raise ValueError(
            f"The agents' pictures must have one size; got the shapes {sorted(str(space.shape) for space in found)}. "
            "Resize them, e.g. with supersuit.resize_v1."
        )
    return False


def _checked(space: spaces.Space[Any], value: Any, what: str) -> Any:
    """The value, refused if it does not lie in its space; ``spaces.flatten`` itself would read some of those wrongly."""
    if isinstance(space, spaces.Box):
        assert space.dtype is not None
        return checked_array(value, space.shape, float_for_double(space.dtype), what)
    if isinstance(space, spaces.Dict):
        if not isinstance(value, Mapping):
            raise ValueError(f"{what} must be a dict, as its space says; got {value!r}")
        missing = [key for key in space.spaces if key not in value]
        if missing:
            raise ValueError(f"{what} lacks {missing}, which its space {space} has.")
        return {key: _checked(inner, value[key], f"{key!r} in {what}") for key, inner in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        if not isinstance(value, tuple | list):
            raise ValueError(f"{what} must be a tuple, as its space says; got {value!r}")
        if len(value) != len(space.spaces):
            raise ValueError(f"{what} has {len(value)} parts, but its space says {len(space.spaces)}.")
        return tuple(
            _checked(inner, part, f"part {i} of {what}")
            for i, (inner, part) in enumerate(zip(space.spaces, value, strict=True))
        )
    if isinstance(space, spaces.Discrete):
        number = np.asarray(value)
        choice = number.item() if number.size == 1 and number.dtype.kind in "iufb" else None
        if choice is None or not 0 <= choice - int(space.start) < space.n or choice != int(choice):
            raise ValueError(f"{what} must be one of the {space.n} numbers from {space.start} on; got {value!r}.")
        return int(choice)
    assert isinstance(space, spaces.MultiDiscrete | spaces.MultiBinary)
    assert space.shape is not None
    array = checked_array(value, tuple(space.shape), np.dtype(space.dtype), what)
    if not space.contains(array):
        raise ValueError(f"{what} lies outside its space {space}: {array}.")
    return array
