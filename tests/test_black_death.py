"""SuperSuit's black death, taken out of games: deaths and time limits show, and the wrappers around it go on working."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import supersuit as ss
from games import TimeLimitGame
from pipelines import DyingGame

from hmasd_sb3.wrappers.black_death import game_layers, repair_black_death

WRAPPERS: dict[str, Any] = {
    "frame_stack_v1": lambda game: ss.frame_stack_v1(game, 3),
    "frame_stack_v2": lambda game: ss.frame_stack_v2(game, 3),
    "dtype_v0": lambda game: ss.dtype_v0(game, "float16"),
    "normalize_obs_v0": ss.normalize_obs_v0,
    "flatten_v0": ss.flatten_v0,
    "reshape_v0": lambda game: ss.reshape_v0(game, (1, 3)),
    "pad_observations_v0": ss.pad_observations_v0,
    "pad_action_space_v0": ss.pad_action_space_v0,
    "agent_indicator_v0": ss.agent_indicator_v0,
    "sticky_actions_v0": lambda game: ss.sticky_actions_v0(game, 0.5),
    "delay_observations_v0": lambda game: ss.delay_observations_v0(game, 2),
    "max_observation_v0": lambda game: ss.max_observation_v0(game, 2),
    "clip_actions_v0": ss.clip_actions_v0,
    "scale_actions_v0": lambda game: ss.scale_actions_v0(game, 0.5),
    "clip_reward_v0": ss.clip_reward_v0,
    "nan_zeros_v0": ss.nan_zeros_v0,
    "nothing": lambda game: game,
    "several": lambda game: ss.frame_stack_v1(ss.normalize_obs_v0(ss.max_observation_v0(game, 2)), 2),
}


def episode(game: Any) -> list[tuple[set[str], dict[str, bool], dict[str, bool], set[str]]]:
    """(who has an observation, terminations, truncations, who goes on) of every step; all agents alive act."""
    game.reset(seed=0)
    steps = []
    while game.agents:
        actions = {agent: game.action_space(agent).sample() for agent in game.agents}
        observations, _, terminations, truncations, _ = game.step(actions)
        steps.append((set(observations), dict(terminations), dict(truncations), set(game.agents)))
    return steps


@pytest.mark.parametrize("lives", [(2, 4, 9), (2, 4, 5), (9, 1, 3), (3, 3, 3)], ids=str)
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_deaths_and_time_limits_show_once_black_death_is_out(wrapper: str, lives: tuple[int, ...]) -> None:
    """SuperSuit's black death plays a step after the last death, reports both ends at once, and keeps the dead in."""
    plain = episode(DyingGame(lives))
    game, found = repair_black_death(WRAPPERS[wrapper](ss.black_death_v3(DyingGame(lives))))
    assert found
    assert episode(game) == plain
    assert episode(game) == plain  # and after a restart
    assert len(plain) == min(max(lives), 6)
    assert not any(type(layer).__name__ == "black_death_par" for layer in game_layers(game))


@pytest.mark.parametrize("wrapper", [lambda game: ss.resize_v1(game, 4, 4), lambda game: ss.color_reduction_v0(game)])
def test_pictures_of_the_dying(wrapper: Any) -> None:
    game, _ = repair_black_death(wrapper(ss.black_death_v3(DyingGame(shape=(8, 8, 3)))))
    assert episode(game) == episode(DyingGame())


def test_wrappers_go_on_seeing_the_right_agent() -> None:
    game, _ = repair_black_death(ss.delay_observations_v0(ss.black_death_v3(DyingGame()), 1))
    game.reset()
    for clock in range(1, 6):
        observations, *_ = game.step({agent: np.zeros(2, np.float32) for agent in game.agents})
        assert {a: o[0] for a, o in observations.items()} == {a: 10.0 * int(a[-1]) + clock - 1 for a in observations}


def test_actions_for_the_dead_go_no_further() -> None:
    """SuperSuit's frame skip repeats the action of an agent that died within the skip; black death kept it from the game."""
    game, _ = repair_black_death(ss.frame_skip_v0(ss.black_death_v3(DyingGame((2, 4, 9))), 3))
    steps = episode(game)
    assert [sorted(alive) for *_, alive in steps] == [["agent_1", "agent_2"], []]
    assert steps[0][1] == {"agent_0": True, "agent_1": False, "agent_2": False}
    assert steps[1][2] == {"agent_1": False, "agent_2": True}


def test_black_death_twice_and_in_the_middle() -> None:
    inside = ss.black_death_v3(ss.black_death_v3(ss.normalize_obs_v0(ss.black_death_v3(DyingGame()))))
    game, found = repair_black_death(ss.black_death_v3(ss.black_death_v3(ss.frame_stack_v1(inside, 2))))
    assert found
    assert episode(game) == episode(DyingGame())


def test_without_black_death_nothing_changes() -> None:
    game = ss.frame_stack_v1(ss.dtype_v0(TimeLimitGame(), "float32"), 2)
    layers = list(game_layers(game))
    assert repair_black_death(game) == (game, False)
    assert list(game_layers(game)) == layers
    assert isinstance(layers[-1], TimeLimitGame)
