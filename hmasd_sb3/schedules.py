"""Schedules beyond SB3's own: values over ``progress_remaining``, which falls from 1 to 0 during ``learn``."""

from __future__ import annotations


class ExponentialSchedule:
    """Moves geometrically from ``start`` to ``end`` over the first ``end_fraction`` of training, then stays.

    :param start: value at the beginning, above 0
    :param end: value from ``end_fraction`` on, above 0
    :param end_fraction: share of training in (0, 1]
    :raises ValueError: outside these ranges
    """

    def __init__(self, start: float, end: float, end_fraction: float) -> None:
        if start <= 0 or end <= 0 or not 0 < end_fraction <= 1:
            raise ValueError(
                "ExponentialSchedule needs start > 0, end > 0 and 0 < end_fraction <= 1, "
                f"got start={start}, end={end}, end_fraction={end_fraction}."
            )
        self.start = start
        self.end = end
        self.end_fraction = end_fraction

    def __call__(self, progress_remaining: float) -> float:
        done = min(1.0, (1.0 - progress_remaining) / self.end_fraction)
        return float(self.start * (self.end / self.start) ** done)

    def __repr__(self) -> str:
        return f"ExponentialSchedule(start={self.start}, end={self.end}, end_fraction={self.end_fraction})"
