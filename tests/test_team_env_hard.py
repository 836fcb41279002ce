"""TeamEnv and games that stretch the conventions or break them: what still works, and what the errors say."""

import warnings
from typing import Any

import numpy as np
import pytest
from contract import Reference, follow
from games import ContinuousGame, MaskedGame, TimeLimitGame, edited, step_once
from gymnasium import spaces
from hard_games import DyingGame, HeterogeneousGame, JoiningGame

from hmasd_sb3.wrappers import TeamEnv

# ---- agents that are not there


def test_the_zeros_of_absent_agents_lie_in_the_spaces() -> None:
    def numbers(self: Any, agent: str) -> np.ndarray:
        return np.full(3, 1.5, np.float32)

    views = {"discriminator_obs": numbers, "discriminator_obs_space": lambda self, a: self.observation_spaces[a]}
    make_space = lambda self: spaces.Box(1.0, 2.0, (3,), np.float32)  # noqa: E731
    game = edited(DyingGame, observe=numbers, make_observation_space=make_space, **views)
    team = TeamEnv(game)
    for key in ("obs", "discriminator_obs"):
        assert team.observation_space[key] == spaces.Box(0.0, 2.0, (3, 3), np.float32)
    observation, _ = team.reset(seed=0)
    while observation["agent_mask"].all():
        observation, *_ = team.step(np.zeros(3, dtype=np.int64))
    assert team.observation_space.contains(observation)
    for key in ("obs", "discriminator_obs"):
        np.testing.assert_array_equal(observation[key], 1.5 * observation["agent_mask"][:, None] * np.ones((3, 3)))
    below = TeamEnv(edited(DyingGame, make_observation_space=lambda self: spaces.Box(-2.0, -1.0, (3,))))
    assert below.observation_space["obs"] == spaces.Box(-2.0, 0.0, (3, 3))
    # Where nobody is ever absent, bounds are the game's.
    assert TeamEnv(edited(make_observation_space=make_space), agent_mask=False).observation_space["obs"].low.min() == 1.0


def seeing(*boxes: spaces.Box) -> TeamEnv:
    """A team whose agents see the tops of these Boxes, and never leave."""
    by_agent = {f"agent_{i}": box for i, box in enumerate(boxes)}
    see = {"observation_space": lambda self, a: by_agent[a], "observe": lambda self, a: by_agent[a].high}
    return TeamEnv(edited(**see), agent_mask=False)


def test_rows_keep_their_own_bounds() -> None:
    low, high = spaces.Box(-3.0, -1.0, (2,)), spaces.Box(np.array([1, 2], np.float32), np.array([5, 6], np.float32))
    expected = spaces.Box(np.stack([low.low, high.low]), np.stack([low.high, high.high]))
    assert seeing(low, high).observation_space["obs"] == expected


def test_padding_lies_within_the_bounds_of_its_column() -> None:
    """Those of the agents that have the column, widened by zero."""
    team = seeing(spaces.Box(1.0, 2.0, (1,)), spaces.Box(np.array([1, 1, -4], np.float32), np.array([2, 3, -2], np.float32)))
    low, high = np.array([[1, 0, -4], [1, 1, -4]], np.float32), np.array([[2, 3, 0], [2, 3, -2]], np.float32)
    assert team.observation_space["obs"] == spaces.Box(low, high)
    observation, _ = team.reset(seed=0)
    assert team.observation_space.contains(observation)
    assert observation["obs"].tolist() == [[2, 0, 0], [2, 3, -2]]


