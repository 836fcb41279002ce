"""Model files with parts exchanged and checksums that are right all the same, as anybody can make them."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch as th


def parts_of(path: Path) -> dict[str, bytes]:
    """All parts of a model file, the manifest among them."""
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write(path: Path, parts: dict[str, bytes], manifest: dict[str, Any] | None = None) -> Path:
    """A model file of these parts.

    :param manifest: entries to change
    """
    described = {**json.loads(parts["manifest.json"]), **(manifest or {})}
    rest = {name: content for name, content in parts.items() if name != "manifest.json"}
    if "sha256" not in (manifest or {}):
        described["sha256"] = {name: hashlib.sha256(content).hexdigest() for name, content in rest.items()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in {"manifest.json": json.dumps(described).encode(), **rest}.items():
            archive.writestr(name, content)
    return path


def with_hyperparameters(path: Path, good: Path, **changes: Any) -> Path:
    """The good file with hyperparameters of other values; with "$plain", other entries beside them."""
    parts = parts_of(good)
    plain = json.loads(parts["hyperparameters.json"])
    plain.update(changes.pop("plain", {}))
    if isinstance(plain["hyperparameters"], dict):
        plain["hyperparameters"].update(changes)
    return write(path, {**parts, "hyperparameters.json": json.dumps(plain).encode()})


def tree(parts: dict[str, bytes], name: str) -> Any:
    """A part's containers and tensors."""
    return th.load(io.BytesIO(parts[name]), weights_only=True)


def with_tree(path: Path, good: Path, name: str, value: Any) -> Path:
    """The good file with another part of tensors."""
    stream = io.BytesIO()
    th.save(value, stream)
    return write(path, {**parts_of(good), name: stream.getvalue()})


class Leaves:
    """Unpickling it makes a file, by a function of one's choice."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def payloads(marker: Path) -> dict[str, Leaves]:
    """Objects that make the marker when they are unpickled."""
    import os

    code = f"open({str(marker)!r}, 'w').close()"
    return {
        "os.system": Leaves(os.system, f"touch '{marker}'"),
        "builtins.exec": Leaves(exec, code),
        "builtins.eval": Leaves(eval, code),
        "pathlib": Leaves(Path.touch, marker),
    }


def pickled_tensors(value: Any) -> bytes:
    """What torch.save writes of an object that is more than tensors."""
    stream = io.BytesIO()
    th.save(value, stream)
    return stream.getvalue()


def legacy_tensors(value: Any) -> bytes:
    """The same in torch's older format, a row of pickles."""
    stream = io.BytesIO()
    th.save(value, stream, _use_new_zipfile_serialization=False)
    return stream.getvalue()


def pickled(value: Any) -> bytes:
    return pickle.dumps(value)
