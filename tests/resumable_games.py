"""The tests' games once more, with the two methods by which training resumes exactly; worker processes import this module."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import hard_games
import numpy as np
from games import ContinuousGame, MaskedGame, TimeLimitGame
from gymnasium import spaces
from gymnasium.utils import seeding
from pettingzoo import AECEnv
from pettingzoo.utils.conversions import aec_to_parallel
from pettingzoo.utils.wrappers import OrderEnforcingWrapper
from stable_baselines3.common.monitor import Monitor
from worker_games import FaultyTeam

from hmasd_sb3.wrappers import generator_state, restored_generator


class Resumable:
    """Gives its own arrays, not copies, as the protocol allows."""

    fields = ("agents", "clock", "marks")

    def state_dict(self) -> dict[str, Any]:
        return {"rng": generator_state(self.rng), **{name: getattr(self, name) for name in self.fields}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rng = restored_generator(state["rng"])
        for name in self.fields:
            setattr(self, name, state[name])


class Planned(Resumable):
    """For games whose agents come and go."""

    fields = (*Resumable.fields, "spans", "illegal_actions")


class TimeLimited(Resumable, TimeLimitGame): ...


class Skippable(Planned, hard_games.DyingGame):
    """Has the generator that SuperSuit's frame_skip_v0 draws from."""

    @property
    def np_random(self) -> np.random.Generator:
        return self.rng


class Masked(Resumable, MaskedGame): ...


class Continuous(Resumable, ContinuousGame): ...


class Dying(Planned, hard_games.DyingGame): ...


class Joining(Planned, hard_games.JoiningGame): ...


class MaskedDying(Planned, hard_games.MaskedHeterogeneousGame): ...


class Pictured(Planned, hard_games.PictureGame): ...


class Faulty(FaultyTeam):
    """Breaks down on demand, and can give its state; `refusal` is what doing so raises."""

    refusal: Exception | None = None

    def state_dict(self) -> dict[str, Any]:
        if self.refusal is not None:
            raise self.refusal
        return {"rng": generator_state(self._np_random), "seed": self._np_random_seed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._np_random, self._np_random_seed = restored_generator(state["rng"]), state["seed"]

    def refuse(self, error: Exception) -> None:
        self.refusal = error


class FaultyMaker:
    """Makes a `Faulty` in a ``Monitor``."""

    def __init__(self, index: int, **kwargs: Any) -> None:
        self.index, self.kwargs = index, kwargs

    def __call__(self) -> Monitor:
        return Monitor(Faulty(self.index, **self.kwargs))


class Turns(AECEnv):
    """A turn-based game that changes after the last agent of a round has acted; the agents see their own last moves."""

    metadata = {"name": "turns_v0", "render_modes": [], "is_parallelizable": True}

    def __init__(self) -> None:
        super().__init__()
        self.possible_agents = ["first", "second"]
        self.render_mode = None
        self.rng: np.random.Generator | None = None

    def observation_space(self, agent: str) -> spaces.Space:
        return spaces.Box(0.0, 10.0, (2,), np.float32)

    def action_space(self, agent: str) -> spaces.Space:
        return spaces.Discrete(3)

    def observe(self, agent: str) -> np.ndarray:
        return np.array([self.moves[agent], self.mark], np.float32)

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> None:
        if seed is not None or self.rng is None:
            self.rng = seeding.np_random(seed)[0]
        self.agents = list(self.possible_agents)
        self.moves = dict.fromkeys(self.agents, 0)
        self.mark, self.clock = float(self.rng.random()), 0
        for name, value in (("rewards", 0), ("_cumulative_rewards", 0), ("terminations", False), ("truncations", False)):
            setattr(self, name, dict.fromkeys(self.agents, value))
        self.infos = {agent: {} for agent in self.agents}
        self.agent_selection = "first"

    def step(self, action: int | None) -> None:
        if self.terminations[self.agent_selection] or self.truncations[self.agent_selection]:
            self._was_dead_step(action)
            return
        self.moves[self.agent_selection] = action
        self._clear_rewards()
        if self.agent_selection == "second":
            self.clock += 1
            self.mark = float(self.rng.random())
            self.rewards = {agent: self.mark + self.moves[agent] for agent in self.agents}
            self.truncations = dict.fromkeys(self.agents, self.clock >= 4)
        self.agent_selection = "second" if self.agent_selection == "first" else "first"

    # Rounds are whole between two steps of the parallel game: it is the first agent's turn, and nobody is dead.

    def state_dict(self) -> dict[str, Any]:
        return {"rng": generator_state(self.rng), "moves": self.moves, "mark": self.mark, "clock": self.clock}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.reset(seed=0)
        self.rng = restored_generator(state["rng"])
        self.moves, self.mark, self.clock = state["moves"], state["mark"], state["clock"]


def turns() -> Any:
    """The turn-based game as a parallel one."""
    return aec_to_parallel(OrderEnforcingWrapper(Turns()))


class Fading(gym.Wrapper):
    """A user's wrapper with a state of its own: rewards fade with every step, over all episodes."""

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self.factor = 1.0

    def step(self, action: Any) -> Any:
        observation, reward, *rest = self.env.step(action)
        self.factor *= 0.99
        return observation, reward * self.factor, *rest

    def state_dict(self) -> dict[str, Any]:
        return {"factor": self.factor}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.factor = state["factor"]


class Forgetful(gym.Wrapper):
    """A user's wrapper without the methods."""
