"""`repair_black_death`: takes SuperSuit's ``black_death_v3`` out of a game, so that deaths and time limits can be seen."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pettingzoo import ParallelEnv
from pettingzoo.utils import BaseParallelWrapper, BaseWrapper
from pettingzoo.utils.conversions import (
    aec_to_parallel_wrapper,
    parallel_to_aec_wrapper,
    turn_based_aec_to_parallel_wrapper,
)
from supersuit.multiagent_wrappers.black_death import black_death_par


def game_layers(game: Any) -> Iterator[Any]:
    """The game's wrappers from the outermost inwards, then the game proper.

    PettingZoo's bridges between parallel and turn-based games, which most of SuperSuit's wrappers put in, count as wrappers.

    :param game: a PettingZoo game, parallel or turn-based
    """
    layer: Any = game
    while True:
        yield layer
        place = _place_of_inner(layer)
        if place is None:
            return
        layer = getattr(layer, place)


def repair_black_death(parallel_env: ParallelEnv) -> tuple[ParallelEnv, bool]:
    """Take every ``supersuit.black_death_v3`` out of a chain of wrappers; `TeamEnv` follows deaths itself.

    What that wrapper does wrong for a team: it plays one more step after the last death; it then reports ``terminated`` and
    ``truncated`` at once, so that a time limit looks like an ending by the rules; and the dead cannot be told from agents
    who see zeros.

    The wrappers around it stay and are changed in place: nothing else may use them. All of SuperSuit's bear agents that
    leave. The one good trait of black death stays where something is around it: actions for the dead go no further, as
    ``frame_skip_v0`` repeats those of agents who died in the midst of a skip. Reset the game before playing on.

    :param parallel_env: the game with its wrappers
    :return: the game, which is another object if black death was its outermost wrapper; and whether there was one
    """
    game, found = parallel_env, False
    while isinstance(game, black_death_par):
        game, found = game.env, True
    for layer in game_layers(game):
        place = _place_of_inner(layer)
        if place is None:
            continue
        inner = getattr(layer, place)
        while isinstance(inner, black_death_par):
            inner, found = inner.env, True
        if inner is not getattr(layer, place):
            setattr(layer, place, LivingAct(inner))
    return game, found


class LivingAct(BaseParallelWrapper):  # type: ignore[misc]
    """Passes on the actions of the agents that are alive, and everything else as it is."""

    def step(self, actions: dict[Any, Any]) -> Any:
        return self.env.step({agent: actions[agent] for agent in self.env.agents})


def _place_of_inner(layer: Any) -> str | None:
    """Under which name a wrapper keeps what it wraps; None for a game, which may call something of its own ``env``."""
    if isinstance(layer, BaseParallelWrapper | BaseWrapper | parallel_to_aec_wrapper):
        return "env"
    if isinstance(layer, aec_to_parallel_wrapper | turn_based_aec_to_parallel_wrapper):
        return "aec_env"
    return None
