"""What JaxMARL's games refuse, and how they say so."""

from __future__ import annotations

import dataclasses
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from hmasd_sb3.envs import jaxmarl_games
from hmasd_sb3.wrappers.jaxmarl_vec import JaxMARLTeamEnv, JaxMARLVectorEnv

# Asked for without importing it: that takes seconds in every test process.
if find_spec("jaxmarl") is None:
    pytest.skip("needs the extra 'jaxmarl'", allow_module_level=True)

KITCHEN: dict[str, Any] = {"game": "overcooked", "layout": "cramped_room", "max_steps": 60}


def test_a_game_of_ones_own_must_return_what_its_spaces_say() -> None:
    game = jaxmarl_games.jaxmarl_game("MPE_simple_spread_v3", max_steps=5)
    wrong = spaces.Dict({**game.observation_space.spaces, "state": spaces.Box(-1, 1, (7,), np.float32)})
    with pytest.raises(ValueError, match="must have the shapes and dtypes"):
        JaxMARLVectorEnv(dataclasses.replace(game, observation_space=wrong), 2).reset(seed=0)
    with pytest.raises(TypeError, match="are for a game given by name"):
        JaxMARLVectorEnv(game, 2, max_steps=3)
    with pytest.raises(ValueError, match="cannot be drawn"):
        JaxMARLVectorEnv(game, 2, render_mode="rgb_array")


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"game": "SMAX"}, "'HeuristicEnemySMAX' has one team"),
        ({"game": "hanabi"}, "cannot be played as one team yet"),
        ({"game": "MPE_simple_speaker_listener_v4"}, "observations of one shape"),
        ({"game": "overcooked", "layout": "nowhere"}, "no kitchen 'nowhere'; there are .*'coord_ring'"),
        ({"game": "overcooked", "max_steps": 0}, "max_steps must be at least 1"),
        ({"game": "HeuristicEnemySMAX", "scenario": "nowhere"}, "no map 'nowhere'; there are .*'2s3z'"),
        ({"game": "HeuristicEnemySMAX", "action_type": "continuous"}, "discrete actions"),
        ({**KITCHEN, "render_mode": "human"}, "render_mode must be"),
        ({**KITCHEN, "num_envs": 0}, "num_envs must be at least 1"),
    ],
)
def test_wrong_arguments(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        JaxMARLVectorEnv(**kwargs)


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        (np.full((3, 2), 6), "agent 0 of environment 0 was given the action 6; there are 0..5"),
        (np.full((3, 2), -1), "given the action -1"),
        (np.zeros((3, 3), dtype=int), r"shape \(3, 2\)"),
        (np.zeros((3, 2)), "integers"),
    ],
)
def test_wrong_actions(actions: np.ndarray, message: str) -> None:
    env = JaxMARLVectorEnv(num_envs=3, **KITCHEN)
    env.reset(seed=0)
    with pytest.raises(ValueError, match=message):
        env.step(actions)


def test_no_step_before_the_first_reset() -> None:
    with pytest.raises(RuntimeError, match="call reset"):
        JaxMARLVectorEnv(**KITCHEN).step(np.zeros((1, 2), dtype=int))
    with pytest.raises(RuntimeError, match="call reset"):
        JaxMARLTeamEnv(**KITCHEN).step(np.zeros(2, dtype=int))
