"""The contract for one team: what every game promises as a team. For many: test_contract_vec."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from contract import CASES, Case, LegalTeam, Reference, follow, legal_actions, total
from gymnasium.utils.env_checker import check_env as check_gymnasium_env
from pettingzoo import AECEnv
from pettingzoo.test import api_test, parallel_api_test, parallel_seed_test, seed_test
from pettingzoo.utils.conversions import aec_to_parallel
from stable_baselines3.common.env_checker import check_env as check_sb3_env

from hmasd_sb3.wrappers import as_team_env

# Games of others, and advice for single agents: observations of one axis, bounded states, symmetric actions.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")

each_game = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # MuJoCo writes a log into the working directory


def mean(rewards: dict[Any, float]) -> float:
    return total(rewards) / len(rewards)


def largest(rewards: dict[Any, float]) -> float:
    return max(float(r) for r in rewards.values())


def play(team: Any, seed: int, steps: int) -> list[Any]:
    """Whatever a team returns, over ``steps`` steps of random legal actions."""
    rng = np.random.default_rng(seed)
    observation, _ = team.reset(seed=seed)
    story: list[Any] = [observation]
    for _ in range(steps):
        story.append(team.step(legal_actions(team.action_space, observation, rng)))
        observation, _, terminated, truncated, _ = story[-1]
        if terminated or truncated:
            observation, _ = team.reset()
            story.append(observation)
    return story


@each_game
def test_the_game_itself_is_sound(case: Case) -> None:
    game = case.game()
    if isinstance(game, AECEnv):
        api_test(game, num_cycles=30)
        seed_test(case.game, num_cycles=30)
        return
    if case.api_fault:
        with pytest.raises(AssertionError):
            parallel_api_test(game, num_cycles=60)
    else:
        parallel_api_test(game, num_cycles=30)
    parallel_seed_test(case.game, num_cycles=30)


@each_game
def test_checkers_find_no_fault(case: Case) -> None:
    game = case.game()
    check_gymnasium_env(LegalTeam(aec_to_parallel(game) if isinstance(game, AECEnv) else game), skip_render_check=True)
    game = case.game()
    check_sb3_env(LegalTeam(aec_to_parallel(game) if isinstance(game, AECEnv) else game))


@each_game
@pytest.mark.parametrize(
    ("reward", "joined", "share"),
    [
        ("sum", total, 1),
        ("mean", mean, 0.1),
        (largest, largest, 0.1),
        pytest.param("sum", total, 10, marks=pytest.mark.slow),
    ],
    ids=["sum", "mean", "own", "sum, long"],
)
def test_a_team_sees_earns_and_ends_as_the_game_played_by_hand(case: Case, reward: Any, joined: Any, share: float) -> None:
    steps = int(case.steps * share)
    team, reference = as_team_env(case.game(), reward=reward), Reference(case.parallel())
    ends = follow(team, reference, steps, joined)
    team.close()
    reference.game.close()
    if share > 1:
        assert ends == set(case.ends)


@each_game
def test_seeds_say_everything(case: Case) -> None:
    """Equal seeds: equal episodes, on a used team too. Unequal seeds: unequal episodes."""
    team, other = as_team_env(case.game()), as_team_env(case.game())
    steps = 3 if case.heavy else 8
    stories = [written(play(team, seed, steps)) for seed in range(5, 37)]
    assert len(set(stories)) == 32
    assert written(play(other, 36, steps)) == stories[-1]
    assert written(play(team, 5, steps)) == stories[0]


def written(story: list[Any]) -> bytes:
    """A story in bytes; of the steps, all but the info."""
    found = []
    for entry in story:
        observation, *rest = entry if isinstance(entry, tuple) else (entry,)
        found += [observation[key].tobytes() for key in sorted(observation)] + [repr(rest[:3]).encode()]
    return b"".join(found)
