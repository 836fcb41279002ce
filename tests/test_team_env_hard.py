"""TeamEnv and games that stretch the conventions or break them: what still works, and what the errors say."""

from typing import Any

import numpy as np
from games import TimeLimitGame, TinyGame
from gymnasium import spaces
from hard_games import DyingGame

from hmasd_sb3.wrappers import TeamEnv


def edited(base: type[TinyGame] = TimeLimitGame, /, **methods: Any) -> TinyGame:
    """A game with some methods replaced; built with them, as spaces are read at construction."""
    return type("Edited", (base,), methods)()


def step_once(team: TeamEnv) -> Any:
    team.reset(seed=0)
    return team.step(np.zeros(team.n_agents, dtype=np.int64))


# ---- agents that are not there


def test_the_zeros_of_absent_agents_lie_in_the_spaces() -> None:
    def numbers(self: Any, agent: str) -> np.ndarray:
        return np.full(3, 1.5, np.float32)

    views = {"discriminator_obs": numbers, "discriminator_obs_space": lambda self, a: self.observation_spaces[a]}
    make_space = lambda self: spaces.Box(1.0, 2.0, (3,), np.float32)  # noqa: E731
    game = edited(DyingGame, observe=numbers, make_observation_space=make_space, **views)
    team = TeamEnv(game)
    for key in ("obs", "discriminator_obs"):
        assert team.observation_space[key] == spaces.Box(0.0, 2.0, (3, 3), np.float32)
    observation, _ = team.reset(seed=0)
    while observation["agent_mask"].all():
        observation, *_ = team.step(np.zeros(3, dtype=np.int64))
    assert team.observation_space.contains(observation)
    # Where nobody is ever absent, bounds are the game's.
    assert TeamEnv(edited(make_observation_space=make_space), agent_mask=False).observation_space["obs"].low.min() == 1.0
