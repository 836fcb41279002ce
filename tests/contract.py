"""What every game must keep to once it is a team: the list of games, and a slow second way to play a team of each.

To put a game under the contract, add a :class:`Case`. To put another way of running many teams under it, add a line to
``BACKENDS`` in test_contract_vec.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from games import ContinuousGame, MaskedGame, TimeLimitGame
from gymnasium import spaces
from hard_games import (
    DyingGame,
    HeterogeneousGame,
    JoiningGame,
    MaskedHeterogeneousGame,
    PictureGame,
    RetiringGame,
    StructuredGame,
)

from hmasd_sb3.wrappers import TeamEnv


@dataclass(frozen=True)
class Case:
    """A game and what the checks must know of it.

    :param make: the game's class, or the place of a function that makes it, ``"module:function"``
    :param kwargs: arguments for the game
    :param raw: the place of the same game as a ``ParallelEnv``, where ``make`` gives an AEC one
    :param id: the Gymnasium id under which it also runs by its own vectorisation
    :param wrap: put around the game that was made
    :param steps: how many steps the quick checks play; the slow ones play ten times as many
    :param heavy: whether copies are costly, so that quick checks make 4 instead of 32, and slow ones no more steps
    :param api_fault: why PettingZoo's own test fails on the game itself
    :param ends: how episodes end within the slow checks' steps, under random actions: whether terminated
    """

    name: str
    make: Callable[..., Any] | str
    kwargs: dict[str, Any] = field(default_factory=dict)
    raw: str = ""
    id: str = ""
    wrap: Callable[[Any], Any] | None = None
    steps: int = 150
    heavy: bool = False
    api_fault: str = ""
    ends: tuple[bool, ...] = (False,)

    def game(self) -> Any:
        """The game as a user would make it; the test is skipped where its package is missing."""
        return self._made(self.make)

    def parallel(self) -> Any:
        """The game as a ``ParallelEnv``."""
        return self._made(self.raw or self.make)

    def _made(self, make: Callable[..., Any] | str) -> Any:
        if isinstance(make, str):
            module, _, name = make.partition(":")
            make = getattr(pytest.importorskip(module, reason=f"{self.name}: cannot import {module}"), name)
        game = make(**self.kwargs)
        return game if self.wrap is None else self.wrap(game)


def smaller(game: Any) -> Any:
    """The game with its pictures shrunk to 42 x 42."""
    return pytest.importorskip("supersuit").resize_v1(game, 42, 42)


MPE = {"max_cycles": 12}
BUTTERFLY = "pettingzoo.butterfly"
KAZ = f"{BUTTERFLY}.knights_archers_zombies.knights_archers_zombies"
# So many zombies, so soon, that knights and archers die at different moments of short episodes.
DEADLY = {"spawn_delay": 1, "max_zombies": 40, "max_cycles": 250}
MAMUJOCO = "gymnasium_robotics.envs.multiagent_mujoco.mamujoco_v1"
PISTONBALL = f"{BUTTERFLY}.pistonball.pistonball"
PISTONS = {"n_pistons": 4, "max_cycles": 12}
LISTED = "lists agents that are dead, as PettingZoo's test forbids but games do"
BOTH, DEATH = (False, True), (True,)
REVIVED = "brings back an agent that died, as PettingZoo's test forbids"

CASES = [
    Case("time limit", TimeLimitGame),
    Case("mask in observation", MaskedGame, ends=DEATH),
    Case("mask in info", MaskedGame, {"mask_in": "info"}, ends=DEATH),
    Case("continuous", ContinuousGame),
    Case("dying", DyingGame, ends=BOTH),
    Case("dying, listed", DyingGame, {"listed": True}, api_fault=LISTED, ends=BOTH),
    Case("retiring", RetiringGame, ends=BOTH),
    Case("retiring, listed", RetiringGame, {"listed": True}, api_fault=LISTED, ends=BOTH),
    Case("joining", JoiningGame, api_fault=REVIVED),
    Case("heterogeneous", HeterogeneousGame),
    Case("heterogeneous, dying", HeterogeneousGame, {"deaths": True}, ends=BOTH),
    Case("heterogeneous, continuous", HeterogeneousGame, {"continuous": True}),
    Case("heterogeneous, continuous, dying", HeterogeneousGame, {"continuous": True, "deaths": True}, ends=BOTH),
    Case("heterogeneous, mask in observation", MaskedHeterogeneousGame, ends=BOTH),
    Case("heterogeneous, mask in info", MaskedHeterogeneousGame, {"mask_in": "info"}, ends=BOTH),
    Case("structured", StructuredGame, ends=BOTH),
    Case("pictures", PictureGame, steps=40, ends=BOTH),
    Case("pictures with state", PictureGame, {"with_state": True}, steps=40, ends=BOTH),
    Case("grey pictures", PictureGame, {"size": (42, 42)}, steps=40, ends=BOTH),
    Case("alice and bob", "hmasd_sb3.envs:parallel_env", {"size": 3, "max_steps": 20}, id="AliceAndBob-v0", ends=BOTH),
    Case("simple_spread", "mpe2.simple_spread_v3:parallel_env", MPE),
    Case("simple_spread, continuous", "mpe2.simple_spread_v3:parallel_env", {**MPE, "continuous_actions": True}),
    Case("simple_spread, AEC", "mpe2.simple_spread_v3:env", MPE, raw="mpe2.simple_spread_v3:parallel_env"),
    Case("simple_speaker_listener", "mpe2.simple_speaker_listener_v4:parallel_env", MPE),
    Case("simple_adversary", "mpe2.simple_adversary_v3:parallel_env", MPE),
    Case("knights and archers", f"{KAZ}:parallel_env", DEADLY, heavy=True, ends=DEATH),
    Case("knights and archers, AEC", f"{KAZ}:env", DEADLY, raw=f"{KAZ}:parallel_env", heavy=True, ends=DEATH),
    Case(
        "pistonball",
        f"{PISTONBALL}:parallel_env",
        {**PISTONS, "continuous": False},
        wrap=smaller,
        steps=30,
        heavy=True,
        ends=BOTH,
    ),
    Case("pistonball, continuous", f"{PISTONBALL}:parallel_env", PISTONS, wrap=smaller, steps=30, heavy=True, ends=BOTH),
    Case(
        "half cheetah",
        f"{MAMUJOCO}:parallel_env",
        {"scenario": "HalfCheetah", "agent_conf": "2x3"},
        steps=60,
        heavy=True,
        ends=(),
    ),
    Case(
        "ant",
        f"{MAMUJOCO}:parallel_env",
        {"scenario": "Ant", "agent_conf": "2x4"},
        steps=60,
        heavy=True,
        ends=DEATH,
    ),
]


def legal_actions(
    space: spaces.Space[Any], observation: dict[str, np.ndarray], rng: np.random.Generator, n_rows: int | None = None
) -> np.ndarray:
    """Random legal actions of one team, or of ``n_rows`` teams whose observations are stacked."""
    batch = () if n_rows is None else (n_rows,)
    if isinstance(space, spaces.Box):
        return rng.uniform(space.low, space.high, (*batch, *space.shape)).astype(space.dtype)
    assert isinstance(space, spaces.MultiDiscrete)
    legal = observation.get("action_mask", np.ones((*batch, len(space.nvec), space.nvec[0])))
    return (legal * (1 + rng.random(legal.shape))).argmax(axis=-1)


class Reference:
    """A team played by plain loops over a game of its own, as slow and as simple as can be; see ``TeamEnv``'s promises."""

    def __init__(self, game: Any) -> None:
        self.game = game
        self.agents = list(game.possible_agents)
        self.acting: list[Any] = []
        self.see = [game.observation_space(a) for a in self.agents]
        self.act = [game.action_space(a) for a in self.agents]
        self.mask_in_obs = isinstance(self.see[0], spaces.Dict) and "action_mask" in self.see[0].spaces
        if self.mask_in_obs:
            self.see = [self.without_mask(space.spaces) for space in self.see]
        self.alike = isinstance(self.see[0], spaces.Box) and all(
            isinstance(s, spaces.Box) and s.shape == self.see[0].shape and s.dtype == self.see[0].dtype for s in self.see
        )
        infos = game.reset()[1]
        self.mask_in_info = any("action_mask" in infos[a] for a in game.agents)

    def reset(self, seed: int | None = None) -> dict[str, np.ndarray]:
        """The first observation."""
        observations, infos = self.game.reset(seed=seed)
        self.acting = [a for a in self.agents if a in self.game.agents]
        return self.view(observations, infos, self.acting)

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], dict[Any, float], bool, bool]:
        """The observation, the agents' rewards, terminated and truncated."""
        given = {a: self.own_action(i, action[i]) for i, a in enumerate(self.agents) if a in self.acting}
        observations, rewards, dead, late, infos = self.game.step(given)
        before = self.acting
        self.acting = [a for a in self.agents if a in self.game.agents and not dead.get(a) and not late.get(a)]
        terminated = not self.acting and all(dead[a] for a in before)
        view = self.view(observations, infos, self.acting or before)
        return view, dict(rewards), terminated, not self.acting and not terminated

    def own_action(self, row: int, action: Any) -> Any:
        space = self.act[row]
        if isinstance(space, spaces.Discrete):
            return int(space.start) + int(action)
        return np.array([action[k] for k in range(int(np.prod(space.shape)))], space.dtype).reshape(space.shape)

    def view(self, observations: dict[Any, Any], infos: dict[Any, Any], there: list[Any]) -> dict[str, np.ndarray]:
        rows: list[np.ndarray] = []
        for space, agent in zip(self.see, self.agents, strict=True):
            value = self.without_mask(observations[agent]) if self.mask_in_obs and agent in there else observations.get(agent)
            if self.alike:
                dtype = np.float32 if space.dtype == np.float64 else space.dtype
                rows.append(np.array(value, dtype) if agent in there else np.zeros(space.shape, dtype))
            else:
                rows.append(np.array(flat(space, value) if agent in there else [], np.float32))
        width = max(len(flat(space, space.sample())) for space in self.see)
        obs = np.stack(rows if self.alike else [np.concatenate([row, np.zeros(width - len(row))]) for row in rows])
        team = {"obs": obs.astype(rows[0].dtype), "state": self.state(obs.astype(rows[0].dtype))}
        if not self.game.metadata.get("fixed_agents"):
            team["agent_mask"] = np.array([a in there for a in self.agents], np.int8)
        sizes = [int(s.n) if isinstance(s, spaces.Discrete) else int(np.prod(s.shape)) for s in self.act]
        if self.mask_in_obs or self.mask_in_info or len(set(sizes)) > 1:
            legal = np.ones((len(sizes), max(sizes)), np.int8)
            for i, agent in enumerate(self.agents):
                if agent in there:
                    source = observations[agent] if self.mask_in_obs else infos[agent] if self.mask_in_info else {}
                    legal[i] = 0
                    legal[i, : sizes[i]] = source.get("action_mask", 1)
            team["action_mask"] = legal
        if hasattr(self.game, "discriminator_obs"):
            team["discriminator_obs"] = np.stack([self.game.discriminator_obs(a) for a in self.agents]).astype(np.float32)
            team["discriminator_state"] = np.asarray(self.game.discriminator_state(), np.float32)
        return team

    def state(self, obs: np.ndarray) -> np.ndarray:
        try:
            state = np.array(self.game.state())
        except NotImplementedError:
            if obs.dtype != np.uint8:
                return obs.ravel()
            return np.stack(list(obs), axis=-1) if obs.ndim == 3 else np.concatenate(list(obs), axis=-1)
        return state if state.dtype == np.uint8 and state.ndim > 1 else state.ravel().astype(np.float32)

    @staticmethod
    def without_mask(parts: dict[str, Any]) -> Any:
        rest = {key: part for key, part in parts.items() if key != "action_mask"}
        if set(rest) == {"observation"}:
            return rest["observation"]
        return spaces.Dict(rest) if isinstance(next(iter(rest.values())), spaces.Space) else rest


