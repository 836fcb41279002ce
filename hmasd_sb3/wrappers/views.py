"""What a team sees beside its agents' observations: the global state, and what skills are to be recognised by."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from pettingzoo import ParallelEnv
from stable_baselines3.common.preprocessing import is_image_space_channels_first

from hmasd_sb3.wrappers.team_spaces import checked_array, flat_float_box, rows_of, stacked_box, unbounded_box, with_zero

StateRule = Literal["joined"] | Callable[[Any], Any] | None


class StateView:
    """The global state, from wherever the game has it. The game must have been reset.

    :param game: the game
    :param rule: None: ``state()``, or the joined observations where the game has none; ``"joined"``: those in any case;
        or a function from the game to an array
    :param obs: the team's observation space (N, ...)
    :raises ValueError: if the declared space is no Box, or ``state`` is no method or returns nothing
    """

    space: spaces.Box
    """(S,) float32; (S,) uint8 for joined bytes; a picture's own shape in uint8."""

    def __init__(self, game: ParallelEnv, rule: StateRule, obs: spaces.Box) -> None:
        self._game = game
        self._read: Callable[[Any], Any] | None = rule if callable(rule) else None
        self._source = "the state function's result"
        value = None if rule == "joined" else self._first_value()
        if value is None:
            self.space = joined_space(obs)
            return
        declared = None if callable(rule) else getattr(game, "state_space", None)
        if declared is not None:
            declared = checked_box(declared, "state_space")
        self.space = _state_space(np.asarray(value), declared)

    def read(self, obs: NDArray[Any]) -> NDArray[Any]:
        """The present state.

        :param obs: (N, ...), the team's observations at hand
        """
        if self._read is None:
            return joined(obs)
        shape, dtype = self.space.shape, self.space.dtype
        assert dtype is not None
        value = self._read(self._game)
        # A copy even if nothing has to be converted: games may return the array they go on writing to.
        return checked_array(value if len(shape) > 1 else np.asarray(value).ravel(), shape, dtype, self._source).copy()

    def _first_value(self) -> Any:
        if self._read is not None:
            return self._read(self._game)
        if not callable(self._game.state):
            raise ValueError(
                f"the game keeps a {type(self._game.state).__name__} under the name of PettingZoo's method state(): rename "
                "it, or define state() and state_space."
            )
        try:
            value = self._game.state()
        except NotImplementedError:
            return None
        if value is None:
            raise ValueError("the game's state() returned None. Leave it out, or raise NotImplementedError, if there is none.")
        self._read, self._source = _state_of, "state()"
        return value


class DiscriminatorViews:
    """``discriminator_obs(agent)`` and ``discriminator_state()`` of a game, where it has them.

    :param game: the game
    :param agents: its ``possible_agents``
    :param with_absent: whether agents may be absent; ``obs_space`` then also holds the zeros of those that are
    :raises ValueError: if a space is missing, no Box, or not the same for all agents
    """

    def __init__(self, game: ParallelEnv, agents: list[Any], *, with_absent: bool) -> None:
        self._game, self._agents = game, agents
        self.obs_space: spaces.Box | None = None
        self.state_space: spaces.Box | None = None
        if callable(getattr(game, "discriminator_obs", None)):
            found = stacked_box(self._agent_space(), len(agents), np.float32)
            self.obs_space = with_zero(found) if with_absent else found
        if callable(getattr(game, "discriminator_state", None)):
            space = getattr(game, "discriminator_state_space", None)
            self.state_space = flat_float_box(checked_box(space, "discriminator_state_space"))

    def read_obs(self, present: NDArray[np.bool_]) -> NDArray[np.float32]:
        """(N, D), zeros for agents that are not there."""
        assert self.obs_space is not None
        out = np.zeros(self.obs_space.shape, dtype=np.float32)
        for row in rows_of(present):
            value = np.asarray(self._game.discriminator_obs(self._agents[row])).ravel()
            out[row] = checked_array(value, out.shape[1:], out.dtype, "discriminator_obs(agent)")
        return out

    def read_state(self) -> NDArray[np.float32]:
        """(D',)."""
        assert self.state_space is not None
        value = np.asarray(self._game.discriminator_state()).ravel()
        return checked_array(value, self.state_space.shape, np.dtype(np.float32), "discriminator_state()").copy()

    def _agent_space(self) -> spaces.Box:
        space_of = getattr(self._game, "discriminator_obs_space", None)
        if not callable(space_of):
            raise ValueError("the game defines discriminator_obs(agent) but not discriminator_obs_space(agent): add it.")
        by_agent = {agent: space_of(agent) for agent in self._agents}
        first = by_agent[self._agents[0]]
        for agent, space in by_agent.items():
            if space != first:
                raise ValueError(
                    f"All agents must have the same discriminator observation space, but {self._agents[0]!r} has {first} "
                    f"and {agent!r} has {space}. Pad the smaller one."
                )
        return flat_float_box(checked_box(first, "discriminator_obs_space(agent)"))


def joined(obs: NDArray[Any]) -> NDArray[Any]:
    """All agents' observations as one: pictures on top of each other as channels, others in one row."""
    if not _are_pictures(obs.shape, obs.dtype):
        return obs.ravel().astype(np.uint8 if obs.dtype == np.uint8 else np.float32)
    if obs.ndim == 3:  # without a channel axis: from (N, H, W) to (H, W, N)
        return np.moveaxis(obs, 0, -1).copy()
    return np.concatenate(list(obs), axis=0 if _channels_first(obs.shape[1:]) else -1)


def joined_space(obs: spaces.Box) -> spaces.Box:
    """The space of `joined` observations."""
    low, high = joined(obs.low), joined(obs.high)
    return spaces.Box(low, high, dtype=low.dtype.type)


def checked_box(space: Any, what: str) -> spaces.Box:
    """The space itself.

    :raises ValueError: if it is no Box
    """
    if not isinstance(space, spaces.Box):
        raise ValueError(f"{what} must be a gymnasium.spaces.Box; got {space!r}")
    return space


def _state_of(game: ParallelEnv) -> Any:
    return game.state()


def _state_space(value: NDArray[Any], declared: spaces.Box | None) -> spaces.Box:
    """A picture keeps its shape and its bytes; everything else becomes one row of floats."""
    shape, dtype = (value.shape, value.dtype) if declared is None else (declared.shape, declared.dtype)
    if len(shape) in (2, 3) and dtype == np.uint8 and (declared is None or bool((declared.high == 255).all())):
        return spaces.Box(0, 255, shape, np.uint8)
    return unbounded_box((value.size,)) if declared is None else flat_float_box(declared)


@functools.cache  # asked at every step; a space of pictures takes longer to make than they take to join
def _channels_first(shape: tuple[int, ...]) -> bool:
    return bool(is_image_space_channels_first(spaces.Box(0, 255, shape, np.uint8)))


def _are_pictures(shape: tuple[int, ...], dtype: Any) -> bool:
    """Whether (N, ...) are bytes with two or three axes per agent."""
    return dtype == np.uint8 and len(shape) in (3, 4)
