"""``evaluate_skills``: every episode once, intervals as by the book, skills counted as they were used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from PIL import Image
from stable_baselines3 import PPO
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from teams import FAST, RandomTeam

from hmasd_sb3 import HMASD, make_team_vec_env
from hmasd_sb3.monitoring import evaluate_skills, plot_skill_usage
from hmasd_sb3.monitoring.evaluate import SkillEvaluation
from hmasd_sb3.monitoring.plots import bootstrap_mean
from hmasd_sb3.type_aliases import SkillState

N = 2


class TimedTeam(gym.Env[dict[str, np.ndarray], np.ndarray]):
    """Episodes of given lengths, each step worth ``reward``; agent 1 leaves after ``leaves`` steps of an episode."""

    metadata = {"render_modes": []}
    render_mode = None

    def __init__(self, lengths: list[int], reward: float = 1.0, leaves: int | None = None, success: bool = True) -> None:
        part = {"obs": spaces.Box(-1, 99, (N, 1), np.float32), "state": spaces.Box(-1, 99, (1,), np.float32)}
        if leaves is not None:
            part["agent_mask"] = spaces.MultiBinary(N)
        self.observation_space = spaces.Dict(part)
        self.action_space = spaces.MultiDiscrete([2] * N)
        self.lengths, self.reward, self.leaves, self.success = lengths, reward, leaves, success
        self.number, self.at = -1, 0

    def _observe(self) -> dict[str, np.ndarray]:
        found = {"obs": np.full((N, 1), self.at, np.float32), "state": np.full(1, self.at, np.float32)}
        if self.leaves is not None:
            found["agent_mask"] = np.array([1, self.at < self.leaves], dtype=np.int8)
        return found

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.number, self.at = self.number + 1, 0
        return self._observe(), {}

    def step(self, action: Any) -> Any:
        self.at += 1
        ended = self.at == self.lengths[self.number % len(self.lengths)]
        won = self.number % 2 == 0
        info = {"is_success": won} if ended and self.success else {}
        return self._observe(), self.reward, ended and won, ended and not won, info


class Counting:
    """Assigns skills every ``k`` steps of an episode: the team's is how many were assigned in it before, modulo 3."""

    n_team_skills, n_agent_skills = 4, 5

    def __init__(self, k: int) -> None:
        self.k = k

    def predict(self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False) -> Any:
        at = observation["state"][:, 0].astype(np.int64)
        assert (np.asarray(episode_start) == (at == 0)).all()
        team = at // self.k % 3
        agents = np.stack([team, team + 1], axis=1)
        skills = SkillState(team, agents, self.k - 1 - at % self.k, np.zeros((len(at), N, 1)))
        return np.zeros((len(at), N), dtype=np.int64), skills


def simulated(lengths: list[int], k: int, leaves: int = 99) -> tuple[np.ndarray, ...]:
    """What :class:`Counting` does in episodes of these lengths."""
    team_steps, team_assigned = np.zeros(4, int), np.zeros(4, int)
    agent_steps, agent_assigned, together = np.zeros((N, 5), int), np.zeros((N, 5), int), np.zeros((4, 5), int)
    for length in lengths:
        for at in range(length):
            skill = at // k % 3
            team_steps[skill] += 1
            team_assigned[skill] += at % k == 0
            for agent in range(N if at < leaves else 1):
                agent_steps[agent, skill + agent] += 1
                agent_assigned[agent, skill + agent] += at % k == 0
                together[skill, skill + agent] += 1
    return team_steps, team_assigned, agent_steps, agent_assigned, together


def teams(*scripts: list[int], **kwargs: Any) -> DummyVecEnv:
    return DummyVecEnv([lambda script=script: TimedTeam(script, **kwargs) for script in scripts])


def test_short_episodes_count_no_more_than_long_ones() -> None:
    result = evaluate_skills(Counting(3), teams([1], [50]), 4)
    assert result.lengths.tolist() == [1, 1, 50, 50]
    assert result.returns.tolist() == [1, 1, 50, 50]
    assert result.successes is not None
    assert result.successes.tolist() == [True, False, True, False]
    assert result.truncated.tolist() == [False, True, False, True]
    assert (result.mean_return, result.mean_length, result.success_rate) == (25.5, 25.5, 0.5)


def test_episodes_that_do_not_divide_by_the_environments() -> None:
    result = evaluate_skills(Counting(3), teams([2], [3], [4]), 5)
    assert result.lengths.tolist() == [2, 3, 3, 4, 4]
    result = evaluate_skills(Counting(3), teams([2], [3], [4]), 1)
    assert result.lengths.tolist() == [4]
    assert result.return_interval is None


