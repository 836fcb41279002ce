"""How well a team plays and what its skills are used for: every episode counted once, with intervals. Learns nothing."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, unwrap_vec_normalize

from hmasd_sb3.monitoring.plots import bootstrap_mean, wilson_interval
from hmasd_sb3.monitoring.skill_usage import SkillCounts, SkillUsage
from hmasd_sb3.monitoring.video import Predictor

Interval = tuple[float, float]


class SkillEvaluation(NamedTuple):
    """What evaluation episodes came to. E episodes, in the order of environments and then of time."""

    returns: npt.NDArray[np.float64]
    """(E,) sums of team rewards, as the game gave them."""
    lengths: npt.NDArray[np.int64]
    """(E,) environment steps."""
    successes: npt.NDArray[np.bool_] | None
    """(E,) what ``is_success`` said at the end; None unless every episode reported it."""
    truncated: npt.NDArray[np.bool_]
    """(E,) whether a time limit ended it."""
    usage: SkillUsage | None
    """What skills were used in these episodes; None for a model without skills."""

    @property
    def mean_return(self) -> float:
        """Over the episodes."""
        return float(self.returns.mean())

    @property
    def std_return(self) -> float:
        """Standard deviation over the episodes (of the population, as ``evaluate_policy`` gives it)."""
        return float(self.returns.std())

    @property
    def return_interval(self) -> Interval | None:
        """95 % percentile bootstrap of the mean return; None for a single episode, which says nothing about it."""
        if len(self.returns) < 2:
            return None
        low, high = bootstrap_mean(self.returns[None])
        return float(low[0]), float(high[0])

    @property
    def mean_length(self) -> float:
        """Over the episodes."""
        return float(self.lengths.mean())

    @property
    def success_rate(self) -> float | None:
        """Share of successful episodes."""
        return None if self.successes is None else float(self.successes.mean())

    @property
    def success_interval(self) -> Interval | None:
        """Wilson's 95 % interval for the probability of success."""
        return None if self.successes is None else wilson_interval(int(self.successes.sum()), len(self.successes))


def evaluate_skills(
    model: Predictor,
    env: VecEnv,
    n_eval_episodes: int = 100,
    *,
    deterministic: bool = True,
    seed: int | None = None,
    render: bool = False,
) -> SkillEvaluation:
    """Play episodes and count what comes of them.

    How many episodes each environment contributes is settled beforehand, so that short episodes, which end sooner, count no
    more than long ones. What environments play beyond their share is not counted.

    :param model: anything with Stable-Baselines3's ``predict``; not changed
    :param env: B teams; rewards normalised by a ``VecNormalize`` are counted as the game gave them. It is reset first
    :param n_eval_episodes: E
    :param deterministic: most probable skills and actions instead of sampled ones
    :param seed: seeds the environments if given
    :param render: call ``env.render()`` at every step
    :return: returns, lengths, successes and skills
    :raises ValueError: if ``n_eval_episodes`` is not positive, or statistics of a ``VecNormalize`` would be changed
    """
    if n_eval_episodes < 1:
        raise ValueError(f"n_eval_episodes must be at least 1, got {n_eval_episodes}")
    normalizer = unwrap_vec_normalize(env)
    if normalizer is not None and normalizer.training:
        raise ValueError("this VecNormalize would go on learning its statistics from the evaluation: set its training = False")
    n_envs = env.num_envs
    shares = np.array([(n_eval_episodes + row) // n_envs for row in range(n_envs)])
    episodes: list[list[_Episode]] = [[] for _ in range(n_envs)]
    counts = SkillCounts(model)
    if seed is not None:
        env.seed(seed)
    observation = env.reset()
    state: Any = None
    starts, returns, lengths = np.ones(n_envs, dtype=bool), np.zeros(n_envs), np.zeros(n_envs, dtype=np.int64)
    counted = shares > 0
    while counted.any():
        actions, state = model.predict(observation, state=state, episode_start=starts, deterministic=deterministic)
        counts.note(state, starts, counted, observation)
        observation, rewards, dones, infos = env.step(actions)
        if render:
            env.render()
        returns += _as_given(normalizer, rewards)
        lengths += 1
        for row in np.flatnonzero(dones & counted):
            episodes[row].append(_Episode.read(returns[row], lengths[row], infos[row]))
        returns[dones], lengths[dones] = 0.0, 0
        starts = np.asarray(dones, dtype=bool)
        counted = np.array([len(played) for played in episodes]) < shares
    return _together([episode for played in episodes for episode in played], counts.usage())


class _Episode(NamedTuple):
    """One episode that has ended."""

    episode_return: float
    length: int
    success: Any
    """What ``is_success`` said, or None."""
    truncated: bool

    @classmethod
    def read(cls, episode_return: float, length: int, info: dict[str, Any]) -> _Episode:
        truncated = bool(info.get("TimeLimit.truncated", False))
        return cls(float(episode_return), int(length), info.get("is_success"), truncated)


def _together(episodes: list[_Episode], usage: SkillUsage | None) -> SkillEvaluation:
    successes = [episode.success for episode in episodes]
    return SkillEvaluation(
        returns=np.array([episode.episode_return for episode in episodes]),
        lengths=np.array([episode.length for episode in episodes], dtype=np.int64),
        successes=None if None in successes else np.array([bool(success) for success in successes]),
        truncated=np.array([episode.truncated for episode in episodes]),
        usage=usage,
    )


def _as_given(normalizer: VecNormalize | None, rewards: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """(B,) rewards of the game itself."""
    return rewards if normalizer is None else normalizer.get_original_reward()