def test_padded_bytes_stay_bytes_unless_some_are_none() -> None:
    bytes_, more, halves = spaces.Box(0, 255, (2,), np.uint8), spaces.Box(0, 255, (3,), np.uint8), spaces.Box(0.0, 0.5, (3,))
    for other, dtype, last in ((more, np.uint8, [255, 255, 255]), (halves, np.float32, [0.5, 0.5, 0.5])):
        team = seeing(bytes_, other)
        observation, _ = team.reset(seed=0)
        assert team.observation_space["obs"].dtype == observation["obs"].dtype == dtype
        assert observation["obs"].tolist() == [[255, 255, 0], last]
    # Alike but for the type: no agent's numbers are read as another's.
    observation, _ = seeing(spaces.Box(0, 255, (3,), np.uint8), halves).reset(seed=0)
    assert observation["obs"].tolist() == [[255, 255, 255], [0.5, 0.5, 0.5]]


def test_single_numbers_get_an_axis() -> None:
    team = seeing(spaces.Box(0.0, 1.0, ()), spaces.Box(0.0, 2.0, ()))
    assert team.observation_space["obs"] == spaces.Box(0.0, np.array([[1], [2]], np.float32), (2, 1))
    assert team.reset(seed=0)[0]["obs"].tolist() == [[1], [2]]


def test_components_keep_their_own_bounds_and_those_of_nobody_span_one() -> None:
    space = TeamEnv(HeterogeneousGame(continuous=True)).action_space
    low = np.array([[-1, -1, -1, -1], [-2, 0, -5, -1], [0, 0, 0, 0]], np.float32)
    high = np.array([[1, 1, 1, 1], [0, 3, 5, 1], [4, 4, 4, 4]], np.float32)
    assert space == spaces.Box(low, high)


def test_the_finest_type_of_action_is_the_teams() -> None:
    by_agent = {"agent_0": spaces.Box(-1, 1, (1,), np.float32), "agent_1": spaces.Box(-1, 1, (1,), np.float64)}
    game = edited(ContinuousGame, action_space=lambda self, a: by_agent[a])
    team = TeamEnv(game)
    assert team.action_space.dtype == np.float64
    team.reset(seed=0)
    team.step(np.full((2, 1), 0.1))
    assert game.received == {"agent_0": np.float32(0.1), "agent_1": 0.1}
    assert [action.dtype for action in game.received.values()] == [np.float32, np.float64]


def test_agents_listed_twice_are_refused() -> None:
    game = TimeLimitGame()
    game.possible_agents = ["agent_0", "agent_1", "agent_0"]
    with pytest.raises(ValueError, match="twice in 'possible_agents'"):
        TeamEnv(game)


def test_agents_that_were_never_announced_are_refused() -> None:
    class Ghost(TimeLimitGame):
        appears_at = 1

        def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
            result = super().reset(seed, options)
            self.agents += ["ghost"] * (self.appears_at == 0)
            return result

        def step(self, actions: dict[str, Any]) -> Any:
            result = super().step(actions)
            self.agents = [*self.agents, "ghost"]
            return result

    with pytest.raises(ValueError, match=r"'agents' name \['ghost'\], whom its 'possible_agents' did not"):
        step_once(TeamEnv(Ghost()))
    Ghost.appears_at = 0
    with pytest.raises(ValueError, match=r"\['ghost'\]"):
        TeamEnv(Ghost())


@pytest.mark.parametrize("names", [[7, 3], [("red", 0), ("red", 1)], np.array([4, 2])], ids=["int", "tuple", "array"])
def test_agents_may_be_named_by_anything(names: Any) -> None:
    game, plain = TimeLimitGame(), TimeLimitGame()
    for table in (game.observation_spaces, game.action_spaces):
        table.update(zip(names, list(table.values()), strict=True))
    game.possible_agents = names
    game.numbers = lambda agent: plain.numbers(plain.possible_agents[list(names).index(agent)])
    team = TeamEnv(game, agent_mask=True)
    plain.reset(seed=1)
    observation, _ = team.reset(seed=1)
    np.testing.assert_array_equal(observation["obs"], [plain.observe(a) for a in plain.possible_agents])
    assert team.step(np.array([0, 1]))[1] == 2.0


