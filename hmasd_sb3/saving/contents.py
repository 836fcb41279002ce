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

from hmasd_sb3.envs.plain_state import checked_type
from hmasd_sb3.policies.policy import NETWORKS, HMASDPolicy
from hmasd_sb3.saving.archive import Archive, CorruptFileError, ModelFileError
from hmasd_sb3.saving.plain import contains_not_in_file, read_plain
from hmasd_sb3.saving.trees import tree_from_bytes
from hmasd_sb3.validation import check_policy_kwargs

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
            self.n_envs = checked_type(plain["n_envs"], int, "n_envs")
            checked_type(self.hyperparameters, dict, "'hyperparameters'")
            checked_type(self.hyperparameters.get("policy_kwargs", {}), (dict, type(None)), "policy_kwargs")
        except (LookupError, TypeError, ValueError, RecursionError) as error:  # PlainDataError is a ValueError
            raise ModelFileError(f"{path} cannot be loaded: {_first_line(error)}") from error
        if not issubclass(self.policy_class, HMASDPolicy):
            raise ModelFileError(
                f"{path} cannot be loaded: its policy {plain['policy_class']!r} is no {HMASDPolicy.__name__}."
            )
        unknown = sorted(set(self.hyperparameters) - set(hyperparameter_names(cls)))
        if unknown:
            release = archive.manifest["versions"].get("hmasd-sb3")
            raise ModelFileError(
                f"{path} was saved by {archive.manifest['class']!r} of hmasd-sb3 {release} "
                f"with {unknown}, which {cls.__name__} here does not have. Load it with the class that saved it, or upgrade."
            )

    def build(self, env: Any, device: th.device | str, given: dict[str, Any]) -> Any:
        """A model with the file's hyperparameters, apart from those given, and networks still at random.

        :raises ValueError: if the environment or the policy's arguments do not fit
        :raises ModelFileError: if no model can be made of what the file says
        """
        self._check_policy_kwargs(given)
        self._check_sizes(given)
        if env is not None:
            env = self.cls._wrap_env(env)
            check_for_correct_spaces(env, self.observation_space, self.action_space)
        model = self.cls(self.policy_class, env, device=device, _init_setup_model=False)
        for name, value in {**self.hyperparameters, **given}.items():
            setattr(model, ATTRIBUTES.get(name, name), value)
        model.observation_space, model.action_space = self.observation_space, self.action_space
        model.n_envs = self.n_envs if env is None else env.num_envs
        try:
            model._setup_model()
        except ValueError as error:  # it names the hyperparameter and what is wrong with it
            if given:
                raise
            raise ModelFileError(f"{self.path} cannot be loaded: {error}") from error
        except (LookupError, TypeError, AttributeError, AssertionError, ArithmeticError, RuntimeError, MemoryError) as error:
            raise ModelFileError(
                f"{self.path} cannot be loaded: no model can be made with its hyperparameters ({_first_line(error)})."
            ) from error
        return model

    def _check_sizes(self, given: dict[str, Any]) -> None:
        """Refuse other numbers of skills than the networks were made for."""
        for name in ("n_team_skills", "n_agent_skills"):
            stored = self.hyperparameters.get(name)
            if name in given and given[name] != stored:
                raise ValueError(
                    f"{name}={given[name]!r} was given, but the networks in {self.path} were made for {stored!r}. Leave it "
                    "out: the file holds it."
                )

    def _check_policy_kwargs(self, given: dict[str, Any]) -> None:
        stored = self.hyperparameters.get("policy_kwargs")
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
        try:
            check_policy_kwargs(self.policy_class, stored)
        except ValueError as error:
            raise ModelFileError(f"{self.path} cannot be loaded: {error}") from error

    def tree(self, part: str, device: th.device | str = "cpu") -> Any:
        """Nested data from one of the parts."""
        if part not in self.archive.parts:
            raise CorruptFileError(f"{self.path} has no {part}.")
        try:
            return tree_from_bytes(self.archive.parts[part], device)
        except Exception as error:  # torch.load raises errors of many kinds about bytes that are something else
            raise ModelFileError(
                f"{self.path} was refused: {part} holds something else than plain numbers ({_first_line(error)})."
            ) from error

    def parameters(self, device: th.device | str) -> dict[str, Any]:
        """State dicts of the policy and of every optimizer, by the names that ``set_parameters`` takes."""
        weights, optimizers = self.tree("policy.pth", device), self.tree("optimizers.pth", device)
        wanted = {f"policy.{network}_optimizer" for network in NETWORKS}
        # By its name the base class would look for anything within the model.
        if not (isinstance(weights, dict) and isinstance(optimizers, dict) and set(optimizers) == wanted):
            raise ModelFileError(f"{self.path} was refused: it does not hold the weights and optimizers of HMASD's networks.")
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


def _first_line(error: BaseException) -> str:
    """What an error says, without the pages that torch adds."""
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__


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
