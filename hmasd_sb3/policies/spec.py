"""Reads a team's sizes off its spaces, once, and says clearly what is not a team."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces

_REMEDY = (
    "Wrap a PettingZoo parallel game with hmasd_sb3.TeamEnv(game) or vectorise it with "
    "hmasd_sb3.make_team_vec_env(factory, n_envs=32)."
)


class TeamSpaceError(ValueError):
    """The observation or action space is not that of a team."""


@dataclass(frozen=True)
class TeamSpec:
    """Sizes of one team.

    :ivar n_agents: N
    :ivar obs_dim: flattened size of one agent's observation (O)
    :ivar state_dim: size of the global state (S)
    :ivar continuous: Box actions instead of discrete ones
    :ivar action_dim: number of actions per agent if discrete, size of one agent's action vector if continuous (A)
    :ivar has_action_mask: whether observations carry ``action_mask``
    """

    n_agents: int
    obs_dim: int
    state_dim: int
    continuous: bool
    action_dim: int
    has_action_mask: bool

    @property
    def action_shape(self) -> tuple[int, ...]:
        """Shape of one agent's stored action."""
        return (self.action_dim,) if self.continuous else ()

    @classmethod
    def from_spaces(cls, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> TeamSpec:
        """Check both spaces against the team convention.

        :raises TeamSpaceError: naming the convention broken, the value met and the remedy
        """
        n_agents, obs_dim, state_dim = _read_observations(observation_space)
        continuous, action_dim = _read_actions(action_space, n_agents)
        assert isinstance(observation_space, spaces.Dict)
        _check_discriminator_keys(observation_space, n_agents)
        has_mask = "action_mask" in observation_space.spaces
        if has_mask:
            if continuous:
                raise TeamSpaceError("'action_mask' was given with continuous actions; masks exist for discrete actions only.")
            _require_shape(observation_space, "action_mask", (n_agents, action_dim))
        return cls(n_agents, obs_dim, state_dim, continuous, action_dim, has_mask)


def arriving_space(observation_space: spaces.Dict, normalized_keys: Iterable[str]) -> spaces.Dict:
    """The observation space as values really arrive: unbounded float32 where VecNormalize acts, which keeps the old bounds."""
    unbounded = {key: spaces.Box(-np.inf, np.inf, observation_space.spaces[key].shape, np.float32) for key in normalized_keys}
    return spaces.Dict({**observation_space.spaces, **unbounded})


def discriminator_space(observation_space: spaces.Dict, which: str) -> spaces.Space[Any]:
    """Space the discriminators look at: the game's own ``discriminator_<which>`` where it has one, else ``<which>``."""
    return observation_space.spaces.get(f"discriminator_{which}", observation_space.spaces[which])


def _require_shape(observation_space: spaces.Dict, key: str, shape: tuple[int, ...]) -> None:
    met = observation_space.spaces[key].shape
    if met != shape:
        raise TeamSpaceError(f"The observation's {key!r} must have shape {shape} (agents, actions), got {met}.")


def _check_discriminator_keys(space: spaces.Dict, n_agents: int) -> None:
    for key, wanted, fits in (
        ("discriminator_obs", f"({n_agents}, size), one row per agent", lambda s: len(s) == 2 and s[0] == n_agents),
        ("discriminator_state", "(size,)", lambda s: len(s) == 1),
    ):
        if key in space.spaces and not fits(space.spaces[key].shape or ()):
            raise TeamSpaceError(f"{key!r} must have shape {wanted}, got {space.spaces[key].shape}. Reshape it in the game.")


def _read_observations(space: spaces.Space[Any]) -> tuple[int, int, int]:
    if not isinstance(space, spaces.Dict):
        raise TeamSpaceError(
            f"HMASD needs a Dict observation with 'obs' (n_agents, ...) and 'state' (state_dim,), got {space}. {_REMEDY}"
        )
    missing = [key for key in ("obs", "state") if key not in space.spaces]
    if missing:
        raise TeamSpaceError(f"The observation lacks {missing}; it has the keys {sorted(space.spaces)}. {_REMEDY}")
    obs_shape, state_shape = space.spaces["obs"].shape, space.spaces["state"].shape
    if obs_shape is None or len(obs_shape) < 2:
        raise TeamSpaceError(f"'obs' must have an agent axis first, as in (n_agents, size); got shape {obs_shape}. {_REMEDY}")
    if state_shape is None or len(state_shape) != 1:
        raise TeamSpaceError(f"'state' must be a flat vector (state_dim,); got shape {state_shape}. Flatten it.")
    return obs_shape[0], int(np.prod(obs_shape[1:])), state_shape[0]


def _read_actions(space: spaces.Space[Any], n_agents: int) -> tuple[bool, int]:
    if isinstance(space, spaces.MultiDiscrete):
        if space.nvec.shape != (n_agents,):
            raise TeamSpaceError(
                f"Discrete teams need MultiDiscrete([n_actions] * {n_agents}), one entry per agent; got {space}. {_REMEDY}"
            )
        if len(set(space.nvec.tolist())) != 1:
            raise TeamSpaceError(
                f"All agents must have the same number of actions, got {space.nvec.tolist()}. "
                "Pad the smaller action spaces and pass an 'action_mask'."
            )
        if space.start.any():
            raise TeamSpaceError(
                f"Discrete actions must count from 0, got start={space.start.tolist()}. Shift them in the game."
            )
        return False, int(space.nvec[0])
    if isinstance(space, spaces.Box):
        if len(space.shape) != 2 or space.shape[0] != n_agents:
            raise TeamSpaceError(
                f"Continuous teams need a Box of shape ({n_agents}, action_dim), got shape {space.shape}. {_REMEDY}"
            )
        if not np.issubdtype(space.dtype, np.floating):
            raise TeamSpaceError(
                f"Continuous actions must be floating point, got {space.dtype}. Use discrete actions instead."
            )
        if not (np.isfinite(space.low).all() and np.isfinite(space.high).all()):
            raise TeamSpaceError("Continuous actions need finite bounds; give the Box finite low and high.")
        return True, space.shape[1]
    raise TeamSpaceError(f"HMASD needs MultiDiscrete or Box actions of a whole team, got {space}. {_REMEDY}")
