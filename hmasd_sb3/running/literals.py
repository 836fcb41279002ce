"""Values as RL Zoo writes them into strings, read without running anything."""

from __future__ import annotations

import ast
import math
from typing import Any


def read_mapping(value: Any) -> dict[str, Any]:
    """A mapping given as one, or as the text ``"dict(a=1)"`` or ``"{'a': 1}"``.

    :raises ValueError: for anything else, or a text with more than plain values in it
    """
    if isinstance(value, str):
        value = _literal(value)
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise ValueError(f"must be a mapping of names to values, such as {{hidden_size: 64}}; got {value!r}")
    return value


def _literal(text: str) -> Any:
    wanted = f"must be a mapping, or a text such as 'dict(hidden_size=64)' that holds plain values only; got {text!r}"
    try:
        return _evaluate(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError) as error:
        raise ValueError(wanted) from error


def _evaluate(node: ast.expr) -> Any:
    """As ``ast.literal_eval``, and ``dict(name=value)`` anywhere inside."""
    if isinstance(node, ast.Call):
        if not isinstance(node.func, ast.Name) or node.func.id != "dict" or node.args:
            raise ValueError("no plain value")
        if any(keyword.arg is None for keyword in node.keywords):
            raise ValueError("no plain value")
        return {str(keyword.arg): _evaluate(keyword.value) for keyword in node.keywords}
    if isinstance(node, ast.List | ast.Tuple):
        return [_evaluate(entry) for entry in node.elts]
    return ast.literal_eval(node)


def read_number(value: Any) -> Any:
    """The number that a text stands for (YAML takes ``1e-3``, without a point, for text); anything else unchanged.

    Underscores are for whole numbers alone, as in ``1_000_000``: ``1e-3_5`` is more likely a slip than 1e-35.
    """
    if not isinstance(value, str):
        return value
    for kind in (int,) if "_" in value else (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value


def read_integer(value: Any) -> Any:
    """As :func:`read_number`, and whole floats (``!!float 1e6``) become integers; anything else unchanged."""
    number = read_number(value)
    if isinstance(number, float) and math.isfinite(number) and number == int(number):
        return int(number)
    return number


def as_plain(value: Any) -> Any:
    """The value as a JSON file gives it back: tuples become lists.

    :raises ValueError: for what JSON cannot hold, naming the value met
    """
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                raise ValueError(f"holds the key {key!r}, and only names are possible; put it in quotes")
        return {key: as_plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [as_plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"must be finite, got {value}")
    if not (value is None or isinstance(value, bool | int | float | str)):
        raise ValueError(f"holds {value!r}, and only numbers, texts, booleans, lists and mappings are possible")
    return value
