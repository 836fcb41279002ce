"""JaxMARL's cooperative games as teams: pure functions of one game, which JAX then runs for many games at once.

Needs the extra ``jaxmarl``. JAX and JaxMARL are imported when a game is made, not with this module.

Letters in shapes: N agents, O numbers of an observation, S of the state, A actions.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from hmasd_sb3.envs.jaxmarl_render import draw_overcooked, draw_smax

JaxTree = Any
"""What JAX computes with: an array, a key, or dicts and dataclasses of them."""


class Transition(NamedTuple):
    """What one step of one game leads to; every entry is made of JAX arrays."""

    state: JaxTree
    """The game's state after the step, whether or not the episode is over."""
    observation: dict[str, JaxTree]
    """The team's observation of that state; the episode's last one if it is over."""
    reward: JaxTree
    """() float: the team's."""
    terminated: JaxTree
    """() bool: the game's rules ended the episode."""
    truncated: JaxTree
    """() bool: the time limit ended it; never together with ``terminated``."""
    final_info: dict[str, JaxTree]
    """() each: what to report if this was the episode's last step, e.g. ``is_success``."""


class BatchFunctions(NamedTuple):
    """A game's functions compiled for B games; ``keys`` has one random stream per game."""

    start: Callable[[JaxTree], tuple[JaxTree, JaxTree, dict[str, JaxTree]]]
    """keys -> keys, states, observations"""
    step: Callable[[JaxTree, JaxTree, JaxTree], tuple[JaxTree, Transition]]
    """keys, states, actions -> keys, transitions"""
    step_and_restart: Callable[[JaxTree, JaxTree, JaxTree], tuple[JaxTree, JaxTree, dict[str, JaxTree], Transition]]
    """keys, states, actions -> keys, states, observations, transitions; finished games have started anew in the first
    three of these, not in the transitions."""


@dataclass(frozen=True, eq=False)
class JaxMARLGame:
    """One team's game as pure functions that JAX can compile.

    Make one yourself for a game that `jaxmarl_game` does not know.

    :param name: for messages
    :param observation_space: the team's: a Dict with ``obs`` (N, O) and ``state`` (S,), perhaps ``action_mask`` (N, A) and
        ``agent_mask`` (N,)
    :param action_space: the team's: MultiDiscrete([A] * N) or Box (N, A)
    :param start: random key -> state and first observation
    :param advance: random key, state and actions (N,) or (N, A) -> `Transition`, without starting anew
    :param draw: state, its arrays NumPy's -> picture (height, width, 3) uint8; None if the game cannot be drawn
    """

    name: str
    observation_space: spaces.Dict
    action_space: spaces.MultiDiscrete | spaces.Box
    start: Callable[[JaxTree], tuple[JaxTree, dict[str, JaxTree]]]
    advance: Callable[[JaxTree, JaxTree, JaxTree], Transition]
    draw: Callable[[Any], NDArray[np.uint8]] | None = None

    @cached_property
    def batched(self) -> BatchFunctions:
        """The functions for many games at once. JAX compiles them once per number of games, at the first call."""
        jax = import_extra("jax")
        jnp = jax.numpy

        def start(keys: JaxTree) -> Any:
            keys, now = split(keys)
            states, observations = jax.vmap(self.start)(now)
            return keys, settled(states), observations

        def step(keys: JaxTree, states: JaxTree, actions: JaxTree) -> Any:
            keys, now = split(keys)
            played = jax.vmap(self.advance)(now, states, actions)
            return keys, played._replace(state=settled(played.state))

        def step_and_restart(keys: JaxTree, states: JaxTree, actions: JaxTree) -> Any:
            keys, played = step(keys, states, actions)
            done = played.terminated | played.truncated

            def choose(new: JaxTree, old: JaxTree) -> JaxTree:
                return jnp.where(done.reshape(done.shape + (1,) * (old.ndim - 1)), new, old)

            going_on = (keys, played.state, played.observation)
            # Most steps end no episode, and a start costs about as much as a step.
            going_on = jax.lax.cond(
                done.any(), lambda old: jax.tree.map(choose, start(old[0]), old), lambda old: old, going_on
            )
            return *going_on, played

        def settled(states: JaxTree) -> JaxTree:
            # A state made of Python numbers has "weak" types, which a step makes firm: JAX would compile the step twice.
            return jax.tree.map(lambda leaf: jax.lax.convert_element_type(leaf, leaf.dtype), states)

        def split(keys: JaxTree) -> tuple[JaxTree, JaxTree]:
            pairs = jax.vmap(jax.random.split)(keys)
            return pairs[:, 0], pairs[:, 1]

        return BatchFunctions(jax.jit(start), jax.jit(step), jax.jit(step_and_restart))


