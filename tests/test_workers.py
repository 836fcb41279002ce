"""Worker processes without faults: equal to DummyVecEnv, how rows are spread, single environments, what is left behind."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecMonitor, VecNormalize
from worker_games import FaultyTeam, Maker, all_gone, is_running

from hmasd_sb3.envs.alice_and_bob import parallel_env
from hmasd_sb3.wrappers.vec import TeamMaker
from hmasd_sb3.wrappers.workers import WorkerTeamVecEnv

N = 5


def makers(n: int = N, **kwargs: Any) -> list[Maker]:
    return [Maker(index, **kwargs) for index in range(n)]


@pytest.fixture(scope="module")
def shared_venv() -> Iterator[WorkerTeamVecEnv]:
    """One for all tests that do not mind what was played before."""
    venv = WorkerTeamVecEnv(makers(), 2)
    yield venv
    venv.close()


@pytest.fixture
def venv(shared_venv: WorkerTeamVecEnv) -> WorkerTeamVecEnv:
    shared_venv.reset()
    return shared_venv


@pytest.fixture
def dummy() -> DummyVecEnv:
    return DummyVecEnv(makers())


def actions(rng: np.random.Generator, n: int = N) -> np.ndarray:
    return rng.integers(0, 3, (n, 2))


def assert_same(ours: Any, theirs: Any) -> None:
    """Equal values, types, dtypes, and keys in the same order; the clock of Monitor left out."""
    if isinstance(theirs, dict):
        assert list(ours) == list(theirs)
        for key in theirs:
            if key != "t":
                assert_same(ours[key], theirs[key])
    elif isinstance(theirs, (list, tuple)):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            assert_same(one, other)
    else:
        assert type(ours) is type(theirs)
        if isinstance(theirs, np.ndarray):
            assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)


# ---- playing


@pytest.mark.parametrize("restart_workers", [False, True])
def test_steps_equal_those_of_dummy_vec_env(restart_workers: bool, dummy: DummyVecEnv) -> None:
    venv = WorkerTeamVecEnv(makers(), 3, restart_workers=restart_workers)
    assert venv.observation_space == dummy.observation_space
    assert venv.action_space == dummy.action_space
    assert venv.metadata == dummy.metadata
    assert venv.render_mode == dummy.render_mode
    assert venv.seed(5) == dummy.seed(5)
    assert_same(venv.reset(), dummy.reset())
    assert_same(venv.reset_infos, dummy.reset_infos)
    rng, n_done, n_silent = np.random.default_rng(0), 0, 0
    for step in range(250):
        if step == 200:  # options and seeds count once, in the middle of episodes too
            for env in (venv, dummy):
                env.seed(77)
                env.set_options([{"level": row} if row else {} for row in range(N)])
            assert_same(venv.reset(), dummy.reset())
            assert_same(venv.reset_infos, dummy.reset_infos)
            assert venv.reset_infos[2]["options"] == {"level": 2}
            assert venv._seeds == dummy._seeds == [None] * N
            assert venv._options == dummy._options == [{}] * N
        chosen = actions(rng)
        ours, theirs = venv.step(chosen), dummy.step(chosen)
        assert_same(ours, theirs)
        assert_same(venv.reset_infos, dummy.reset_infos)
        n_done += ours[2].sum()
        n_silent += sum(info == {"TimeLimit.truncated": False} for info in ours[3])
    assert n_done > 50
    assert n_silent > 100
    venv.close()


def test_what_was_returned_is_not_overwritten(venv: WorkerTeamVecEnv) -> None:
    rng = np.random.default_rng(0)
    returned = [(venv.reset(), *venv.step(actions(rng))) for _ in range(2)]
    copies = [[{k: v.copy() for k, v in first.items()}, {k: v.copy() for k, v in o.items()}, r.copy(), d.copy()]
              for first, o, r, d, _ in returned]  # fmt: skip
    for _ in range(5):
        venv.step(actions(rng))
    for (first, o, r, d, _), kept in zip(returned, copies, strict=True):
        assert_same([first, o, r, d], kept)


def test_a_game_may_keep_its_actions(venv: WorkerTeamVecEnv) -> None:
    before = len(venv.get_attr("kept_actions", 0)[0])
    given = [np.full((N, 2), value) for value in (0, 1, 2)]
    for chosen in given:
        venv.step(chosen)
    kept = venv.get_attr("kept_actions", 4)[0][before:]
    np.testing.assert_array_equal(kept, [[0, 0], [1, 1], [2, 2]])


@pytest.mark.parametrize("dtype", [np.int32, np.float64])
def test_actions_of_another_dtype_reach_the_game_as_they_are(venv: WorkerTeamVecEnv, dtype: type) -> None:
    venv.step(np.ones((N, 2), dtype))
    assert venv.get_attr("kept_actions", 3)[0][-1].dtype == dtype


def test_wrong_calls(venv: WorkerTeamVecEnv) -> None:
    with pytest.raises(ValueError, match="one action for each of the 5 environments; got 4"):
        venv.step(np.zeros((4, 2), int))
    with pytest.raises(RuntimeError, match="no step is under way"):
        venv.step_wait()
    venv.step_async(np.zeros((N, 2), int))
    with pytest.raises(RuntimeError, match="a step is under way"):
        venv.step_async(np.zeros((N, 2), int))
    with pytest.raises(RuntimeError, match="a step is under way"):
        venv.get_attr("index")
    venv.seed(3)
    dropped = venv.reset()  # the step's answers do not get in the way
    venv.seed(3)
    assert_same(venv.reset(), dropped)
    fresh = WorkerTeamVecEnv(makers(1))
    with pytest.raises(RuntimeError, match=r"call reset\(\) before"):
        fresh.step(np.zeros((1, 2), int))
    fresh.close()


def test_wrong_arguments() -> None:
    for n_workers in (0, 3, True, 1.0):
        with pytest.raises(ValueError, match=r"n_workers must be an integer from 1 to .* 2; got"):
            WorkerTeamVecEnv(makers(2), n_workers)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least one function"):
        WorkerTeamVecEnv([])
    with pytest.raises(ValueError, match="worker_timeout"):
        WorkerTeamVecEnv(makers(1), worker_timeout=0)
    with pytest.raises(ValueError, match="start_method must be one of"):
        WorkerTeamVecEnv(makers(1), start_method="threads")


def test_in_sb3_wrappers() -> None:
    venv = VecNormalize(VecMonitor(WorkerTeamVecEnv(makers(), 2)), norm_obs_keys=["state"])
    venv.seed(0)
    venv.reset()
    episodes = [i["episode"] for _ in range(50) for i in venv.step(np.zeros((N, 2), int))[3] if "episode" in i]
    assert episodes
    assert venv.n_restarts == 0  # seen through the wrappers
    venv.close()


# ---- workers


@pytest.mark.parametrize(("n_envs", "n_workers", "sizes"), [(5, 2, [3, 2]), (5, 3, [2, 2, 1]), (4, 4, [1] * 4), (4, 1, [4])])
def test_neighbours_share_a_worker(n_envs: int, n_workers: int, sizes: list[int]) -> None:
    venv = WorkerTeamVecEnv(makers(n_envs), n_workers)
    # By process, in which order the environments are.
    where = venv.env_method("pid")
    assert where == [pid for pid, size in zip(venv.worker_pids, sizes, strict=True) for _ in range(size)]
    assert len(set(where)) == n_workers
    assert venv.get_attr("index") == list(range(n_envs))
    venv.close()


def test_as_many_workers_as_processors_by_default() -> None:
    venv = WorkerTeamVecEnv(makers(2))
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert len(venv.worker_pids) == min(2, usable)
    venv.close()


def test_a_forked_worker_does_not_keep_the_threads_of_its_parent() -> None:
    before = th.get_num_threads()
    th.set_num_threads(before + 1)
    try:
        venv = WorkerTeamVecEnv(makers(1), 1, start_method="fork")
        assert venv.env_method("threads") == [("1", 1)]
        venv.close()
    finally:
        th.set_num_threads(before)


def test_each_worker_computes_with_one_thread_and_leaves_ctrl_c_to_the_parent(venv: WorkerTeamVecEnv) -> None:
    assert venv.env_method("threads") == [("1", 1)] * N
    for pid in venv.worker_pids:
        os.kill(pid, signal.SIGINT)
    venv.step(np.zeros((N, 2), int))


@pytest.mark.parametrize("start_method", ["fork", "spawn"])
def test_other_start_methods(start_method: str) -> None:
    venv = WorkerTeamVecEnv(makers(2), 1 if start_method == "spawn" else 2, start_method=start_method)
    venv.seed(0)
    pids, ours = venv.worker_pids, venv.reset()
    dummy = DummyVecEnv(makers(2))
    dummy.seed(0)
    assert_same(ours, dummy.reset())
    assert_same(venv.step(np.ones((2, 2), int)), dummy.step(np.ones((2, 2), int)))
    venv.close()
    assert all_gone(pids, 0.0)


def test_close_ends_the_workers_and_may_be_repeated() -> None:
    venv = WorkerTeamVecEnv(makers(), 2)
    venv.reset()
    venv.step_async(np.zeros((N, 2), int))  # a step under way is no hindrance
    venv.close()
    assert all_gone(venv.worker_pids, 0.0)
    venv.close()
    for use in (venv.reset, lambda: venv.step(np.zeros((N, 2), int)), lambda: venv.get_attr("index")):
        with pytest.raises(RuntimeError, match=r"closed, because close\(\) was called"):
            use()


def test_functions_that_are_no_modules_names_can_be_sent() -> None:
    arguments = {"n_numbers": 4}
    venv = WorkerTeamVecEnv([lambda: FaultyTeam(0, **arguments)], 1)
    assert venv.observation_space["state"].shape == (4,)
    venv.close()


ORPHANS = """
import sys, numpy as np
from worker_games import FAULT, Maker
from hmasd_sb3.wrappers.workers import WorkerTeamVecEnv
if __name__ == "__main__":
    venv = WorkerTeamVecEnv([Maker(i, fault="hang") for i in range(3)], 3, start_method=sys.argv[1])
    venv.reset()
    print(*venv.worker_pids, flush=True)
    actions = np.zeros((3, 2), int)
    actions[1, 0] = FAULT  # one worker is in a game that never returns, the others wait for requests
    venv.step(actions)
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes in /proc")
@pytest.mark.parametrize("start_method", ["forkserver", "fork"])
def test_nothing_is_left_of_a_killed_parent(start_method: str, tmp_path: Path) -> None:
    script = tmp_path / "orphans.py"
    script.write_text(ORPHANS)
    here = Path(__file__).parent
    path = os.pathsep.join([str(here), str(here.parent), os.environ.get("PYTHONPATH", "")])
    parent = subprocess.Popen(
        [sys.executable, str(script), start_method],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert parent.stdout is not None
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(pids) == 3
    assert all(is_running(pid) for pid in pids)
    parent.kill()
    errors = parent.communicate(timeout=20)[1]  # returns when the last worker has let go of stderr
    assert all_gone(pids)
    assert errors == ""  # the resource tracker has nothing to complain about, nor have the workers
    for folder in ("/dev/shm", tempfile.gettempdir()):
        assert not [name for name in os.listdir(folder) if name.startswith("hmasd-sb3-")]


# ---- single environments


def test_attributes_and_methods(venv: WorkerTeamVecEnv, dummy: DummyVecEnv) -> None:
    for env in (venv, dummy):
        env.set_attr("mark", "a", indices=[1, 4])
        env.set_attr("mark", "b", indices=0)
    for env in (venv, dummy):
        assert env.get_attr("mark", [4, 0, 1, 1]) == ["a", "b", "a", "a"]
        assert env.get_attr("index", -1) == [4]
        assert env.env_method("plus", 10, times=2) == [20, 22, 24, 26, 28]
        assert env.env_method("plus", 1, indices=(3, 0)) == [4, 1]
        assert env.env_is_wrapped(Monitor) == [True] * N
        assert env.env_is_wrapped(VecMonitor, indices=[2]) == [False]
        assert env.get_attr("index", []) == []
        assert env.has_attr("np_random")
        assert not env.has_attr("nothing")
        with pytest.raises(IndexError):
            env.get_attr("index", [5])
    venv.set_attr("callback", lambda: 3, indices=2)
    # What cannot be sent back is there all the same.
    assert venv.env_method("callback", indices=2) == [3]


def test_an_error_in_a_call_comes_out_as_it_is_and_ends_nothing(venv: WorkerTeamVecEnv) -> None:
    with pytest.raises(AttributeError, match="nothing") as caught:
        venv.get_attr("nothing")
    assert "Its own traceback" in str(caught.value.__cause__)
    assert caught.value.__cause__.env_index == 0  # type: ignore[union-attr]
    with pytest.raises(KeyError, match="why"):
        venv.env_method("complain", "why", indices=3)
    with pytest.raises(RuntimeError, match="LocalError: of a class that cannot be sent") as caught_local:
        venv.env_method("complain", "local", indices=3)
    assert caught_local.value.env_index == 3  # type: ignore[attr-defined]
    venv.set_attr("callback", lambda: None)
    with pytest.raises(Exception, match="pickle"):  # whatever pickle raises
        venv.get_attr("callback")
    assert venv.get_attr("index") == list(range(N))
    venv.step(np.zeros((N, 2), int))


def test_pictures(venv: WorkerTeamVecEnv, dummy: DummyVecEnv) -> None:
    assert_same(list(venv.get_images()), list(dummy.get_images()))
    assert_same(venv.render(), dummy.render())


def test_team_makers_of_the_package() -> None:
    def steps(cls: Any, **kwargs: Any) -> list[Any]:
        venv: VecEnv = cls([TeamMaker(parallel_env, {"size": 2, "max_steps": 6}, (), i) for i in range(3)], **kwargs)
        venv.seed(1)
        venv.reset()
        rng = np.random.default_rng(0)
        result = [venv.step(rng.integers(0, 4, (3, 2))) for _ in range(40)]
        venv.close()
        return result

    assert_same(steps(WorkerTeamVecEnv, n_workers=2), steps(DummyVecEnv))