def flat(space: spaces.Space[Any], value: Any) -> list[float]:
    """The numbers in a structured value: choices one-hot, Dicts in the order of their space."""
    if isinstance(space, spaces.Dict):
        return [number for key in space.spaces for number in flat(space.spaces[key], value[key])]
    if isinstance(space, spaces.Tuple):
        return [number for inner, part in zip(space.spaces, value, strict=True) for number in flat(inner, part)]
    if isinstance(space, spaces.Discrete):
        return [float(value == space.start + k) for k in range(int(space.n))]
    if isinstance(space, spaces.MultiDiscrete):
        return [float(part == k) for n, part in zip(space.nvec.ravel(), np.ravel(value), strict=True) for k in range(n)]
    return [float(number) for number in np.ravel(value)]


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray], where: str = "") -> None:
    """Equal to the last bit, in keys, shapes and dtypes too."""
    assert set(found) == set(expected), where
    for key, value in expected.items():
        assert found[key].dtype == value.dtype, f"{where} {key}: {found[key].dtype} instead of {value.dtype}"
        np.testing.assert_array_equal(found[key], value, err_msg=f"{where} {key}")


def total(rewards: dict[Any, float]) -> float:
    """The agents' rewards together."""
    return sum(float(r) for r in rewards.values())


def follow(team: Any, reference: Reference, steps: int, joined: Callable[[dict[Any, float]], float] = total) -> set[bool]:
    """Play a team and its reference side by side, by the same random actions; they must agree in everything.

    :param joined: the reward of the team, from those of its agents
    :return: how episodes ended: whether terminated
    """
    rng, ends = np.random.default_rng(0), set()
    observation, _ = team.reset(seed=1)
    assert_same(observation, reference.reset(seed=1), "first")
    for step in range(steps):
        assert team.observation_space.contains(observation), f"step {step}: {observation}"
        action = legal_actions(team.action_space, observation, rng)
        observation, earned, terminated, truncated, _ = team.step(action)
        expected, rewards, *end = reference.step(action)
        assert_same(observation, expected, f"step {step}")
        assert isinstance(earned, float)
        assert earned == pytest.approx(joined(rewards))
        assert [terminated, truncated] == end, f"step {step}"
        if terminated or truncated:
            assert team.observation_space.contains(observation), f"step {step}: {observation}"
            ends.add(terminated)
            observation, _ = team.reset()
            assert_same(observation, reference.reset(), f"after step {step}")
    return ends


class LegalTeam(TeamEnv):
    """Plays the first legal action where there are masks, as checkers sample without looking at them."""

    def step(self, action: Any) -> Any:
        if self._masks.exist and self._actions.discrete:
            action = self._masks.legal.argmax(axis=1)
        return super().step(action)