def jaxmarl_game(name: str, **kwargs: Any) -> JaxMARLGame:
    """One of JaxMARL's games by its JaxMARL name.

    - ``"overcooked"``: see `overcooked_game`;
    - ``"HeuristicEnemySMAX"``: see `smax_game`;
    - ``"MPE_..."``: the particle games whose agents are alike, see `particle_game`.

    The same name and arguments give the same object, so that it is compiled once.

    :param name: as for ``jaxmarl.make``
    :param kwargs: the game's own arguments
    :raises ImportError: if the extra is not installed
    :raises ValueError: if the game is none of these, or its agents differ
    """
    kwargs = dict(sorted(kwargs.items()))  # the cache tells arguments apart by their order too
    try:
        return _cached_game(name, **kwargs)
    except TypeError as error:
        if "unhashable" not in str(error):
            raise
        return _make_game(name, **kwargs)


def _make_game(name: str, **kwargs: Any) -> JaxMARLGame:
    if name == "overcooked":
        return overcooked_game(**kwargs)
    if name == "HeuristicEnemySMAX":
        return smax_game(**kwargs)
    if name.startswith("MPE_"):
        return particle_game(name, **kwargs)
    hint = " In 'SMAX' both sides are agents; 'HeuristicEnemySMAX' has one team." if name == "SMAX" else ""
    raise ValueError(
        f"the JaxMARL game {name!r} cannot be played as one team yet: its rules for rewards and for telling a time limit "
        f"from an end are not known here. Known: 'overcooked', 'HeuristicEnemySMAX' and 'MPE_...'.{hint} For another game, "
        "describe these rules in a JaxMARLGame and pass that."
    )


_cached_game = lru_cache(maxsize=None)(_make_game)


def overcooked_game(layout: str = "cramped_room", max_steps: int = 400, random_reset: bool = False) -> JaxMARLGame:
    """Overcooked: two cooks, 20 points for the team per soup delivered, nothing for steps on the way.

    ``obs`` (2, O) and ``state`` (O,) hold maps of height * width * 26 numbers, flattened, unscaled. Both cooks see the
    whole kitchen, their own layers first; the state is the map as the first cook sees it. The time limit alone ends an
    episode, so it is always a truncation.

    :param layout: a kitchen's name in JaxMARL, e.g. ``"cramped_room"``, ``"asymm_advantages"``, ``"coord_ring"``
    :param max_steps: time limit in steps, at least 1
    :param random_reset: let episodes begin at random places, with random things in hands and pots
    :raises ValueError: if there is no such kitchen or time limit
    """
    if max_steps < 1:
        raise ValueError(f"max_steps must be at least 1; got {max_steps}")
    module = import_extra("jaxmarl.environments.overcooked.overcooked")
    jnp = import_extra("jax").numpy
    if layout not in module.layouts:
        raise ValueError(f"Overcooked has no kitchen {layout!r}; there are {sorted(module.layouts)}")
    with warnings.catch_warnings():
        # That there is a second version of the game is no news to those who name this one.
        warnings.filterwarnings("ignore", message="OvercookedV2", category=DeprecationWarning)
        env = module.Overcooked(module.layouts[layout], random_reset=random_reset, max_steps=max_steps)
    n_numbers = int(np.prod(env.obs_shape))
    # The largest number is the cooking time left.
    highest = float(module.POT_FULL_STATUS)

    def observe(maps: dict[str, JaxTree]) -> dict[str, JaxTree]:
        obs = jnp.stack([maps[agent].reshape(-1) for agent in env.agents]).astype(jnp.float32)
        return {"obs": obs, "state": obs[0]}

    def start(key: JaxTree) -> tuple[JaxTree, dict[str, JaxTree]]:
        maps, state = env.reset(key)
        return state, observe(maps)

    def advance(key: JaxTree, state: JaxTree, actions: JaxTree) -> Transition:
        maps, state, rewards, dones, _ = env.step_env(key, state, by_agent(env.agents, actions))
        # Each agent is given the whole team's reward.
        reward = rewards[env.agents[0]]
        return Transition(state, observe(maps), reward, jnp.zeros_like(dones["__all__"]), dones["__all__"], {})

    def draw(state: Any) -> NDArray[np.uint8]:
        return draw_overcooked(state, module.OBJECT_TO_INDEX)

    space: dict[str, spaces.Space[Any]] = {
        "obs": spaces.Box(0.0, highest, (env.num_agents, n_numbers), np.float32),
        "state": spaces.Box(0.0, highest, (n_numbers,), np.float32),
    }
    actions = spaces.MultiDiscrete([env.num_actions] * env.num_agents)
    return JaxMARLGame(f"overcooked {layout}", spaces.Dict(space), actions, start, advance, draw)


