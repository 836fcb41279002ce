"""Hyperparameters and spaces as plain data (JSON) and back, without ever running code that a file brings along.

Numbers, texts, paths, containers, arrays and spaces are written out. A class is written as its name; only optimizer and
network classes are taken back, and only from modules that are already imported, since importing one runs it. Schedule
objects of this package and of Stable-Baselines3 are written as their numbers. Whatever else there may be, such as a
function as a schedule, cannot be plain data: it comes back as :class:`NotInFile`, which says what to do about it.
"""

from __future__ import annotations

import base64
import inspect
import math
import pathlib
import sys
from collections import OrderedDict
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule
from torch import nn

from hmasd_sb3.schedules import ConfusionGatedNoise, ExponentialSchedule

_SCHEDULES: dict[str, type] = {
    cls.__name__: cls for cls in (ConstantSchedule, FloatSchedule, LinearSchedule, ExponentialSchedule, ConfusionGatedNoise)
}
_SPACES: dict[str, type[spaces.Space[Any]]] = {
    cls.__name__: cls
    for cls in (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary, spaces.Dict, spaces.Tuple)
}
_LOADABLE_BASES = (nn.Module, th.optim.Optimizer)
_LARGEST_ARRAY = 2**26
"""Entries that an array written in a few bytes may have; larger ones would only fill the memory."""


class PlainDataError(ValueError):
    """Something in a file is not the plain data it should be."""


class NotInFile:
    """Stands for a value that is no plain data, so that a model file cannot hold it.

    As a schedule it gives the value in force when the model was saved, which is enough to look at the model and to play;
    training must be given the real one.

    :param description: what it was
    :param value_then: what it gave at the time, if it was a schedule
    """

    def __init__(self, description: str, value_then: float | None) -> None:
        self.description = description
        self.value_then = value_then

    def __call__(self, progress_remaining: float) -> float:
        if self.value_then is None:
            raise TypeError(f"{self!r} is no schedule")
        return self.value_then

    def __repr__(self) -> str:
        return f"<not in the file: {self.description}>"


def contains_not_in_file(value: Any) -> bool:
    """Whether a value, or something in it, could not be stored."""
    if isinstance(value, dict):
        return any(contains_not_in_file(part) for part in value.values())
    if isinstance(value, list | tuple):
        return any(contains_not_in_file(part) for part in value)
    return isinstance(value, NotInFile)


