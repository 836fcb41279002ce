"""Alice and Bob: its rules, what is seen of it, its registration and its pictures."""

import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector.utils import batch_space
from pettingzoo.test import parallel_api_test, parallel_seed_test

from hmasd_sb3.envs import AliceAndBobParallelEnv, parallel_env, register_envs
from hmasd_sb3.envs.alice_and_bob_rules import encode_positions
from hmasd_sb3.envs.alice_and_bob_vector import AliceAndBobVectorEnv
from hmasd_sb3.wrappers import TeamEnv

UP, DOWN, LEFT, RIGHT, STAY = range(5)
LAST = 7  # of the default map's columns and rows
BLUE_BUTTON, RED_BUTTON, RED_DIAMOND, BLUE_DIAMOND = (0, 0), (LAST, 0), (0, LAST), (LAST, LAST)
# Into the wall, which stands still, at each corner.
BUMP = {BLUE_BUTTON: UP, RED_BUTTON: UP, RED_DIAMOND: DOWN, BLUE_DIAMOND: DOWN}


def placed(alice: tuple[int, int], bob: tuple[int, int], **kwargs: Any) -> AliceAndBobParallelEnv:
    game = parallel_env(**kwargs)
    game.reset(seed=0, options={"positions": {"alice": alice, "bob": bob}})
    return game


def act(game: AliceAndBobParallelEnv, alice: int, bob: int) -> tuple[Any, ...]:
    return game.step({"alice": alice, "bob": bob})


def move_to(game: AliceAndBobParallelEnv, alice: tuple[int, int], bob: tuple[int, int]) -> None:
    """Put the agents elsewhere within the episode."""
    game._cells[:] = [game.world.cell(*alice), game.world.cell(*bob)]


def position(observation: np.ndarray) -> tuple[int, int]:
    y, x = divmod(int(observation[:64].argmax()), 8)
    return x, y


def flags(observation: np.ndarray) -> list[float]:
    return observation[-2:].tolist()


# ---- the rules


@pytest.mark.parametrize(("action", "end"), [(UP, (3, 2)), (DOWN, (3, 4)), (LEFT, (2, 3)), (RIGHT, (4, 3)), (STAY, (3, 3))])
def test_moves(action: int, end: tuple[int, int]) -> None:
    game = placed((3, 3), (5, 5), allow_stay=True)
    observations = act(game, action, STAY)[0]
    assert position(observations["alice"]) == end
    assert position(observations["bob"]) == (5, 5)


@pytest.mark.parametrize(("start", "action"), [((3, 0), UP), ((3, LAST), DOWN), ((0, 3), LEFT), ((LAST, 3), RIGHT)])
def test_bumping_into_the_wall_stands_still(start: tuple[int, int], action: int) -> None:
    assert position(act(placed(start, (4, 4)), action, UP)[0]["alice"]) == start


def test_stay_exists_only_on_request() -> None:
    assert parallel_env().action_space("alice").n == 4
    assert parallel_env(allow_stay=True).action_space("bob").n == 5
    with pytest.raises(ValueError, match="'alice' was given the action 4"):
        act(placed((1, 1), (2, 2)), STAY, UP)


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize(
    ("diamond", "button", "expected"), [(RED_DIAMOND, RED_BUTTON, [1, 0]), (BLUE_DIAMOND, BLUE_BUTTON, [0, 1])]
)
def test_a_diamond_needs_the_partner_on_its_button(
    diamond: tuple[int, int], button: tuple[int, int], expected: list[float], swap: bool
) -> None:
    on, off = (button, diamond) if swap else (diamond, button)
    game = placed(on, off)
    observations, rewards, terminations, truncations, infos = act(game, BUMP[on], BUMP[off])
    assert flags(observations["alice"]) == flags(observations["bob"]) == expected
    assert flags(game.state()) == expected
    assert rewards == {"alice": 0.0, "bob": 0.0}  # one diamond is worth nothing
    assert not any([*terminations.values(), *truncations.values()])
    assert infos == {"alice": {}, "bob": {}}


