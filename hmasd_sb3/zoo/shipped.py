"""The settings that come with the package: a file in RL Zoo's format, one entry per game. Knows nothing of RL Zoo."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import yaml

DEFAULT = "default"
"""The entry for games that have none of their own."""


def shipped_file() -> Path:
    """``hmasd.yml``, as installed."""
    return Path(__file__).with_name("hmasd.yml")


@lru_cache(maxsize=1)
def shipped_ids() -> tuple[str, ...]:
    """The games that have an entry of their own."""
    entries = yaml.safe_load(shipped_file().read_text(encoding="utf-8"))
    return tuple(name for name in entries if name != DEFAULT)
