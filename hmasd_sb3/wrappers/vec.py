"""`make_team_vec_env`: any game, named or given in any usual way, as B teams side by side for Stable-Baselines3."""

from __future__ import annotations

import difflib
import importlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from types import ModuleType
from typing import Any

import gymnasium as gym
import numpy as np
import pettingzoo
from gymnasium.envs.registration import EnvSpec, registry
from pettingzoo import AECEnv, ParallelEnv
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecMonitor

import hmasd_sb3.envs  # registers the bundled games, in worker processes too
from hmasd_sb3.wrappers.convert import as_team_env
from hmasd_sb3.wrappers.gym_vector import GymVectorTeamVecEnv
from hmasd_sb3.wrappers.team_spaces import check_team_spaces
from hmasd_sb3.wrappers.workers import WorkerTeamVecEnv


class UnknownGameError(ValueError):
    """No game is registered under an id."""


Factory = Callable[..., Any]
Wrapper = Callable[[Any], Any]


def make_team_vec_env(
    env: str | EnvSpec | Factory,
    n_envs: int = 32,
    *,
    seed: int | None = None,
    n_workers: int | None = None,
    restart_workers: bool = False,
    vec_env_cls: Callable[..., VecEnv] | None = None,
    vec_env_kwargs: dict[str, Any] | None = None,
    env_kwargs: dict[str, Any] | None = None,
    team_kwargs: dict[str, Any] | None = None,
    wrappers: Sequence[Wrapper] = (),
    monitor_dir: str | None = None,
) -> VecEnv:
    """Make ``n_envs`` copies of a game, each a team, as one SB3 ``VecEnv`` that reports its episodes.

    A game that brings its own vectorisation (a ``vector_entry_point`` in its registration) is run by that, unless
    ``n_workers``, ``vec_env_cls``, ``wrappers`` or ``team_kwargs`` ask for single environments.

    :param env: a registered Gymnasium id (``"AliceAndBob-v0"``) or PettingZoo id (``"butterfly/pistonball-v6"``), or the
        spec of one; a function that makes a PettingZoo
        ``ParallelEnv``, a parallelisable ``AECEnv`` or a Gymnasium team environment; or the place of such a function,
        ``"package.module:function"``
    :param n_envs: number of teams
    :param seed: environment i is seeded with ``seed + i`` at the first reset. Without one, a seed is drawn from NumPy's
        global generator, so that copies differ even if the game always starts its random stream alike.
    :param n_workers: spread the environments over so many processes, see :class:`WorkerTeamVecEnv`. Worth it for games whose
        step takes about a millisecond or more; quicker ones are fastest in this process, which is the default
    :param restart_workers: with ``n_workers``: make environments whose process broke down anew and go on, instead of
        raising :class:`WorkerError`
    :param vec_env_cls: another class that takes a list of functions, such as SB3's ``SubprocVecEnv``; by default the
        game's own vectorisation, else ``DummyVecEnv``
    :param vec_env_kwargs: further arguments for ``vec_env_cls``
    :param env_kwargs: arguments for the game
    :param team_kwargs: how a PettingZoo game becomes a team: ``reward``, ``state``, ``agent_mask``, see :class:`TeamEnv`
    :param wrappers: applied in turn to each team environment, each taking and returning one
    :param monitor_dir: folder for SB3's ``monitor.csv`` files; made if missing
    :raises WorkerError: with ``n_workers``, if a game cannot be made
    :raises ValueError: if ``n_envs`` is not positive, the id or place is unknown, or the game is no team environment
    :raises TypeError: if a game was passed instead of a function that makes one
    """
    if isinstance(n_envs, bool) or not isinstance(n_envs, (int, np.integer)) or n_envs < 1:
        raise ValueError(f"n_envs must be a positive integer; got {n_envs!r}")
    vec_env_cls, vec_env_kwargs = _backend(n_workers, restart_workers, vec_env_cls, vec_env_kwargs or {})
    source = _find(env)
    kwargs = dict(env_kwargs or {})
    if monitor_dir is not None:
        os.makedirs(monitor_dir, exist_ok=True)

    venv: VecEnv
    if isinstance(source, EnvSpec) and source.vector_entry_point and not (vec_env_cls or wrappers or team_kwargs):
        filename = None if monitor_dir is None else os.path.join(monitor_dir, "teams")
        vector_env = gym.make_vec(source, int(n_envs), **kwargs)
        venv = VecMonitor(GymVectorTeamVecEnv(vector_env), filename)
    else:
        makers = [TeamMaker(source, kwargs, tuple(wrappers), i, monitor_dir, team_kwargs or {}) for i in range(n_envs)]
        venv = _vectorise(makers, vec_env_cls or DummyVecEnv, vec_env_kwargs)

    seed = int(np.random.randint(2**31 - 1)) if seed is None else int(seed)
    venv.seed(seed)
    venv.action_space.seed(seed)
    return venv


