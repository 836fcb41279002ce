"""A model file opened: hyperparameters, spaces and weights as values, and a model built from them."""

from __future__ import annotations

import inspect
import json
import logging
import pickle
from typing import Any

import cloudpickle
import torch as th
from stable_baselines3.common.utils import check_for_correct_spaces

from hmasd_sb3.policies.policy import HMASDPolicy
from hmasd_sb3.saving.archive import Archive, CorruptFileError, ModelFileError
from hmasd_sb3.saving.plain import PlainDataError, contains_not_in_file, read_plain
from hmasd_sb3.saving.trees import tree_from_bytes

_logger = logging.getLogger("hmasd_sb3")
_NOT_HYPERPARAMETERS = ("self", "policy", "env", "device", "_init_setup_model")
ATTRIBUTES = {"stats_window_size": "_stats_window_size"}
"""Constructor arguments that are kept under another name."""


class ModelFile:
    """A model file opened: what is in it, as values."""

    def __init__(self, path: Any, archive: Archive, trust: bool, cls: Any) -> None:
        self.path, self.archive, self.cls = path, archive, cls
        try:
            plain = json.loads(archive.parts["hyperparameters.json"])
            pickled = archive.parts.get("left_out.pkl")
            left_out = pickle.loads(pickled) if trust and pickled is not None else None
            # Read before the policy class is looked for, so that the message tells about the first thing that is wrong.
            self.hyperparameters: dict[str, Any] = read_plain(plain["hyperparameters"], left_out)
            self.policy_class = read_plain({"$class": plain["policy_class"]})
            self.observation_space, self.action_space = (
                read_plain(plain[f"{kind}_space"]) for kind in ("observation", "action")
            )
            self.n_envs = int(plain["n_envs"])
        except (PlainDataError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise ModelFileError(f"{path} cannot be loaded: {error}") from error
        if not issubclass(self.policy_class, HMASDPolicy):
            raise ModelFileError(
                f"{path} cannot be loaded: its policy {plain['policy_class']!r} is no {HMASDPolicy.__name__}."
            )
        unknown = sorted(set(self.hyperparameters) - set(hyperparameter_names(cls)))
        if unknown:
            raise ModelFileError(
                f"{path} was saved by {archive.manifest['class']!r} of hmasd-sb3 {archive.manifest['versions']['hmasd-sb3']} "
                f"with {unknown}, which {cls.__name__} here does not have. Load it with the class that saved it, or upgrade."
            )

    def build(self, env: Any, device: th.device | str, given: dict[str, Any]) -> Any:
        """A model with the file's hyperparameters, apart from those given, and networks still at random.

        :raises ValueError: if the environment or the policy's arguments do not fit
        """
        self._check_policy_kwargs(given)
        if env is not None:
            env = self.cls._wrap_env(env, int(self.hyperparameters["verbose"]))
            check_for_correct_spaces(env, self.observation_space, self.action_space)
        model = self.cls(self.policy_class, env, device=device, _init_setup_model=False)
        for name, value in {**self.hyperparameters, **given}.items():
            setattr(model, ATTRIBUTES.get(name, name), value)
        model.observation_space, model.action_space = self.observation_space, self.action_space
        model.n_envs = self.n_envs if env is None else env.num_envs
        model._setup_model()
        return model

    def _check_policy_kwargs(self, given: dict[str, Any]) -> None:
        stored = self.hyperparameters["policy_kwargs"]
        if contains_not_in_file(stored):
            if "policy_kwargs" not in given:
                raise ModelFileError(
                    f"{self.path} needs what it cannot hold: policy_kwargs={stored}. Pass the same policy_kwargs to load() "
                    "again, or load with trust=True if you trust the file."
                )
        elif "policy_kwargs" in given and given["policy_kwargs"] != stored:
            raise ValueError(
                f"The policy_kwargs given, {given['policy_kwargs']}, are not those that the model was made with, {stored}. "
                "Leave them out: the file holds them."
            )

    def tree(self, part: str, device: th.device | str = "cpu") -> Any:
        """Nested data from one of the parts."""
        try:
            return tree_from_bytes(self.archive.parts[part], device)
        except KeyError as error:
            raise CorruptFileError(f"{self.path} has no {part}.") from error
        except (pickle.UnpicklingError, RuntimeError, ValueError, TypeError, EOFError) as error:
            raise ModelFileError(
                f"{self.path} was refused: {part} holds something else than plain numbers ({str(error).splitlines()[0]})."
            ) from error

    def parameters(self, device: th.device | str) -> dict[str, Any]:
        """State dicts of the policy and of every optimizer, by the names that ``set_parameters`` takes."""
        weights, optimizers = self.tree("policy.pth", device), self.tree("optimizers.pth", device)
        if not (isinstance(weights, dict) and isinstance(optimizers, dict)):
            raise ModelFileError(f"{self.path} was refused: it holds no weights.")
        return {"policy": weights, **optimizers}


def hyperparameter_names(cls: type) -> list[str]:
    """Constructor arguments that decide about training; those of base classes too where a class hands them on."""
    names: list[str] = []
    for base in cls.__mro__:
        if "__init__" not in vars(base):
            continue
        parameters = inspect.signature(base).parameters.values()
        names += [
            p.name
            for p in parameters
            if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL) and p.name not in (*_NOT_HYPERPARAMETERS, *names)
        ]
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return names


def name_of(cls: type) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


def pickled(values: dict[str, Any]) -> bytes:
    """Each value that can be pickled."""
    kept: dict[str, Any] = {}
    for place, value in values.items():
        try:
            cloudpickle.dumps(value)
        except Exception as error:  # anything may go wrong in somebody's object, and the model is worth more than it
            _logger.warning("%s cannot even be pickled (%s: %s).", place, type(error).__name__, error)
        else:
            kept[place] = value
    return bytes(cloudpickle.dumps(kept))
