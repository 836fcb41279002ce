"""TeamEnv beside its steps: copies, options, aliasing, rendering, and SuperSuit's wrappers around the game."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import supersuit
from contract import Reference, assert_same, follow, legal_actions
from games import ContinuousGame, MaskedGame, TimeLimitGame, edited, step_once
from gymnasium import spaces
from hard_games import DyingGame, HeterogeneousGame, JoiningGame, MaskedHeterogeneousGame, PictureGame

from hmasd_sb3.wrappers import TeamEnv


@pytest.mark.parametrize("copy_of", [copy.deepcopy, lambda team: pickle.loads(pickle.dumps(team))], ids=["copy", "pickle"])
@pytest.mark.parametrize("make", [DyingGame, ContinuousGame, MaskedHeterogeneousGame, PictureGame])
def test_copies_go_on_by_themselves(make: Any, copy_of: Any) -> None:
    team = TeamEnv(make())
    rng = np.random.default_rng(0)
    observation, _ = team.reset(seed=3)
    other = copy_of(team)
    assert other.parallel_env is not team.parallel_env
    done = False
    while not done:
        action = legal_actions(team.action_space, observation, rng)
        observation, *rest = team.step(action)
        theirs, *their_rest = other.step(action)
        assert_same(theirs, observation)
        assert their_rest == rest
        done = rest[1] or rest[2]


def test_seeds_and_options_reach_the_game() -> None:
    asked = []

    class Asked(TimeLimitGame):
        def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
            asked.append((seed, options))
            return super().reset(seed, options)

    team = TeamEnv(Asked())
    team.reset(seed=3, options={"level": 2})
    team.reset()
    assert asked == [(None, None), (3, {"level": 2}), (None, None)]


def test_nothing_returned_changes_later_and_nothing_given_is_kept() -> None:
    class Hoarder(HeterogeneousGame):
        """Keeps its actions, and writes what it shows into the same arrays again and again."""

        def observe(self, agent: str) -> Any:
            shown = self.__dict__.setdefault("shown", {})
            value = super().observe(agent)
            shown.setdefault(agent, np.empty_like(value))[:] = value
            return shown[agent]

        def state(self) -> np.ndarray:
            return self.marks

        discriminator_state_space = spaces.Box(-9.0, 9.0, (3,))

        def discriminator_state(self) -> np.ndarray:
            return self.shown["agent_2"]

        def step(self, actions: dict[str, Any]) -> Any:
            for action in actions.values():
                action[...] = 0
            self.marks += 1
            return super().step(actions)

    team = TeamEnv(Hoarder(continuous=True, deaths=True))
    observation, _ = team.reset(seed=2)
    story = []
    for _ in range(3):
        action = np.ones(team.action_space.shape, np.float32)
        story.append((observation, copy.deepcopy(observation)))
        observation, *_ = team.step(action)
        assert (action == 1).all()
    for now, then in story:
        assert_same(now, then)


def test_an_error_of_the_game_is_passed_on_and_closing_twice_is_harmless() -> None:
    class Broken(TimeLimitGame):
        def step(self, actions: dict[str, Any]) -> Any:
            raise ZeroDivisionError("of the game's own")

    team = TeamEnv(Broken())
    with pytest.raises(ZeroDivisionError, match="own"):
        step_once(team)
    team.close()
    team.close()


def test_render_modes_and_metadata_are_the_games() -> None:
    team = TeamEnv(edited(metadata={"render_modes": ["rgb_array"], "render_fps": 7}, render=lambda self: "picture"))
    assert team.metadata["render_modes"] == ["rgb_array"]
    assert team.metadata["render_fps"] == 7
    assert team.render_mode is None
    assert team.render() == "picture"
    bare = TimeLimitGame()
    bare.metadata = None
    del bare.render_mode
    bare.state = lambda: np.zeros(2)
    assert TeamEnv(bare).metadata == {"render_modes": []}
    assert TeamEnv(bare).render_mode is None


def test_masks_in_the_infos_of_those_who_are_there_will_do() -> None:
    class MaskedJoining(JoiningGame):
        """The second agent, who comes late, has no info before."""

        def mask(self, agent: str) -> np.ndarray:
            return np.array([1, (self.clock + self.possible_agents.index(agent)) % 2], dtype=np.int8)

        def info(self, agent: str) -> dict[str, Any]:
            return {"action_mask": self.mask(agent)}

    assert follow(TeamEnv(MaskedJoining()), Reference(MaskedJoining()), steps=60)


def test_masks_of_agents_that_act_by_boxes_are_refused_in_infos_too() -> None:
    with pytest.raises(ValueError, match="act by a Box"):
        TeamEnv(edited(ContinuousGame, info=lambda self, agent: {"action_mask": np.ones(2, np.int8)}))
    late = edited(ContinuousGame, info=lambda self, agent: {"action_mask": np.ones(2, np.int8)} if self.clock else {})
    team = TeamEnv(late)
    team.reset(seed=0)
    with pytest.raises(ValueError, match="now carries an 'action_mask'"):
        team.step(np.zeros((2, 2)))


def test_attributes_are_the_teams_then_the_games() -> None:
    game = TimeLimitGame()
    game.n_agents, game.level = 99, 1
    team = TeamEnv(supersuit.frame_stack_v1(game, 2))
    assert team.get_wrapper_attr("n_agents") == 2
    assert team.get_wrapper_attr("level") == 1
    assert team.set_wrapper_attr("level", 5)
    assert game.level == 5
    assert "level" not in vars(team)
    assert not team.set_wrapper_attr("new", 1, force=False)
    assert not team.has_wrapper_attr("new")
    with pytest.raises(AttributeError, match="neither the team nor its game has 'new'"):
        team.get_wrapper_attr("new")
    assert team.set_wrapper_attr("new", 1)
    assert team.new == 1
    assert not hasattr(game, "new")


def test_box_actions_must_be_numbers() -> None:
    team = TeamEnv(ContinuousGame())
    team.reset(seed=0)
    for wrong in (np.array([["a", "b"], ["c", "d"]]), np.array([[None, 1], [1, 1]]), np.zeros((2, 2), bool)):
        with pytest.raises(ValueError, match="must be numbers; got"):
            team.step(wrong)


@pytest.mark.parametrize(("size", "joined"), [((3, 20, 24), (6, 20, 24)), ((20, 24, 3), (20, 24, 6)), ((20, 24), (20, 24, 2))])
def test_pictures_are_joined_along_their_channels_without_making_spaces(
    size: tuple[int, ...], joined: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    team = TeamEnv(PictureGame(size))
    assert team.observation_space["state"] == spaces.Box(0, 255, joined, np.uint8)
    team.reset(seed=0)

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a space was made while an episode ran")

    monkeypatch.setattr(spaces.Box, "__init__", refuse)
    observation, *_ = team.step(np.array([0, 1]))
    axis = 0 if size[0] == 3 else -1
    pictures = [np.atleast_3d(picture) for picture in observation["obs"]]
    np.testing.assert_array_equal(observation["state"], np.concatenate(pictures, axis=axis))
    assert not np.shares_memory(observation["state"], observation["obs"])


# ---- SuperSuit's wrappers, around the game


def three_frames(game: Any) -> Any:
    return supersuit.frame_stack_v1(game, 3)


def normalised(game: Any) -> Any:
    return supersuit.normalize_obs_v0(supersuit.dtype_v0(game, np.float32))


def padded(game: Any) -> Any:
    return supersuit.pad_action_space_v0(supersuit.pad_observations_v0(game))


def numbered(game: Any) -> Any:
    return supersuit.agent_indicator_v0(supersuit.pad_observations_v0(game))


def largest_of_two(game: Any) -> Any:
    return supersuit.max_observation_v0(game, 2)


def late(game: Any) -> Any:
    return supersuit.delay_observations_v0(game, 2)


def as_bytes_flat(game: Any) -> Any:
    return supersuit.flatten_v0(game)


def clipped(game: Any) -> Any:
    return supersuit.clip_actions_v0(supersuit.clip_reward_v0(game))


def dying_differently() -> Any:
    return HeterogeneousGame(deaths=True)


def dying_continuous() -> Any:
    return HeterogeneousGame(continuous=True, deaths=True)


def dying_masked() -> Any:
    return MaskedHeterogeneousGame("info")


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("wrap", "make"),
    [
        *[(wrap, make) for wrap in (three_frames, normalised, padded, numbered) for make in (DyingGame, dying_differently)],
        *[(wrap, make) for wrap in (three_frames, normalised, padded, numbered) for make in (JoiningGame, PictureGame)],
        *[(wrap, dying_masked) for wrap in (three_frames, normalised, largest_of_two, late)],
        *[(wrap, DyingGame) for wrap in (largest_of_two, late, as_bytes_flat, supersuit.nan_zeros_v0)],
        *[(clipped, make) for make in (ContinuousGame, dying_continuous)],
        (as_bytes_flat, PictureGame),
        (supersuit.nan_zeros_v0, MaskedGame),
    ],
)
def test_wrapped_games_are_teams_like_any_other(wrap: Callable[[Any], Any], make: Callable[[], Any]) -> None:
    ends = follow(TeamEnv(wrap(make())), Reference(wrap(make())), steps=80)
    assert ends


def test_black_death_is_taken_out() -> None:
    """It hides who is dead, and how an episode ended."""
    ends = follow(TeamEnv(supersuit.black_death_v3(DyingGame())), Reference(DyingGame()), steps=80)
    assert ends == {False, True}


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_padding_actions_below_masks_is_refused_with_the_sizes() -> None:
    """As the masks are not padded along. TeamEnv pads both."""
    with pytest.raises(ValueError, match=r"one entry for each of the 5 actions of 'agent_0'; its space is MultiBinary\(2\)"):
        TeamEnv(supersuit.pad_action_space_v0(MaskedHeterogeneousGame()))
    with pytest.raises(ValueError, match=r"mask of 'agent_0' has the shape \(2,\), but its space says \(5,\)"):
        TeamEnv(supersuit.pad_action_space_v0(MaskedHeterogeneousGame("info"))).reset(seed=0)
