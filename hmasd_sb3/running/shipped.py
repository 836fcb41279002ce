"""The settings that come with the package: a file in RL Zoo's format, one entry per game."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from hmasd_sb3.running.yaml_file import DEFAULT, names_of_sections


def shipped_file() -> Path:
    """``hmasd.yml``, as installed."""
    return Path(__file__).with_name("hmasd.yml")


@lru_cache(maxsize=1)
def shipped_ids() -> tuple[str, ...]:
    """The games that have an entry of their own."""
    return tuple(name for name in names_of_sections(shipped_file()) if name != DEFAULT)