@dataclass(frozen=True)
class TeamMaker:
    """Makes one team environment when called; can be sent to another process.

    A registered game travels as its spec, not as its id, which a fresh process might not know.
    """

    source: EnvSpec | Factory
    env_kwargs: dict[str, Any]
    wrappers: tuple[Wrapper, ...] = ()
    index: int = 0
    monitor_dir: str | None = None
    team_kwargs: dict[str, Any] = field(default_factory=dict)

    def make_bare(self) -> gym.Env[Any, Any]:
        """The team environment with its wrappers, without a monitor.

        :raises ValueError: if what comes out is no team environment
        """
        if isinstance(self.source, EnvSpec):
            env: Any = gym.make(self.source, **self.env_kwargs)
        else:
            env = self.source(**self.env_kwargs)
        team = as_team_env(env, **self.team_kwargs)
        for wrapper in self.wrappers:
            team = wrapper(team)
        check_team_spaces(team.observation_space, team.action_space)
        return team

    def __call__(self) -> gym.Env[Any, Any]:
        """The team environment inside SB3's ``Monitor``."""
        return self._monitored(new_file=True)

    def remake(self) -> gym.Env[Any, Any]:
        """The same once more, in place of one that broke down; its episodes go into the same file."""
        return self._monitored(new_file=False)

    def _monitored(self, new_file: bool) -> gym.Env[Any, Any]:
        filename = None if self.monitor_dir is None else os.path.join(self.monitor_dir, str(self.index))
        return Monitor(self.make_bare(), filename, override_existing=new_file)


def _backend(
    n_workers: int | None, restart_workers: bool, cls: Callable[..., VecEnv] | None, kwargs: dict[str, Any]
) -> tuple[Callable[..., VecEnv] | None, dict[str, Any]]:
    """The class that the arguments ask for, if any, and its arguments."""
    if n_workers is None:
        if restart_workers:
            raise ValueError(
                "restart_workers=True is for environments in worker processes: give n_workers too, e.g. n_workers=2"
            )
        if kwargs and cls is None:
            raise ValueError(f"vec_env_kwargs {sorted(kwargs)} are for n_workers or a vec_env_cls, and none was given")
        return cls, kwargs
    if cls is not None:
        raise ValueError(f"n_workers={n_workers} and vec_env_cls={cls} both say how to run the environments: give one of them")
    return WorkerTeamVecEnv, {"n_workers": n_workers, "restart_workers": restart_workers, **kwargs}


def _vectorise(makers: list[TeamMaker], cls: Callable[..., VecEnv], kwargs: dict[str, Any]) -> VecEnv:
    if cls not in (DummyVecEnv, WorkerTeamVecEnv):  # these two show what a game raises while it is made
        # Made once here first: an error inside a worker process would only show as a closed pipe.
        makers[0].make_bare().close()
    venv = cls(list(makers), **kwargs)
    if isinstance(venv, DummyVecEnv):
        games = [getattr(team.unwrapped, "parallel_env", team).unwrapped for team in venv.envs]
        if len({id(game) for game in games}) != len(games):
            raise ValueError(
                "the factory returned the same game more than once, so the copies would share its state. "
                "Make a new game at every call, as in `lambda: game.parallel_env()`."
            )
    return venv


