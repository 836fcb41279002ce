"""What a searched argument may be: the pieces that a search space is made of. Knows nothing of HMASD."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from optuna.trial import Trial

Plain: TypeAlias = bool | int | float | str | None
DEFAULT = "default"
CONSTANT = "constant"
COMPLEMENT = "one_minus_"
SCHEDULE = "_schedule"
STEP = 0.2
"""Standard deviation of a step from one number to another nearby, as a share of the range."""


@dataclass(frozen=True)
class Floats:
    """A number from ``low`` to ``high``.

    :param log: search orders of magnitude evenly
    :param complement: search 1 minus the number, for discounts and the like, of which 0.9, 0.99 and 0.999 are equally far
        apart; ``low`` and ``high`` are bounds of the number itself all the same
    :param or_default: the argument's own default, which may be a schedule, competes with the constants
    """

    low: float
    high: float
    log: bool = False
    complement: bool = False
    or_default: bool = False

    def __post_init__(self) -> None:
        _check_order(self, self.low, self.high)
        least = 1.0 - self.high if self.complement else self.low
        if self.log and least <= 0.0:
            raise ValueError(f"{self}: orders of magnitude need bounds above 0{', below 1' * self.complement}.")

    def ends(self) -> list[Plain]:
        """Values to check a range by."""
        return [self.low, self.high]

    def suggest(self, trial: Trial, name: str) -> None:
        """Let a trial choose."""
        if self.or_default and trial.suggest_categorical(name + SCHEDULE, [DEFAULT, CONSTANT]) == DEFAULT:
            return
        if self.complement:
            trial.suggest_float(COMPLEMENT + name, _complement(self.high), _complement(self.low), log=self.log)
        else:
            trial.suggest_float(name, self.low, self.high, log=self.log)

    def encode(self, name: str, value: Any) -> dict[str, Plain]:
        """A trial's parameters that stand for a value.

        :raises ValueError: if it lies outside
        """
        if not _is_number(value) or not self.low <= value <= self.high:
            raise ValueError(f"{name}={value!r} lies outside of {self.low:g} to {self.high:g}")
        kind: dict[str, Plain] = {name + SCHEDULE: CONSTANT} if self.or_default else {}
        return {**kind, **({COMPLEMENT + name: _complement(value)} if self.complement else {name: float(value)})}

    def step_from(self, params: Mapping[str, Any], name: str, generator: np.random.Generator) -> dict[str, Plain]:
        """A trial's parameters that stand for another value, not far from that of ``params``; a constant for a default."""
        key = COMPLEMENT + name if self.complement else name
        low, high = (_complement(self.high), _complement(self.low)) if self.complement else (self.low, self.high)
        kind: dict[str, Plain] = {name + SCHEDULE: CONSTANT} if self.or_default else {}
        if key not in params:
            return {**kind, key: _at(generator.random(), low, high, self.log)}
        if self.or_default and generator.random() < 0.25:
            return {name + SCHEDULE: DEFAULT}
        place = _place(params[key], low, high, self.log) + STEP * generator.standard_normal()
        return {**kind, key: _at(place, low, high, self.log)}


@dataclass(frozen=True)
class Integers:
    """A whole number from ``low`` to ``high``, in steps of ``step``.

    :param log: search orders of magnitude evenly; ``step`` must be 1 then
    """

    low: int
    high: int
    step: int = 1
    log: bool = False

    def __post_init__(self) -> None:
        _check_order(self, self.low, self.high)
        if self.step < 1 or (self.high - self.low) % self.step or (self.log and (self.step != 1 or self.low < 1)):
            raise ValueError(f"{self}: step must divide high - low, and be 1 (with low of at least 1) if log=True.")

    def ends(self) -> list[Plain]:
        """Values to check a range by."""
        return [self.low, self.high]

    def suggest(self, trial: Trial, name: str) -> None:
        """Let a trial choose."""
        trial.suggest_int(name, self.low, self.high, step=self.step, log=self.log)

    def encode(self, name: str, value: Any) -> dict[str, Plain]:
        """A trial's parameters that stand for a value.

        :raises ValueError: if it lies outside
        """
        if value not in range(self.low, self.high + 1, self.step):
            raise ValueError(f"{name}={value!r} is none of {self.low} to {self.high} in steps of {self.step}")
        return {name: int(value)}

    def step_from(self, params: Mapping[str, Any], name: str, generator: np.random.Generator) -> dict[str, Plain]:
        """A trial's parameters that stand for another value, not far from that of ``params``."""
        value = int(params[name])
        others = [other for other in range(self.low, self.high + 1, self.step) if other != value]
        if not others:
            return {name: value}
        place = _place(value, self.low, self.high, self.log) + STEP * generator.standard_normal()
        wanted = _at(place, self.low, self.high, self.log)
        return {name: min(others, key=lambda other: abs(other - wanted))}


@dataclass(frozen=True)
class Choices:
    """One of several plain values, None among them if need be."""

    values: tuple[Plain, ...]

    def __init__(self, values: Sequence[Plain]) -> None:
        object.__setattr__(self, "values", tuple(values))
        if not values or not all(value is None or isinstance(value, bool | int | float | str) for value in values):
            raise ValueError(f"{self}: needs at least one value, and plain ones.")

    def ends(self) -> list[Plain]:
        """Values to check a range by."""
        return list(self.values)

    def suggest(self, trial: Trial, name: str) -> None:
        """Let a trial choose."""
        trial.suggest_categorical(name, list(self.values))

    def encode(self, name: str, value: Any) -> dict[str, Plain]:
        """A trial's parameters that stand for a value.

        :raises ValueError: if it is none of them
        """
        for own in self.values:
            if own == value and isinstance(own, bool) == isinstance(value, bool):
                return {name: own}
        raise ValueError(f"{name}={value!r} is none of {list(self.values)}")

    def step_from(self, params: Mapping[str, Any], name: str, generator: np.random.Generator) -> dict[str, Plain]:
        """A trial's parameters that stand for another of the values."""
        here = self.values.index(params[name])
        if len(self.values) == 1:
            return {name: params[name]}
        return {name: self.values[(here + generator.integers(1, len(self.values))) % len(self.values)]}


Range: TypeAlias = Floats | Integers | Choices


def _place(value: float, low: float, high: float, log: bool) -> float:
    """Where a value lies in its range, from 0 to 1."""
    if low == high:
        return 0.0
    return math.log(value / low) / math.log(high / low) if log else (value - low) / (high - low)


def _at(place: float, low: float, high: float, log: bool) -> float:
    """The value at a place in a range, or at its nearer end."""
    place = min(max(place, 0.0), 1.0)
    value = low * (high / low) ** place if log else low + (high - low) * place
    return float(min(max(value, low), high))


def _check_order(owner: Any, low: float, high: float) -> None:
    if not (_is_number(low) and _is_number(high) and math.isfinite(low) and math.isfinite(high) and low <= high):
        raise ValueError(f"{owner}: low and high must be finite numbers, low not above high.")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _complement(value: float) -> float:
    return round(1.0 - value, 12)  # 1 - 0.95 is 0.050000000000000044, of which 1 minus is not 0.95 in every case
