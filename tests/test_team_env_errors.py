"""TeamEnv's refusals: which games and actions cannot make a team, and that the error says what to do."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from games import MaskedGame, TimeLimitGame, edited, step_once
from gymnasium import spaces
from pettingzoo.utils.conversions import parallel_to_aec

from hmasd_sb3.wrappers import TeamEnv


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: edited(make_observation_space=lambda self: spaces.Tuple([spaces.Sequence(spaces.Discrete(2))])),
            "fixed size.*'agent_0' holds Sequence",
        ),
        (lambda: edited(make_observation_space=lambda self: spaces.Text(5)), "fixed size.*Text"),
        (
            lambda: edited(make_observation_space=lambda self: spaces.Dict(action_mask=spaces.MultiBinary(2))),
            "nothing but an 'action_mask'",
        ),
        (lambda: edited(make_action_space=lambda self: spaces.MultiDiscrete([2, 3])), "MultiDiscrete.*one Discrete"),
        (lambda: edited(make_action_space=lambda self: spaces.Box(0, 5, (2,), np.int64)), "floats"),
        (
            lambda: edited(observation_space=lambda self, a: spaces.Box(0, 255, (8, 8 + int(a[-1]), 3), np.uint8)),
            "pictures must have one size.*resize",
        ),
        (
            lambda: edited(action_space=lambda self, a: spaces.Discrete(2) if a == "agent_0" else spaces.Box(-1, 1, (2,))),
            "share one policy; 'agent_0' has Discrete.2. and 'agent_1' has Box",
        ),
        (lambda: edited(discriminator_obs=lambda self, a: np.zeros(2)), "discriminator_obs_space"),
        (
            lambda: edited(
                discriminator_obs=lambda self, a: np.zeros(2),
                discriminator_obs_space=lambda self, a: spaces.Box(0, 1 + int(a[-1]), (2,)),
            ),
            "same discriminator observation space, but 'agent_0' has .* and 'agent_1' has",
        ),
        (lambda: edited(discriminator_state=lambda self: np.zeros(2)), "discriminator_state_space must be"),
        (lambda: edited(state_space=spaces.Discrete(3), state=lambda self: np.zeros(3)), "state_space must be"),
    ],
)
def test_unsuitable_spaces_are_refused_at_construction(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TeamEnv(make())


def test_masks_must_fit_the_actions() -> None:
    class TooShort(MaskedGame):
        def make_action_space(self) -> spaces.Space:
            return spaces.Discrete(4)

    class Continuous(MaskedGame):
        def make_action_space(self) -> spaces.Space:
            return spaces.Box(-1, 1, (3,))

    class ForOne(MaskedGame):
        def observation_space(self, agent: str) -> spaces.Space:
            space = super().observation_space(agent)
            return space if agent == "agent_0" else space["observation"]

    with pytest.raises(ValueError, match=r"some agents hold an 'action_mask', but not those of \['agent_1'\]"):
        TeamEnv(ForOne())
    with pytest.raises(ValueError, match="each of the 4 actions"):
        TeamEnv(TooShort())
    with pytest.raises(ValueError, match="Discrete"):
        TeamEnv(Continuous())


@pytest.mark.parametrize("mask_in", ["observation", "info"])
def test_masks_of_other_numbers_are_refused(mask_in: str) -> None:
    class Counted(MaskedGame):
        def mask(self, agent: str) -> np.ndarray:
            return 2 * super().mask(agent)

    with pytest.raises(ValueError, match=r"mask of 'agent_0' must hold 0 and 1 only; got \[0 2 2\]"):
        TeamEnv(Counted(mask_in)).reset(seed=0)


def test_absent_or_nameless_agents_are_refused() -> None:
    class Absent(TimeLimitGame):
        def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
            result = super().reset(seed, options)
            self.agents = ["agent_1"]
            return result

    with pytest.raises(ValueError, match=r"\['agent_0'\] left.*agent_mask=True"):
        TeamEnv(Absent(), agent_mask=False)

    class Empty(TimeLimitGame):
        def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
            result = super().reset(seed, options)
            self.agents = []
            return result

    with pytest.raises(ValueError, match="without agents"):
        TeamEnv(Empty())
    game = TimeLimitGame()
    game.possible_agents = []
    with pytest.raises(ValueError, match="possible_agents"):
        TeamEnv(game)


class Leaving(TimeLimitGame):
    """Agent 0 is gone after the first step; ``how`` says what the game reports about it."""

    how = "terminated"

    def step(self, actions: dict[str, Any]) -> Any:
        observations, rewards, terminations, truncations, infos = super().step(actions)
        self.agents = ["agent_1"]
        terminations["agent_0"], truncations["agent_0"] = self.how == "terminated", self.how == "truncated"
        if self.how in ("unreported", "half"):
            del truncations["agent_0"]
        if self.how == "unreported":
            del terminations["agent_0"]
        return observations, rewards, terminations, truncations, infos


@pytest.mark.parametrize("how", ["terminated", "truncated"])
def test_an_agent_that_leaves_although_none_may_is_refused_by_name(how: str) -> None:
    game = Leaving()
    game.how = how
    with pytest.raises(ValueError, match=r"agents were said to stay.*\['agent_0'\] left.*agent_mask=True"):
        step_once(TeamEnv(game, agent_mask=False))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("unreported", "did not say whether 'agent_0'"),
        ("half", "did not say whether 'agent_0'"),
        ("gone", "took 'agent_0' out"),
    ],
)
def test_an_agent_that_leaves_without_a_word_is_refused_by_name(how: str, message: str) -> None:
    game = Leaving()
    game.how = how
    with pytest.raises(ValueError, match=message):
        step_once(TeamEnv(game))


@pytest.mark.parametrize(
    ("observation", "message"),
    [
        (np.zeros(4, np.float32), r"'agent_0' has the shape \(4,\), but its space says \(3,\)"),
        (np.float32(0.5), "shape"),  # would be broadcast
        (np.array(["a", "b", "c"]), "numbers"),
    ],
)
def test_observations_of_another_shape_or_kind_are_refused(observation: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TeamEnv(edited(observe=lambda self, a: observation)).reset(seed=0)


def test_integers_that_would_be_rounded_are_refused() -> None:
    game = edited(
        make_observation_space=lambda self: spaces.Box(0, 255, (1,), np.uint8), observe=lambda self, a: np.array([0.5])
    )
    with pytest.raises(ValueError, match="uint8 cannot represent"):
        TeamEnv(game).reset(seed=0)


def test_missing_rewards_and_observations_are_refused() -> None:
    with pytest.raises(ValueError, match="no reward for 'agent_0'"):
        step_once(TeamEnv(edited(rewards=lambda self, actions: {"agent_1": 1.0})))

    class Silent(TimeLimitGame):
        def step(self, actions: dict[str, Any]) -> Any:
            return {}, *super().step(actions)[1:]

    with pytest.raises(ValueError, match="no observation for 'agent_0'"):
        step_once(TeamEnv(Silent()))


def test_what_is_no_parallel_env_is_refused() -> None:
    with pytest.raises(TypeError, match="call the factory"):
        TeamEnv(TimeLimitGame)
    with pytest.raises(TypeError, match="aec_to_parallel"):
        TeamEnv(parallel_to_aec(TimeLimitGame()))
    with pytest.raises(TypeError, match="got int"):
        TeamEnv(3)
    with pytest.raises(ValueError, match="'sum', 'mean'"):
        TeamEnv(TimeLimitGame(), reward="first")
    with pytest.raises(ValueError, match="None, 'joined'"):
        TeamEnv(TimeLimitGame(), state="own")
