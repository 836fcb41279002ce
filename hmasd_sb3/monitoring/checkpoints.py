"""Checkpoints of a run: the last few and the best, whole or not there at all, and the newest good one found again."""

from __future__ import annotations

import io
import logging
import re
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback, EvalCallback

from hmasd_sb3.saving.archive import ModelFileError, verify_model_file, write_atomically
from hmasd_sb3.saving.callback_states import find_callbacks
from hmasd_sb3.validation import check_count
from hmasd_sb3.wrappers.states import collect_env_state

_logger = logging.getLogger("hmasd_sb3")
_PATTERN = re.compile(r"checkpoint_(\d+)\.zip")


class CheckpointFolder:
    """The checkpoints of one run: ``checkpoint_<environment steps>.zip`` and ``best.zip``.

    :param path: the folder; need not exist yet
    :param keep_last: how many of the newest stay, at least 1
    :raises ValueError: if ``keep_last`` is below 1, or there is a file where the folder should be
    """

    def __init__(self, path: str | Path, keep_last: int = 3) -> None:
        check_count("keep_last", keep_last)
        self.path = Path(path)
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"{self.path} is a file; checkpoints need a folder. Choose another path.")
        self.keep_last = keep_last

    def path_for(self, num_timesteps: int) -> Path:
        """Where the checkpoint of that many environment steps belongs."""
        return self.path / f"checkpoint_{num_timesteps:012d}.zip"

    def all(self) -> list[Path]:
        """All checkpoints, oldest first, whether they can be read or not; the best is not among them."""
        found = [path for path in self.path.glob("*.zip") if _PATTERN.fullmatch(path.name)]
        return sorted(found, key=lambda path: (_steps_of(path), path))

    def newest(self) -> Path | None:
        """The newest checkpoint whose checksums are right, or None; damaged ones are passed over with a warning."""
        return next((path for path, _ in self._readable()), None)

    def _readable(self) -> Iterator[tuple[Path, dict[str, Any]]]:
        """The checkpoints whose checksums are right with their manifests, newest first."""
        for path in reversed(self.all()):
            try:
                manifest = verify_model_file(path)
            except (ModelFileError, OSError) as error:
                _logger.warning("The checkpoint %s cannot be used, so the one before it is: %s", path, error)
            else:
                yield path, manifest

    def run_id(self) -> str | None:
        """What tells the run of the newest good checkpoint from others; None if there is none."""
        return next((manifest.get("run") for _, manifest in self._readable()), None)

    def best(self) -> Path | None:
        """The model of the best evaluation, if there was one."""
        path = self.path / "best.zip"
        return path if path.is_file() else None

    def newer_than(self, num_timesteps: int) -> list[Path]:
        """Checkpoints of more environment steps than that."""
        return [path for path in self.all() if _steps_of(path) > num_timesteps]

    def remove_all_but(self, num_timesteps: int) -> None:
        """Keep the checkpoint of so many environment steps and the last ones before it.

        Those after it belong to a future that the run has gone back from.
        """
        newer = self.newer_than(num_timesteps)
        kept = [path for path in self.all() if path not in newer][-self.keep_last :]
        for path in self.all():
            if path not in kept:
                _remove(path)

    def set_aside_newer_than(self, num_timesteps: int) -> None:
        """Move checkpoints of more environment steps than that into a folder beside them.

        Otherwise they would pass for the newest ones of a run that goes on from an earlier one.
        """
        newer = self.newer_than(num_timesteps)
        if not newer:
            return
        aside = self.path / f"set_aside_{time.strftime('%Y%m%d-%H%M%S')}"
        aside.mkdir(exist_ok=True)
        for path in newer:
            path.rename(aside / path.name)
        _logger.warning("Later checkpoints were moved to %s.", aside)

    def remove_unfinished(self) -> None:
        """Remove what writers left behind that were killed. Nothing else may be writing here."""
        for path in self.path.glob(".*.partial"):
            _remove(path)


def _steps_of(path: Path) -> int:
    return int(path.stem.rpartition("_")[2])


