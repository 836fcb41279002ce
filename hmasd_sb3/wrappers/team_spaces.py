"""What a team environment's spaces must look like, and small helpers for spaces and the arrays in them.

Letters in shapes: N agents, A discrete actions or A components of a continuous action, S numbers of state, D and D'
numbers of a discriminator's observation and state.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

OBS = "obs"
STATE = "state"
ACTION_MASK = "action_mask"
AGENT_MASK = "agent_mask"
DISCRIMINATOR_OBS = "discriminator_obs"
DISCRIMINATOR_STATE = "discriminator_state"

# The keys of PettingZoo's masked observations.
INNER_OBS = "observation"
INNER_MASK = "action_mask"


def stacked_box(space: spaces.Box, n_agents: int, dtype: Any) -> spaces.Box:
    """N copies of a Box side by side: (...) -> (N, ...)."""
    low, high = np.stack([space.low] * n_agents), np.stack([space.high] * n_agents)
    return box_between(low, high, dtype)


def box_between(low: NDArray[Any], high: NDArray[Any], dtype: Any) -> spaces.Box:
    """A Box of ``dtype`` with these bounds; those too large for it become infinite."""
    with np.errstate(over="ignore"):
        return spaces.Box(low.astype(dtype), high.astype(dtype), dtype=np.dtype(dtype).type)


def flat_float_box(space: spaces.Box) -> spaces.Box:
    """The same numbers in one row of float32: (...) -> (prod(...),)."""
    return box_between(space.low.ravel(), space.high.ravel(), np.float32)


def unbounded_box(shape: tuple[int, ...]) -> spaces.Box:
    """A float32 Box without limits."""
    return spaces.Box(-np.inf, np.inf, shape, np.float32)


def with_zero(space: spaces.Box) -> spaces.Box:
    """The Box, wide enough to hold the zeros of agents that are not there."""
    zero = np.zeros((), space.dtype)
    if (space.low <= zero).all() and (space.high >= zero).all():
        return space
    assert space.dtype is not None
    return spaces.Box(np.minimum(space.low, zero), np.maximum(space.high, zero), dtype=space.dtype.type)


def rows_of(flags: NDArray[np.bool_]) -> list[int]:
    """The rows that are True. On a team's few agents a loop is ten times quicker than NumPy's search."""
    return [row for row, flag in enumerate(flags.tolist()) if flag]


def float_for_double(dtype: Any) -> np.dtype[Any]:
    """float32 for float64, every other dtype as it is: torch models read float32, and images must stay uint8."""
    return np.dtype(np.float32) if np.dtype(dtype) == np.float64 else np.dtype(dtype)


def checked_array(value: Any, shape: tuple[int, ...], dtype: np.dtype[Any], what: str) -> NDArray[Any]:
    """Read what a game returned as an array of the promised shape and dtype, values unchanged.

    Floats may lose precision, but not become infinite; integers and flags must survive the conversion exactly. Nothing is
    clipped or broadcast.

    :param what: names the value in errors, e.g. ``"the observation of 'alice'"``
    :raises ValueError: if the shape differs or a value cannot be represented
    """
    array = np.asarray(value)
    if array.shape != shape:
        raise ValueError(
            f"{what} has the shape {array.shape}, but its space says {shape}. Make the game return what it declares."
        )
    if array.dtype == dtype:
        return array
    if dtype.kind == "f":
        if array.dtype.kind not in "fiub":
            raise ValueError(f"{what} must be numbers of dtype {dtype}; got {array.dtype}: {array!r}")
        try:
            with np.errstate(over="raise"):
                return array.astype(dtype)
        except FloatingPointError:
            raise ValueError(
                f"{what} holds numbers too large for {dtype}; the largest is {np.nanmax(np.abs(array))}. Scale them down in "
                "the game."
            ) from None
    with np.errstate(invalid="ignore"):  # NaN to integer: found by the comparison below
        converted = array.astype(dtype)
    if not np.array_equal(converted, array):
        raise ValueError(
            f"{what} holds values that its space's dtype {dtype} cannot represent (it was returned as {array.dtype}). "
            "Make the game return what it declares."
        )
    return converted


def is_team_space(observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> bool:
    """Whether these are the spaces of a team environment; see `check_team_spaces`."""
    return _team_space_fault(observation_space, action_space) is None


def check_team_spaces(observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
    """Refuse an environment whose rows are not teams.

    A team's observation is a Dict with at least ``obs``, Box (N, ...), and ``state``, Box (S,) or a picture; its action is
    MultiDiscrete([A] * N) or Box (N, A).

    :raises ValueError: naming what is missing and how to get it
    """
    fault = _team_space_fault(observation_space, action_space)
    if fault is not None:
        raise ValueError(
            f"This is not a team environment: {fault}. Wrap a PettingZoo parallel environment by "
            "hmasd_sb3.wrappers.TeamEnv, or give your environment a Dict observation with 'obs' (n_agents, ...) and "
            "'state' (state_dim,), and the action space MultiDiscrete([n_actions] * n_agents) or "
            "Box (n_agents, action_dim)."
        )


def _team_space_fault(observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> str | None:
    if not isinstance(observation_space, spaces.Dict) or not {OBS, STATE} <= set(observation_space.spaces):
        return f"its observation space is {observation_space}, without the keys 'obs' and 'state'"
    obs, state = observation_space.spaces[OBS], observation_space.spaces[STATE]
    if not isinstance(obs, spaces.Box) or len(obs.shape) < 2:
        return f"its 'obs' is {obs}, not a Box (n_agents, ...)"
    if not isinstance(state, spaces.Box) or len(state.shape) < 1:
        return f"its 'state' is {state}, not a Box (state_dim,) or a picture"
    n_agents = obs.shape[0]
    if isinstance(action_space, spaces.MultiDiscrete):
        nvec = action_space.nvec
        if nvec.shape == (n_agents,) and bool((nvec == nvec[0]).all()):
            return None
    elif isinstance(action_space, spaces.Box) and len(action_space.shape) == 2 and action_space.shape[0] == n_agents:
        return None
    return f"its action space is {action_space}, which gives {n_agents} agents no equal actions"
