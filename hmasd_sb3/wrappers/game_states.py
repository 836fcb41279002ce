"""The state of a PettingZoo game, with its PettingZoo wrappers."""

from __future__ import annotations

from typing import Any

from gymnasium import spaces
from pettingzoo.utils import BaseParallelWrapper, BaseWrapper
from pettingzoo.utils.conversions import aec_to_parallel_wrapper
from pettingzoo.utils.wrappers import (
    AssertOutOfBoundsWrapper,
    CaptureStdoutWrapper,
    ClipOutOfBoundsWrapper,
    OrderEnforcingWrapper,
)
from supersuit.generic_wrappers.frame_skip import frame_skip_par
from supersuit.generic_wrappers.utils.shared_wrapper_util import shared_wrapper_parr

from hmasd_sb3.envs.plain_state import checked_entries, checked_type
from hmasd_sb3.wrappers.black_death import LivingAct, game_layers
from hmasd_sb3.wrappers.layer_states import STATELESS, Known, LayerKind, State, attributes, collect_layers, restore_layers


def game_state(game: Any) -> list[State]:
    """The state of a game and of its wrappers, from the outside in.

    :raises EnvStateError: naming the wrapper or game that cannot give its state
    """
    return collect_layers(list(game_layers(game)), _KNOWN)


def restore_game(game: Any, state: Any) -> None:
    """Let a game go on where another one was.

    :param state: from `game_state`
    :raises EnvStateError: if it does not fit
    """
    restore_layers(list(game_layers(game)), _KNOWN, state)


def _bridge_state(bridge: Any) -> State:
    # There are none before the first reset.
    return {"agents": None if getattr(bridge, "agents", None) is None else list(bridge.agents)}


def _check_bridge(bridge: Any, state: State) -> None:
    checked_entries(state, ("agents",), type(bridge).__name__)
    checked_type(state["agents"], (list, type(None)), f"'agents' of {type(bridge).__name__}")


def _restore_bridge(bridge: Any, state: State) -> None:
    if state["agents"] is not None:
        bridge.agents = state["agents"]


# SuperSuit's frame_stack and its kin are one wrapper, around a "modifier" for each agent, which has the state. Modifiers that
# keep objects of SuperSuit's own (delays, accumulators) or generators are refused, as these are no plain data.


def _shared_state(wrapper: Any) -> State:
    return {
        "modifier": wrapper.modifier_class.__name__,
        "seed": wrapper._cur_seed,
        "options": wrapper._cur_options,
        "agents": {agent: _modifier_state(modifier) for agent, modifier in wrapper.modifiers.items()},
    }


def _modifier_state(modifier: Any) -> State:
    return {name: value for name, value in vars(modifier).items() if not isinstance(value, spaces.Space)}


def _check_shared(wrapper: Any, state: State) -> None:
    checked_entries(state, ("modifier", "seed", "options", "agents"), type(wrapper).__name__)
    checked_entries(state["agents"], wrapper.modifiers, f"the agents in {type(wrapper).__name__}")
    if state["modifier"] != wrapper.modifier_class.__name__:
        raise ValueError(f"the state is of a {state['modifier']}, and here is a {wrapper.modifier_class.__name__}")


def _restore_shared(wrapper: Any, state: State) -> None:
    wrapper._cur_seed, wrapper._cur_options = state["seed"], state["options"]
    for agent, modifier in wrapper.modifiers.items():
        vars(modifier).update(state["agents"][agent])


_KNOWN: Known = {
    BaseParallelWrapper: STATELESS,
    BaseWrapper: STATELESS,
    LivingAct: STATELESS,
    AssertOutOfBoundsWrapper: STATELESS,
    CaptureStdoutWrapper: STATELESS,
    ClipOutOfBoundsWrapper: STATELESS,
    OrderEnforcingWrapper: attributes("_has_reset", "_has_updated"),
    frame_skip_par: STATELESS,
    shared_wrapper_parr: LayerKind(_shared_state, _check_shared, _restore_shared),
    aec_to_parallel_wrapper: LayerKind(_bridge_state, _check_bridge, _restore_bridge),
}
