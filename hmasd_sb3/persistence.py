"""Saving, loading and going on exactly: an algorithm whose file holds its whole run, and runs no code when it is read."""

from __future__ import annotations

import io
import json
import logging
import pathlib
import time
from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback
from stable_baselines3.common.utils import get_system_info

from hmasd_sb3.cycle import SynchronisedAlgorithm
from hmasd_sb3.policies.flat import NonFiniteError, check_parameters_finite
from hmasd_sb3.reporting import InertTeamSkillWatch
from hmasd_sb3.saving.archive import ModelFileError, UntrustedFileError, read_archive, write_archive
from hmasd_sb3.saving.checks import check_optimizer_state, check_training_state
from hmasd_sb3.saving.contents import ATTRIBUTES, ModelFile, hyperparameter_names, name_of, pickled
from hmasd_sb3.saving.generators import seed_everything
from hmasd_sb3.saving.plain import NotInFile, PlainWriter
from hmasd_sb3.saving.run_state import (
    SECTIONS,
    capture,
    restore_environments,
    restore_model,
    restore_surroundings,
)
from hmasd_sb3.saving.trees import tree_to_bytes
from hmasd_sb3.validation import InvalidTransitionError, check_device, nearest, value_of
from hmasd_sb3.wrappers import make_team_vec_env

_logger = logging.getLogger("hmasd_sb3")
Self = TypeVar("Self", bound="PersistentAlgorithm")

_RUN_PARTS = ("generators", "seconds", "last_obs", "last_episode_starts", "env", "rollout", "callbacks", "logger")
ROLLBACK_FACTOR = 0.5
"""What each rollback multiplies the learning rates by."""


