"""Logs that a training which is taken up again goes on with: no line missing, none twice."""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.logger import KVWriter, TensorBoardOutputFormat, filter_excluded_keys

from hmasd_sb3.monitoring.optional import import_optional

_logger = logging.getLogger("hmasd_sb3")
_NON_FINITE = {math.inf: "Infinity", -math.inf: "-Infinity"}


class JsonLinesOutput(KVWriter):
    """Writes what SB3's logger dumps as JSON, one object per line: ``{"step": 3200, "rollout/ep_rew_mean": 0.5, ...}``.

    Each line is in the file when ``write`` returns. JSON knows no NaN and no infinity: they are written as the strings
    ``"NaN"``, ``"Infinity"`` and ``"-Infinity"``, so that a reader sees that a number went bad. Values that are neither
    numbers nor texts nor small arrays (videos, figures, images, hyperparameter tables) are left out.

    :param path: the file; lines are added to what it holds
    :param step_key: name of the environment steps in every line
    """

    def __init__(self, path: str | Path, step_key: str = "step") -> None:
        self.path = Path(path)
        self.step_key = step_key
        self._file = self.path.open("ab", buffering=0)
        self._waiting: list[bytes] = []
        """Lines that found no room on the disk, until it has some."""
        self._failing = False

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Add one line.

        :param key_values: what was recorded, by name
        :param key_excluded: output formats that a value is not for; this one is called "json"
        :param step: environment steps so far
        """
        line: dict[str, Any] = {self.step_key: step}
        for name, value in sorted(filter_excluded_keys(key_values, key_excluded, "json").items()):
            if isinstance(value, np.ndarray | np.generic | th.Tensor | int | float | str) or value is None:
                line[name] = _as_json(value)
        self._waiting.append(json.dumps(line, allow_nan=False).encode() + b"\n")
        self._write_waiting()

    def _write_waiting(self) -> None:
        """Write what waits, whole lines or nothing: a full disk is no reason to end a training."""
        length = self._file.seek(0, os.SEEK_END)
        lines = b"".join(self._waiting)
        try:
            if self._file.write(lines) != len(lines):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            self._file.truncate(length)
            if not self._failing:
                _logger.error("%s cannot be written: %s. Its lines wait until it can.", self.path, error.strerror or error)
            self._failing = True
            return
        self._waiting, self._failing = [], False

    def state_dict(self) -> dict[str, Any]:
        """How long the file is now (``position``, bytes), and the lines that wait to be written.

        What the file holds is on the disk when this returns.
        """
        os.fsync(self._file.fileno())
        return {"position": self._file.seek(0, os.SEEK_END), "waiting": list(self._waiting)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to a length that :meth:`state_dict` returned: later lines are cut off, as they will be written again.

        :raises ValueError: if the position is not a whole number of at least 0
        """
        position = state["position"]
        if not isinstance(position, int) or position < 0:
            raise ValueError(f"the position in {self.path} must be a whole number of at least 0, got {position!r}")
        length = self.path.stat().st_size
        if length < position:
            # The model is worth more than its log, so this stops nothing; but nobody should wonder about the gap.
            warnings.warn(
                f"{self.path} is {length} bytes long and was {position} when the checkpoint was written: the lines between "
                "are lost. New ones are added at its end.",
                UserWarning,
                stacklevel=2,
            )
            position = self._end_of_last_line()
        self._file.truncate(position)
        self._file.seek(position)
        self._waiting = [bytes(line) for line in state.get("waiting", [])]

    def close(self) -> None:
        """Close the file; lines for which there is still no room are lost, and their number is logged."""
        self._write_waiting()
        if self._waiting:
            _logger.error("%d lines of %s found no room on the disk and are lost.", len(self._waiting), self.path)
        self._file.close()

    def _end_of_last_line(self) -> int:
        return self.path.read_bytes().rfind(b"\n") + 1


class ResumedTensorBoardOutput(TensorBoardOutputFormat):
    """SB3's TensorBoard output, in a folder that may hold events of a training that broke off.

    :param folder: the log's folder
    :param first_step: earlier events from this environment step on are shown no more
    """

    def __init__(self, folder: str | Path, first_step: int) -> None:
        import_optional("tensorboard", purpose="A TensorBoard log", extra="demo")
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(log_dir=str(folder), purge_step=first_step)
        self._is_closed = False


def _as_json(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic | th.Tensor):
        value = value.tolist()
    if isinstance(value, list):
        return [_as_json(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return _NON_FINITE.get(value, "NaN")
    return value
