"""The sizes of a team in words."""

from __future__ import annotations

from math import prod
from typing import Any

from gymnasium import spaces


def team_sizes(observations: spaces.Space[Any], actions: spaces.Space[Any]) -> str:
    """Such as "2 agents that see 66 numbers each, with a state of 132 numbers, 5 actions".

    :param observations: of one team
    :param actions: of one team
    """
    assert isinstance(observations, spaces.Dict)
    parts = {name: space.shape or () for name, space in observations.spaces.items()}
    n_agents, *seen = parts.pop("obs")
    team = "1 agent that sees" if n_agents == 1 else f"{n_agents} agents that see"
    text = f"{team} {_size(seen)}{' each' * (n_agents > 1)}, with a state of {_size(parts.pop('state'))}"
    choice = (
        int(actions.nvec.max())
        if isinstance(actions, spaces.MultiDiscrete)
        else f"{prod((actions.shape or ())[1:])} continuous"
    )
    return f"{text}, {choice} actions{''.join(f', {name}' for name in sorted(parts))}"


def _size(shape: Any) -> str:
    """Of what is seen: a list of numbers, or a picture."""
    if len(shape) > 1:
        return f"{'x'.join(str(size) for size in shape)} pixels"
    number = prod(shape)
    return f"{number} number{'s' * (number != 1)}"
