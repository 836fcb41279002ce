"""Nested data with arrays, as what ``torch.load(weights_only=True)`` reads: containers, numbers, texts and tensors."""

from __future__ import annotations

import io
import zipfile
from collections import deque
from typing import Any

import numpy as np
import torch as th

_ARRAY = "$array"
_BYTES = "$bytes"
_SCALAR = "$scalar"
_NUMBERS = "biuf"
_LARGEST_EXACT = 8  # bytes of a number that Python's own hold exactly


def tree_to_bytes(tree: Any) -> bytes:
    """Write nested dicts, lists, tuples, numbers, texts, bytes, tensors and arrays of numbers.

    :raises TypeError: naming the place of anything else
    """
    stream = io.BytesIO()
    th.save(_to_tensors(tree, "state"), stream)
    return stream.getvalue()


def tree_from_bytes(data: bytes, device: th.device | str = "cpu") -> Any:
    """What :func:`tree_to_bytes` was given; deques come back as lists.

    :param device: where tensors go
    :raises Exception: of many kinds, if the bytes are something else; no code from them is run
    """
    _check_format(data)
    return _from_tensors(th.load(io.BytesIO(data), map_location=device, weights_only=True))


def is_single(value: Any) -> bool:
    """Whether a value is a single number or text that can be written."""
    if isinstance(value, np.generic):
        return value.dtype.kind in _NUMBERS and value.dtype.itemsize <= _LARGEST_EXACT
    return isinstance(value, bool | int | float | str)


def _check_format(data: bytes) -> None:
    """Let only what ``torch.save`` writes today come to ``torch.load``.

    Earlier releases of torch have other ways for older formats and for TorchScript, not all of which heed ``weights_only``.

    :raises ValueError: for another format
    """
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        names = {name.rpartition("/")[2] for name in archive.namelist()}
    if "constants.pkl" in names or "data.pkl" not in names:
        raise ValueError("it is not in the format that torch.save writes tensors in")


def _to_tensors(tree: Any, place: str) -> Any:
    if tree is None or (isinstance(tree, bool | int | float | str) and not isinstance(tree, np.generic)):
        return tree
    if isinstance(tree, th.Tensor):
        return tree.detach().clone()
    if isinstance(tree, np.generic):
        # Kept in its own type, as a mean of single-precision numbers differs from that of double-precision ones. No tensor
        # of its own: callbacks remember tens of thousands.
        if not is_single(tree):
            raise TypeError(f"{place} is a single {tree.dtype}; of NumPy's, only numbers of up to 64 bits can be stored.")
        return {_SCALAR: (tree.dtype.str, tree.item())}
    if isinstance(tree, bytes):
        return {_BYTES: _raw(tree)}
    if isinstance(tree, np.ndarray):
        if tree.dtype.kind not in _NUMBERS:
            raise TypeError(f"{place} is an array of {tree.dtype}; only arrays of numbers can be stored.")
        return {_ARRAY: (tree.dtype.str, tuple(tree.shape), _raw(np.ascontiguousarray(tree).tobytes()))}
    if isinstance(tree, dict):
        for key in tree:
            if not isinstance(key, str | int) or key in (_ARRAY, _BYTES, _SCALAR):
                raise TypeError(f"{place} has the key {key!r}; keys must be texts or whole numbers.")
        return {key: _to_tensors(part, f"{place}[{key!r}]") for key, part in tree.items()}
    if isinstance(tree, tuple):
        return tuple(_to_tensors(part, f"{place}[{i}]") for i, part in enumerate(tree))
    if isinstance(tree, list | deque):
        return [_to_tensors(part, f"{place}[{i}]") for i, part in enumerate(tree)]
    raise TypeError(
        f"{place} is a {type(tree).__module__}.{type(tree).__qualname__}, which is no plain data: give numbers, texts, bytes, "
        "arrays of numbers, and dicts, lists or tuples of these."
    )


def _raw(data: bytes) -> th.Tensor:
    return th.frombuffer(bytearray(data), dtype=th.uint8) if data else th.zeros(0, dtype=th.uint8)


def _from_tensors(tree: Any) -> Any:
    if isinstance(tree, dict):
        if set(tree) == {_BYTES}:
            return tree[_BYTES].cpu().numpy().tobytes()
        if set(tree) == {_SCALAR}:
            return _scalar(*tree[_SCALAR])
        if set(tree) == {_ARRAY}:
            dtype, shape, raw = tree[_ARRAY]
            return np.frombuffer(raw.cpu().numpy().tobytes(), dtype=np.dtype(dtype)).reshape(shape).copy()
        return {key: _from_tensors(part) for key, part in tree.items()}
    if isinstance(tree, list):
        return [_from_tensors(part) for part in tree]
    if isinstance(tree, tuple):
        return tuple(_from_tensors(part) for part in tree)
    return tree


def _scalar(dtype: str, value: bool | int | float) -> Any:
    kind = np.dtype(dtype)
    if kind.kind not in _NUMBERS or not isinstance(value, bool | int | float):
        raise ValueError(f"{value!r} is no number of the type {dtype!r}")
    return kind.type(value)
