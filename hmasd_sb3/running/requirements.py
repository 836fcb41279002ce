"""What this package requires, as its own metadata say it, against what is installed."""

from __future__ import annotations

import importlib.util
import sys
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import hmasd_sb3
from hmasd_sb3.running.versions import installed_version

NAME = "hmasd-sb3"


class Requirements(NamedTuple):
    """Requirements as texts, such as "torch>=2.6"."""

    core: list[str]
    extras: dict[str, list[str]]
    source: str
    """Where they were read."""


class State(NamedTuple):
    """One requirement and what is installed."""

    name: str
    wanted: str
    """Such as ">=2.6", or an empty text."""
    installed: str | None

    @property
    def fits(self) -> bool:
        """Whether it is there, in a version that will do."""
        from packaging.specifiers import SpecifierSet

        return self.installed is not None and SpecifierSet(self.wanted).contains(self.installed, prereleases=True)

    def __str__(self) -> str:
        found = "not installed" if self.installed is None else f"{self.installed} installed"
        return f"{self.name}{self.wanted} ({found})"


def read_requirements() -> Requirements | None:
    """From the metadata of the installed package, or from ``pyproject.toml`` in a checkout; None if neither is there."""
    try:
        distribution = metadata.distribution(NAME)
    except metadata.PackageNotFoundError:
        return _from_checkout(Path(hmasd_sb3.__file__).parents[1] / "pyproject.toml")
    texts, names = distribution.requires or [], distribution.metadata.get_all("Provides-Extra") or []
    return Requirements(
        [text for text in texts if "extra ==" not in text],
        {name: [text for text in texts if _belongs_to(text, name)] for name in names},
        "installed",
    )


def states_of(texts: list[str], requirements: Requirements, extra: str = "") -> list[State]:
    """What is installed of requirements that apply here: to this Python and this system.

    :param texts: of :class:`Requirements`
    :param requirements: the whole, for extras that name others
    :param extra: which extra they are of
    """
    from packaging.requirements import Requirement

    found: list[State] = []
    for text in texts:
        one = Requirement(text)
        if one.marker is not None and not one.marker.evaluate({"extra": extra}):
            continue
        if one.name == NAME:  # an extra that consists of others
            for other in one.extras:
                found += states_of(requirements.extras.get(other, []), requirements, other)
            continue
        found.append(State(one.name, str(one.specifier), installed_version(one.name)))
    return list(dict.fromkeys(found))


def is_there(module: str) -> bool:
    """Whether a module can be found, without importing it."""
    return module in sys.modules or importlib.util.find_spec(module) is not None


def _belongs_to(text: str, extra: str) -> bool:
    from packaging.requirements import Requirement

    marker = Requirement(text).marker
    return marker is not None and not marker.evaluate({"extra": ""}) and marker.evaluate({"extra": extra})


def _from_checkout(path: Path) -> Requirements | None:
    if not path.exists() or sys.version_info < (3, 11):
        return None
    import tomllib

    project = tomllib.loads(path.read_text(encoding="utf-8"))["project"]
    return Requirements(project["dependencies"], project["optional-dependencies"], "not installed, run from a checkout")