@pytest.mark.parametrize("make", [DyingGame, JoiningGame])
def test_agents_reported_as_not_done_are_not_there_unless_listed(make: Any) -> None:
    """Some games report on all possible agents at every step: False for those yet to come, and for those long gone."""

    class Talkative(make):
        def outcome(self, acted: list[str], sums: dict[str, float]) -> Any:
            observations, rewards, *ends, infos = super().outcome(acted, sums)
            ends = [{a: found.get(a, False) for a in self.possible_agents} for found in ends]
            return observations, rewards, *ends, infos

    assert follow(TeamEnv(Talkative()), Reference(make()), steps=80)


def test_agents_that_never_appear_are_rows_of_zeros() -> None:
    class Spare(TimeLimitGame):
        def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
            super().reset(seed, options)
            self.agents = ["agent_1"]
            return {a: self.observe(a) for a in self.agents}, {}

        def rewards(self, actions: dict[str, Any]) -> dict[str, float]:
            assert list(actions) == ["agent_1"]
            return {"agent_1": 1.0}

    team = TeamEnv(Spare())
    team.reset(seed=0)
    steps = [team.step(np.array([99, 0])) for _ in range(5)]  # nobody looks at the action of who is not there
    assert [step[2:4] for step in steps] == [(False, False)] * 4 + [(False, True)]
    for observation, reward, *_ in steps:
        assert observation["agent_mask"].tolist() == [0, 1]
        assert not observation["obs"][0].any()
        assert reward == 1.0


def test_the_order_of_agents_may_change_between_episodes() -> None:
    class Shuffled(TimeLimitGame):
        def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
            observations, infos = super().reset(seed, options)
            self.rng.shuffle(self.agents)
            return {a: observations[a] for a in self.agents}, infos

    team, plain = TeamEnv(Shuffled(4)), TimeLimitGame(4)
    for seed in range(5):
        plain.reset(seed=seed)
        observation, _ = team.reset(seed=seed)
        np.testing.assert_array_equal(observation["obs"], [plain.observe(a) for a in plain.possible_agents])
        assert team.step(np.array([0, 0, 0, 1]))[1] == 4.0


def test_a_dead_agent_still_listed_must_be_reported_as_done_every_time() -> None:
    class Forgetful(DyingGame):
        """Goes on listing dead agents, without a word about them."""

        def outcome(self, acted: list[str], sums: dict[str, float]) -> Any:
            parts = super().outcome(acted, sums)
            self.agents = list(self.possible_agents)
            return tuple({a: value for a, value in part.items() if a in acted} for part in parts)

    team = TeamEnv(Forgetful())
    team.reset(seed=0)
    with pytest.raises(ValueError, match=r"no observation for.*listed in 'agents' and not reported as done is to act"):
        for _ in range(8):
            team.step(np.zeros(3, dtype=np.int64))


# ---- what reset() and step() return


@pytest.mark.parametrize("n_agents", [1, 2, 3])
def test_a_reset_without_infos_is_refused(n_agents: int) -> None:
    class Old(TimeLimitGame):
        def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
            return super().reset(seed, options)[0]

    with pytest.raises(ValueError, match=r"reset\(\) must return 2 dicts, observations, infos; got a dict.*up to date"):
        TeamEnv(Old(n_agents))


def test_steps_of_four_parts_or_without_dicts_are_refused() -> None:
    class Old(TimeLimitGame):
        def step(self, actions: dict[str, Any]) -> Any:
            observations, rewards, dones, _, infos = super().step(actions)
            return observations, rewards, dones, infos

    class NoInfos(TimeLimitGame):
        def step(self, actions: dict[str, Any]) -> Any:
            return *super().step(actions)[:4], None

    with pytest.raises(ValueError, match=r"step\(\) must return 5 dicts.*got 4 of them"):
        step_once(TeamEnv(Old()))
    with pytest.raises(ValueError, match=r"infos that the game's step\(\) returned must be a dict by agent; got None"):
        step_once(TeamEnv(NoInfos()))


