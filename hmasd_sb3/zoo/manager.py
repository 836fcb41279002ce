"""RL Zoo's experiment manager, put right for teams. Experiments with other algorithms than HMASD stay as they are."""

from __future__ import annotations

import copy
import inspect
import traceback
from collections import OrderedDict
from pathlib import Path
from typing import Any

import optuna
from rl_zoo3.exp_manager import ExperimentManager
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.vec_env import VecEnv, VecTransposeImage

from hmasd_sb3.policies.flat import NonFiniteError
from hmasd_sb3.running.environments import EVAL_SEED_OFFSET, float_keys
from hmasd_sb3.running.errors import InputError
from hmasd_sb3.running.hyperparameters import NAMES, build_hyperparameters
from hmasd_sb3.running.shipped import shipped_file
from hmasd_sb3.running.yaml_file import Given, read_section
from hmasd_sb3.validation import InvalidTransitionError
from hmasd_sb3.zoo.registration import ALGO
from hmasd_sb3.zoo.settings import check_settings

ERROR = "error"
"""Under which name a failed trial keeps what ended it."""


class TeamExperimentManager(ExperimentManager):
    """As its base class; for HMASD it also

    - takes settings from the shipped file unless another is named, and checks them before anything starts;
    - gives evaluation environments the file's ``env_kwargs``, and seeds of their own, as ``hmasd train`` does;
    - normalises what can be normalised, transposes no pictures, and makes schedules of all arguments that take one;
    - reports a trial that an error ended as failed, not as pruned;
    - loads trial 0.

    :raises InputError: if a setting, or the file, is wrong
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        given = inspect.signature(ExperimentManager.__init__).bind(self, *args, **kwargs).arguments
        self._eval_env_kwargs_given: dict[str, Any] | None = given.get("eval_env_kwargs")
        self._failures: list[str] = []
        if not self._ours:
            return
        if given.get("config") is None:
            self.config = str(shipped_file())
        if self.trial_id is not None:
            self.trial_id = TrialNumber(self.trial_id)
        self._places: dict[str, str] = {}
        settings = self._read_settings()
        self._places = {name: given.where for name, given in settings.items()}
        check_settings(settings)

    @property
    def _ours(self) -> bool:
        return bool(self.algo == ALGO)

    def setup_experiment(self) -> Any:
        """As in the base class.

        :raises InputError: if the game or the model refuses what was asked for
        """
        if not self._ours:
            return super().setup_experiment()
        try:
            return super().setup_experiment()
        except InputError:
            raise
        except (ValueError, TypeError, ImportError, FileNotFoundError) as error:
            self._remove_empty_folders()
            what = " ".join(str(error).split())
            frame_stack: Any = self.frame_stack
            if frame_stack is not None and "StackedObservations" in what:
                what = f"frame_stack={frame_stack}: masks among the observations cannot be stacked. {what}"
            raise InputError(what) from error

    def _remove_empty_folders(self) -> None:
        for folder in (Path(self.params_path), Path(self.save_path)):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()

    # ---- settings

    def _read_settings(self) -> dict[str, Given]:
        """What the file says, and what the command line says instead, with the place of each."""
        path, env_id = Path(self.config), self.env_name.gym_id
        settings: dict[str, Given] = {}
        if path.suffix in (".yml", ".yaml"):
            settings = read_section(path, env_id, option="--conf-file")
        elif path.suffix == ".py" and not path.is_file():
            raise InputError(f"--conf-file {path}: there is no such file.")
        for name, value in (self.custom_hyperparams or {}).items():
            settings[name] = Given(value, f"--hyperparams {name}")
        return settings

    def read_hyperparameters(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """As in the base class, checked, and as plain values, whichever way they were written."""
        found, saved = super().read_hyperparameters()
        if not self._ours:
            return found, saved
        elsewhere = f"trial {self.trial_id} of {self.study_name}" if self.trial_id is not None else self.config
        settings = {name: Given(value, self._places.get(name, elsewhere)) for name, value in found.items()}
        values = check_settings(settings)
        if "device" in values:  # the base class hands its own to the constructor
            device = values.pop("device")
            self.device = device if self.device == "auto" else self.device
        return values, OrderedDict(copy.deepcopy(sorted(values.items())))

    def load_trial(self, storage: str, study_name: str, trial_id: int | None = None, convert: bool = True) -> dict[str, Any]:
        """As in the base class.

        :raises InputError: if there is no such study or trial
        """
        try:
            return dict(super().load_trial(storage, study_name, trial_id, convert))
        except KeyError as error:
            raise InputError(f"--study-name {study_name}: there is no such study in {storage}.") from error
        except IndexError as error:
            raise InputError(f"--trial-id {trial_id}: the study {study_name} has no such trial.") from error

    # The base class calls it as a method, and needs none of its attributes.
    def _preprocess_schedules(self, hyperparams: dict[str, Any]) -> dict[str, Any]:  # type: ignore[override]
        if not self._ours:
            return dict(super()._preprocess_schedules(hyperparams))
        ours = {name: value for name, value in hyperparams.items() if name in NAMES}
        return {**hyperparams, **build_hyperparameters(ours)}

    def _preprocess_hyperparams(self, hyperparams: dict[str, Any]) -> Any:
        result = super()._preprocess_hyperparams(hyperparams)
        if self._ours and not self._eval_env_kwargs_given:
            self.eval_env_kwargs = self.env_kwargs
        return result

    # ---- environments and evaluations

    def create_envs(self, n_envs: int, eval_env: bool = False, no_log: bool = False) -> VecEnv:
        """As in the base class, but pictures stay as they are: the first axis of ``obs`` counts agents, not channels."""
        env: VecEnv = super().create_envs(n_envs, eval_env=eval_env, no_log=no_log)
        if not self._ours:
            return env
        if eval_env:
            env.seed(self.seed + EVAL_SEED_OFFSET)
        return env.venv if isinstance(env, VecTransposeImage) else env

    def _maybe_normalize(self, env: VecEnv, eval_env: bool) -> VecEnv:
        if self._ours and self.normalize and self.normalize_kwargs.get("norm_obs", True):
            self.normalize_kwargs = {"norm_obs_keys": float_keys(env), **self.normalize_kwargs}
        return super()._maybe_normalize(env, eval_env)

    def create_callbacks(self) -> None:
        """As in the base class; every evaluation plays the episodes that it plays in ``hmasd train``."""
        users_own = len(self.callbacks)
        super().create_callbacks()  # type: ignore[no-untyped-call]
        if not self._ours:
            return
        for callback in self.callbacks[users_own:]:
            if isinstance(callback, EvalCallback):
                place = self.callbacks.index(callback)
                self.callbacks.insert(place, EvaluationSeed(callback, self.seed + EVAL_SEED_OFFSET))

    # ---- searching

    def objective(self, trial: optuna.Trial) -> float:
        """As in the base class; a trial that an error ended has failed, and keeps the error as a user attribute.

        Optuna takes the NaN returned for it as a failure, and goes on with the next trial.
        """
        if not self._ours:
            return float(super().objective(trial))
        try:
            return float(super().objective(trial))
        except optuna.TrialPruned as pruned:
            if pruned.__cause__ is None:
                raise
            return self._failed(trial, pruned.__cause__)
        except Exception as error:
            return self._failed(trial, error)

    def _failed(self, trial: optuna.Trial, error: BaseException) -> float:
        text = f"{type(error).__name__}: {error}"
        trial.set_user_attr(ERROR, text)
        self._failures.append(f"trial {trial.number}: {text}")
        if not isinstance(error, NonFiniteError | InvalidTransitionError):  # those may come of wild hyperparameters
            traceback.print_exception(error)
        return float("nan")

    def hyperparameters_optimization(self) -> None:
        """As in the base class.

        :raises RuntimeError: if no trial came to an end, naming the first error
        """
        try:
            super().hyperparameters_optimization()
        except ValueError as error:
            if not self._failures or "No trials are completed" not in str(error):
                raise
            first = self._failures[0]
            raise RuntimeError(f"No trial came to an end. The first of {len(self._failures)} failures: {first}") from error


class TrialNumber(int):
    """A number that counts as given, whichever it is: the base class asks for its truth."""

    def __bool__(self) -> bool:
        return True


class EvaluationSeed(BaseCallback):
    """Lets an evaluation's episodes follow from a seed and from how many evaluations came before.

    :param evaluation: the callback that evaluates; it must come after this one
    :param seed: of the first evaluation
    """

    def __init__(self, evaluation: EvalCallback, seed: int) -> None:
        super().__init__()
        self._evaluation, self._seed = evaluation, seed

    def _on_step(self) -> bool:
        evaluation = self._evaluation
        if evaluation.eval_freq > 0 and self.n_calls % evaluation.eval_freq == 0:
            before = len(evaluation.evaluations_timesteps)
            evaluation.eval_env.seed(self._seed + before * evaluation.eval_env.num_envs)
        return True
