"""How the spaces of N equal agents become the spaces of one team, and what a team environment's spaces must look like.

Read once, when a team is built; nothing here runs per step. Knows Gymnasium's spaces and PettingZoo's conventions.

Letters in shapes: N agents, A discrete actions or A components of a continuous action, S numbers of state, D and D'
numbers of a discriminator's observation and state.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from pettingzoo import ParallelEnv

OBS = "obs"
STATE = "state"
ACTION_MASK = "action_mask"
DISCRIMINATOR_OBS = "discriminator_obs"
DISCRIMINATOR_STATE = "discriminator_state"

# The keys of PettingZoo's masked observations.
INNER_OBS = "observation"
INNER_MASK = "action_mask"

_EQUALISE = {
    "observation": "Pad the smaller one, e.g. with supersuit.pad_observations_v0.",
    "action": "Give all agents the larger one and mark what an agent cannot do in an 'action_mask'.",
    "discriminator observation": "Pad the smaller one.",
}


class AgentSpaces(NamedTuple):
    """The spaces that every agent of a team has."""

    obs: spaces.Box
    """Of one agent's observation, without its mask; any shape."""
    action: spaces.Discrete | spaces.Box
    """Of one agent's action: Discrete with A actions, or Box (A,)."""
    mask_in_obs: bool
    """Whether the observations are Dicts of ``observation`` and ``action_mask``."""


def read_agent_spaces(env: ParallelEnv, agents: list[Any]) -> AgentSpaces:
    """Find the one observation space and the one action space that all agents share.

    :param env: the game
    :param agents: its ``possible_agents``
    :raises ValueError: if agents differ, or their spaces are of a kind that a team cannot be built from
    """
    check_equal_spaces(agents, {agent: env.observation_space(agent) for agent in agents}, "observation")
    check_equal_spaces(agents, {agent: env.action_space(agent) for agent in agents}, "action")
    action_space = _checked_action_space(env.action_space(agents[0]))

    obs_space = env.observation_space(agents[0])
    mask_in_obs = False
    if isinstance(obs_space, spaces.Dict) and set(obs_space.spaces) == {INNER_OBS, INNER_MASK}:
        _check_inner_mask(obs_space.spaces[INNER_MASK], action_space)
        obs_space, mask_in_obs = obs_space.spaces[INNER_OBS], True
    if not isinstance(obs_space, spaces.Box):
        raise ValueError(
            "An agent's observation must be a Box, or a Dict of exactly 'observation' (a Box) and 'action_mask'; "
            f"got {obs_space}. Flatten it in the game or with a wrapper, e.g. gymnasium.spaces.flatten."
        )
    return AgentSpaces(obs_space, action_space, mask_in_obs)


def team_action_space(action: spaces.Discrete | spaces.Box, n_agents: int) -> spaces.MultiDiscrete | spaces.Box:
    """All agents' actions in one space: MultiDiscrete([A] * N) counted from 0, or Box (N, A) of the agents' dtype."""
    if isinstance(action, spaces.Discrete):
        return spaces.MultiDiscrete([int(action.n)] * n_agents)
    return stacked_box(action, n_agents, action.dtype)


def stacked_box(space: spaces.Box, n_agents: int, dtype: Any) -> spaces.Box:
    """N copies of a Box side by side: (...) -> (N, ...)."""
    low, high = np.stack([space.low] * n_agents), np.stack([space.high] * n_agents)
    return spaces.Box(low.astype(dtype), high.astype(dtype), dtype=dtype)


def flat_float_box(space: spaces.Box) -> spaces.Box:
    """The same numbers in one row of float32: (...) -> (prod(...),)."""
    return spaces.Box(space.low.ravel().astype(np.float32), space.high.ravel().astype(np.float32), dtype=np.float32)


def unbounded_box(shape: tuple[int, ...]) -> spaces.Box:
    """A float32 Box without limits."""
    return spaces.Box(-np.inf, np.inf, shape, np.float32)


def float_for_double(dtype: Any) -> np.dtype[Any]:
    """float32 for float64, every other dtype as it is: torch models read float32, and images must stay uint8."""
    return np.dtype(np.float32) if np.dtype(dtype) == np.float64 else np.dtype(dtype)


def checked_array(value: Any, shape: tuple[int, ...], dtype: np.dtype[Any], what: str) -> NDArray[Any]:
    """Read what a game returned as an array of the promised shape and dtype, values unchanged.

    Floats may lose precision; integers and flags must survive the conversion exactly. Nothing is clipped or broadcast.

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
        return array.astype(dtype)
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

    A team's observation is a Dict with at least ``obs``, Box (N, ...), and ``state``, Box (S,); its action is
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
    if not isinstance(state, spaces.Box) or len(state.shape) != 1:
        return f"its 'state' is {state}, not a Box (state_dim,)"
    n_agents = obs.shape[0]
    if isinstance(action_space, spaces.MultiDiscrete):
        nvec = action_space.nvec
        if nvec.shape == (n_agents,) and bool((nvec == nvec[0]).all()):
            return None
    elif isinstance(action_space, spaces.Box) and len(action_space.shape) == 2 and action_space.shape[0] == n_agents:
        return None
    return f"its action space is {action_space}, which gives {n_agents} agents no equal actions"


def check_equal_spaces(agents: list[Any], by_agent: dict[Any, spaces.Space[Any]], kind: str) -> None:
    """Refuse agents whose spaces differ.

    :param kind: ``"observation"``, ``"action"`` or ``"discriminator observation"``
    :raises ValueError: naming two agents that differ, and their spaces
    """
    first = agents[0]
    for agent in agents[1:]:
        if by_agent[agent] != by_agent[first]:
            raise ValueError(
                f"All agents of a team must have the same {kind} space, but {first!r} has {by_agent[first]} and "
                f"{agent!r} has {by_agent[agent]}. {_EQUALISE[kind]}"
            )


def _checked_action_space(space: spaces.Space[Any]) -> spaces.Discrete | spaces.Box:
    if isinstance(space, spaces.Discrete):
        return space
    if isinstance(space, spaces.Box) and len(space.shape) == 1 and space.dtype is not None and space.dtype.kind == "f":
        return space
    raise ValueError(
        f"An agent's action space must be Discrete, or a Box of floats with one axis; got {space}. Number the "
        "combinations of several discrete choices as one Discrete, and flatten Boxes of more axes."
    )


def _check_inner_mask(mask: spaces.Space[Any], action: spaces.Discrete | spaces.Box) -> None:
    if not isinstance(action, spaces.Discrete):
        raise ValueError(
            f"'action_mask' says which of a Discrete space's actions are legal, but the action space is {action}."
        )
    if mask.shape != (int(action.n),):
        raise ValueError(f"'action_mask' must have one entry for each of the {action.n} actions; its space is {mask}.")
