"""Reads a team's sizes off its spaces, once, and says clearly what is not a team."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor

from hmasd_sb3.policies.features import Features, is_picture

_REMEDY = (
    "Wrap a PettingZoo parallel game with hmasd_sb3.TeamEnv(game) or vectorise it with "
    "hmasd_sb3.make_team_vec_env(factory, n_envs=32)."
)


class TeamSpaceError(ValueError):
    """The observation or action space is not that of a team."""


@dataclass(frozen=True)
class TeamSpec:
    """Sizes of one team, and how its networks read what it sees.

    :ivar n_agents: N
    :ivar obs_dim: flattened size of one agent's observation (O)
    :ivar state_dim: flattened size of the global state (S)
    :ivar continuous: Box actions instead of discrete ones
    :ivar action_dim: number of actions per agent if discrete, size of one agent's action vector if continuous (A)
    :ivar has_action_mask: whether observations carry ``action_mask``
    :ivar has_agent_mask: whether observations carry ``agent_mask``, so that agents may be absent
    :ivar obs_space: of one agent's observation; bounds of all agents taken together
    :ivar state_space: of the state
    :ivar features_extractor_class: SB3 feature extractor of observations, and of the state if that is a picture too
    :ivar features_extractor_kwargs: its arguments
    """

    n_agents: int
    obs_dim: int
    state_dim: int
    continuous: bool
    action_dim: int
    has_action_mask: bool
    has_agent_mask: bool
    obs_space: spaces.Box
    state_space: spaces.Box
    features_extractor_class: type[BaseFeaturesExtractor] | None = None
    features_extractor_kwargs: dict[str, Any] = field(default_factory=dict)

    @property
    def action_shape(self) -> tuple[int, ...]:
        """Shape of one agent's stored action."""
        return (self.action_dim,) if self.continuous else ()

    def obs_features(self) -> Features:
        """A new extractor for observations, (..., O) -> (..., F); each network has its own."""
        return Features(self.obs_space, self.features_extractor_class, self.features_extractor_kwargs)

    def state_features(self) -> Features:
        """A new extractor for states, (..., S) -> (..., F)."""
        extractor = self.features_extractor_class if is_picture(self.state_space) else None
        return Features(self.state_space, extractor, self.features_extractor_kwargs)

    @classmethod
    def from_spaces(
        cls,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        features_extractor_class: type[BaseFeaturesExtractor] | None = None,
        features_extractor_kwargs: dict[str, Any] | None = None,
    ) -> TeamSpec:
        """Check both spaces against the team convention.

        :raises TeamSpaceError: naming the convention broken, the value met and the remedy
        """
        n_agents, obs_dim, state_dim = _read_observations(observation_space)
        continuous, action_dim = _read_actions(action_space, n_agents)
        assert isinstance(observation_space, spaces.Dict)
        _check_discriminator_keys(observation_space, n_agents)
        for key, shape in (("action_mask", (n_agents, action_dim)), ("agent_mask", (n_agents,))):
            if key in observation_space.spaces:
                _require_shape(observation_space, key, shape)
        state_space = observation_space.spaces["state"]
        assert isinstance(state_space, spaces.Box)
        return cls(
            n_agents,
            obs_dim,
            state_dim,
            continuous,
            action_dim,
            "action_mask" in observation_space.spaces,
            "agent_mask" in observation_space.spaces,
            first_agent(observation_space.spaces["obs"]),
            state_space,
            features_extractor_class,
            features_extractor_kwargs or {},
        )


def first_agent(space: spaces.Space[Any]) -> spaces.Box:
    """Space of one agent inside a space whose first axis counts agents; bounds of all agents taken together."""
    shape = space.shape or ()
    if isinstance(space, spaces.Box):
        assert space.dtype is not None
        return spaces.Box(space.low.min(axis=0), space.high.max(axis=0), shape[1:], dtype=space.dtype.type)
    return spaces.Box(0, 1, shape[1:], np.int8)


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
        axes = "(agents, actions)" if len(shape) == 2 else "(agents,)"
        raise TeamSpaceError(f"The observation's {key!r} must have shape {shape} {axes}, got {met}.")


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
    if not isinstance(space.spaces["state"], spaces.Box):
        raise TeamSpaceError(f"'state' must be a Box, got {space.spaces['state']}. Flatten it with gymnasium.spaces.flatten.")
    if obs_shape is None or len(obs_shape) < 2:
        raise TeamSpaceError(f"'obs' must have an agent axis first, as in (n_agents, size); got shape {obs_shape}. {_REMEDY}")
    if not state_shape:
        raise TeamSpaceError("'state' must be a vector (state_dim,) or a picture; got a single number. Give it an axis.")
    return obs_shape[0], int(np.prod(obs_shape[1:])), int(np.prod(state_shape))


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
