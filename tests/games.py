"""Tiny PettingZoo games for the tests, one per trait: masks, endings by time limit alone, continuous actions."""

from typing import Any

import numpy as np
from gymnasium import spaces
from pettingzoo import ParallelEnv


class TinyGame(ParallelEnv):
    """A game of equal agents who see two random numbers and the clock; subclasses say what acting means.

    The random stream starts alike in every copy until it is seeded, as in many games: unseeded copies are twins.
    """

    metadata = {"name": "tiny_v0", "render_modes": []}

    def __init__(self, n_agents: int = 2, horizon: int = 5) -> None:
        self.possible_agents = [f"agent_{i}" for i in range(n_agents)]
        self.agents: list[str] = []
        self.horizon = horizon
        self.render_mode = None
        self.rng = np.random.default_rng(0)
        self.clock = 0
        self.marks = np.zeros(2)
        self.observation_spaces = {a: self.make_observation_space() for a in self.possible_agents}
        self.action_spaces = {a: self.make_action_space() for a in self.possible_agents}

    def make_observation_space(self) -> spaces.Space:
        return spaces.Box(0.0, 1.0, (3,), np.float32)

    def make_action_space(self) -> spaces.Space:
        return spaces.Discrete(2)

    def observation_space(self, agent: str) -> spaces.Space:
        return self.observation_spaces[agent]

    def action_space(self, agent: str) -> spaces.Space:
        return self.action_spaces[agent]

    def numbers(self, agent: str) -> np.ndarray:
        """What an agent sees: the marks, smaller the later the agent, and the clock."""
        marks = self.marks / (1 + self.possible_agents.index(agent))
        return np.array([*marks, self.clock / self.horizon], dtype=np.float32)

    def observe(self, agent: str) -> Any:
        return self.numbers(agent)

    def render(self) -> None:
        return None

    def info(self, agent: str) -> dict[str, Any]:
        return {}

    def rewards(self, actions: dict[str, Any]) -> dict[str, float]:
        return dict.fromkeys(self.agents, 0.0)

    def ends(self) -> tuple[bool, bool]:
        """(terminated, truncated) of all agents."""
        return False, self.clock >= self.horizon

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict, dict]:
        if seed is not None:
            self.rng = np.random.default_rng(seed)
        self.agents = list(self.possible_agents)
        self.clock = 0
        self.marks = self.rng.random(2)
        return {a: self.observe(a) for a in self.agents}, {a: self.info(a) for a in self.agents}

    def step(self, actions: dict[str, Any]) -> tuple[dict, dict, dict, dict, dict]:
        acting = list(self.agents)
        rewards = self.rewards(actions)
        self.clock += 1
        terminated, truncated = self.ends()
        if terminated or truncated:
            self.agents = []
        return (
            {a: self.observe(a) for a in acting},
            rewards,
            dict.fromkeys(acting, terminated),
            dict.fromkeys(acting, truncated),
            {a: self.info(a) for a in acting},
        )


class TimeLimitGame(TinyGame):
    """Never terminates; agent i earns i + 1 per step for action 1, so that sums, means and orders show. No state()."""

    def rewards(self, actions: dict[str, Any]) -> dict[str, float]:
        return {a: float(actions[a]) * (i + 1) for i, a in enumerate(self.possible_agents)}


class MaskedGame(TinyGame):
    """Agents score by choosing alike; agent i may not choose action (clock + i) % 3. Terminates at the horizon.

    :param mask_in: ``"observation"`` or ``"info"``: where the masks are
    """

    def __init__(self, mask_in: str = "observation", n_agents: int = 2, horizon: int = 5) -> None:
        self.mask_in = mask_in
        super().__init__(n_agents, horizon)

    def make_observation_space(self) -> spaces.Space:
        numbers = super().make_observation_space()
        if self.mask_in == "info":
            return numbers
        return spaces.Dict({"observation": numbers, "action_mask": spaces.MultiBinary(3)})

    def make_action_space(self) -> spaces.Space:
        return spaces.Discrete(3)

    def mask(self, agent: str) -> np.ndarray:
        mask = np.ones(3, dtype=np.int8)
        mask[(self.clock + self.possible_agents.index(agent)) % 3] = 0
        return mask

    def observe(self, agent: str) -> Any:
        if self.mask_in == "info":
            return self.numbers(agent)
        return {"observation": self.numbers(agent), "action_mask": self.mask(agent)}

    def info(self, agent: str) -> dict[str, Any]:
        return {"action_mask": self.mask(agent)} if self.mask_in == "info" else {}

    def rewards(self, actions: dict[str, Any]) -> dict[str, float]:
        return dict.fromkeys(self.possible_agents, float(len(set(actions.values())) == 1))

    def ends(self) -> tuple[bool, bool]:
        return self.clock >= self.horizon, False


class ContinuousGame(TinyGame):
    """Each agent pays for the size of its action. float64 observations, and a state() without a state_space."""

    def __init__(self, n_agents: int = 2, horizon: int = 5) -> None:
        super().__init__(n_agents, horizon)
        self.received: dict[str, Any] = {}

    def make_observation_space(self) -> spaces.Space:
        return spaces.Box(0.0, 1.0, (3,), np.float64)

    def make_action_space(self) -> spaces.Space:
        return spaces.Box(-1.0, 1.0, (2,), np.float32)

    def observe(self, agent: str) -> Any:
        return self.numbers(agent).astype(np.float64)

    def state(self) -> np.ndarray:
        return np.array([*self.marks, self.clock, 1.0])

    def rewards(self, actions: dict[str, Any]) -> dict[str, float]:
        self.received = dict(actions)
        return {a: -float(np.square(actions[a]).sum()) for a in self.possible_agents}


def edited(base: type[TinyGame] = TimeLimitGame, /, **methods: Any) -> TinyGame:
    """A game with some methods replaced; built with them, as spaces are read at construction."""
    return type("Edited", (base,), methods)()


def step_once(team: Any) -> Any:
    """What the first step of an episode returns, where everybody takes action 0."""
    team.reset(seed=0)
    return team.step(np.zeros(team.n_agents, dtype=np.int64))
