"""Tiny PettingZoo games with what makes teams hard: agents that die, join or differ, structured or pictured observations.

Every action moves what all agents see, and everything is drawn from the seed, so that a mistake in who acts, sees or
earns what shows in the numbers. Illegal actions are played but counted, in ``illegal_actions``.
"""

from typing import Any

import numpy as np
from games import TinyGame
from gymnasium import spaces

SPAN = tuple[int, int]
"""The clock at an agent's first observation, and at its last."""


class PlannedGame(TinyGame):
    """Agents come and go by a plan drawn at each reset; here all stay until the time limit.

    Agent i earns (i + 1) times the sum of its action, and a random number.

    :param listed: whether agents stay in ``agents``, observed and reported as terminated, after they have died
    """

    def __init__(self, n_agents: int = 3, horizon: int = 8, listed: bool = False) -> None:
        super().__init__(n_agents, horizon)
        self.listed = listed
        self.spans: dict[str, list[SPAN]] = {}
        self.illegal_actions = 0

    def draw_plan(self) -> dict[str, list[SPAN]]:
        """When each agent is there."""
        return {a: [(0, self.horizon + 1)] for a in self.possible_agents}

    def is_there(self, agent: str) -> bool:
        """Whether it is to act now."""
        return any(first <= self.clock < last for first, last in self.spans[agent]) and self.clock < self.horizon

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict, dict]:
        super().reset(seed, options)
        self.spans = self.draw_plan()
        self.agents = [a for a in self.possible_agents if self.is_there(a)]
        return {a: self.observe(a) for a in self.agents}, {a: self.info(a) for a in self.agents}

    def step(self, actions: dict[str, Any]) -> tuple[dict, dict, dict, dict, dict]:
        acted = [a for a in self.possible_agents if self.is_there(a)]
        assert set(actions) == set(acted), f"actions of {sorted(actions)}, but {acted} are to act"
        self.illegal_actions += sum(not self.is_legal(a, actions[a]) for a in acted)
        sums = {a: float(np.sum(actions[a], dtype=np.float64)) for a in acted}
        self.marks = (self.marks + 0.1 * np.tanh(self.total(sums)) + self.rng.random(2) / 10) % 1.0
        self.clock += 1
        return self.outcome(acted, sums)

    def outcome(self, acted: list[str], sums: dict[str, float]) -> tuple[dict, dict, dict, dict, dict]:
        """What step() returns, at the clock after it."""
        there = [a for a in self.possible_agents if self.is_there(a)]
        told = [a for a in self.possible_agents if a in acted or a in there or self.listed]
        dead = {a: a not in there and not self.outlived(a) for a in told}
        late = {a: a not in there and self.outlived(a) for a in told}
        rewards = {a: (self.possible_agents.index(a) + 1) * sums.get(a, 0.0) + float(self.rng.random()) for a in told}
        if not self.listed:
            self.agents = there
        return {a: self.observe(a) for a in told}, rewards, dead, late, {a: self.info(a) for a in told}

    def outlived(self, agent: str) -> bool:
        """Whether the time limit ends this agent's episode, rather than its death."""
        return self.clock >= self.horizon and any(first < self.horizon < last for first, last in self.spans[agent])

    def total(self, sums: dict[str, float]) -> np.ndarray:
        """Two numbers that tell whose action was what."""
        weights = {a: i + 1 for i, a in enumerate(self.possible_agents)}
        return np.array([sum(weights[a] * s for a, s in sums.items()), sum(s / weights[a] for a, s in sums.items())])

    def is_legal(self, agent: str, action: Any) -> bool:
        """Whether the action lies in the agent's space."""
        return bool(self.action_space(agent).contains(action))


class DyingGame(PlannedGame):
    """Each agent dies at a moment of its own. The last to go dies in some episodes, and outlives the time in others."""

    def draw_plan(self) -> dict[str, list[SPAN]]:
        return {a: [(0, int(self.rng.integers(1, self.horizon + 4)))] for a in self.possible_agents}


class RetiringGame(DyingGame):
    """The first agent does not die but leaves early, by a time limit of its own, and has no say in how the team ends."""

    def outlived(self, agent: str) -> bool:
        return agent == "agent_0" or super().outlived(agent)


class JoiningGame(PlannedGame):
    """The second agent comes late, the third dies and comes back, the first stays to the end."""

    def draw_plan(self) -> dict[str, list[SPAN]]:
        arrival, death, back = (int(self.rng.integers(low, low + 2)) for low in (1, 2, 4))
        first, second, third, *others = self.possible_agents
        end = self.horizon + 1
        plan = {first: [(0, end)], second: [(arrival, end)], third: [(0, death), (back, end)]}
        return {**plan, **{a: [(0, end)] for a in others}}