def _remove(path: Path) -> None:
    """Remove a file, or say why not: a checkpoint too many is no reason to stop."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        _logger.warning("%s could not be removed: %s", path, error.strerror or error)


class TrainingCheckpoint(BaseCallback):
    """Writes the whole run to a file every ``save_freq`` environment steps, and the model of each best evaluation.

    A checkpoint is written between two updates, at the start of training, and when training ends, for whatever reason but a
    crash. ``HMASD.load(checkpoint, env=env)`` and ``learn(..., reset_num_timesteps=False)`` go on from it exactly. The best
    evaluation is that of an ``EvalCallback`` among the callbacks, if there is one.

    :param folder: where to; no other run may use it
    :param save_freq: environment steps between two checkpoints
    :param keep_last: how many of the newest stay, beside the best
    :param verbose: 1 logs each checkpoint
    :param tell_lost_state: warn at the start of environments that cannot store their state; False where that is known
    :raises ValueError: if ``save_freq`` or ``keep_last`` is below 1
    """

    def __init__(
        self, folder: str | Path, save_freq: int, keep_last: int = 3, verbose: int = 0, *, tell_lost_state: bool = True
    ) -> None:
        super().__init__(verbose)
        check_count("save_freq", save_freq)
        self.folder = CheckpointFolder(folder, keep_last)
        self.save_freq = save_freq
        self.tell_lost_state = tell_lost_state
        self.last_saved: int | None = None
        """Environment steps of the newest checkpoint."""
        self._best_saved: float | None = None
        self._best_waiting: bytes | None = None
        """The best model as it was evaluated, until it can be written."""
        self._begun = False
        self._failing = False
        self._evaluations: list[EvalCallback] = []

    def state_dict(self) -> dict[str, Any]:
        """What has been saved so far."""
        return {"last_saved": self.last_saved, "best_saved": self._best_saved}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with a run that had saved so much.

        :raises ValueError: if these are no numbers
        """
        last_saved, best_saved = state["last_saved"], state["best_saved"]
        if not isinstance(last_saved, int | None) or not isinstance(best_saved, int | float | None):
            raise ValueError(f"this is no state of a TrainingCheckpoint: {state!r}")
        self.last_saved, self._best_saved = last_saved, best_saved

    def save_now(self) -> Path:
        """Write a checkpoint of this moment.

        :return: its path
        :raises OSError: if it cannot be written; the earlier ones are kept
        """
        path = self.folder.path_for(self.model.num_timesteps)
        # Told before it is true, so that whoever goes on from the file is told too.
        before, self.last_saved = self.last_saved, self.model.num_timesteps
        try:
            self.model.save(path)
        except BaseException:
            self.last_saved = before
            raise
        self.folder.remove_all_but(self.model.num_timesteps)
        if self.verbose:
            _logger.info("checkpoint %s", path)
        return path

    def _on_training_start(self) -> None:
        model: Any = self.model
        if not hasattr(model, "after_update"):
            raise TypeError(f"TrainingCheckpoint is for HMASD, not for {type(model).__name__}.")
        model.after_update.append(self._after_update)
        model.checkpoint_source = self.folder.newest
        self._evaluations = find_callbacks(model._callback, EvalCallback)
        self._begun = False
        if model.run_id is None:  # also where this object has served another run before
            self.last_saved = self._best_saved = self._best_waiting = None

    def _on_rollout_start(self) -> None:
        if self._begun:
            return
        self._begun = True
        model: Any = self.model
        self._check_folder()
        self.folder.remove_unfinished()
        self.folder.set_aside_newer_than(model.num_timesteps)
        if self.tell_lost_state:
            self._tell_what_cannot_be_resumed()
        if model.run_id is None:
            model.run_id = uuid.uuid4().hex
        if self._best_saved is None and self._best_reward() > float("-inf"):
            self._best_saved = self._best_reward()  # of networks that have learnt on since
        if self.last_saved is None:  # the first of all: from here on there is something to go back to
            self.save_now()

    def _on_step(self) -> bool:
        self._check_begun()
        self._save_if_best()
        return True

    def _check_begun(self) -> None:
        if not self._begun:
            raise ValueError(
                "TrainingCheckpoint is inside another callback, which does not tell it that a rollout has started. Pass it to "
                "learn() itself: callback=[TrainingCheckpoint(...), ...]; save_freq says how often it saves."
            )

    def _on_rollout_end(self) -> None:
        self._save_if_best()  # an evaluation after this callback's turn in the last step

    def _after_update(self) -> None:
        self._check_begun()
        self._write_best()
        if self.last_saved is not None and self.model.num_timesteps - self.last_saved < self.save_freq:
            return
        try:
            self.save_now()
        except OSError as error:
            self._failed(error)
        else:
            self._worked()

    def _failed(self, error: OSError) -> None:
        # A full disk may have room again later, and until then hours of training are worth more than its last minutes.
        if not self._failing:
            _logger.error("%s. Training goes on and tries again after every update.", error)
        self._failing = True

    def _worked(self) -> None:
        if self._failing:
            _logger.warning("Checkpoints can be written again.")
        self._failing = False

    def _on_training_end(self) -> None:
        if not self._begun:  # no step was left to take
            return
        self._save_if_best()
        if self._best_waiting is not None:
            write_atomically(self._best_path, self._write_waiting)
            self._best_waiting = None
        if self.last_saved != self.model.num_timesteps:
            self.save_now()

    def _tell_what_cannot_be_resumed(self) -> None:
        """Say at the start, and not only when it is too late, if the environments keep their state to themselves."""
        assert self.model.env is not None
        reason = collect_env_state(self.model.env)["reason"]
        if reason is not None:
            _logger.warning("From a checkpoint, training will go on with new episodes instead of those under way: %s", reason)

    def _check_folder(self) -> None:
        """Refuse a folder that holds the checkpoints of another run: they would be taken for old ones and removed."""
        model: Any = self.model
        found = self.folder.all()
        if found and (model.run_id is None or self.folder.run_id() not in (None, model.run_id)):
            raise ValueError(
                f"{self.folder.path} already holds checkpoints of another run, up to {found[-1].name}. Go on with that run, "
                f"by HMASD.load({str(found[-1])!r}, env=env) and learn(..., reset_num_timesteps=False), or choose "
                "another folder."
            )

    def _best_reward(self) -> float:
        return max((float(one.best_mean_reward) for one in self._evaluations), default=float("-inf"))

    def _save_if_best(self) -> None:
        """Keep the networks as they were evaluated, before they learn on."""
        best = self._best_reward()
        if best == float("-inf") or (self._best_saved is not None and best <= self._best_saved):
            return
        before, self._best_saved = self._best_saved, best
        stream = io.BytesIO()
        try:
            self.model.save(stream)
        except BaseException:
            self._best_saved = before
            raise
        self._best_waiting = stream.getvalue()
        self._write_best()

    @property
    def _best_path(self) -> Path:
        return self.folder.path / "best.zip"

    def _write_waiting(self, stream: Any) -> None:
        stream.write(self._best_waiting)

    def _write_best(self) -> None:
        """Write the best model if it has not been yet; on failure it waits for the next update to be over."""
        if self._best_waiting is None:
            return
        try:
            write_atomically(self._best_path, self._write_waiting)
        except OSError as error:
            self._failed(error)
        else:
            self._best_waiting = None
            self._worked()
