"""The contract for many teams: each row is a team, whichever game it is and whatever runs the rows."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import supersuit
from contract import CASES, Case, assert_same, legal_actions
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecMonitor

from hmasd_sb3.wrappers import SuperSuitTeamVecEnv, as_team_env, make_team_vec_env

# Games of others, in other versions.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")

FORK = {"start_method": "fork"}  # the quickest to start
BACKENDS: dict[str, dict[str, Any]] = {
    "in this process": {"vec_env_cls": DummyVecEnv},
    "worker processes": {"n_workers": 2, "vec_env_kwargs": FORK},
    "restartable workers": {"n_workers": 2, "restart_workers": True, "vec_env_kwargs": FORK},
    "SubprocVecEnv": {"vec_env_cls": SubprocVecEnv, "vec_env_kwargs": FORK},
    "own vectorisation": {},
    "SuperSuit": {},
    "SuperSuit, processes": {"num_cpus": 2},
}
"""How many teams are run: arguments of make_team_vec_env, or of SuperSuit's concat_vec_envs_v1."""

NOT_FOR_SUPERSUIT = ("heterogeneous", "structured", "simple_speaker", "simple_adversary", "ant", "half cheetah")
"""Beginnings of names: agents differ there, or the game has no ``render_mode``. Turn-based games are none for it either."""
A_FEW = ("dying", "heterogeneous, mask in info", "pictures", "simple_spread")
"""Games of each kind, for ways that start many processes or differ little from another."""


def fits(case: Case, backend: str) -> bool:
    """Whether this way of running many is for this game."""
    if backend == "own vectorisation":
        return bool(case.id)
    if backend in ("restartable workers", "SubprocVecEnv", "SuperSuit, processes") and case.name not in A_FEW:
        return False
    return not backend.startswith("SuperSuit") or (not case.name.startswith(NOT_FOR_SUPERSUIT) and "AEC" not in case.name)


RUNS = [(case, name) for case in CASES for name in BACKENDS if fits(case, name)]


def make_many(case: Case, backend: str, n_rows: int) -> VecEnv:
    """Teams with the seeds from 9 on."""
    if backend.startswith("SuperSuit"):
        rows = supersuit.pettingzoo_env_to_vec_env_v1(case.game())
        venv: VecEnv = VecMonitor(SuperSuitTeamVecEnv(supersuit.concat_vec_envs_v1(rows, n_rows, **BACKENDS[backend])))
        venv.seed(9)
        return venv
    if backend == "own vectorisation":
        return make_team_vec_env(case.id, n_rows, seed=9, env_kwargs=case.kwargs)
    return make_team_vec_env(case.game, n_rows, seed=9, **BACKENDS[backend])


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # MuJoCo writes a log into the working directory


@pytest.mark.parametrize("times", [1, pytest.param(10, marks=pytest.mark.slow)], ids=["short", "long"])
@pytest.mark.parametrize(("case", "backend"), RUNS, ids=[f"{case.name}, {name}" for case, name in RUNS])
def test_rows_are_teams_stepped_by_hand(case: Case, backend: str, times: int) -> None:
    many_processes = backend in ("SubprocVecEnv", "SuperSuit, processes")
    n_rows = 4 if times == 1 and (case.heavy or many_processes) else 32
    teams = [as_team_env(case.game()) for _ in range(n_rows)]
    venv = make_many(case, backend, n_rows)
    try:
        compare(venv, teams, steps=max(12, case.steps // 6) * (1 if case.heavy else times))
    finally:
        venv.close()


def compare(venv: VecEnv, teams: list[Any], steps: int) -> None:
    rng = np.random.default_rng(2)
    assert venv.observation_space == teams[0].observation_space
    assert venv.action_space == teams[0].action_space
    found: Any = venv.reset()
    expected = [team.reset(seed=9 + row)[0] for row, team in enumerate(teams)]
    for step in range(steps):
        assert_same(found, {key: np.stack([e[key] for e in expected]) for key in expected[0]}, f"step {step}")
        actions = legal_actions(venv.action_space, found, rng, len(teams))
        found, rewards, dones, infos = venv.step(actions)
        assert rewards.shape == dones.shape == (len(teams),)
        assert dones.dtype == bool
        for row, team in enumerate(teams):
            expected[row], reward, terminated, truncated, _ = team.step(actions[row])
            assert np.float32(rewards[row]) == np.float32(reward)
            assert dones[row] == (terminated or truncated)
            assert infos[row]["TimeLimit.truncated"] == truncated
            assert ("terminal_observation" in infos[row]) == ("episode" in infos[row]) == bool(dones[row])
            if dones[row]:
                assert_same(infos[row]["terminal_observation"], expected[row], f"step {step}, row {row}")
                expected[row], _ = team.reset()


@pytest.mark.parametrize("n_actions", [5_000, pytest.param(100_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", [c for c in CASES if c.name.startswith("heterogeneous, mask")], ids=lambda case: case.name)
def test_masks_hold_over_many_random_actions(case: Case, n_actions: int) -> None:
    venv = make_team_vec_env(case.game, 32, seed=0, vec_env_cls=DummyVecEnv)
    rng = np.random.default_rng(3)
    found: Any = venv.reset()
    played = forbidden = 0
    while played < n_actions:
        present = found["agent_mask"] == 1
        played += int(present.sum())
        forbidden += int((found["action_mask"] == 0)[present].sum())
        found, *_ = venv.step(legal_actions(venv.action_space, found, rng, 32))
        assert (found["action_mask"][found["agent_mask"] == 0] == 1).all()
    assert forbidden > played  # masks were there to be broken
    assert [game.illegal_actions for game in venv.get_attr("parallel_env")] == [0] * 32