class PersistentAlgorithm(SynchronisedAlgorithm):
    """What :class:`SynchronisedAlgorithm` does, in files that survive crashes and are safe to read."""

    _rng: np.random.Generator
    _critic_hidden: th.Tensor
    _inert_watch: InertTeamSkillWatch
    _learning_rate_scale: float = 1.0
    """What the learning rates are multiplied by; below 1 after a rollback."""
    _n_rollbacks: int = 0
    _saved_run: dict[str, Any] | None = None
    """What a loaded file says about the world around the model, until training goes on."""

    run_id: str | None = None
    """Tells this run's checkpoints from those of others; given by the first ``TrainingCheckpoint``, new with each run."""

    on_nan: str
    max_rollbacks: int
    checkpoint_source: Callable[[], pathlib.Path | None] | None = None
    """Finds the last good checkpoint; set by :class:`~hmasd_sb3.monitoring.TrainingCheckpoint` when training starts."""

    _told_left_out: frozenset[str] = frozenset()

    @abstractmethod
    def _setup_model(self) -> None: ...

    # ------------------------------------------------------------------ saving

    def save(
        self,
        path: str | pathlib.Path | io.BufferedIOBase,
        exclude: Iterable[str] | None = None,
        include: Iterable[str] | None = None,
    ) -> None:
        """Save the model and the state of its run, so that ``load`` and ``learn(reset_num_timesteps=False)`` go on exactly.

        The file holds plain data only. What is none, such as a function as a schedule, is left out for everybody who does not
        trust the file; a warning says so, and ``load`` takes it as an argument. An existing file is replaced only once the new
        one is complete and on the disk.

        :param path: ".zip" is added to a path without suffix
        :param exclude: parts to leave out: "rollout_buffer" (an unfinished rollout), "env", "callback", "logger"
        :param include: for compatibility; there is nothing that is left out by default
        :raises NonFiniteError: if a parameter is NaN or infinite; an existing file is left as it was
        :raises OSError: if it cannot be written; an existing file is left as it was
        :raises TypeError: if ``path`` is neither a path nor a binary stream, or ``exclude`` is no list
        :raises ValueError: for unknown names in ``exclude`` or ``include``
        """
        for argument in (exclude, include):
            if isinstance(argument, str):
                raise TypeError(f"save() takes a list of parts, got the text {argument!r}. Write [{argument!r}].")
        left_out = set(exclude or ())
        for name in [*left_out, *(include or ())]:
            if name not in SECTIONS:
                raise ValueError(f"save() can leave out {list(SECTIONS)}, not {name!r}.{nearest(name, list(SECTIONS))}")
        check_parameters_finite(self.policy)
        write_archive(path, "model", name_of(type(self)), self._parts(left_out - set(include or ())), self.run_id)

    def _parts(self, exclude: set[str]) -> dict[str, bytes]:
        writer = PlainWriter(self._current_progress_remaining)
        values = {name: self._argument(name) for name in hyperparameter_names(type(self))}
        plain = {
            "policy_class": name_of(type(self.policy)),
            "n_envs": self.n_envs,
            "observation_space": writer.write(self.observation_space, "observation_space"),
            "action_space": writer.write(self.action_space, "action_space"),
            "hyperparameters": {name: writer.write(value, name) for name, value in values.items()},
        }
        weights = self.get_parameters()
        parts = {
            "hyperparameters.json": json.dumps(plain, indent=2, allow_nan=False).encode(),
            "policy.pth": tree_to_bytes(weights.pop("policy")),
            "optimizers.pth": tree_to_bytes(weights),
            "training.pth": tree_to_bytes(capture(self, exclude)),
        }
        if writer.left_out:
            parts["left_out.pkl"] = pickled(writer.left_out)
        if set(writer.left_out) - self._told_left_out:  # once, not at every checkpoint
            self._told_left_out = self._told_left_out | set(writer.left_out)
            _logger.warning(
                "%s cannot be stored as plain data: pass %s to load() again, or load with trust=True.",
                ", ".join(f"{place} ({value!r})" for place, value in writer.left_out.items()),
                " and ".join(sorted({place.partition(".")[0] for place in writer.left_out})),
            )
        return parts

    def _argument(self, name: str) -> Any:
        attribute = ATTRIBUTES.get(name, name)
        if not hasattr(self, attribute):
            raise ValueError(
                f"{type(self).__name__} takes the argument {name!r} and has no attribute of that name, so a file cannot "
                f"hold it. Keep it as self.{name}."
            )
        return getattr(self, attribute)

    # ------------------------------------------------------------------ loading

    @classmethod
    def load(
        cls: type[Self],
        path: str | pathlib.Path | io.BufferedIOBase,
        env: GymEnv | Any | None = None,
        device: th.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = False,
        trust: bool = False,
        **kwargs: Any,
    ) -> Self:
        """Load a model. No code from the file is run, unless ``trust`` allows it.

        :param path: what was given to ``save``
        :param env: environment to go on in, or a registered id, of which as many are made as there were; not needed for
            playing. A ``VecNormalize`` around it gets its statistics back
        :param device: where the networks go
        :param custom_objects: hyperparameters to use in place of those in the file; other names are ignored, and so is a clip
            range of 0, which scripts for playing pass for files of Stable-Baselines3
        :param print_system_info: print this system's versions and the file's
        :param force_reset: begin new episodes when training goes on, instead of those under way
        :param trust: also read what is pickled in the file (functions as schedules), and files in Stable-Baselines3's own
            format. Both can run any code that the file contains
        :param kwargs: hyperparameters to use in place of those in the file
        :raises FileNotFoundError: if there is no such file
        :raises ModelFileError: if the file is damaged, another algorithm's, from a newer release, or needs ``trust``
        :raises ValueError: if the environment has other spaces, or ``policy_kwargs`` differ from the file's
        :raises TypeError: for an unknown argument
        """
        check_device(device)
        names = hyperparameter_names(cls)
        for name in kwargs:
            if name not in names:
                raise TypeError(f"load() has no argument {name!r}, and {cls.__name__} neither.{nearest(name, names)}")
        try:
            archive = read_archive(path, "model")
        except UntrustedFileError:
            if not trust:
                raise
            return super().load(path, env, device, custom_objects, print_system_info, True, **kwargs)
        if print_system_info:
            print("== CURRENT SYSTEM INFO ==")
            get_system_info()
            print(f"== SAVED MODEL SYSTEM INFO ==\n{json.dumps(archive.manifest['versions'], indent=2)}")
        contents = ModelFile(path, archive, trust, cls)
        objects = {key: value for key, value in (custom_objects or {}).items() if key in names and not _stands_in(key, value)}
        given = {**objects, **kwargs}
        if isinstance(env, str):
            env = make_team_vec_env(env, contents.n_envs)
        model: Self = contents.build(env, device, given)
        model._restore(contents)
        if force_reset and model._saved_run is not None:
            model._saved_run = {**model._saved_run, "last_obs": None}
        return model

    def _restore(self, contents: ModelFile) -> None:
        """Put weights, optimizers and the model's own state back, and remember the rest for when training goes on."""
        parameters, state = contents.parameters(self.device), contents.tree("training.pth")
        try:
            self._check_parameters(parameters)
            check_training_state(self, state, contents.n_envs)
            super().set_parameters(parameters)
            restore_model(self, state)
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError, ArithmeticError) as error:
            raise ModelFileError(
                f"{contents.path} cannot be loaded: what it holds does not fit the model ({type(error).__name__}: {error})."
            ) from error
        self._saved_run = {name: state[name] for name in _RUN_PARTS}

    def _check_parameters(self, parameters: dict[str, Any]) -> None:
        for name, state in parameters.items():
            if name != "policy":
                check_optimizer_state(name, getattr(self.policy, name.removeprefix("policy.")), state)

    def set_parameters(
        self,
        load_path_or_dict: str | dict[str, Any],
        exact_match: bool = True,
        device: th.device | str = "auto",
    ) -> None:
        """As in the base class; files are read without running code from them."""
        if not isinstance(load_path_or_dict, dict):
            contents = ModelFile(load_path_or_dict, read_archive(load_path_or_dict, "model"), False, type(self))
            load_path_or_dict = contents.parameters(self.device)
            try:
                self._check_parameters(load_path_or_dict)
                super().set_parameters(load_path_or_dict, exact_match, device)
            except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
                raise ModelFileError(
                    f"{contents.path} holds the parameters of other networks than this model's ({error})."
                ) from error
        else:
            super().set_parameters(load_path_or_dict, exact_match, device)

    # ------------------------------------------------------------------ going on

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> tuple[int, BaseCallback]:
        self.checkpoint_source = None
        if reset_num_timesteps:
            self._learning_rate_scale, self._n_rollbacks = 1.0, 0
        run = None if reset_num_timesteps else self._saved_run
        if run is not None and self.env is not None:
            self._check_before_learning()
            restore_environments(self, run)
        at_start = self._num_timesteps_at_start
        result = super()._setup_learn(total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar)
        if run is not None:
            self.start_time = time.time_ns() - int(run["seconds"] * 1e9)
            self._num_timesteps_at_start = at_start
        else:
            self._saved_run = None
        if reset_num_timesteps:
            self.run_id = None
        return result

    def _continue_run(self) -> None:
        if self.on_nan == "rollback" and self.checkpoint_source is None:
            raise ValueError(
                "on_nan='rollback' needs checkpoints to go back to: pass TrainingCheckpoint(folder, save_freq) as a callback."
            )
        if self._saved_run is not None:
            run, self._saved_run = self._saved_run, None
            restore_surroundings(self, run)

    def _logger_or_none(self) -> Any:
        return getattr(self, "_logger", None)

    # ------------------------------------------------------------------ going back

    def _learn_once(self, callback: BaseCallback, log_interval: int | None) -> bool:
        try:
            return super()._learn_once(callback, log_interval)
        except (NonFiniteError, InvalidTransitionError) as error:
            if self.on_nan != "rollback":
                raise
            self._go_back(error)
        return True

    def _go_back(self, error: NonFiniteError | InvalidTransitionError) -> None:
        """Restore the last good checkpoint, with smaller learning rates and other random numbers.

        :raises NonFiniteError: or whatever the error was, when there is no way back or it has been taken often enough
        """
        assert self.checkpoint_source is not None  # looked at when training started
        number, scale = self._n_rollbacks + 1, self._learning_rate_scale * ROLLBACK_FACTOR
        if number > self.max_rollbacks:
            raise type(error)(f"{error} Training had gone back {self.max_rollbacks} times before (max_rollbacks).") from error
        path = self.checkpoint_source()
        if path is None:
            raise type(error)(f"{error} There is no good checkpoint to go back to.") from error
        came_to = self.num_timesteps
        # The schedules count to the end of this training, also where the checkpoint was written by an earlier one.
        length = (self._total_timesteps, self._num_timesteps_at_start, self._schedule_timesteps)
        self._restore(ModelFile(path, read_archive(path, "model"), False, type(self)))
        run, self._saved_run = self._saved_run, None
        assert run is not None
        assert self.env is not None
        restore_environments(self, run)
        if self._last_obs is None:
            self._last_obs = self.env.reset()  # type: ignore[assignment]
            self._last_episode_starts = np.ones((self.env.num_envs,), dtype=bool)
        restore_surroundings(self, run)
        self._mid_step = False
        self._total_timesteps, self._num_timesteps_at_start, self._schedule_timesteps = length
        self._n_rollbacks, self._learning_rate_scale = number, scale
        # With the same random numbers it would come to the same end if the cause lies in the environment.
        self._rng = seed_everything([self.seed or 0, self.num_timesteps, number])
        self.logger.record("train/rollbacks", number)
        _logger.warning(
            "%s\nTraining goes back from %d to %d environment steps (%s), learning rates times %g; rollback %d of %d.",
            error,
            came_to,
            self.num_timesteps,
            path,
            scale,
            number,
            self.max_rollbacks,
        )

    def _check_before_learning(self) -> None:
        super()._check_before_learning()
        for name in hyperparameter_names(type(self)):
            value = getattr(self, ATTRIBUTES.get(name, name))
            if isinstance(value, NotInFile):
                raise ValueError(
                    f"{name} was {value.description}, which a model file does not hold. To train on, load with "
                    f"{type(self).__name__}.load(path, {name}=...), or with trust=True if you trust the file."
                )


def _stands_in(name: str, value: Any) -> bool:
    """Whether a custom object only keeps Stable-Baselines3 from unpickling what playing does not need, as in RL Zoo."""
    return name == "clip_range" and (value_of(name, value, 1.0) if callable(value) else value) == 0
