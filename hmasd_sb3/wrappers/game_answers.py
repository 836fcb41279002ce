"""What a PettingZoo game says of itself and returns, read strictly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from pettingzoo import AECEnv, ParallelEnv


def check_is_parallel_env(env: Any) -> None:
    """Refuse what is no parallel game.

    :raises TypeError: saying how to get one
    """
    if isinstance(env, ParallelEnv):
        return
    if isinstance(env, AECEnv):
        hint = "convert the turn-based game with pettingzoo.utils.conversions.aec_to_parallel first"
    elif callable(env):
        hint = "call the factory and pass the game it makes"
    else:
        hint = "pass a pettingzoo.ParallelEnv"
    raise TypeError(f"TeamEnv wraps a PettingZoo ParallelEnv; got {type(env).__name__}: {hint}.")


def possible_agents(env: ParallelEnv) -> list[Any]:
    """All agents that a game may ever have.

    :raises ValueError: if it lists none, or one twice
    """
    listed = getattr(env, "possible_agents", None)
    agents = [] if listed is None else list(listed)
    if not agents:
        raise ValueError("the game must list its agents in 'possible_agents', before its first reset; it lists none.")
    if len(set(agents)) < len(agents):
        raise ValueError(f"the game lists an agent twice in 'possible_agents', {agents}: give each a name of its own.")
    return agents


def dicts_by_agent(result: Any, names: tuple[str, ...], method: str) -> Sequence[Mapping[Any, Any]]:
    """What a game returned.

    :param names: of its parts
    :param method: that returned it
    :raises ValueError: if it is not what PettingZoo's ``ParallelEnv`` returns
    """
    if not isinstance(result, tuple | list) or len(result) != len(names):
        got = f"{len(result)} of them" if isinstance(result, tuple | list) else f"a {type(result).__name__}"
        raise ValueError(
            f"the game's {method} must return {len(names)} dicts, {', '.join(names)}; got {got}. Games for PettingZoo before "
            "1.23 returned others: bring the game up to date."
        )
    for name, part in zip(names, result, strict=True):
        if not isinstance(part, Mapping):
            raise ValueError(f"the {name} that the game's {method} returned must be a dict by agent; got {part!r}")
    return result


def one_number(agent: Any, reward: Any) -> float:
    """An agent's reward, also from an array that holds nothing else.

    :raises ValueError: if it is something else
    """
    if isinstance(reward, float | int):
        return float(reward)
    array = np.asarray(reward)
    if array.size != 1 or array.dtype.kind not in "fiub":
        raise ValueError(f"the reward of {agent!r} must be one number; got {reward!r}")
    return float(array.item())


def team_info(agents: list[Any], infos: Mapping[Any, Any]) -> dict[str, Any]:
    """``is_success`` if any agent reports it, else nothing."""
    found = [infos.get(agent) or {} for agent in agents]
    reports = [info["is_success"] for info in found if "is_success" in info]
    return {"is_success": all(bool(report) for report in reports)} if reports else {}


def agents_spaces(game: ParallelEnv, name: str, agents: list[Any]) -> dict[Any, spaces.Space[Any]]:
    """Each agent's space of one kind, as the game's method of that name gives it.

    :raises ValueError: if there is no such method
    """
    method = getattr(game, name, None)
    if not callable(method):
        raise ValueError(f"{name} of a PettingZoo game must be a method of the agent, {name}(agent); got {method!r}.")
    return {agent: method(agent) for agent in agents}
