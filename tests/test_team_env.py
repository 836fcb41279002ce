"""TeamEnv: what a team sees, earns and may do, and when its episode ends. What it refuses: test_team_env_errors."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from games import ContinuousGame, MaskedGame, TimeLimitGame
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env as check_gymnasium_env
from pettingzoo.utils.conversions import parallel_to_aec
from stable_baselines3.common.env_checker import check_env as check_sb3_env

from hmasd_sb3.envs import parallel_env as alice_and_bob
from hmasd_sb3.wrappers import TeamEnv, as_team_env
from hmasd_sb3.wrappers.team_spaces import check_team_spaces


def play(team: TeamEnv, action: Any, steps: int) -> list[tuple[Any, ...]]:
    team.reset(seed=0)
    return [team.step(np.asarray(action)) for _ in range(steps)]


GAMES: dict[str, Callable[[], Any]] = {
    "time limit": TimeLimitGame,
    "mask in observation": MaskedGame,
    "mask in info": lambda: MaskedGame("info"),
    "continuous": ContinuousGame,
    "alice and bob": alice_and_bob,
}


class Random(TeamEnv):
    """Draws legal actions only, as checkers sample without looking at masks."""

    def step(self, action: Any) -> Any:
        if self._masks.exist:
            action = self._masks.legal.argmax(axis=1)
        return super().step(action)


# Advice for single agents: observations of one axis, bounded states.
@pytest.mark.filterwarnings("ignore:.*unconventional shape", "ignore:.*infinity. This is probably too")
@pytest.mark.parametrize("make", GAMES.values(), ids=GAMES.keys())
def test_checkers_find_no_fault(make: Callable[[], Any]) -> None:
    check_gymnasium_env(Random(make()), skip_render_check=True)
    check_sb3_env(Random(make()))


@pytest.mark.parametrize("make", GAMES.values(), ids=GAMES.keys())
def test_every_observation_lies_in_its_space(make: Callable[[], Any]) -> None:
    team = Random(make())
    check_team_spaces(team.observation_space, team.action_space)
    observation, _ = team.reset(seed=3)
    done = False
    while not done:
        assert team.observation_space.contains(observation)
        observation, reward, terminated, truncated, _ = team.step(team.action_space.sample())
        assert isinstance(reward, float)
        done = terminated or truncated
    assert team.observation_space.contains(observation)


# ---- observations


def test_agents_are_in_the_order_of_possible_agents_whatever_the_games_dicts_say() -> None:
    class Reversed(TimeLimitGame):
        def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
            observations, infos = super().reset(seed, options)
            self.agents = self.agents[::-1]
            return dict(reversed(observations.items())), infos

    team, game = TeamEnv(Reversed(3)), TimeLimitGame(3)
    observation, _ = team.reset(seed=4)
    expected, _ = game.reset(seed=4)
    np.testing.assert_array_equal(observation["obs"], np.stack([expected[a] for a in game.possible_agents]))
    observation, reward, *_ = team.step(np.array([0, 0, 1]))
    assert reward == 3.0


def test_float64_becomes_float32_and_uint8_stays() -> None:
    class Pixels(TimeLimitGame):
        def make_observation_space(self) -> spaces.Space:
            return spaces.Box(0, 255, (4, 5, 3), np.uint8)

        def observe(self, agent: str) -> Any:
            return np.full((4, 5, 3), 7, dtype=np.uint8)

    team = TeamEnv(Pixels())
    observation, _ = team.reset(seed=0)
    assert observation["obs"].dtype == team.observation_space["obs"].dtype == np.uint8
    assert observation["obs"].shape == (2, 4, 5, 3)
    assert observation["state"].dtype == np.uint8

    team = TeamEnv(ContinuousGame())
    assert team.observation_space["obs"].dtype == np.float32
    assert team.reset(seed=0)[0]["obs"].dtype == np.float32


def test_state_is_the_games_own_else_the_joined_observations() -> None:
    team = TeamEnv(ContinuousGame())  # state(), but no state_space
    assert team.observation_space["state"] == spaces.Box(-np.inf, np.inf, (4,), np.float32)
    observation = play(team, np.zeros((2, 2)), 2)[-1][0]
    assert observation["state"][2] == 2

    team = TeamEnv(TimeLimitGame(3))  # no state()
    assert team.observation_space["state"] == spaces.Box(0.0, 1.0, (9,), np.float32)
    observation, _ = team.reset(seed=0)
    np.testing.assert_array_equal(observation["state"], observation["obs"].ravel())

    team = TeamEnv(alice_and_bob())  # both
    assert team.observation_space["state"] == team.parallel_env.state_space


def test_observations_do_not_change_once_returned() -> None:
    class Reusing(ContinuousGame):
        """Writes every state into one array, and every observation into another."""

        def __init__(self) -> None:
            self.one_state, self.one_observation = np.zeros(4, np.float32), np.zeros(3, np.float32)
            super().__init__()

        def state(self) -> np.ndarray:
            self.one_state[:] = self.clock
            return self.one_state

        def observe(self, agent: str) -> Any:
            self.one_observation[:] = self.clock / self.horizon
            return self.one_observation

    team = TeamEnv(Reusing())
    observation, _ = team.reset(seed=0)
    team.step(np.zeros((2, 2)))
    assert not observation["state"].any()
    assert not observation["obs"].any()


def test_discriminator_views_are_optional() -> None:
    assert set(TeamEnv(TimeLimitGame()).observation_space.spaces) == {"obs", "state", "agent_mask"}
    team = TeamEnv(alice_and_bob())
    observation, _ = team.reset(seed=0)
    for index, agent in enumerate(team.possible_agents):
        np.testing.assert_array_equal(observation["discriminator_obs"][index], team.parallel_env.discriminator_obs(agent))
    np.testing.assert_array_equal(observation["discriminator_state"], team.parallel_env.discriminator_state())


def test_values_outside_their_space_are_passed_on_with_a_warning() -> None:
    class Outside(TimeLimitGame):
        def observe(self, agent: str) -> Any:
            return np.full(3, 9.0, dtype=np.float32)

    team = TeamEnv(Outside())
    with pytest.warns(UserWarning, match="outside its space") as caught:
        observation, _ = team.reset(seed=0)
    assert observation["obs"].max() == 9.0
    assert {"obs", "state"} == {str(w.message).split("'")[1] for w in caught}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        team.reset()  # said once


# ---- actions and masks


@pytest.mark.parametrize("mask_in", ["observation", "info"])
def test_masks(mask_in: str) -> None:
    team = TeamEnv(MaskedGame(mask_in))
    assert team.observation_space["action_mask"] == spaces.MultiBinary((2, 3))
    assert team.observation_space["obs"].shape == (2, 3)
    observation, info = team.reset(seed=0)
    assert info == {}
    assert observation["action_mask"].tolist() == [[0, 1, 1], [1, 0, 1]]
    observation, reward, *_ = team.step(np.array([2, 2]))
    assert reward == 2.0
    assert observation["action_mask"].tolist() == [[1, 0, 1], [1, 1, 0]]
    with pytest.raises(ValueError, match=r"mask forbids 'agent_1' the action 2; legal now: \[0, 1\]"):
        team.step(np.array([0, 2]))
    observation["action_mask"][:] = 1  # the caller's copy is not the rule
    with pytest.raises(ValueError, match="mask forbids 'agent_0' the action 1"):
        team.step(np.array([1, 0]))


def test_a_blank_or_missing_mask_is_an_error_for_those_who_are_to_act_alone() -> None:
    class Blank(MaskedGame):
        blank_at = 1

        def mask(self, agent: str) -> np.ndarray:
            return super().mask(agent) * (self.clock != self.blank_at)

    with pytest.raises(ValueError, match="'agent_0' allows no action"):
        play(TeamEnv(Blank()), [2, 2], 1)
    ending = Blank(horizon=1)
    assert play(TeamEnv(ending), [2, 2], 1)[0][0]["action_mask"].sum() == 0

    class Missing(MaskedGame):
        def info(self, agent: str) -> dict[str, Any]:
            return {} if self.clock == 1 else super().info(agent)

    with pytest.raises(ValueError, match="'agent_0' was given no 'action_mask'"):
        play(TeamEnv(Missing("info")), [2, 2], 1)
    assert play(TeamEnv(Missing("info", horizon=1)), [2, 2], 1)[0][0]["action_mask"].all()

    class Partial(MaskedGame):
        def info(self, agent: str) -> dict[str, Any]:
            return super().info(agent) if agent == "agent_0" else {}

    with pytest.raises(ValueError, match=r"not those of \['agent_1'\]"):
        TeamEnv(Partial("info"))


@pytest.mark.parametrize(
    ("action", "message"),
    [([0, 2], "'agent_1' has the actions 0..1; got 2"), ([-1, 0], "got -1"), ([0], "shape"), ([0.0, 1.0], "integers")],
)
def test_discrete_actions_that_do_not_exist_are_refused(action: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        play(TeamEnv(TimeLimitGame()), action, 1)


def test_discrete_actions_count_from_the_games_start() -> None:
    received = {}

    class Offset(TimeLimitGame):
        def make_action_space(self) -> spaces.Space:
            return spaces.Discrete(2, start=5)

        def rewards(self, actions: dict[str, Any]) -> dict[str, float]:
            received.update(actions)
            return dict.fromkeys(actions, 0.0)

    play(TeamEnv(Offset()), [0, 1], 1)
    assert received == {"agent_0": 5, "agent_1": 6}


def test_box_actions_arrive_in_the_games_dtype_and_unchanged() -> None:
    team = TeamEnv(ContinuousGame())
    assert team.action_space == spaces.Box(-1.0, 1.0, (2, 2), np.float32)
    action = np.array([[0.1, -0.2], [0.3, 3.0]])
    play(team, action, 1)
    for index, agent in enumerate(team.possible_agents):
        assert team.parallel_env.received[agent].dtype == np.float32
        np.testing.assert_array_equal(team.parallel_env.received[agent], action[index].astype(np.float32))
    with pytest.raises(ValueError, match="finite"):
        team.step(np.array([[0.0, np.nan], [0.0, 0.0]]))


# ---- rewards, endings, infos


@pytest.mark.parametrize(("reward", "expected"), [("sum", 6.0), ("mean", 2.0), (lambda r: max(r.values()), 3.0)])
def test_rewards_are_joined_over_all_agents(reward: Any, expected: float) -> None:
    team = TeamEnv(TimeLimitGame(3), reward=reward)
    assert play(team, [1, 1, 1], 1)[0][1] == expected


def test_the_diamonds_are_worth_one_to_the_team() -> None:
    team = TeamEnv(alice_and_bob(size=2, max_steps=1000))
    rng = np.random.default_rng(0)
    team.reset(seed=0)
    rewards = []
    terminated = False
    while not terminated:
        _, reward, terminated, _, info = team.step(rng.integers(4, size=2))
        rewards.append(reward)
    assert sum(rewards) == rewards[-1] == 1.0
    assert info == {"is_success": True}


def test_a_time_limit_is_a_truncation_and_not_a_termination() -> None:
    ends = [step[2:4] for step in play(TeamEnv(TimeLimitGame(horizon=3)), [0, 0], 3)]
    assert ends == [(False, False), (False, False), (False, True)]


def test_an_end_by_the_rules_is_a_termination_and_not_a_truncation() -> None:
    class Both(TimeLimitGame):
        def ends(self) -> tuple[bool, bool]:
            return self.clock >= 2, self.clock >= 2  # as games do whose last step is also that of their time limit

    assert [step[2:4] for step in play(TeamEnv(Both()), [0, 0], 2)] == [(False, False), (True, False)]


def test_mixed_endings_are_a_truncation() -> None:
    class Mixed(TimeLimitGame):
        def step(self, actions: dict[str, Any]) -> Any:
            observations, rewards, _, _, infos = super().step(actions)
            self.agents = []
            return (
                observations,
                rewards,
                {"agent_0": True, "agent_1": False},
                {"agent_0": False, "agent_1": True},
                infos,
            )

    assert play(TeamEnv(Mixed()), [0, 0], 1)[0][2:4] == (False, True)


def test_success_is_everybodys() -> None:
    class Reporting(TimeLimitGame):
        reports = (True, True)

        def info(self, agent: str) -> dict[str, Any]:
            return {"is_success": self.reports[int(agent[-1])], "other": 1} if self.clock else {}

    assert play(TeamEnv(Reporting()), [0, 0], 1)[0][4] == {"is_success": True}
    Reporting.reports = (True, False)
    assert play(TeamEnv(Reporting()), [0, 0], 1)[0][4] == {"is_success": False}
    assert play(TeamEnv(TimeLimitGame()), [0, 0], 1)[0][4] == {}


def test_stepping_outside_an_episode_is_refused() -> None:
    team = TeamEnv(TimeLimitGame(horizon=1))
    with pytest.raises(RuntimeError, match="reset"):
        team.step(np.array([0, 0]))
    play(team, [0, 0], 1)
    with pytest.raises(RuntimeError, match="reset"):
        team.step(np.array([0, 0]))


def test_seeds_reproduce_and_no_seed_goes_on() -> None:
    team = TeamEnv(TimeLimitGame())
    first, again = team.reset(seed=8)[0], team.reset(seed=8)[0]
    np.testing.assert_array_equal(first["obs"], again["obs"])
    assert (team.reset()[0]["obs"] != first["obs"]).any()


# ---- games made by others


@pytest.mark.filterwarnings("ignore:.*unconventional shape", "ignore:.*symmetric and normalized Box action space")
@pytest.mark.parametrize("continuous", [False, True])
def test_simple_spread(continuous: bool) -> None:
    simple_spread = pytest.importorskip("mpe2.simple_spread_v3")
    teams = [
        as_team_env(simple_spread.parallel_env(N=3, max_cycles=4, continuous_actions=continuous)),
        as_team_env(simple_spread.env(N=3, max_cycles=4, continuous_actions=continuous)),
    ]
    check_sb3_env(teams[0])
    for team in teams:
        assert team.observation_space["obs"].shape == (3, 18)
        assert team.observation_space["state"].shape == (54,)
        team.action_space.seed(0)
        steps = [team.reset(seed=1)[0]]
        while len(steps) < 5:
            observation, reward, terminated, truncated, _ = team.step(team.action_space.sample())
            assert reward < 0
            assert not terminated
            assert truncated == (len(steps) == 4)
            steps.append(observation)
        team.played = steps
    for left, right in zip(teams[0].played, teams[1].played, strict=True):
        np.testing.assert_array_equal(left["state"], right["state"])


def test_as_team_env() -> None:
    assert isinstance(as_team_env(TimeLimitGame()), TeamEnv)
    team = TeamEnv(TimeLimitGame())
    assert as_team_env(team) is team
    with pytest.raises(TypeError, match=r"\['reward'\] are for PettingZoo games"):
        as_team_env(team, reward="mean")
    turn_based = parallel_to_aec(TimeLimitGame())
    assert isinstance(as_team_env(turn_based), TeamEnv)
    turn_based.env.metadata = {"is_parallelizable": False}
    with pytest.raises(ValueError, match="is_parallelizable"):
        as_team_env(turn_based)
    with pytest.raises(TypeError, match="got str"):
        as_team_env("AliceAndBob-v0")