def smax_game(scenario: Any = "3m", walls_cause_death: bool = False, **kwargs: Any) -> JaxMARLGame:
    """SMAX, StarCraft-like battles: the allies are the team, JaxMARL's own heuristic plays the enemies.

    The reward is 1 at the step at which the team wins, else 0, and ``is_success`` says the same of an episode. Losing, and
    the death of the last unit on both sides at once, end an episode too; those three are terminations. Where both sides
    live at JaxMARL's time limit, the episode is truncated; JaxMARL counts so that this is after ``max_steps`` + 1 steps.

    ``obs`` (N, O) is each unit's view, blank once it is dead; ``state`` (S,) is JaxMARL's ``world_state``. Positions on the
    map and cooldowns in the latter have no firm limits. ``action_mask`` (N, A) is 1 for what a unit can do, and all 1 for a
    dead one, whose actions are ignored. ``agent_mask`` (N,) is 1 for units alive, and in an episode's last observation for
    those that lived to take part in the last step.

    :param scenario: a map's name in JaxMARL, e.g. ``"3m"``, ``"2s3z"``, or a ``jaxmarl`` ``Scenario``
    :param walls_cause_death: let units die that touch the edge of the map. JaxMARL's default is True, but StarCraft has no
        such rule, and teams that act at random then die within some 20 steps.
    :param kwargs: further arguments of ``HeuristicEnemySMAX``, with discrete actions
    :raises ValueError: if there is no such map, or the actions are continuous
    """
    module = import_extra("jaxmarl.environments.smax.smax_env")
    jnp = import_extra("jax").numpy
    if isinstance(scenario, str):
        if scenario not in module.MAP_NAME_TO_SCENARIO:
            raise ValueError(f"SMAX has no map {scenario!r}; there are {sorted(module.MAP_NAME_TO_SCENARIO)}")
        title, scenario = scenario, module.map_name_to_scenario(scenario)
    else:
        title = "of your own"
    enemies = import_extra("jaxmarl.environments.smax.heuristic_enemy_smax_env")
    env = enemies.HeuristicEnemySMAX(scenario=scenario, walls_cause_death=walls_cause_death, **kwargs)
    if env.action_type != "discrete":
        raise ValueError(f"SMAX is played with discrete actions here; got action_type={env.action_type!r}")
    n_agents, n_actions, stop = env.num_allies, env.num_ally_actions, env.num_movement_actions - 1

    def observe(views: dict[str, JaxTree], state: JaxTree, present: JaxTree) -> dict[str, JaxTree]:
        available = env.get_avail_actions(state)
        mask = jnp.stack([available[agent] for agent in env.agents]).astype(jnp.int8)
        return {
            "obs": jnp.stack([views[agent] for agent in env.agents]),
            "state": views["world_state"],
            "action_mask": jnp.where(present[:, None], mask, jnp.ones_like(mask)),
            "agent_mask": present.astype(jnp.int8),
        }

    def start(key: JaxTree) -> tuple[JaxTree, dict[str, JaxTree]]:
        views, state = env.reset(key)
        return state, observe(views, state, state.state.unit_alive[:n_agents])

    def advance(key: JaxTree, state: JaxTree, actions: JaxTree) -> Transition:
        alive_before = state.state.unit_alive[:n_agents]
        actions = jnp.where(alive_before, actions, stop)
        views, state, _, dones, _ = env.step_env(key, state, by_agent(env.agents, actions))
        done, alive = dones["__all__"], state.state.unit_alive
        allies_live, enemies_live = alive[:n_agents].any(), alive[n_agents:].any()
        won = allies_live & ~enemies_live
        both_live = allies_live & enemies_live
        observation = observe(views, state, jnp.where(done, alive_before, alive[:n_agents]))
        reward = won.astype(jnp.float32)
        return Transition(state, observation, reward, done & ~both_live, done & both_live, {"is_success": won})

    space: dict[str, spaces.Space[Any]] = {
        "obs": unbounded((n_agents, env.obs_size)),
        "state": unbounded((env.state_size,)),
        "action_mask": spaces.MultiBinary((n_agents, n_actions)),
        "agent_mask": spaces.MultiBinary(n_agents),
    }
    actions = spaces.MultiDiscrete([n_actions] * n_agents)
    field = (env.map_width, env.map_height)
    radii, health = np.asarray(env.unit_type_radiuses), np.asarray(env.unit_type_health)

    def draw(state: Any) -> NDArray[np.uint8]:
        return draw_smax(state.state, field, n_agents, radii, health, list(env.unit_type_shorthands))

    return JaxMARLGame(f"SMAX {title}", spaces.Dict(space), actions, start, advance, draw)


