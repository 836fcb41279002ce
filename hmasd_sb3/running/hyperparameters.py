"""HMASD's constructor arguments as plain values: which there are, what each may be, and making schedules of them."""

from __future__ import annotations

import inspect
import math
from typing import Any

import torch as th
from stable_baselines3.common.utils import LinearSchedule

from hmasd_sb3.hmasd import HMASD
from hmasd_sb3.policies.policy import HMASDPolicy
from hmasd_sb3.running.literals import as_plain, read_integer, read_mapping, read_number
from hmasd_sb3.validation import check_hyperparameters, check_policy_kwargs, resolve_policy

ELSEWHERE = {
    "env": "--env",
    "seed": "--seed",
    "verbose": "--verbose",
    "tensorboard_log": "--tensorboard or --no-tensorboard",
}
"""Constructor arguments that an option of the command sets, and which."""
_PARAMETERS = {
    name: parameter
    for name, parameter in inspect.signature(HMASD).parameters.items()
    if name not in ("policy", "env", "_init_setup_model")
}
NAMES = sorted(set(_PARAMETERS) - set(ELSEWHERE))
_LINEAR = "lin_"


def default_of(name: str) -> Any:
    """What the constructor takes if ``name`` is not given."""
    return _PARAMETERS[name].default


def plain_default_of(name: str) -> Any:
    """The same as a plain value where there is one, by which it can be compared with what was given."""
    value = default_of(name)
    if isinstance(value, LinearSchedule) and value.end_fraction == 1.0:
        return f"{_LINEAR}{value.start:g}_{value.end:g}"
    return value


def read_hyperparameter(name: str, value: Any) -> Any:
    """Check one hyperparameter and return it as a plain value of the right type.

    :param name: one of :data:`NAMES`
    :param value: as read from YAML; numbers may be texts, floats that take a schedule may be ``"lin_<start>"``,
        a straight line to 0, or ``"lin_<start>_<end>"``
    :raises ValueError: naming the hyperparameter, the value met and what is allowed
    """
    kinds = {kind.strip() for kind in str(_PARAMETERS[name].annotation).split("|")}
    if "None" in kinds and value in (None, "None"):
        return None
    value = _read(name, value, kinds)
    try:
        value = as_plain(value)
    except ValueError as error:
        raise ValueError(f"{name} {error}.") from error
    return check_value(name, value)


def check_value(name: str, value: Any) -> Any:
    """Check one hyperparameter that has the right type, or is an object such as a function as a schedule; returns it.

    :raises ValueError: naming the hyperparameter, the value met and what is allowed
    """
    check_hyperparameters({**_defaults(), name: _build(name, value)})
    return value


def read_policy(value: Any) -> str:
    """Check the name of a policy.

    :raises ValueError: naming the known ones and the nearest
    """
    if not isinstance(value, str):
        raise ValueError(f"policy must be one of {sorted(HMASD.policy_aliases)}, got {value!r}.")
    resolve_policy(value, HMASD.policy_aliases, HMASDPolicy)
    return value


def check_together(policy: str, values: dict[str, Any]) -> None:
    """Check what depends on more than one value: the policy's own arguments.

    :raises ValueError: naming the argument
    """
    check_policy_kwargs(HMASD.policy_aliases[policy], values.get("policy_kwargs"))


def build_hyperparameters(values: dict[str, Any]) -> dict[str, Any]:
    """Constructor arguments of plain values: schedules are made."""
    return {name: _build(name, value) for name, value in values.items()}


def _defaults() -> dict[str, Any]:
    return {name: parameter.default for name, parameter in _PARAMETERS.items()}


def _build(name: str, value: Any) -> Any:
    if isinstance(value, str) and value.startswith(_LINEAR) and "Schedule" in str(_PARAMETERS[name].annotation):
        start, end = _ends_of_line(value)
        return LinearSchedule(start, end, 1.0)
    return value


def _ends_of_line(text: str) -> tuple[float, float]:
    """Start and end that ``"lin_<start>"`` or ``"lin_<start>_<end>"`` stand for.

    :raises ValueError: if they are no numbers
    """
    ends = text[len(_LINEAR) :].split("_")  # all of them, as Python would take an underscore within a number
    if len(ends) > 2:
        raise ValueError(f"{len(ends)} numbers")
    return float(ends[0]), float(ends[1]) if len(ends) == 2 else 0.0


def _read(name: str, value: Any, kinds: set[str]) -> Any:
    if "Schedule" in kinds and isinstance(value, str) and value.startswith(_LINEAR):
        try:
            ends = _ends_of_line(value)
        except ValueError as error:
            raise _no_schedule(name, value) from error
        if not all(math.isfinite(end) for end in ends):
            raise ValueError(f"{name} must be finite, got {value!r}.")
        if ends[1] < 0.0:
            raise ValueError(f"{name} must not fall below 0, got {value!r}.")
        return value
    if "float" in kinds:
        number = read_number(value)
        if "Schedule" in kinds and isinstance(number, str):
            raise _no_schedule(name, value)
        return number
    if "int" in kinds:
        return _of_type(name, read_integer(value), int, "a whole number")
    if "bool" in kinds:
        return _of_type(name, value, bool, "true or false")
    if "dict[str, Any]" in kinds:
        try:
            return read_mapping(value)
        except ValueError as error:
            raise ValueError(f"{name} {error}.") from error
    if name == "device":
        return _device(value)
    return _of_type(name, value, str, "a text")


def _no_schedule(name: str, value: str) -> ValueError:
    return ValueError(
        f"{name} must be a number or a schedule such as 'lin_0.001' (linear to 0) or 'lin_0.001_0.0001', got {value!r}."
    )


def _of_type(name: str, value: Any, kind: type, wanted: str) -> Any:
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ValueError(f"{name} must be {wanted}, got {value!r}.")
    return value


def _device(value: Any) -> str:
    if value == "auto":
        return "auto"
    try:
        device = th.device(_of_type("device", value, str, "a text"))
    except RuntimeError as error:
        raise ValueError(f"device must be 'auto' or a device of torch such as 'cpu' or 'cuda:0', got {value!r}.") from error
    # SB3 would quietly take the processor instead.
    if device.type == "cuda" and (device.index or 0) >= th.cuda.device_count():
        raise ValueError(f"device={value!r} is not there: torch sees {th.cuda.device_count()} CUDA devices.")
    return str(device)
