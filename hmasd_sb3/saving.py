"""Guards around saving and loading: never a broken file over a good one, never another algorithm's file."""

from __future__ import annotations

import io
import json
import os
import pathlib
import zipfile
from collections.abc import Callable

import torch as th
from torch import nn

from hmasd_sb3.policies.flat import NonFiniteError

_MARKER = "skill_interval"
"""An attribute that every HMASD file holds and no other SB3 algorithm has."""


def check_parameters_finite(policy: nn.Module) -> None:
    """Refuse to save ruined networks.

    :raises NonFiniteError: naming the first parameter with NaN or infinity
    """
    for name, parameter in policy.named_parameters():
        if not bool(th.isfinite(parameter).all()):
            raise NonFiniteError(
                f"Parameter {name!r} holds NaN or infinity, so the model was not saved and any existing file was kept. "
                "Go back to the last good checkpoint and lower the learning rate."
            )


def save_atomically(path: str | pathlib.Path | io.BufferedIOBase, write: Callable[..., None]) -> None:
    """Call ``write`` on a temporary neighbour of ``path`` and rename it into place; file objects are written directly."""
    if not isinstance(path, str | pathlib.Path):
        write(path)
        return
    final = pathlib.Path(path)
    if final.suffix == "":
        final = final.with_suffix(".zip")
    final.parent.mkdir(parents=True, exist_ok=True)
    partial = final.with_name(f".{final.name}.{os.getpid()}.partial")
    try:
        write(partial)
        os.replace(partial, final)
    finally:
        partial.unlink(missing_ok=True)


def check_is_ours(path: str | pathlib.Path | io.BufferedIOBase) -> None:
    """Look into a model file before anything in it is unpickled.

    :raises FileNotFoundError: if there is no such file
    :raises ValueError: if it is no SB3 file, or another algorithm's
    """
    source: pathlib.Path | io.BufferedIOBase
    if isinstance(path, str | pathlib.Path):
        source = pathlib.Path(path)
        if not source.exists() and source.suffix == "":
            source = source.with_suffix(".zip")
        if not source.is_file():
            raise FileNotFoundError(f"There is no model file {source}. Pass the path given to save(), with or without '.zip'.")
    else:
        source = path
    try:
        with zipfile.ZipFile(source) as archive:
            data = json.loads(archive.read("data")) if "data" in archive.namelist() else {}
    except (zipfile.BadZipFile, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not a model file of Stable-Baselines3 ({error}).") from error
    finally:
        if not isinstance(source, pathlib.Path):
            source.seek(0)
    if _MARKER not in data:
        saved_by = data.get("policy_class")
        described = saved_by.get("__module__") if isinstance(saved_by, dict) else "unknown"
        raise ValueError(
            f"{path} was not saved by HMASD (its policy comes from {described!r}). Load it with the class that saved it."
        )