class PlainWriter:
    """Turns values into JSON data.

    :param progress_remaining: where training is, to ask schedules for their present value
    """

    def __init__(self, progress_remaining: float = 1.0) -> None:
        self.progress_remaining = progress_remaining
        self.left_out: dict[str, Any] = {}
        """What could not be written, by the place it belongs to."""

    def write(self, value: Any, place: str) -> Any:
        """JSON data for ``value``.

        :param place: name of the value, for messages
        """
        if value is None or isinstance(value, bool | str) or (isinstance(value, int) and not isinstance(value, bool)):
            return value
        if isinstance(value, float):
            return value if math.isfinite(value) else {"$float": repr(value)}
        if isinstance(value, np.generic):
            return self.write(value.item(), place)
        if isinstance(value, list):
            return [self.write(part, f"{place}[{i}]") for i, part in enumerate(value)]
        if isinstance(value, tuple) and type(value) is tuple:
            return {"$tuple": [self.write(part, f"{place}[{i}]") for i, part in enumerate(value)]}
        if isinstance(value, dict) and all(isinstance(key, str) and not key.startswith("$") for key in value):
            return {key: self.write(part, f"{place}.{key}") for key, part in value.items()}
        if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
            return {"$array": _array_to_json(value)}
        if isinstance(value, pathlib.PurePath):
            return {"$path": str(value)}
        if isinstance(value, type):
            return {"$class": f"{value.__module__}:{value.__qualname__}"}
        if type(value).__name__ in _SPACES and type(value) is _SPACES[type(value).__name__]:
            return {"$space": self._space(value, place)}
        if type(value).__name__ in _SCHEDULES and type(value) is _SCHEDULES[type(value).__name__]:
            return {"$schedule": {"type": type(value).__name__, **self._fields(value, place)}}
        return self._leave_out(value, place)

    def _fields(self, schedule: Any, place: str) -> dict[str, Any]:
        return {name: self.write(part, f"{place}.{name}") for name, part in vars(schedule).items()}

    def _space(self, space: Any, place: str) -> dict[str, Any]:
        kind = type(space).__name__
        if isinstance(space, spaces.Dict):
            parts: Any = [[key, self.write(part, f"{place}.{key}")] for key, part in space.spaces.items()]
            return {"type": kind, "spaces": parts}
        if isinstance(space, spaces.Tuple):
            return {"type": kind, "spaces": [self.write(part, f"{place}[{i}]") for i, part in enumerate(space.spaces)]}
        names = {
            spaces.Box: ("low", "high"),
            spaces.Discrete: ("n", "start"),
            spaces.MultiDiscrete: ("nvec", "start"),
            spaces.MultiBinary: ("n",),
        }[type(space)]
        arguments = {name: self.write(getattr(space, name), f"{place}.{name}") for name in names}
        return {"type": kind, "dtype": str(space.dtype), **arguments}

    def _leave_out(self, value: Any, place: str) -> dict[str, Any]:
        self.left_out[place] = value
        name = getattr(value, "__qualname__", None) or type(value).__qualname__
        described = f"{getattr(value, '__module__', None) or type(value).__module__}.{name}"
        now: Any = None
        if callable(value):
            try:
                now = self.write(float(value(self.progress_remaining)), place)
            except Exception:  # it is called only in case it is a schedule; what else it may be does not matter here
                now = None
        return {"$left_out": {"place": place, "description": described, "value": now}}


def _array_to_json(array: np.ndarray) -> dict[str, Any]:
    first = array.reshape(-1)[:1]
    described: dict[str, Any] = {"dtype": array.dtype.str, "shape": list(array.shape)}
    if array.size and bool((array == first).all()):
        number = first[0].item()
        described["fill"] = repr(number) if isinstance(number, float) and not math.isfinite(number) else number
    else:
        described["base64"] = base64.b64encode(np.ascontiguousarray(array).tobytes()).decode("ascii")
    return described


# ------------------------------------------------------------------ reading


def read_plain(data: Any, left_out: dict[str, Any] | None = None) -> Any:
    """The value that :meth:`PlainWriter.write` was given.

    :param data: JSON data
    :param left_out: what the file holds of values that are no plain data, if it is trusted
    :raises PlainDataError: if it is something else than what is ever written, naming it
    """
    if isinstance(data, list):
        return [read_plain(part, left_out) for part in data]
    if not isinstance(data, dict):
        return data
    if not any(key.startswith("$") for key in data):
        return {key: read_plain(part, left_out) for key, part in data.items()}
    if len(data) != 1:
        raise PlainDataError(f"{sorted(data)} cannot stand together.")
    ((kind, content),) = data.items()
    try:
        if kind == "$float":
            return float(content)
        if kind == "$tuple":
            return tuple(read_plain(part, left_out) for part in content)
        if kind == "$path":
            return pathlib.Path(content)
        if kind == "$array":
            return _array_from_json(content)
        if kind == "$class":
            return find_class(content)
        if kind == "$space":
            return _space_from_json(content)
        if kind == "$schedule":
            return _schedule_from_json(content, left_out)
        if kind == "$left_out":
            if left_out is not None and content["place"] in left_out:
                return left_out[content["place"]]
            then = read_plain(content["value"])
            return NotInFile(str(content["description"]), None if then is None else _number(then, "value"))
    except PlainDataError:
        raise
    except (LookupError, TypeError, AttributeError, ValueError, AssertionError, ArithmeticError, MemoryError) as error:
        raise PlainDataError(f"{kind} was written wrongly ({type(error).__name__}: {error}).") from error
    raise PlainDataError(f"{kind!r} is unknown; a newer release may have written it.")