def test_infos_may_be_empty_missing_or_none() -> None:
    class NoInfos(TimeLimitGame):
        def step(self, actions: dict[str, Any]) -> Any:
            return *super().step(actions)[:4], {}

    assert step_once(TeamEnv(NoInfos()))[4] == {}
    assert step_once(TeamEnv(edited(info=lambda self, agent: None)))[4] == {}


@pytest.mark.parametrize("reward", [1, True, np.float32(1), np.array(1.0), np.array([1.0]), [1.0]], ids=repr)
def test_rewards_may_be_arrays_of_one_number(reward: Any) -> None:
    team = TeamEnv(edited(rewards=lambda self, actions: dict.fromkeys(actions, reward)))
    found = step_once(team)[1]
    assert type(found) is float
    assert found == 2.0


@pytest.mark.parametrize("reward", [None, "1", np.ones(2), []], ids=repr)
def test_other_rewards_are_refused_by_name(reward: Any) -> None:
    with pytest.raises(ValueError, match="the reward of 'agent_0' must be one number; got"):
        step_once(TeamEnv(edited(rewards=lambda self, actions: dict.fromkeys(actions, reward))))


# ---- masks


def test_masks_that_come_only_later_are_refused_rather_than_overlooked() -> None:
    class Late(MaskedGame):
        def info(self, agent: str) -> dict[str, Any]:
            return super().info(agent) if self.clock else {}

    with pytest.raises(ValueError, match=r"info of 'agent_0' now carries an 'action_mask', but.*first reset"):
        step_once(TeamEnv(Late("info")))


@pytest.mark.parametrize("kind", [list, tuple, lambda m: np.array(m, bool), lambda m: np.array(m, np.int64), np.float32])
def test_masks_may_be_of_any_type(kind: Any) -> None:
    class Kinds(MaskedGame):
        def mask(self, agent: str) -> Any:
            return kind(super().mask(agent))

    for mask_in in ("observation", "info"):
        observation, _ = TeamEnv(Kinds(mask_in)).reset(seed=0)
        assert observation["action_mask"].dtype == np.int8
        assert observation["action_mask"].tolist() == [[0, 1, 1], [1, 0, 1]]


# ---- observations in parts


