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


class ConfusionGatedNoise:
    """Noise on the discriminators' training inputs that follows how well skills can be told apart.

    Small noise lets two skills that sit together earn something by moving one step apart; large noise keeps pulling skills
    apart that small noise could no longer improve. Neither fits all of training, nor every run: so the level shrinks while
    the worst recognised skill is confused with another one, and grows while all are told apart.

    :param low: least level, and the one at the start
    :param high: largest level
    :param accuracy: share of a skill's steps at which it must be recognised to count as told apart
    :param growth: factor per update while all skills are
    :param shrink: factor per update while one is not
    :raises ValueError: outside 0 < low <= high, 0 < accuracy < 1, growth >= 1, 0 < shrink <= 1
    """

    def __init__(
        self, low: float = 0.4, high: float = 1.5, accuracy: float = 0.55, growth: float = 1.06, shrink: float = 0.9
    ) -> None:
        if not (0 < low <= high and 0 < accuracy < 1 and growth >= 1 and 0 < shrink <= 1):
            raise ValueError(
                "ConfusionGatedNoise needs 0 < low <= high, 0 < accuracy < 1, growth >= 1 and 0 < shrink <= 1, got "
                f"low={low}, high={high}, accuracy={accuracy}, growth={growth}, shrink={shrink}."
            )
        self.low, self.high, self.accuracy = low, high, accuracy
        self.growth, self.shrink = growth, shrink
        self.level = low

    def __call__(self, progress_remaining: float) -> float:
        return self.level

    def observe(self, worst_accuracy: float) -> None:
        """Move the level by one update.

        :param worst_accuracy: accuracy of the discriminator on the skill that it recognises least
        """
        factor = self.growth if worst_accuracy >= self.accuracy else self.shrink
        self.level = min(self.high, max(self.low, self.level * factor))

    def state_dict(self) -> dict[str, float]:
        """What has changed since it was made."""
        return {"level": self.level}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Put the level back."""
        self.level = float(state["level"])

    def __repr__(self) -> str:
        return f"ConfusionGatedNoise(low={self.low}, high={self.high}, accuracy={self.accuracy}, level={self.level:.3f})"
