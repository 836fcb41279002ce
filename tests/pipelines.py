"""Games and SuperSuit pipelines for the tests of how their rows become teams; worker processes import this module."""

from __future__ import annotations

import os
import pathlib
from typing import Any

import numpy as np
import supersuit as ss
from games import TinyGame
from gymnasium import spaces


class ReportingGame(TinyGame):
    """Terminates at the clock's 3 if the first mark is small, else runs into the time limit; says so in its infos.

    The infos of a reset have the same key as those of the end, and tell what is to come: whether that mark is small.
    ``state()`` is not the joined observations.
    """

    def __init__(self, n_agents: int = 2, horizon: int = 5, render_mode: str | None = None) -> None:
        super().__init__(n_agents, horizon)
        self.render_mode = render_mode
        self.metadata = {**self.metadata, "render_modes": ["rgb_array"], "render_fps": 7}
        self.difficulty = 1

    def state(self) -> np.ndarray:
        return np.array([*self.marks, self.clock, -1.0], dtype=np.float32)

    def rewards(self, actions: dict[str, Any]) -> dict[str, float]:
        return {a: float(actions[a]) * (i + 1) for i, a in enumerate(self.possible_agents)}

    def ends(self) -> tuple[bool, bool]:
        terminated = self.marks[0] < 0.5 and self.clock >= 3
        return bool(terminated), not terminated and self.clock >= self.horizon

    def info(self, agent: str) -> dict[str, Any]:
        return {"is_success": self.clock > 0 or bool(self.marks[0] < 0.5)}

    def harder(self, by: int) -> int:
        self.difficulty += by
        return self.difficulty

    def render(self) -> Any:
        return np.full((4, 4, 3), self.clock, dtype=np.uint8) if self.render_mode == "rgb_array" else None


class ClosedGame(ReportingGame):
    """Can be copied once, and its copy cannot: like a game that holds an open connection once it has started."""

    copied = False

    def __getstate__(self) -> dict[str, Any]:
        if self.copied:
            raise TypeError("cannot pickle an open connection")
        return dict(vars(self))

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, copied=True)


class LoggedGame(ReportingGame):
    """Writes down in which process it is closed."""

    def __init__(self, log: pathlib.Path) -> None:
        super().__init__()
        self.log = log

    def close(self) -> None:
        with self.log.open("a") as file:
            file.write(f"{os.getpid()}\n")


class DyingGame(TinyGame):
    """Agent i dies at the clock's ``lives[i]``; the survivors run into the time limit. Refuses actions for the dead."""

    def __init__(self, lives: tuple[int, ...] = (2, 4, 9), horizon: int = 6, shape: tuple[int, ...] = (3,)) -> None:
        self.lives, self.shape = lives, shape
        self.np_random = np.random.default_rng(0)
        super().__init__(len(lives), horizon)

    def make_observation_space(self) -> spaces.Space:
        if len(self.shape) == 3:
            return spaces.Box(0, 255, self.shape, np.uint8)
        return spaces.Box(0.0, 20.0, self.shape, np.float32)

    def make_action_space(self) -> spaces.Space:
        return spaces.Box(-1.0, 1.0, (2,), np.float32)

    def observe(self, agent: str) -> np.ndarray:
        space = self.observation_space(agent)
        return np.full(self.shape, 10 * self.possible_agents.index(agent) + self.clock, space.dtype)

    def step(self, actions: dict[str, Any]) -> tuple[dict, dict, dict, dict, dict]:
        assert set(actions) == set(self.agents), f"{sorted(actions)} act, but {self.agents} are alive"
        acting = list(self.agents)
        self.clock += 1
        dead = {a: self.clock >= self.lives[self.possible_agents.index(a)] for a in acting}
        late = {a: self.clock >= self.horizon and not dead[a] for a in acting}
        self.agents = [a for a in acting if not (dead[a] or late[a])]
        return {a: self.observe(a) for a in acting}, dict.fromkeys(acting, 1.0), dead, late, {a: {} for a in acting}


def pipeline(game: Any, n_teams: int, num_cpus: int = 0, base_class: str = "stable_baselines3") -> Any:
    """What SuperSuit's users end with."""
    rows = ss.pettingzoo_env_to_vec_env_v1(game)
    return ss.concat_vec_envs_v1(rows, n_teams, num_cpus=num_cpus, base_class=base_class)


def wrapped_spread(max_cycles: int = 7) -> Any:
    """simple_spread under a usual pile of SuperSuit's wrappers, of both of its kinds."""
    from mpe2 import simple_spread_v3

    game = simple_spread_v3.parallel_env(max_cycles=max_cycles, continuous_actions=True)
    game = ss.pad_observations_v0(ss.pad_action_space_v0(game))
    game = ss.dtype_v0(ss.max_observation_v0(ss.clip_actions_v0(game), 2), "float32")
    return ss.frame_stack_v1(game, 3)