@pytest.mark.parametrize(
    ("observation", "message"),
    [
        (np.zeros(3), "'agent_0' must be a dict"),
        (None, "must be a dict.*got None"),
        ({"action_mask": np.ones(3)}, r"lacks 'observation'.*holds \['action_mask'\]"),
        ({"observation": np.zeros(3)}, "given no 'action_mask'"),
    ],
)
def test_masked_observations_without_their_parts_are_refused(observation: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TeamEnv(edited(MaskedGame, observe=lambda self, agent: observation)).reset(seed=0)


PARTS = spaces.Dict(choice=spaces.Discrete(3, start=1), rest=spaces.Tuple([spaces.MultiBinary(2), spaces.Box(0, 1, (1,))]))


def in_parts(value: Any) -> TeamEnv:
    return TeamEnv(edited(make_observation_space=lambda self: PARTS, observe=lambda self, agent: value))


@pytest.mark.parametrize("choice", [2, 2.0, np.int32(2), np.array(2), np.array([2])], ids=repr)
@pytest.mark.parametrize("rest", [([0, 1], [0.5]), [np.array([False, True]), np.array([0.5])]], ids=["lists", "arrays"])
def test_parts_may_come_in_related_types(choice: Any, rest: Any) -> None:
    observation, _ = in_parts({"choice": choice, "rest": rest, "more": "is not looked at"}).reset(seed=0)
    assert observation["obs"].tolist() == [[0, 1, 0, 0, 1, 0.5]] * 2


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1, 2], "the observation of 'agent_0' must be a dict"),
        ({"choice": 1}, r"lacks \['rest'\]"),
        ({"choice": 1, "rest": 3}, "'rest' in the observation of 'agent_0' must be a tuple.*got 3"),
        ({"choice": 1, "rest": ([0, 1],)}, "has 1 parts, but its space says 2"),
        ({"choice": 1, "rest": ([0, 2], [0.5])}, "part 0 of 'rest' in the observation of 'agent_0' lies outside"),
        *[
            (
                {"choice": wrong, "rest": ([0, 1], [0.5])},
                "'choice' in the observation of 'agent_0' must be one of the 3 numbers",
            )
            for wrong in (0, 4, 1.5, np.nan, np.inf, None, "a", np.array([1, 2]))
        ],
    ],
)
def test_parts_that_are_something_else_are_refused_by_name(value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        in_parts(value).reset(seed=0)


# ---- numbers


@pytest.mark.parametrize("in_a_tuple", [False, True])
def test_bounds_beyond_float32_are_infinite(in_a_tuple: bool) -> None:
    edge = np.finfo(np.float64).max
    wide = spaces.Box(-edge, edge, (2,), np.float64)
    see = spaces.Tuple([wide]) if in_a_tuple else wide
    value: Any = (np.zeros(2),) if in_a_tuple else np.zeros(2)
    game = edited(
        make_observation_space=lambda self: see,
        observe=lambda self, agent: value,
        state_space=wide,
        state=lambda self: np.ones(2),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        team = TeamEnv(game)
        assert team.observation_space.contains(team.reset(seed=0)[0])
    assert team.observation_space["obs"] == spaces.Box(-np.inf, np.inf, (2, 2), np.float32)
    assert team.observation_space["state"] == spaces.Box(-np.inf, np.inf, (2,), np.float32)


def test_numbers_beyond_float32_are_refused_but_nan_and_infinity_pass() -> None:
    def seeing(value: float) -> TeamEnv:
        return TeamEnv(edited(ContinuousGame, observe=lambda self, agent: np.array([value, 1.0, 0.0])))

    with pytest.raises(ValueError, match="observation of 'agent_0' holds numbers too large for float32; the largest is 1e"):
        seeing(-1e300).reset(seed=0)
    for value in (np.nan, np.inf):
        with pytest.warns(UserWarning, match="outside its space"):
            observation, _ = seeing(value).reset(seed=0)
        np.testing.assert_array_equal(observation["obs"], np.array([[value, 1, 0]] * 2, np.float32))


# ---- the state


def test_a_state_that_is_no_method_or_returns_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="keeps a ndarray under the name of PettingZoo's method"):
        TeamEnv(edited(state=np.zeros(3)))
    with pytest.raises(ValueError, match="returned None"):
        TeamEnv(edited(state=lambda self: None))
    assert TeamEnv(edited(state=np.zeros(3)), state="joined").observation_space["state"].shape == (6,)


def test_a_state_that_changes_its_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"state\(\) has the shape \(4,\), but its space says \(3,\)"):
        step_once(TeamEnv(edited(state=lambda self: np.zeros(3 + self.clock))))


def test_a_state_of_bytes_is_a_picture_if_its_bounds_say_so() -> None:
    def having(high: int) -> TeamEnv:
        space = spaces.Box(0, high, (4, 5), np.uint8)
        return TeamEnv(edited(state_space=space, state=lambda self: np.full((4, 5), 7, np.uint8)))

    assert having(255).observation_space["state"] == spaces.Box(0, 255, (4, 5), np.uint8)
    assert having(9).observation_space["state"] == spaces.Box(0.0, 9.0, (20,), np.float32)
    for high, shape in ((255, (4, 5)), (9, (20,))):
        assert having(high).reset(seed=0)[0]["state"].shape == shape


def test_a_state_function_owes_nothing_to_the_games_state_space() -> None:
    game = edited(state_space=spaces.Box(0.0, 1.0, (2,)), state=lambda self: np.zeros(2))
    space = TeamEnv(game, state=lambda game: np.arange(6.0).reshape(2, 3)).observation_space["state"]
    assert space == spaces.Box(-np.inf, np.inf, (6,), np.float32)