def particle_game(name: str, **kwargs: Any) -> JaxMARLGame:
    """One of JaxMARL's particle games whose agents are alike, e.g. ``"MPE_simple_spread_v3"``.

    ``obs`` (N, O) are the agents' observations and ``state`` (N * O,) the same joined. The reward is the sum of the agents'.
    The time limit alone ends an episode, so it is always a truncation; JaxMARL counts so that this is after ``max_steps`` + 1
    steps.

    :param name: as for ``jaxmarl.make``
    :param kwargs: the game's own arguments
    :raises ValueError: if there is no such game, or its agents differ in their observations or actions
    """
    make = import_extra("jaxmarl").make
    jnp = import_extra("jax").numpy
    env = make(name, **kwargs)
    agents = list(env.agents)
    shapes = {agent: tuple(env.observation_space(agent).shape) for agent in agents}
    if len(set(shapes.values())) != 1:
        raise ValueError(f"all agents of a team must have observations of one shape, but those of {name!r} have {shapes}")
    n_numbers = int(np.prod(shapes[agents[0]]))

    def observe(views: dict[str, JaxTree]) -> dict[str, JaxTree]:
        obs = jnp.stack([views[agent].reshape(-1) for agent in agents])
        return {"obs": obs, "state": obs.reshape(-1)}

    def start(key: JaxTree) -> tuple[JaxTree, dict[str, JaxTree]]:
        views, state = env.reset(key)
        return state, observe(views)

    def advance(key: JaxTree, state: JaxTree, actions: JaxTree) -> Transition:
        views, state, rewards, dones, _ = env.step_env(key, state, by_agent(agents, actions))
        reward = sum(rewards[agent] for agent in agents)
        return Transition(state, observe(views), reward, jnp.zeros_like(dones["__all__"]), dones["__all__"], {})

    space: dict[str, spaces.Space[Any]] = {
        "obs": unbounded((len(agents), n_numbers)),
        "state": unbounded((len(agents) * n_numbers,)),
    }
    return JaxMARLGame(name, spaces.Dict(space), _team_actions(name, env), start, advance)


def by_agent(agents: list[str], actions: JaxTree) -> dict[str, JaxTree]:
    """The team's actions (N, ...) as JaxMARL takes them."""
    return {agent: actions[index] for index, agent in enumerate(agents)}


def unbounded(shape: tuple[int, ...]) -> spaces.Box:
    """A float32 Box without limits."""
    return spaces.Box(-np.inf, np.inf, shape, np.float32)


def import_extra(module: str) -> Any:
    """Import a module of JAX or JaxMARL.

    :raises ImportError: if the extra is not installed. An import error inside an installed package is passed on unchanged,
        because installing the extra would not cure it.
    """
    try:
        # While it is imported, JaxMARL sets both to the process's own; notebooks and test runners want theirs back.
        with contextlib.redirect_stdout(sys.stdout), contextlib.redirect_stderr(sys.stderr):
            return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name not in ("jax", "jaxmarl"):
            raise
        raise ImportError(
            f'JaxMARL\'s games need the package "{error.name}", which is not installed: pip install "hmasd-sb3[jaxmarl]" '
            "(JaxMARL is for Python 3.11 and newer)"
        ) from error


def _team_actions(name: str, env: Any) -> spaces.MultiDiscrete | spaces.Box:
    own = [env.action_space(agent) for agent in env.agents]
    counts = {getattr(space, "n", None) for space in own}
    if len(counts) == 1 and None not in counts:
        return spaces.MultiDiscrete([int(own[0].n)] * len(own))
    limits = {(tuple(space.shape), float(np.min(space.low)), float(np.max(space.high))) for space in own if space.shape}
    if counts == {None} and len(limits) == 1:
        shape, low, high = limits.pop()
        if len(shape) == 1 and np.isfinite((low, high)).all():
            return spaces.Box(low, high, (len(own), *shape), np.float32)
    raise ValueError(f"all agents of a team must have the same actions, but those of {name!r} have {[vars(s) for s in own]}")
