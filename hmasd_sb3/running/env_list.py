"""The games that can be named: what they are made of, how large they are, what they need."""

from __future__ import annotations

import warnings
from dataclasses import asdict, dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import pettingzoo
from gymnasium import spaces

import hmasd_sb3.envs
from hmasd_sb3.envs import JAXMARL_IDS, SIMPLE_SPREAD_ID
from hmasd_sb3.running.errors import InputError
from hmasd_sb3.running.requirements import is_there
from hmasd_sb3.running.shipped import shipped_file, shipped_ids
from hmasd_sb3.running.yaml_file import read_section
from hmasd_sb3.wrappers import make_team_vec_env

_MPE2 = tuple(f"mpe2.{name}:parallel_env" for name in ("simple_speaker_listener_v4", "simple_reference_v3"))
"""Those of mpe2's games in which all agents want the same, beside the one that this package registers."""
_EXTRAS = {"JaxMARL": ("jaxmarl", "jaxmarl"), "mpe2": ("mpe2", "mpe")}
"""Module to look for and extra that brings it, by source."""
_COOPERATIVE = ("butterfly", "sisl")
"""PettingZoo's families whose agents want the same; most others play against each other."""
_TIME_LIMITS = ("max_steps", "max_cycles", "max_episode_steps")


@dataclass(frozen=True)
class EnvEntry:
    """One game that ``--env`` can name."""

    env: str
    """What to write after ``--env``."""
    source: str
    """Where it comes from."""
    agents: int | None = None
    obs: tuple[int, ...] | None = None
    """Of one agent."""
    state: tuple[int, ...] | None = None
    actions: str | None = None
    """ "5" for that many to choose from, "2 continuous" for as many numbers."""
    masks: tuple[str, ...] = ()
    """Keys of masks in the observation."""
    time_limit: int | None = None
    """Steps; None if it cannot be told."""
    missing: str | None = None
    """What has to be installed first: the command."""
    problem: str | None = None
    """Why it cannot be made all the same."""
    settings: dict[str, Any] | None = None
    """Recommended settings, as in the file that ``--config`` takes; None if there are none."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def list_environments(wanted: str | None = None, *, with_sizes: bool = True) -> list[EnvEntry]:
    """Every game that this package registers, and cooperative ones of MPE and of those registered with PettingZoo.

    :param wanted: a part of the name; None: all
    :param with_sizes: make one of each, to ask it; seconds for those that are compiled
    :raises InputError: if the name of none holds ``wanted``
    """
    settings = recommended_settings()
    own = [spec.id for spec in gym.registry.values() if str(spec.entry_point).startswith(hmasd_sb3.__name__)]
    sources = {SIMPLE_SPREAD_ID: "mpe2", **dict.fromkeys(JAXMARL_IDS, "JaxMARL")}
    named = [(env, sources.get(env, "this package")) for env in own]
    named += [(place, "mpe2") for place in _MPE2]
    registered = sorted(getattr(pettingzoo, "parallel_registry", {}))
    named += [(env, "PettingZoo") for env in registered if env.partition("/")[0] in _COOPERATIVE]
    named += [(env, "settings file") for env in settings if env not in dict(named)]
    if wanted is not None:
        known, named = named, [one for one in named if wanted.lower() in one[0].lower()]
        if not named:
            raise InputError(
                f"{wanted!r} is in the name of none of the {len(known)} environments. hmasd envs --quick lists them."
            )
    return [_entry(env, source, settings.get(env), with_sizes) for env, source in named]


def recommended_settings() -> dict[str, dict[str, Any]]:
    """The entries of the settings file that comes with this package, by environment."""
    return {env: {name: given.value for name, given in read_section(shipped_file(), env).items()} for env in shipped_ids()}


def _entry(env: str, source: str, settings: dict[str, Any] | None, with_sizes: bool) -> EnvEntry:
    if missing := _missing(env, source):
        return EnvEntry(env, source, missing=missing, settings=settings)
    if env == "JaxMARL-v0" or not with_sizes:  # it is any of JaxMARL's games, by its arguments
        return EnvEntry(env, source, settings=settings)
    kwargs = dict((settings or {}).get("env_kwargs") or {})
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            venv = make_team_vec_env(env, 1, seed=0, env_kwargs=kwargs)
    except ImportError as error:
        family = f'pip install "pettingzoo[{env.partition("/")[0]}]"' if source == "PettingZoo" else None
        return EnvEntry(env, source, missing=family, problem=_one_line(error), settings=settings)
    except (ValueError, TypeError) as error:
        return EnvEntry(env, source, problem=_one_line(error), settings=settings)
    try:
        return _measured(env, source, venv, settings)
    finally:
        venv.close()


def _measured(env: str, source: str, venv: Any, settings: dict[str, Any] | None) -> EnvEntry:
    space, action = venv.observation_space, venv.action_space
    assert isinstance(space, spaces.Dict)
    obs, state = space["obs"].shape, space["state"].shape
    assert obs is not None
    discrete = isinstance(action, spaces.MultiDiscrete)
    actions = str(int(np.max(action.nvec))) if discrete else f"{action.shape[1]} continuous"
    return EnvEntry(
        env,
        source,
        agents=obs[0],
        obs=obs[1:],
        state=state,
        actions=actions,
        masks=tuple(key for key in space.spaces if key.endswith("_mask")),
        time_limit=_time_limit(env, venv),
        settings=settings,
    )


def _time_limit(env: str, venv: Any) -> int | None:
    if env in gym.registry and gym.registry[env].max_episode_steps is not None:
        return gym.registry[env].max_episode_steps
    for name in _TIME_LIMITS:
        try:
            value = venv.get_attr(name)[0]
        except (AttributeError, NotImplementedError):
            continue
        if isinstance(value, int | np.integer) and value > 0:
            return int(value)
    return None


def _missing(env: str, source: str) -> str | None:
    """What to install before a game can be made, as far as this package knows."""
    module, extra = _EXTRAS.get(source, (None, None))
    if module is None:
        return None
    return None if is_there(module) else f'pip install "hmasd-sb3[{extra}]"'


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
