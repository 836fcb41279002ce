"""Versions of everything that computes a run."""

from __future__ import annotations

import platform
import re
import sys
from importlib import metadata

import gymnasium as gym

import hmasd_sb3

_ALWAYS = ("torch", "numpy", "stable-baselines3", "gymnasium", "pettingzoo", "supersuit")
_GAMES = ("mpe2", "jaxmarl", "jax", "jaxlib", "pygame", "pygame-ce", "pymunk", "mujoco", "gymnasium-robotics")
"""What games are made of: it counts once it was imported."""
OWN = ("python", "hmasd-sb3")


def versions(env: str | None) -> dict[str, str]:
    """Of Python, of this package, of what it stands on, and of what the game is made of.

    :param env: id or place of the game, which was made in this process; None: without what only the game needs
    """
    names = list(_ALWAYS)
    if env is not None:
        imported = {
            name for module, found in metadata.packages_distributions().items() if module in sys.modules for name in found
        }
        games = [*_GAMES, *_distributions_of(env)]
        names += [name for name in games if any(_plain(name) == _plain(one) for one in imported)]
    found = {name: installed_version(name) for name in dict.fromkeys(names)}
    own = {"python": platform.python_version(), "hmasd-sb3": hmasd_sb3.__version__}
    return {**own, **{name: version for name, version in found.items() if version is not None}}


def installed_version(name: str) -> str | None:
    """Of a distribution; None if it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _distributions_of(env: str) -> list[str]:
    """The distributions that hold the game's own module, and those that these require."""
    place = env
    if ":" not in env and env in gym.registry:
        place = str(gym.registry[env].entry_point)
    package = place.partition(":")[0].partition(".")[0]
    own = metadata.packages_distributions().get(package, [])
    found = []
    for name in own:
        if _plain(name) != "hmasd-sb3":
            required = metadata.requires(name) or []
            found += [name, *(re.split(r"[^A-Za-z0-9._-]", text, maxsplit=1)[0] for text in required)]
    return found


def _plain(name: str) -> str:
    """A distribution's name as the index compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()