def _find(env: Any) -> EnvSpec | Factory:
    """The registration or the function that ``env`` stands for.

    :raises ValueError: if a text names nothing
    :raises TypeError: if ``env`` is a game and no way to make one, or something else
    """
    if isinstance(env, str):
        return _find_place(env) if ":" in env else _find_id(env)
    if isinstance(env, EnvSpec):
        return env
    if isinstance(env, getattr(pettingzoo, "EnvSpec", ())):
        return getattr(env, "make")  # type: ignore[no-any-return]  # noqa: B009  (a class that older releases lack)
    if isinstance(env, (ParallelEnv, AECEnv, gym.Env, gym.vector.VectorEnv, VecEnv)):
        raise TypeError(
            f"env is a {type(env).__name__} that exists already, but several independent copies are needed. "
            "Pass the function that makes the game, "
            "e.g. `simple_spread_v3.parallel_env` or `lambda: MyParallelEnv(...)`, with its arguments in env_kwargs."
        )
    if isinstance(env, ModuleType):
        raise TypeError(f"{env.__name__} is a module; pass its function, {env.__name__}.parallel_env.")
    if callable(env):
        return env  # type: ignore[no-any-return]
    raise TypeError(
        f"env must be a Gymnasium id, a function that makes a game, or 'package.module:function'; got {type(env).__name__}."
    )


def _find_id(env_id: str) -> EnvSpec | Factory:
    try:
        return gym.spec(env_id)
    except gym.error.Error as error:
        games = _pettingzoo_games()
        if env_id in games:
            return games[env_id].make  # type: ignore[no-any-return]
        raise UnknownGameError(
            f"{env_id!r} is registered neither with Gymnasium nor with PettingZoo. {_hint(env_id, [*registry, *games])}"
        ) from error


def _hint(env_id: str, known: list[str]) -> str:
    """What may have been meant by an id that nothing is registered under."""
    parts = env_id.removesuffix(".py").replace("/", ".").split(".")
    file = os.path.join(*parts) + ".py"
    if all(part.isidentifier() for part in parts) and os.path.isfile(file):
        return f"There is a file {file} here: name its function too, as in '{'.'.join(parts)}:parallel_env'."
    near = difflib.get_close_matches(env_id, known, n=3, cutoff=0.6)
    own = sorted(spec.id for spec in registry.values() if str(spec.entry_point).startswith(f"{hmasd_sb3.__name__}."))
    hint = f"Did you mean {' or '.join(repr(name) for name in near)}?" if near else f"This package's own are {', '.join(own)}."
    return f"{hint} Import the package that registers it first, or name a function as 'package.module:function'."


def _pettingzoo_games() -> dict[str, Any]:
    """The games registered with PettingZoo, which has had a registry since 1.27, by id; parallel ones come first."""
    return {**getattr(pettingzoo, "aec_registry", {}), **getattr(pettingzoo, "parallel_registry", {})}


def _find_place(place: str) -> EnvSpec | Factory:
    """``"package.module:function"``, or Gymnasium's ``"package.module:Id-v0"``, which imports before looking up."""
    module_name, _, name = place.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ValueError(f"cannot import {module_name!r}, named by env={place!r}: {error}") from error
    if name in registry:
        return _find_id(name)
    try:
        found = attrgetter(name)(module)
    except AttributeError:
        near = difflib.get_close_matches(name, [n for n in dir(module) if not n.startswith("_")], n=3)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise ValueError(f"env={place!r}: the module {module_name!r} has no {name!r}.{hint}") from None
    if not callable(found):
        raise ValueError(f"env={place!r} names {found!r}, which is no function that makes a game.")
    return found  # type: ignore[no-any-return]
