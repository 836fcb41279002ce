"""What the state of a game may be made of, so that it can be kept in a file whose reading runs no code."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

_SCALARS = (type(None), bool, int, float, str, bytes)
_LARGEST_ITEM = 8  # bytes of an array's entry; longer floats are not the same on all machines


def plain_copy(value: Any, what: str) -> Any:
    """A copy that shares nothing with the original.

    Plain data are dicts with str keys, lists, tuples, None, bool, int of any size, float, str, bytes, and NumPy arrays of
    bool, int, uint or float.

    :param what: names the value in errors
    :raises TypeError: if something else is in it, NumPy's single numbers included
    """
    if type(value) in _SCALARS:
        return value
    if type(value) in (list, tuple):
        parts = (plain_copy(part, f"{what}[{index}]") for index, part in enumerate(value))
        return type(value)(parts)
    if isinstance(value, dict):
        for key in value:
            if type(key) is not str:
                raise TypeError(f"{what} has the key {key!r}: keys must be of type str, not {type(key).__name__}.")
        return {key: plain_copy(part, f"{what}[{key!r}]") for key, part in value.items()}
    if type(value) is np.ndarray:
        if value.dtype.kind in "biuf" and value.dtype.itemsize <= _LARGEST_ITEM:
            return value.astype(value.dtype.newbyteorder("="))
        found = f"an array of {value.dtype}"
    else:
        found = f"a {type(value).__name__}"
    raise TypeError(
        f"{what} is {found}. A state must be made of dicts with str keys, lists, tuples, None, bool, int, float, str, bytes, "
        "and NumPy arrays of bool, int, uint or float; write NumPy's single numbers as int(x) or float(x), and generators by "
        "generator_state(rng)."
    )


def checked_entries(state: Any, keys: Iterable[str], what: str) -> None:
    """Refuse a state that is no dict with exactly these keys.

    :param what: whose state it is, for errors
    :raises ValueError: naming the keys that differ
    """
    wanted = list(keys)
    if not isinstance(state, Mapping):
        raise ValueError(f"the state of {what} must be a dict with the keys {wanted}; got {state!r}")
    if set(state) != set(wanted):
        raise ValueError(
            f"the state of {what} must have the keys {sorted(wanted)}; missing: {sorted(set(wanted) - set(state))}, not "
            f"known: {sorted(set(state) - set(wanted), key=str)}. It is of another kind or version of it."
        )


def checked_like(value: Any, like: NDArray[Any], what: str) -> NDArray[Any]:
    """A copy of an array out of a state.

    :param like: an array of the wanted shape and dtype
    :param what: names the array in errors
    :raises ValueError: if it is no array, or its shape or dtype differs
    """
    if not isinstance(value, np.ndarray):
        raise ValueError(f"{what} must be a NumPy array; got {value!r}")
    if value.shape != like.shape or value.dtype != like.dtype:
        raise ValueError(f"{what} must be {like.dtype} of the shape {like.shape}; got {value.dtype} of {value.shape}")
    return value.copy()


def checked_type(value: Any, kind: type | tuple[type, ...], what: str) -> Any:
    """The value itself.

    :param kind: its type, or several
    :param what: names the value in errors
    :raises ValueError: if it is of another type; a bool is no int
    """
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if type(value) not in kinds:
        raise ValueError(f"{what} must be {' or '.join(one.__name__ for one in kinds)}; got {value!r}")
    return value
