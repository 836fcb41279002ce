"""TeamEnv and games that stretch the conventions or break them: what still works, and what the errors say."""

from typing import Any

import numpy as np
import pytest
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


# ---- what reset() and step() return


@pytest.mark.parametrize("n_agents", [1, 2, 3])
def test_a_reset_without_infos_is_refused(n_agents: int) -> None:
    class Old(TimeLimitGame):
        def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
            return super().reset(seed, options)[0]

    with pytest.raises(ValueError, match=r"reset\(\) must return 2 dicts, observations, infos; got a dict.*up to date"):
        TeamEnv(Old(n_agents))


def test_steps_of_four_parts_or_without_dicts_are_refused() -> None:
    class Old(TimeLimitGame):
        def step(self, actions: dict[str, Any]) -> Any:
            observations, rewards, dones, _, infos = super().step(actions)
            return observations, rewards, dones, infos

    class NoInfos(TimeLimitGame):
        def step(self, actions: dict[str, Any]) -> Any:
            return *super().step(actions)[:4], None

    with pytest.raises(ValueError, match=r"step\(\) must return 5 dicts.*got 4 of them"):
        step_once(TeamEnv(Old()))
    with pytest.raises(ValueError, match=r"infos that the game's step\(\) returned must be a dict by agent; got None"):
        step_once(TeamEnv(NoInfos()))


def test_infos_may_be_empty_missing_or_none() -> None:
    class NoInfos(TimeLimitGame):
        def step(self, actions: dict[str, Any]) -> Any:
            return *super().step(actions)[:4], {}

    assert step_once(TeamEnv(NoInfos()))[4] == {}
    assert step_once(TeamEnv(edited(info=lambda self, agent: None)))[4] == {}