@pytest.mark.parametrize("k", [1, 3, 7])
@pytest.mark.parametrize("leaves", [None, 2])
def test_skills_are_counted_as_they_were_used(k: int, leaves: int | None) -> None:
    """Only in the episodes that count: the first environment plays on for long after its share."""
    result = evaluate_skills(Counting(k), teams([5, 8], [30, 11], leaves=leaves), 4)
    assert result.usage is not None
    for counted, wanted in zip(result.usage, simulated([5, 8, 30, 11], k, 99 if leaves is None else leaves), strict=True):
        assert np.array_equal(counted, wanted)
    assert result.usage.team_shares.sum() == pytest.approx(1.0)
    assert result.usage.agent_shares.sum(axis=1) == pytest.approx(1.0)


def test_a_model_without_skills_and_a_game_without_success() -> None:
    env = teams([5], [7], success=False)
    model = PPO("MultiInputPolicy", env, n_steps=8, device="cpu")
    result = evaluate_skills(model, env, 4)
    assert (result.usage, result.successes, result.success_rate, result.success_interval) == (None, None, None, None)
    assert result.lengths.tolist() == [5, 5, 7, 7]


def test_as_sb3_counts() -> None:
    env = make_team_vec_env("AliceAndBob-v0", 3, seed=5)
    model = HMASD("MlpPolicy", env, **FAST)
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    result = evaluate_skills(model, env, 7, seed=11)
    env.seed(11)
    returns, lengths = evaluate_policy(model, env, 7, return_episode_rewards=True)
    assert sorted(zip(result.returns, result.lengths, strict=True)) == sorted(zip(returns, lengths, strict=True))
    assert all((value == before[name]).all() for name, value in model.policy.state_dict().items())
    assert model.num_timesteps == 0
    assert result.usage is not None
    assert result.usage.team_steps.sum() == result.lengths.sum()
    assert result.usage.agent_steps.shape == (2, model.n_agent_skills)
    # Skills of 5 steps: as many assignments as fit into each episode.
    assert result.usage.team_assigned.sum() == np.ceil(result.lengths / 5).sum()


def test_rewards_are_the_games_own() -> None:
    plain = teams([4], [6], reward=3.0)
    env = VecNormalize(plain, norm_obs=False, training=False)
    env.ret_rms.var = 100.0
    assert evaluate_skills(Counting(2), env, 2).returns.tolist() == [12.0, 18.0]
    env.training = True
    with pytest.raises(ValueError, match="training = False"):
        evaluate_skills(Counting(2), env, 2)


def test_sampled_play_is_repeated_by_its_seed() -> None:
    import torch as th

    env = DummyVecEnv([RandomTeam for _ in range(2)])
    model = HMASD("MlpPolicy", env, **FAST)
    usages = []
    for _ in range(2):
        th.manual_seed(3)
        result = evaluate_skills(model, env, 6, deterministic=False, seed=1)
        assert result.usage is not None
        usages.append(result.usage.agent_steps)
    assert np.array_equal(*usages)


def test_how_many_episodes_is_checked() -> None:
    with pytest.raises(ValueError, match="n_eval_episodes must be at least 1, got 0"):
        evaluate_skills(Counting(2), teams([4]), 0)


class TestIntervals:
    """Against SciPy's."""

    def result(self, returns: np.ndarray, successes: np.ndarray) -> SkillEvaluation:
        n = len(returns)
        return SkillEvaluation(returns, np.ones(n, dtype=np.int64), successes, np.zeros(n, dtype=bool), None)

    @pytest.mark.parametrize(("n_successes", "n"), [(0, 10), (7, 10), (97, 100), (100, 100)])
    def test_success(self, n_successes: int, n: int) -> None:
        stats = pytest.importorskip("scipy.stats")
        wanted = stats.binomtest(n_successes, n).proportion_ci(method="wilson")
        got = self.result(np.zeros(n), np.arange(n) < n_successes).success_interval
        assert got == pytest.approx((wanted.low, wanted.high), abs=2e-5)

    def test_return(self) -> None:
        stats = pytest.importorskip("scipy.stats")
        returns = np.random.default_rng(0).exponential(size=60)
        wanted = stats.bootstrap((returns,), np.mean, method="percentile", rng=1, n_resamples=20_000).confidence_interval
        got = self.result(returns, returns > 0).return_interval
        assert got is not None
        assert got == pytest.approx((wanted.low, wanted.high), abs=0.02)
        low, high = bootstrap_mean(returns[None])
        assert got == (low[0], high[0])

    def test_it_covers_the_mean(self) -> None:
        rng = np.random.default_rng(1)
        hits = 0
        for _ in range(200):
            low, high = self.result(rng.normal(3.0, 1.0, 50), np.ones(50, bool)).return_interval or (0.0, 0.0)
            hits += low <= 3.0 <= high
        assert 180 <= hits <= 199


def test_picture(tmp_path: Path) -> None:
    result = evaluate_skills(Counting(3), teams([9], [30], leaves=4), 2)
    assert result.usage is not None
    path = plot_skill_usage(result.usage, tmp_path / "new/usage.png", "Skills", ["alice", "bob"])
    with Image.open(path) as picture:
        assert picture.size[0] > 500
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    assert len(np.unique(pixels, axis=0)) > 20