class HeterogeneousGame(DyingGame):
    """No two agents see or do the same; zero does not lie in what the first may see.

    :param continuous: whether agents act by Boxes of different sizes and bounds, one of them with two axes
    :param deaths: whether agents die
    """

    def __init__(self, continuous: bool = False, deaths: bool = False, horizon: int = 8) -> None:
        self.continuous, self.deaths = continuous, deaths
        self.seen = {"agent_0": (1.0, 2.0, 2), "agent_1": (0.0, 1.0, 5), "agent_2": (-3.0, 1.0, 3)}
        """Bounds and size of each agent's observation."""
        super().__init__(3, horizon)
        self.observation_spaces = {a: self.own_observation_space(a) for a in self.possible_agents}
        self.action_spaces = {a: self.own_action_space(a) for a in self.possible_agents}

    def own_observation_space(self, agent: str) -> spaces.Space:
        low, high, size = self.seen[agent]
        return spaces.Box(low, high, (size,), np.float32)

    def own_action_space(self, agent: str) -> spaces.Space:
        if self.continuous:
            three = spaces.Box(np.array([-2, 0, -5], np.float32), np.array([0, 3, 5], np.float32))
            return {"agent_0": spaces.Box(-1, 1, (1,)), "agent_1": three, "agent_2": spaces.Box(0, 4, (2, 2))}[agent]
        found = {
            "agent_0": spaces.Discrete(2),
            "agent_1": spaces.Discrete(5, start=3),
            "agent_2": spaces.Discrete(3, start=-1),
        }
        return found[agent]

    def draw_plan(self) -> dict[str, list[SPAN]]:
        return super().draw_plan() if self.deaths else PlannedGame.draw_plan(self)

    def observe(self, agent: str) -> Any:
        low, high, size = self.seen[agent]
        return (low + (high - low) * np.resize(self.numbers(agent), size)).astype(np.float32)


class MaskedHeterogeneousGame(HeterogeneousGame):
    """Unequal agents with unequal masks, who die. Agent i may not take action (clock + i) % n, counted from 0.

    :param mask_in: ``"observation"``: in a Dict, beside an ``observation`` and a ``goal``; ``"info"``: in the infos
    """

    def __init__(self, mask_in: str = "observation", horizon: int = 8) -> None:
        self.mask_in = mask_in
        super().__init__(deaths=True, horizon=horizon)

    def own_observation_space(self, agent: str) -> spaces.Space:
        numbers = super().own_observation_space(agent)
        if self.mask_in == "info":
            return numbers
        n = int(self.own_action_space(agent).n)
        return spaces.Dict(observation=numbers, goal=spaces.Discrete(3), action_mask=spaces.MultiBinary(n))

    def mask(self, agent: str) -> np.ndarray:
        mask = np.ones(int(self.own_action_space(agent).n), dtype=np.int8)
        mask[(self.clock + self.possible_agents.index(agent)) % len(mask)] = 0
        return mask

    def observe(self, agent: str) -> Any:
        numbers = super().observe(agent)
        if self.mask_in == "info":
            return numbers
        return {"goal": self.clock % 3, "observation": numbers, "action_mask": self.mask(agent)}

    def info(self, agent: str) -> dict[str, Any]:
        return {"action_mask": self.mask(agent)} if self.mask_in == "info" else {}

    def is_legal(self, agent: str, action: Any) -> bool:
        space = self.action_space(agent)
        return bool(space.contains(action) and self.mask(agent)[action - space.start])


class StructuredGame(DyingGame):
    """Observations in parts, of every kind that has a fixed size, different for each agent."""

    def __init__(self, horizon: int = 8) -> None:
        super().__init__(3, horizon)
        self.observation_spaces = {
            "agent_0": spaces.Dict(where=spaces.Box(-1.0, 1.0, (2,), np.float64), tool=spaces.Discrete(3, start=1)),
            "agent_1": spaces.Tuple([spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(4)]),
            "agent_2": spaces.Dict(
                grid=spaces.Box(0, 9, (2, 2), np.int32),
                inner=spaces.Tuple([spaces.Discrete(2), spaces.Box(0.0, 1.0, (), np.float64)]),
            ),
        }

    def observe(self, agent: str) -> Any:
        one, two, _ = self.numbers(agent).astype(np.float64)
        if agent == "agent_0":
            return {"where": np.array([one, -two]), "tool": np.int64(1 + self.clock % 3)}
        if agent == "agent_1":
            bits = np.array([one > 0.2, two > 0.2, self.clock % 2, 1], dtype=np.int8)
            return np.array([int(one > 0.3), self.clock % 3]), bits
        return {"grid": np.full((2, 2), int(9 * one), dtype=np.int32), "inner": (self.clock % 2, np.float64(two))}


class PictureGame(PlannedGame):
    """Small pictures, painted by the marks. The team dies at once in some episodes.

    :param size: of the agents' pictures; (H, W) without colours
    :param with_state: whether there is a ``state()``, a picture of another size
    """

    def __init__(self, size: tuple[int, ...] = (42, 42, 3), with_state: bool = False, horizon: int = 6) -> None:
        self.size, self.with_state = size, with_state
        super().__init__(2, horizon)
        if with_state:
            self.state_space = spaces.Box(0, 255, (36, 40, 3), np.uint8)

    def draw_plan(self) -> dict[str, list[SPAN]]:
        end = int(self.rng.integers(2, self.horizon + 4))
        return {a: [(0, end)] for a in self.possible_agents}

    def make_observation_space(self) -> spaces.Space:
        return spaces.Box(0, 255, self.size, np.uint8)

    def make_action_space(self) -> spaces.Space:
        return spaces.Discrete(4)

    def paint(self, size: tuple[int, ...], numbers: np.ndarray) -> np.ndarray:
        ramp = np.arange(int(np.prod(size))).reshape(size)
        return ((ramp * (1 + 7 * numbers[0]) + 255 * numbers[1] + 40 * self.clock) % 256).astype(np.uint8)

    def observe(self, agent: str) -> Any:
        return self.paint(self.size, self.numbers(agent))

    def state(self) -> np.ndarray:
        if not self.with_state:
            raise NotImplementedError
        return self.paint((36, 40, 3), self.marks)