@pytest.mark.parametrize(
    ("alice", "bob"),
    [
        (RED_DIAMOND, (3, 3)),  # nobody on the button
        ((3, 3), RED_BUTTON),  # nobody on the diamond
        (RED_DIAMOND, RED_DIAMOND),  # both on the diamond
        (RED_BUTTON, RED_BUTTON),  # both on the button
        (RED_DIAMOND, BLUE_BUTTON),  # the other colour's button
        (RED_DIAMOND, BLUE_DIAMOND),
        (RED_BUTTON, BLUE_BUTTON),
    ],
)
def test_nothing_is_collected_without_one_agent_at_each(alice: tuple[int, int], bob: tuple[int, int]) -> None:
    game = placed(alice, bob)
    for _ in range(3):
        observations = act(game, BUMP.get(alice, UP), BUMP.get(bob, UP))[0]
        assert flags(observations["alice"]) == [0, 0]


def test_one_agent_cannot_be_button_and_diamond_in_turn() -> None:
    game = placed(RED_DIAMOND, (3, 3), allow_stay=True)
    act(game, STAY, STAY)
    move_to(game, RED_BUTTON, (3, 3))
    assert flags(act(game, STAY, STAY)[0]["alice"]) == [0, 0]


def test_a_collected_diamond_stays_collected_and_both_end_the_episode() -> None:
    game = placed(RED_DIAMOND, RED_BUTTON)
    assert flags(act(game, DOWN, UP)[0]["bob"]) == [1, 0]
    assert flags(act(game, UP, DOWN)[0]["bob"]) == [1, 0]
    move_to(game, BLUE_BUTTON, BLUE_DIAMOND)
    observations, rewards, terminations, truncations, infos = act(game, UP, DOWN)
    assert flags(observations["alice"]) == [1, 1]
    assert sum(rewards.values()) == 1.0
    assert terminations == {"alice": True, "bob": True}
    assert truncations == {"alice": False, "bob": False}
    assert infos == {"alice": {"is_success": True}, "bob": {"is_success": True}}
    assert game.agents == []
    with pytest.raises(RuntimeError, match="reset"):
        act(game, UP, UP)


def test_the_time_limit_truncates_and_does_not_terminate() -> None:
    game = placed((3, 3), (4, 4), max_steps=3)
    for step in (1, 2, 3):
        _, rewards, terminations, truncations, infos = act(game, UP, DOWN)
        assert not any(terminations.values())
        assert list(truncations.values()) == [step == 3] * 2
        assert sum(rewards.values()) == 0.0
    assert infos == {"alice": {"is_success": False}, "bob": {"is_success": False}}


def test_success_on_the_last_step_is_a_termination_alone() -> None:
    game = placed(BLUE_DIAMOND, BLUE_BUTTON, max_steps=1)
    game._collected[:] = [True, False]
    _, rewards, terminations, truncations, infos = act(game, DOWN, UP)
    assert sum(rewards.values()) == 1.0
    assert all(terminations.values())
    assert not any(truncations.values())
    assert infos["bob"]["is_success"] is True


def test_starts_cover_all_cells_and_may_coincide() -> None:
    game = parallel_env(size=3)
    starts = []
    game.reset(seed=0)
    for _ in range(600):
        observations, _ = game.reset()
        starts.append([int(observations[agent][:9].argmax()) for agent in game.possible_agents])
    cells = np.array(starts)
    for agent in range(2):
        counts = np.bincount(cells[:, agent], minlength=9)
        assert counts.min() > 600 / 9 * 0.6
        assert counts.max() < 600 / 9 * 1.4
    assert 0.05 < (cells[:, 0] == cells[:, 1]).mean() < 0.18  # 1/9 if drawn independently


def test_positions_by_hand_must_be_of_this_game() -> None:
    with pytest.raises(ValueError, match="alice and bob; got 'carol'"):
        parallel_env().reset(options={"positions": {"carol": (0, 0)}})
    with pytest.raises(ValueError, match=r"within 0..7; got \(8, 0\)"):
        parallel_env().reset(options={"positions": {"bob": (8, 0)}})


