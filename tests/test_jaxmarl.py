"""JaxMARL's games as teams. Few games and batch sizes, as each of their combinations takes seconds to compile."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env as check_gymnasium_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from stable_baselines3.common.env_checker import check_env as check_sb3_env
from teams import FAST

from hmasd_sb3 import HMASD, make_team_vec_env
from hmasd_sb3.envs import jaxmarl_games
from hmasd_sb3.wrappers import GymVectorTeamVecEnv
from hmasd_sb3.wrappers.jaxmarl_vec import JaxMARLTeamEnv, JaxMARLVectorEnv

# Code that is compiled in half the time; it has to be said before JAX starts.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

# Asked for without importing it: that takes seconds in every test process.
if find_spec("jaxmarl") is None:
    pytest.skip("needs the extra 'jaxmarl'", allow_module_level=True)

B = 32
KITCHEN: dict[str, Any] = {"game": "overcooked", "layout": "cramped_room", "max_steps": 60}
BATTLE: dict[str, Any] = {"game": "HeuristicEnemySMAX", "scenario": "3m"}
# One game and many are compiled differently, and so may round differently.
ROUNDING = 1e-5
# Here the team cannot lose: it wins if it fights, and runs into the time limit if not.
EASY_BATTLE: dict[str, Any] = {**BATTLE, "enemy_shoots": False, "max_steps": 40}
IDS = [
    "Overcooked-CrampedRoom-v0",
    "Overcooked-AsymmetricAdvantages-v0",
    "Overcooked-CoordinationRing-v0",
    "SMAX-3m-v0",
    "SMAX-2s3z-v0",
]
UP, DOWN, RIGHT, LEFT, STAY, INTERACT = range(6)
# The first unit action that is no movement: attack the first enemy.
STOP, ATTACK = 4, 5


def same(left: Any, right: Any, message: str = "", atol: float = 0.0) -> None:
    assert set(left) == set(right)
    for key in left:
        assert left[key].dtype == right[key].dtype, key
        np.testing.assert_allclose(left[key], right[key], rtol=0.0, atol=atol, err_msg=f"{key} {message}")


def legal_actions(observation: dict[str, np.ndarray], space: Any, rng: np.random.Generator) -> np.ndarray:
    """Random ones: (..., N) for masks (..., N, A)."""
    shape = (*observation["obs"].shape[:-1], space.nvec.flat[0])
    mask = observation.get("action_mask", np.ones(shape))
    return (rng.random(shape) * mask).argmax(-1)


class HandStepped:
    """One game played by JaxMARL's own functions, not vectorised, with the random stream that a seed stands for.

    ``reset`` and ``step`` return all that there is to compare with, as NumPy arrays.
    """

    compiled: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {}

    def __init__(self, name: str, env: Any, seed: int) -> None:
        import jax

        def available(state: Any) -> Any:
            return env.get_avail_actions(state) if name == "battle" else {}

        def reset(key: Any) -> Any:
            key, now = jax.random.split(key)
            views, state = env.reset(now)
            return key, state, (views, available(state))

        def step(key: Any, state: Any, actions: Any) -> Any:
            key, now = jax.random.split(key)
            by_agent = {agent: actions[i] for i, agent in enumerate(env.agents)}
            views, state, rewards, dones, _ = env.step_env(now, state, by_agent)
            return key, state, (views, available(state), rewards, dones)

        if name not in self.compiled:
            self.compiled[name] = (jax.jit(reset), jax.jit(step))
        self._reset, self._step = self.compiled[name]
        self._numpy = lambda tree: jax.tree.map(np.asarray, tree)
        self.key = jax.random.key(seed)

    def reset(self) -> Any:
        self.key, self.state, seen = self._reset(self.key)
        return self._numpy(seen)

    def step(self, actions: np.ndarray) -> Any:
        self.key, self.state, seen = self._step(self.key, self.state, np.asarray(actions, dtype=np.int32))
        return self._numpy(seen)


def jaxmarl_make(name: str, **kwargs: Any) -> Any:
    import jaxmarl

    return jaxmarl.make(name, **kwargs)


@pytest.fixture(scope="module")
def battle() -> JaxMARLVectorEnv:
    return JaxMARLVectorEnv(num_envs=B, **BATTLE)


@pytest.fixture(scope="module")
def kitchen() -> JaxMARLVectorEnv:
    return JaxMARLVectorEnv(num_envs=B, **KITCHEN)


@pytest.mark.filterwarnings("ignore:OvercookedV2:DeprecationWarning")
def test_kitchens_equal_hand_stepped_ones(kitchen: JaxMARLVectorEnv) -> None:
    from jaxmarl.environments.overcooked import overcooked_layouts

    env = jaxmarl_make("overcooked", layout=overcooked_layouts["cramped_room"], max_steps=60)
    games = [HandStepped("kitchen", env, 5 + row) for row in range(B)]

    def expected(maps: Any) -> dict[str, np.ndarray]:
        obs = np.stack([maps["agent_0"].ravel(), maps["agent_1"].ravel()]).astype(np.float32)
        return {"obs": obs, "state": obs[0]}

    observations, _ = kitchen.reset(seed=5)
    for row, game in enumerate(games):
        same({key: value[row] for key, value in observations.items()}, expected(game.reset()[0]))
    rng = np.random.default_rng(0)
    for step in range(1, 71):
        actions = rng.integers(6, size=(B, 2))
        observations, rewards, terminations, truncations, infos = kitchen.step(actions)
        assert kitchen.observation_space.contains(observations)
        assert not terminations.any()
        assert truncations.all() == truncations.any() == (step % 60 == 0)
        for row, game in enumerate(games):
            maps, _, reward, dones = game.step(actions[row])
            assert rewards[row] == float(reward["agent_0"])
            assert truncations[row] == bool(dones["__all__"])
            if truncations[row]:
                same(infos["final_obs"][row], expected(maps))
                maps = game.reset()[0]
            same({key: value[row] for key, value in observations.items()}, expected(maps), f"row {row}, step {step}")


def test_battles_equal_hand_stepped_ones(battle: JaxMARLVectorEnv) -> None:
    from jaxmarl.environments.smax import map_name_to_scenario

    env = jaxmarl_make("HeuristicEnemySMAX", scenario=map_name_to_scenario("3m"), walls_cause_death=False)
    games = [HandStepped("battle", env, 7 + row) for row in range(B)]

    def expected(views: Any, available: Any, present: np.ndarray) -> dict[str, np.ndarray]:
        mask = np.stack([available[f"ally_{i}"] for i in range(3)]).astype(np.int8)
        mask[~present] = 1
        return {
            "obs": np.stack([views[f"ally_{i}"] for i in range(3)]),
            "state": views["world_state"],
            "action_mask": mask,
            "agent_mask": present.astype(np.int8),
        }

    observations, _ = battle.reset(seed=7)
    alive = np.ones((B, 3), dtype=bool)
    for row, game in enumerate(games):
        same({key: value[row] for key, value in observations.items()}, expected(*game.reset(), alive[row]), atol=ROUNDING)
    rng = np.random.default_rng(0)
    endings = 0
    for step in range(60):
        # A dead unit's actions are anything, and for JaxMARL itself the one that it allows.
        actions = legal_actions(observations, battle.single_action_space, rng)
        observations, rewards, terminations, truncations, infos = battle.step(actions)
        for row, game in enumerate(games):
            before = alive[row].copy()
            views, available, _, dones = game.step(np.where(before, actions[row], STOP))
            units = np.asarray(game.state.state.unit_alive)
            alive[row] = units[:3]
            won, lost = not units[3:].any(), not units[:3].any()
            assert (terminations[row] or truncations[row]) == bool(dones["__all__"])
            assert terminations[row] == (won or lost)
            assert rewards[row] == float(won and not lost)
            present = alive[row]
            if terminations[row] or truncations[row]:
                endings += 1
                same(infos["final_obs"][row], expected(views, available, before), atol=ROUNDING)
                assert infos["final_info"]["is_success"][row] == (won and not lost)
                views, available = game.reset()
                alive[row] = present = np.ones(3, dtype=bool)
            played = {key: value[row] for key, value in observations.items()}
            same(played, expected(views, available, present), f"row {row}, step {step}", ROUNDING)
    assert endings > B


@pytest.mark.parametrize("kwargs", [KITCHEN, BATTLE], ids=["kitchen", "battle"])
def test_single_environments_equal_the_rows_and_infos_have_gymnasiums_layout(kwargs: dict[str, Any]) -> None:
    n = 3
    rows = JaxMARLVectorEnv(num_envs=B, **kwargs)
    single = SyncVectorEnv([lambda: JaxMARLTeamEnv(**kwargs)] * n, autoreset_mode=AutoresetMode.SAME_STEP)
    assert rows.single_observation_space == single.single_observation_space
    assert rows.single_action_space == single.single_action_space
    left = rows.reset(seed=3)[0]
    right = single.reset(seed=3)[0]
    rng = np.random.default_rng(1)
    ended = 0
    for _ in range(125):
        same({key: value[:n] for key, value in left.items()}, right, atol=ROUNDING)
        actions = legal_actions(left, rows.single_action_space, rng)
        left, *left_end, left_info = rows.step(actions)
        right, *right_end, right_info = single.step(actions[:n])
        for a, b in zip(left_end, right_end, strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a[:n], b)
        if not right_info:
            continue
        ended += 1
        assert set(left_info) == set(right_info)
        for key in ("_final_obs", "_final_info"):
            np.testing.assert_array_equal(left_info[key][:n], right_info[key])
        assert set(left_info["final_info"]) == set(right_info["final_info"])
        for key, value in left_info["final_info"].items():
            assert value.dtype == right_info["final_info"][key].dtype
            np.testing.assert_array_equal(value[:n], right_info["final_info"][key])
        for a, b in zip(left_info["final_obs"][:n], right_info["final_obs"], strict=True):
            assert (a is None) == (b is None)
            if a is not None:
                same(a, b, atol=ROUNDING)
    assert ended >= 2


def test_a_delivered_soup_counts_once_for_the_team() -> None:
    env = JaxMARLTeamEnv(**KITCHEN)
    env.reset(seed=0)
    onion_to_pot = [LEFT, INTERACT, RIGHT, UP, INTERACT]
    # The first LEFT of all only turns, as the cook stands before the onions; the others walk back there and then turn.
    cook = onion_to_pot + 2 * [LEFT, *onion_to_pot]
    fetch_plate = [LEFT, DOWN, DOWN, INTERACT, UP, RIGHT, UP]
    serve = [INTERACT, DOWN, RIGHT, DOWN, INTERACT]
    rewards = [env.step(np.array([action, STAY]))[1] for action in cook + fetch_plate + 15 * [STAY] + serve]
    assert rewards == [0.0] * (len(rewards) - 1) + [20.0]


def test_wins_and_time_limits_are_told_apart() -> None:
    env = GymVectorTeamVecEnv(JaxMARLVectorEnv(num_envs=B, **EASY_BATTLE))
    env.seed(0)
    observations = env.reset()
    fighters = np.arange(B) < B // 2
    lengths = np.zeros(B, dtype=int)
    over = np.zeros(B, dtype=bool)
    for _ in range(41):
        attack = observations["action_mask"][..., ATTACK:]
        # Shoot at whom one can; walk to the right, where the enemies are, otherwise.
        fight = np.where(attack.any(-1), ATTACK + attack.argmax(-1), 1)
        observations, rewards, dones, infos = env.step(np.where(fighters[:, None], fight, STOP))
        lengths += ~over
        for row in np.flatnonzero(dones & ~over):
            assert infos[row]["TimeLimit.truncated"] == (not fighters[row]), (row, lengths[row])
            assert infos[row]["is_success"] is bool(fighters[row])
            assert rewards[row] == float(fighters[row])
            assert infos[row]["terminal_observation"]["agent_mask"].all()
        assert not rewards[~dones].any()
        assert not any("is_success" in infos[row] for row in np.flatnonzero(~dones))
        over |= dones
    assert over.all()
    # JaxMARL counts one step more than max_steps.
    assert (lengths[~fighters] == 41).all()


def test_masks_of_random_battles_hold(battle: JaxMARLVectorEnv) -> None:
    observations, _ = battle.reset(seed=100)
    rng = np.random.default_rng(2)
    lost = 0
    for _ in range(4000 // B):
        masks, present = observations["action_mask"], observations["agent_mask"]
        assert battle.observation_space.contains(observations)
        assert masks[..., STOP].all()
        assert masks[present == 0].all()
        assert not observations["obs"][present == 0].any()
        assert present.any(axis=1).all()
        before = present
        observations, rewards, terminations, truncations, infos = battle.step(
            legal_actions(observations, battle.single_action_space, rng)
        )
        for row in np.flatnonzero(terminations | truncations):
            # Whoever took part in the last step was in until the end, even if it died in it.
            np.testing.assert_array_equal(infos["final_obs"][row]["agent_mask"], before[row])
            lost += int(terminations[row] and rewards[row] == 0)
            assert observations["agent_mask"][row].all()
    assert lost > 20


def test_a_dead_units_action_changes_nothing(battle: JaxMARLVectorEnv) -> None:
    other = JaxMARLVectorEnv(num_envs=B, **BATTLE)
    left, right = battle.reset(seed=4)[0], other.reset(seed=4)[0]
    rng = np.random.default_rng(3)
    differed = 0
    for _ in range(60):
        same(left, right)
        actions = legal_actions(left, battle.single_action_space, rng)
        dead = left["agent_mask"] == 0
        differed += int(dead.sum())
        left = battle.step(np.where(dead, ATTACK, actions))[0]
        right = other.step(np.where(dead, 1, actions))[0]
    assert differed > 50


def test_seeds(kitchen: JaxMARLVectorEnv) -> None:
    first = kitchen.reset(seed=11)[0]
    again = kitchen.reset()[0]
    assert (first["state"] != again["state"]).any()
    same(kitchen.reset(seed=11)[0], first)
    same(kitchen.reset()[0], again)
    shifted = kitchen.reset(seed=12)[0]
    np.testing.assert_array_equal(shifted["state"][:-1], first["state"][1:])
    assert len(np.unique(first["state"], axis=0)) > 8
    with pytest.raises(ValueError, match="seed must be from 0"):
        kitchen.reset(seed=-1)
    with pytest.raises(ValueError, match="one seed per environment"):
        kitchen.reset(seed=[1, 2])
    kitchen.reset(seed=2**31 - 1)
    high, low = kitchen.reset(seed=2**32 + 5)[0], kitchen.reset(seed=5)[0]
    assert (high["state"] != low["state"]).any()


def test_reset_mask_restarts_the_marked_rows_alone(battle: JaxMARLVectorEnv) -> None:
    battle.reset(seed=0)
    before = battle.step(np.full((B, 3), STOP))[0]
    mask = np.arange(B) == 1
    after, _ = battle.reset(seed=[None] + [77] * (B - 1), options={"reset_mask": mask})
    same({key: value[~mask] for key, value in after.items()}, {key: value[~mask] for key, value in before.items()})
    fresh, _ = battle.reset(seed=77)
    np.testing.assert_array_equal(after["state"][1], fresh["state"][0])
    with pytest.raises(ValueError, match="reset_mask must have the shape"):
        battle.reset(options={"reset_mask": [True]})
    with pytest.raises(RuntimeError, match="first reset must start all rows"):
        JaxMARLVectorEnv(num_envs=B, **BATTLE).reset(options={"reset_mask": mask})


def test_observations_are_the_callers_own(battle: JaxMARLVectorEnv) -> None:
    first, _ = battle.reset(seed=0)
    kept = {key: value.copy() for key, value in first.items()}
    second = battle.step(np.full((B, 3), STOP))[0]
    same(first, kept)
    for value in (*first.values(), *second.values()):
        value[...] = 0  # must neither be refused nor reach the game
    after = battle.step(np.full((B, 3), STOP))[0]
    assert after["agent_mask"].all()


def test_a_step_is_compiled_once(battle: JaxMARLVectorEnv) -> None:
    battle.reset(seed=0)
    for _ in range(3):
        battle.step(np.full((B, 3), STOP))
    battle.reset(options={"reset_mask": np.arange(B) == 0})
    battle.step(np.full((B, 3), STOP))
    assert battle.game.batched.step_and_restart._cache_size() == 1  # type: ignore[attr-defined]


@pytest.mark.parametrize(("env_id", "kwargs"), [("Overcooked-CrampedRoom-v0", {"max_steps": 60}), ("SMAX-3m-v0", {})])
@pytest.mark.filterwarnings("ignore:.*unconventional shape", "ignore:.*infinity")
def test_single_environments_pass_the_checkers(env_id: str, kwargs: dict[str, Any]) -> None:
    env = gym.make(env_id, **kwargs)
    check_gymnasium_env(env.unwrapped, skip_render_check=True)
    check_sb3_env(env.unwrapped)


@pytest.mark.parametrize("env_id", IDS)
def test_registered_games_have_pictures_and_the_promised_sizes(env_id: str) -> None:
    env = gym.make(env_id, render_mode="rgb_array")
    with pytest.raises(RuntimeError, match="call reset"):
        env.unwrapped.render()
    observation, _ = env.reset(seed=0)
    assert env.observation_space.contains(observation)
    frame = env.render()
    assert isinstance(frame, np.ndarray)
    assert frame.ndim == 3
    assert frame.shape[2] == 3
    assert len(np.unique(frame.reshape(-1, 3), axis=0)) > 4
    game = env.unwrapped.game
    assert ("action_mask" in game.observation_space.spaces) == ("SMAX" in env_id)
    if "Overcooked" in env_id:
        assert game.batched is jaxmarl_games.jaxmarl_game("overcooked", layout=game.name.split()[1]).batched


def test_pictures_follow_the_game(battle: JaxMARLVectorEnv) -> None:
    env = JaxMARLVectorEnv(num_envs=B, render_mode="rgb_array", **BATTLE)
    env.reset(seed=0)
    frames = env.render()
    assert frames is not None
    assert len(frames) == B
    assert (frames[0] != frames[1]).any()
    env.step(np.zeros((B, 3), dtype=int))
    moved = env.render()
    assert moved is not None
    assert (moved[0] != frames[0]).any()
    assert battle.render() is None


def test_hmasd_learns_on_a_registered_id() -> None:
    env = make_team_vec_env("Overcooked-CrampedRoom-v0", B, seed=0, env_kwargs={"max_steps": 60})
    model = HMASD("MlpPolicy", env, **FAST)
    model.learn(3 * B * FAST["n_steps"])
    assert model.num_timesteps == 3 * B * FAST["n_steps"]
    env.reset()
    for _ in range(60):
        _, _, dones, infos = env.step(np.full((B, 2), STAY))
    assert dones.all()
    assert infos[0]["TimeLimit.truncated"] is True
    assert infos[0]["episode"]["l"] == 60
    assert infos[0]["terminal_observation"]["obs"].shape == (2, 520)


def test_other_games_by_name() -> None:
    env = JaxMARLVectorEnv("MPE_simple_spread_v3", 2, max_steps=5)
    observations, _ = env.reset(seed=0)
    game = HandStepped("spread", jaxmarl_make("MPE_simple_spread_v3", max_steps=5), 1)
    game.reset()
    for step in range(1, 7):
        np.testing.assert_array_equal(observations["obs"].reshape(2, -1), observations["state"])
        observations, rewards, terminations, truncations, _ = env.step(np.ones((2, 3), dtype=int))
        each = game.step(np.ones(3))[2]
        assert rewards[1] == pytest.approx(sum(float(reward) for reward in each.values()), rel=1e-6)
        assert not terminations.any()
        assert truncations.all() == (step == 6)


def test_any_known_game_has_an_id() -> None:
    env = gym.make("JaxMARL-v0", game="MPE_simple_spread_v3", max_steps=5)
    assert env.unwrapped.game is jaxmarl_games.jaxmarl_game("MPE_simple_spread_v3", max_steps=5)
    venv = make_team_vec_env("JaxMARL-v0", 2, env_kwargs={"max_steps": 5, "game": "MPE_simple_spread_v3"}, seed=0)
    assert venv.reset()["obs"].shape == (2, 3, 18)
    assert venv.action_space.nvec.tolist() == [5, 5, 5]
