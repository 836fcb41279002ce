"""Hyperparameter files in RL Zoo's format, read with the place of every value, so that an error can name it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import yaml

from hmasd_sb3.running.errors import InputError
from hmasd_sb3.validation import nearest

DEFAULT = "default"
"""RL Zoo's name for the entry of all games that have none of their own."""
T = TypeVar("T")
_Entries = dict[str, tuple[yaml.Node, yaml.Node]]


class Given(NamedTuple):
    """A value that somebody set, and where."""

    value: Any
    where: str
    """For error messages: "file.yml, line 3" or "--set"."""
    inner: dict[str, str] = {}  # noqa: RUF012  (never changed)
    """Where each entry of a mapping is."""


def read_section(path: Path, env: str, option: str = "--config") -> dict[str, Given]:
    """What a file says about one environment; if that has no entry, what the file's entry ``default`` says.

    :param path: a YAML file; its top-level keys are environment ids, and perhaps ``default``
    :param env: whose settings are wanted
    :param option: what named the file, for error messages
    :return: settings by name, not yet checked
    :raises InputError: if the file cannot be read, is no YAML, holds tags that would run code or repeats a key, or has no
        entry for ``env``; naming file and line
    """

    def read(loader: yaml.SafeLoader, sections: _Entries) -> dict[str, Given]:
        name = env if env in sections else DEFAULT
        if name not in sections:
            known = list(sections)
            raise InputError(
                f"{path}, line 1: has no entry for {env!r}; it has {known}.{nearest(env, known)} "
                f"Add one, or an entry {DEFAULT!r} for all games without one."
            )
        _, node = sections[name]
        entries = _entries(loader, node, str(path), repr(name), "settings, such as 'n_envs: 32'")
        return {
            name: Given(loader.construct_object(value, deep=True), _at(path, key.start_mark), _inner(path, value))
            for name, (key, value) in entries.items()
        }

    return _read(path, option, read)


def names_of_sections(path: Path) -> list[str]:
    """The environment ids that a file has entries for.

    :raises InputError: as :func:`read_section`
    """
    return _read(path, "--config", lambda _, sections: list(sections))


def _read(path: Path, option: str, use: Callable[[yaml.SafeLoader, _Entries], T]) -> T:
    """Open a file, hand over its sections, and say what is wrong with it by file and line."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{option} {path}: cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{option} {path}: is no text in UTF-8 (byte {error.start}).") from error
    # SafeLoader builds plain values only; whatever else a tag asks for is an error below, never carried out.
    try:
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        return use(loader, _entries(loader, root, str(path), "the file", "environment ids, each with its settings below it"))
    except yaml.MarkedYAMLError as error:
        what = " ".join(part for part in (error.problem, _tag_hint(error)) if part)
        raise InputError(f"{_at(path, error.problem_mark or error.context_mark)}: {what}.") from error
    except yaml.YAMLError as error:  # a character that YAML does not allow
        raise InputError(f"{path}: is no YAML: {' '.join(str(error).split())}.") from error
    except RecursionError as error:
        raise InputError(f"{path}: is nested too deeply.") from error
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: holds a value that is none: {error}.") from error  # such as the date 2026-99-99


def read_assignment(text: str) -> tuple[str, Given]:
    """One ``name=value`` of the command line, its value written as in YAML.

    :raises InputError: if it is none
    """
    name, equals, value = text.partition("=")
    where = f"--set {text}"
    if not equals or not name.strip():
        raise InputError(f"{where}: must have the form name=value, such as gamma=0.99.")
    try:
        return name.strip(), Given(yaml.safe_load(value), where)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        problem = getattr(error, "problem", None) or "no value that YAML can read"
        raise InputError(f"{where}: {problem}.") from error


def _entries(
    loader: yaml.SafeLoader, node: yaml.Node | None, path: str, what: str, wanted: str
) -> dict[str, tuple[yaml.Node, yaml.Node]]:
    """The entries of a mapping, each with its nodes; ``<<: *anchor`` is followed."""
    if not isinstance(node, yaml.MappingNode):
        met = "nothing" if node is None else _described(node)
        raise InputError(f"{_at(path, node.start_mark if node else None)}: {what} must hold {wanted}; got {met}.")
    seen: set[str] = set()
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise InputError(f"{_at(path, key.start_mark)}: a name is expected; got {_described(key)}.")
        if key.value in seen:
            raise InputError(f"{_at(path, key.start_mark)}: {key.value!r} is given a second time; remove one of the two.")
        seen.add(key.value)
    loader.flatten_mapping(node)
    return {key.value: (key, value) for key, value in node.value}


def _inner(path: Path, node: yaml.Node) -> dict[str, str]:
    """Where the entries of a mapping are."""
    if not isinstance(node, yaml.MappingNode):
        return {}
    return {key.value: _at(path, key.start_mark) for key, _ in node.value if isinstance(key, yaml.ScalarNode)}


def _described(node: yaml.Node) -> str:
    kinds = {yaml.ScalarNode: "the value", yaml.SequenceNode: "a list", yaml.MappingNode: "a mapping"}
    kind = kinds[type(node)]
    return f"{kind} {node.value!r}" if isinstance(node, yaml.ScalarNode) else kind


def _at(path: Any, mark: yaml.Mark | None) -> str:
    return f"{path}, line {1 if mark is None else mark.line + 1}"


def _tag_hint(error: yaml.MarkedYAMLError) -> str:
    if isinstance(error, yaml.constructor.ConstructorError) and "tag" in (error.problem or ""):
        return "(only plain values are read; tags that would make Python objects are refused)"
    return ""