@pytest.mark.parametrize(
    ("kwargs", "message"), [({"size": 1}, "size"), ({"max_steps": 0}, "max_steps"), ({"render_mode": "human"}, "ansi")]
)
def test_arguments_out_of_range_are_refused(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parallel_env(**kwargs)
    with pytest.raises(ValueError, match=message):
        AliceAndBobVectorEnv(2, **kwargs)


# ---- what is seen


def test_observations_and_state_lie_in_their_spaces() -> None:
    game = parallel_env(size=4)
    observations, _ = game.reset(seed=1)
    for _ in range(30):
        for agent in game.possible_agents:
            assert game.observation_space(agent).contains(observations[agent])
            assert game.discriminator_obs_space(agent).contains(game.discriminator_obs(agent))
        assert game.state_space.contains(game.state())
        assert game.discriminator_state_space.contains(game.discriminator_state())
        if not game.agents:
            break
        observations = game.step({agent: game.action_space(agent).sample() for agent in game.agents})[0]


def test_discriminators_see_scaled_coordinates_and_flags() -> None:
    game = placed((0, LAST), RED_BUTTON)
    assert game.discriminator_obs("alice").tolist() == [-1, 1, -1, -1]
    assert game.discriminator_obs("bob").tolist() == [1, -1, -1, -1]
    act(game, DOWN, UP)
    assert game.discriminator_state().tolist() == [-1, 1, 1, -1, 1, -1]


def test_state_is_both_positions_and_the_flags() -> None:
    game = placed((2, 1), (3, 4))
    codes = encode_positions(8)
    assert game.state().tolist() == [*codes[1 * 8 + 2], *codes[4 * 8 + 3], 0, 0]


def test_another_position_encoding_reaches_every_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    def row_and_column(size: int) -> np.ndarray:
        eye = np.eye(size, dtype=np.float32)
        return np.stack([np.concatenate([eye[y], eye[x]]) for y in range(size) for x in range(size)])

    monkeypatch.setattr("hmasd_sb3.envs.alice_and_bob_rules.encode_positions", row_and_column)
    game = placed((2, 1), (3, 4))
    assert game.observation_space("alice").shape == (18,)
    assert game.state().shape == game.state_space.shape == (34,)
    assert AliceAndBobVectorEnv(2).reset(seed=0)[0]["obs"].shape == (2, 2, 18)


# ---- registration, checkers and pictures


def test_gymnasium_makes_it() -> None:
    env = gym.make("AliceAndBob-v0", render_mode="rgb_array", max_steps=9)
    assert isinstance(env.unwrapped, TeamEnv)
    assert env.unwrapped.parallel_env.max_steps == 9
    assert env.spec is not None
    assert env.spec.max_episode_steps is None
    assert env.metadata["render_fps"] > 0
    env.reset(seed=0)
    assert env.render().dtype == np.uint8
    many = gym.make_vec("AliceAndBob-v0", num_envs=4)
    assert isinstance(many, AliceAndBobVectorEnv)
    assert many.observation_space == batch_space(env.observation_space, 4)


def test_registering_again_is_silent() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        register_envs()


@pytest.mark.parametrize("kwargs", [{}, {"allow_stay": True, "size": 3, "max_steps": 17}])
def test_pettingzoo_finds_no_fault(kwargs: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        parallel_api_test(parallel_env(**kwargs), num_cycles=300)
        parallel_seed_test(lambda: parallel_env(**kwargs), num_cycles=300)


def test_frames() -> None:
    game = placed((2, 3), (5, 5), render_mode="rgb_array")
    frame = game.render()
    assert frame.shape == (9 * 48, 9 * 48, 3)
    assert frame.dtype == np.uint8
    act(game, LEFT, UP)
    assert (game.render() != frame).any()
    bare = placed((2, 3), (5, 5))
    assert bare.render() is None


def test_a_collected_diamond_fades_in_the_picture() -> None:
    game = placed(RED_DIAMOND, RED_BUTTON, render_mode="rgb_array")
    act(game, DOWN, UP)
    move_to(game, (3, 3), (4, 4))
    with_it = placed((3, 3), (4, 4), render_mode="rgb_array").render()
    change = np.argwhere((game.render() != with_it).any(axis=-1))
    assert len(change) > 100
    # All of it within the bottom left cell, behind a wall half a cell thick.
    assert change[:, 0].min() >= 24 + 7 * 48
    assert change[:, 1].max() < 24 + 48


def test_text() -> None:
    text = placed((1, 0), (1, 1), size=3, render_mode="ansi").render()
    assert text.splitlines() == [
        "#" * 11,
        "#b_  .Ar_ #",
        "# .  .B . #",
        "#r*  . b* #",
        "#" * 11,
        "diamonds in hand: none",
    ]
    assert "&" in placed((1, 1), (1, 1), size=3, render_mode="ansi").render()