def find_class(place: str) -> type:
    """The network or optimizer class of that name.

    No module is ever imported because a file names it.

    :param place: "module:Class"
    :raises PlainDataError: if it is not loaded, or no such class
    """
    module_name, _, qualname = place.partition(":")
    found: Any = sys.modules.get(module_name)
    if found is None:
        raise PlainDataError(
            f"it uses the class {place!r}, and a file may not import modules. Import {module_name!r} yourself before loading."
        )
    try:
        for name in qualname.split("."):
            found = inspect.getattr_static(found, name)
    except AttributeError as error:
        raise PlainDataError(
            f"it uses the class {place!r}, which is not there: {error}. Define it under that name before loading."
        ) from error
    if not (isinstance(found, type) and issubclass(found, _LOADABLE_BASES)):
        raise PlainDataError(f"it names {place!r}, which is neither a network nor an optimizer class; such a file is refused.")
    return found


def _array_from_json(content: dict[str, Any]) -> np.ndarray:
    dtype, shape = np.dtype(content["dtype"]), tuple(int(size) for size in content["shape"])
    if dtype.kind not in "biuf":
        raise PlainDataError(f"an array of {dtype} is no array of numbers.")
    if min(shape, default=1) < 0 or math.prod(shape) > _LARGEST_ARRAY:
        raise PlainDataError(f"an array of the shape {shape} is none that is ever written.")
    if "fill" in content:
        return np.full(shape, float(content["fill"]) if dtype.kind == "f" else content["fill"], dtype=dtype)
    return np.frombuffer(base64.b64decode(content["base64"], validate=True), dtype=dtype).reshape(shape).copy()


def _space_from_json(content: dict[str, Any]) -> spaces.Space[Any]:
    kind = content["type"]
    if kind == "Dict":
        # An OrderedDict keeps its order; a plain one would be sorted.
        return spaces.Dict(OrderedDict((key, read_plain(part)) for key, part in content["spaces"]))
    if kind == "Tuple":
        return spaces.Tuple([read_plain(part) for part in content["spaces"]])
    arguments = {key: read_plain(part) for key, part in content.items() if key not in ("type", "dtype")}
    dtype = np.dtype(content["dtype"])
    if kind == "Box":
        return spaces.Box(arguments["low"], arguments["high"], dtype=dtype.type)
    if kind == "Discrete":
        return spaces.Discrete(arguments["n"], start=arguments["start"])
    if kind == "MultiDiscrete":
        return spaces.MultiDiscrete(arguments["nvec"], dtype=dtype.type, start=arguments["start"])
    if kind == "MultiBinary":
        return spaces.MultiBinary(arguments["n"])
    raise PlainDataError(f"the space {kind!r} is unknown.")


def _schedule_from_json(content: dict[str, Any], left_out: dict[str, Any] | None) -> Any:
    name = content["type"]
    if name not in _SCHEDULES:
        raise PlainDataError(f"the schedule {name!r} is unknown; a newer release may have written it.")
    cls = _SCHEDULES[name]
    fields = {key: read_plain(part, left_out) for key, part in content.items() if key != "type"}
    for key, part in fields.items():
        if not callable(part) or isinstance(part, type):  # schedules hold numbers and other schedules
            _number(part, key)
    arguments = inspect.signature(cls).parameters
    schedule = cls(**{key: value for key, value in fields.items() if key in arguments})
    for key, value in fields.items():  # what has changed since it was made
        if key not in arguments:
            if key not in vars(schedule):
                raise PlainDataError(f"the schedule {name!r} has no {key!r}.")
            setattr(schedule, key, value)
    return schedule


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise PlainDataError(f"{name} is {value!r}, which is no number.")
    return value
