"""What can be wrong with a team's observation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from hmasd_sb3.wrappers.team_spaces import ACTION_MASK, AGENT_MASK

Fault = tuple[Literal["error", "warning"], str, str, str]
"""Level, convention, what was met (after the name of the observation), remedy."""
_DECLARE = "Return what observation_space declares, or correct the space."


def observation_faults(space: spaces.Space[Any], observation: Any) -> Iterator[Fault]:
    """What breaks a convention, worst first.

    :param space: the team's
    :param observation: of one team
    """
    assert isinstance(space, spaces.Dict)
    if not isinstance(observation, dict):
        yield "error", "a Dict observation", f"is a {type(observation).__name__}, not a dict.", _DECLARE
        return
    if set(observation) != set(space.spaces):
        what = f"has the keys {sorted(observation)}, its space {sorted(space.spaces)}."
        yield "error", "the keys of the observation space", what, _DECLARE
        return
    for key, part in space.spaces.items():
        yield from _part_faults(key, part, observation[key])
    yield from _mask_faults(observation)


def _part_faults(key: str, space: spaces.Space[Any], value: Any) -> Iterator[Fault]:
    array = np.asarray(value)
    if array.shape != space.shape:
        yield (
            "error",
            "the shape of the observation space",
            f"has {key!r} of shape {array.shape}, not {space.shape}.",
            _DECLARE,
        )
        return
    if array.dtype.kind not in "fiub":
        yield "error", "numbers", f"has {key!r} of dtype {array.dtype}.", _DECLARE
        return
    if not np.isfinite(array).all():
        what = f"has {'NaN' if np.isnan(array).any() else 'infinity'} in {key!r}."
        yield "error", "finite observations", what, "Mend the game's observation."
        return
    assert space.dtype is not None
    if not np.can_cast(array.dtype, space.dtype, casting="same_kind"):
        what = f"has {key!r} of dtype {array.dtype}, which does not fit into {space.dtype} and is cut off silently."
        yield "error", "the dtype of the observation space", what, _DECLARE
    elif isinstance(space, spaces.Box):
        yield from _bound_faults(key, space, array)
    elif not space.contains(array.astype(space.dtype)):
        yield "error", "values of the observation space", f"has {key!r} outside {space}: {array.tolist()}.", _DECLARE


def _bound_faults(key: str, space: spaces.Box, array: NDArray[Any]) -> Iterator[Fault]:
    outside = (array < space.low) | (array > space.high)
    if outside.any():
        worst = array[outside].flat[0]
        what = f"has {key!r} outside its bounds: {worst} at {tuple(int(i) for i in np.argwhere(outside)[0])}."
        yield "warning", "the bounds of the observation space", what, f"It is passed on unchanged. {_DECLARE}"


def _mask_faults(observation: dict[str, Any]) -> Iterator[Fault]:
    if AGENT_MASK in observation and not np.asarray(observation[AGENT_MASK]).any():
        yield "error", "somebody is there", f"has nobody in {AGENT_MASK!r}.", "End the episode when the last agent leaves."
    if ACTION_MASK in observation:
        blocked = ~np.asarray(observation[ACTION_MASK]).astype(bool).any(axis=-1)
        if blocked.any():
            what = f"leaves agent {int(np.flatnonzero(blocked)[0])} no legal action in {ACTION_MASK!r}."
            yield "error", "a legal action for everybody", what, "Allow at least one, and all to agents that are absent."
