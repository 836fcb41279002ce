"""Worker processes with faults: what the error tells, that nothing is left behind, and how restarts go on."""

import logging
import os
import pickle
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stable_baselines3.common.monitor import load_results
from worker_games import FAULT, FaultyTeam, Maker, all_gone, is_running

from hmasd_sb3.wrappers import worker_handle
from hmasd_sb3.wrappers.worker_handle import WorkerError
from hmasd_sb3.wrappers.workers import FRUITLESS_RESTARTS, WorkerTeamVecEnv

N = 4
FINE = np.ones((N, 2), dtype=np.int64)


def make(fault: str = "raise", restart: bool = False, n_workers: int = 2, **kwargs: Any) -> WorkerTeamVecEnv:
    """Environments 0 and 1 in worker 0, 2 and 3 in worker 1; seeded and reset."""
    fns = [Maker(index, fault=fault, **kwargs) for index in range(N)]
    venv = WorkerTeamVecEnv(fns, n_workers, restart_workers=restart)
    venv.seed(10)
    venv.reset()
    return venv


def faulty(*rows: int) -> np.ndarray:
    """Actions that bring about the fault in some rows."""
    actions = FINE.copy()
    actions[list(rows), 0] = FAULT
    return actions


def assert_ended(venv: WorkerTeamVecEnv, reason: str) -> None:
    """All workers are gone, closing is harmless, and later use says why it fails."""
    assert not any(is_running(pid) for pid in venv.worker_pids)
    venv.close()
    venv.close()
    with pytest.raises(RuntimeError, match=f"closed, because of this error: .*{reason}"):
        venv.step(FINE)
    with pytest.raises(RuntimeError, match="closed, because of this error"):
        venv.reset()


# ---- faults that end everything


def test_a_game_that_raises() -> None:
    venv = make()
    for _ in range(4):
        venv.step(FINE)
    with pytest.raises(WorkerError) as caught:
        venv.step(faulty(3))
    error = caught.value
    assert (error.env_index, error.step) == (3, 5)
    assert error.worker_traceback is not None
    assert "in _fail" in error.worker_traceback
    assert error.worker_traceback in str(error)
    assert str(error).startswith("environment 3 raised in its step 5: ZeroDivisionError: game 3 divides by zero\n")
    assert_ended(venv, "environment 3 raised in its step 5")
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.env_index, copy.step) == (str(error), 3, 5)


@pytest.mark.parametrize(
    ("fault", "text"),
    [("die", "was killed by SIGKILL"), ("exit", "ended with exit code 7")],
)
def test_a_worker_that_dies(fault: str, text: str) -> None:
    venv = make(fault)
    venv.step(FINE)
    with pytest.raises(WorkerError) as caught:
        venv.step(faulty(1))
    error = caught.value
    assert (error.env_index, error.step, error.worker_traceback) == (1, 2, None)
    assert f"process {venv.worker_pids[0]} {text}, while environment 1 was at work, in its step 2" in str(error)
    assert_ended(venv, text)


@pytest.mark.parametrize("fault", ["stop", "hang"])
def test_a_worker_that_falls_silent(fault: str) -> None:
    venv = make(fault)
    venv.worker_timeout = 0.5
    start = time.monotonic()
    with pytest.raises(WorkerError) as caught:
        venv.step(faulty(2))
    assert time.monotonic() - start < 5
    assert (caught.value.env_index, caught.value.step) == (2, 1)
    assert f"process {venv.worker_pids[1]} did not answer within 0.5 s, and was killed, while environment 2" in str(
        caught.value
    )
    assert_ended(venv, "did not answer within")


def test_the_first_fault_is_not_held_up_by_a_worker_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_handle, "CLOSE_SECONDS", 0.5)
    fns = [Maker(0, fault="raise"), Maker(1, fault="hang")]
    venv = WorkerTeamVecEnv(fns, 2, worker_timeout=60)
    venv.reset()
    start = time.monotonic()
    with pytest.raises(WorkerError, match="game 0 divides by zero"):
        venv.step(np.full((2, 2), FAULT))
    assert time.monotonic() - start < 10  # the time for closing, not that for answering
    assert all_gone(venv.worker_pids, 0.0)


def test_a_worker_that_was_killed_between_two_steps() -> None:
    venv = make()
    os.kill(venv.worker_pids[1], signal.SIGKILL)
    with pytest.raises(
        WorkerError, match=r"worker 1 .environments 2 to 3.: process .* SIGKILL, while no environment was at work"
    ) as caught:
        venv.step(FINE)
    assert caught.value.env_index is None
    assert_ended(venv, "SIGKILL")


def test_a_worker_that_dies_in_a_call() -> None:
    venv = make()
    with pytest.raises(WorkerError, match="SIGKILL, while environment 2 was at work, in env_method of 'die'"):
        venv.env_method("die", indices=2)
    assert_ended(venv, "SIGKILL")


@pytest.mark.parametrize(("fault", "text"), [("lambda", "cannot be sent to the parent"), ("shape", "could not broadcast")])
def test_what_a_game_returns_but_cannot_be_passed_on(fault: str, text: str) -> None:
    venv = make(fault)
    with pytest.raises(WorkerError, match=text) as caught:
        venv.step(faulty(2))
    assert caught.value.env_index == 2
    assert_ended(venv, "environment 2")


# ---- faults before anything was played


def pids_of(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The process ids of workers that are started from now on."""
    from hmasd_sb3.wrappers.worker_handle import WorkerHandle

    pids: list[int] = []
    start = WorkerHandle.start

    def noting(self: WorkerHandle, again: bool) -> None:
        start(self, again)
        pids.append(self.process.pid)

    monkeypatch.setattr(WorkerHandle, "start", noting)
    return pids


class Broken:
    """A function that fails to make an environment, in one way or another."""

    def __init__(self, how: str) -> None:
        self.how = how

    def __call__(self) -> Any:
        if self.how == "raise":
            raise FileNotFoundError("no such level")
        if self.how == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        return None


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize(
    ("how", "text"),
    [
        ("raise", "environment 2 raised while being made: FileNotFoundError: no such level"),
        ("die", "was killed by SIGKILL, while environment 2 was at work, while being made"),
        ("none", "the function for environment 2 made None, no gymnasium.Env"),
    ],
)
def test_an_environment_that_cannot_be_made(how: str, text: str, restart: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    pids = pids_of(monkeypatch)
    with pytest.raises(WorkerError, match=text) as caught:
        WorkerTeamVecEnv([Maker(0), Maker(1), Broken(how), Maker(3)], 2, restart_workers=restart)
    assert (caught.value.env_index, caught.value.step) == (2, 0)
    assert len(pids) == 2
    assert not any(is_running(pid) for pid in pids)


@pytest.mark.parametrize("row", [1, 3])  # in the first environment's worker, and in the other
def test_environments_that_differ(row: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pids = pids_of(monkeypatch)
    fns = [Maker(i, n_numbers=4 if i == row else 3) for i in range(N)]
    first = 0 if row == 1 else 2
    with pytest.raises((WorkerError, ValueError), match=r"same observation space, but environment .* has .* and environment"):
        WorkerTeamVecEnv([*fns[:first], *fns[first:]], 4 if row == 3 else 2)
    assert not any(is_running(pid) for pid in pids)


def test_environments_that_are_one_and_the_same() -> None:
    game = FaultyTeam()
    with pytest.raises(WorkerError, match="the same game more than once"):
        WorkerTeamVecEnv([lambda: game, lambda: game], 1)


@pytest.mark.parametrize("restart", [False, True])
def test_a_first_reset_that_raises(restart: bool, tmp_path: Path) -> None:
    poison = tmp_path / "poison"
    poison.touch()
    venv = WorkerTeamVecEnv([Maker(i, poison=str(poison)) for i in range(2)], 1, restart_workers=restart)
    with pytest.raises(WorkerError, match="environment 0 raised while being reset, after 0 steps: ValueError: the reset is"):
        venv.reset()
    assert_ended(venv, "environment 0 raised while being reset")


# ---- restarts


def assert_lost(venv: WorkerTeamVecEnv, before: Any, after: Any, rows: list[int], text: str) -> None:
    """These rows, and no others, are marked as transitions of unknown outcome."""
    observations, rewards, dones, infos = after
    for row in range(N):
        info = infos[row]
        assert ("transition_lost" in info) == (row in rows)
        if row not in rows:
            continue
        assert rewards[row] == 0.0
        assert dones[row]
        assert set(info) == {"TimeLimit.truncated", "terminal_observation", "transition_lost", "worker_error"}
        assert info["TimeLimit.truncated"] is True
        assert info["transition_lost"] is True
        assert text in info["worker_error"]
        assert "\n" not in info["worker_error"]
        for key, value in info["terminal_observation"].items():
            np.testing.assert_array_equal(value, before[key][row])
            assert (value != observations[key][row]).any()
        seed = np.random.SeedSequence([10 + row, int(venv.restarts_by_env[row])]).generate_state(1)[0] >> 1
        assert venv.reset_infos[row] == {"seed": seed, "options": None}
        fresh = FaultyTeam(row).reset(seed=int(seed))[0]
        for key, value in fresh.items():
            np.testing.assert_array_equal(observations[key][row], value)


def test_a_game_that_raises_is_made_anew_alone(caplog: pytest.LogCaptureFixture) -> None:
    venv, undisturbed = make(restart=True), make()
    pids = venv.worker_pids
    before = venv.step(FINE)[0]
    undisturbed.step(FINE)
    with caplog.at_level(logging.WARNING, "hmasd_sb3"):
        after = venv.step(faulty(1, 2))
    assert_lost(venv, before, after, [1, 2], "divides by zero")
    assert venv.worker_pids == pids
    assert venv.n_restarts == 2
    assert venv.restarts_by_env.tolist() == [0, 1, 1, 0]
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 2
    assert "restart 2, of the environments [2]: environment 2 raised in its step 2" in caplog.text
    assert caplog.text.count("Traceback") == 1  # the same fault is told in full once
    assert venv.get_attr("index") == [0, 1, 2, 3]
    # The others did not notice.
    expected = undisturbed.step(FINE)
    for row in (0, 3):
        assert after[1][row] == expected[1][row] + 0  # their actions were the same
        np.testing.assert_array_equal(after[0]["state"][row], expected[0]["state"][row])
    after = venv.step(FINE)
    assert not any("transition_lost" in info for info in after[3])
    venv.close()
    undisturbed.close()


@pytest.mark.parametrize(("fault", "text"), [("die", "SIGKILL"), ("exit", "exit code 7"), ("stop", "did not answer")])
def test_a_worker_that_dies_is_started_again(fault: str, text: str) -> None:
    venv = make(fault, restart=True)
    venv.worker_timeout = 5.0 if fault != "stop" else 1.0
    pids = venv.worker_pids
    before = venv.step(FINE)[0]
    after = venv.step(faulty(1))
    # Environment 0 had made its step before its neighbour ended the process: that is lost too.
    assert_lost(venv, before, after, [0, 1], text)
    assert venv.worker_pids[1] == pids[1]
    assert all_gone([pids[0]], 0.0)
    assert (venv.n_restarts, venv.restarts_by_env.tolist()) == (1, [1, 1, 0, 0])
    for _ in range(60):
        after = venv.step(FINE)
    assert not any("transition_lost" in info for info in after[3])
    venv.close()
    assert all_gone(venv.worker_pids, 0.0)


def test_a_worker_killed_between_requests_is_started_again() -> None:
    venv = make(restart=True)
    before = venv.step(FINE)[0]
    os.kill(venv.worker_pids[0], signal.SIGKILL)
    with pytest.raises(WorkerError, match="SIGKILL"):
        venv.get_attr("index")
    with pytest.raises(WorkerError, match="SIGKILL"):  # and keeps saying so
        venv.get_attr("index", 1)
    assert venv.get_attr("index", 2) == [2]
    assert_lost(venv, before, venv.step(FINE), [0, 1], "SIGKILL, while no environment was at work")
    assert venv.get_attr("index") == [0, 1, 2, 3]
    # A reset loses no transition; those made anew take part with seeds of their own, and with its options.
    os.kill(venv.worker_pids[1], signal.SIGKILL)
    venv.seed(30)
    venv.set_options({"level": 3})
    venv.reset()
    seeds = [info["seed"] for info in venv.reset_infos]
    assert seeds[:2] == [30, 31]
    assert seeds[2:] == [np.random.SeedSequence([row, 1]).generate_state(1)[0] >> 1 for row in (32, 33)]
    assert [info["options"] for info in venv.reset_infos] == [{"level": 3}] * N
    assert venv.restarts_by_env.tolist() == [1, 1, 1, 1]
    venv.close()


def test_seeds_of_restarts_are_new_every_time_and_reproducible() -> None:
    def seeds() -> list[int]:
        venv = make(restart=True, n_workers=1)
        found = []
        for _ in range(3):
            venv.step(faulty(0, 1))
            found += [venv.reset_infos[row]["seed"] for row in (0, 1)]
            venv.reset()  # without a new seed the old one counts on
            venv.step(FINE)
        venv.close()
        return found

    first = seeds()
    assert len(set(first)) == 6
    assert not set(first) & {10, 11}
    assert seeds() == first


def test_environments_without_a_seed_of_their_own_restart_apart() -> None:
    def seeds() -> list[int]:
        np.random.seed(4)
        venv = WorkerTeamVecEnv([Maker(i) for i in range(2)], 1, restart_workers=True)
        venv.reset()
        venv.step(np.full((2, 2), FAULT))
        venv.close()
        return [info["seed"] for info in venv.reset_infos]

    assert len(set(seeds())) == 2
    assert seeds() == seeds()


@pytest.mark.parametrize("fault", ["raise", "die", "lambda"])
def test_restarts_that_bring_nothing_are_limited(fault: str) -> None:
    venv = make(fault, restart=True)
    for _ in range(2):  # a finished step starts the count anew
        for _ in range(FRUITLESS_RESTARTS):
            venv.step(faulty(1))
        venv.step(FINE)
    for _ in range(FRUITLESS_RESTARTS):
        venv.step(faulty(1))
    with pytest.raises(WorkerError, match="restarted 3 times in a row without finishing a step") as caught:
        venv.step(faulty(1))
    assert (caught.value.worker_traceback is None) == (fault == "die")
    assert caught.value.env_index == 1
    assert venv.restarts_by_env[1] == 3 * FRUITLESS_RESTARTS
    assert_ended(venv, "restarted 3 times in a row")


@pytest.mark.parametrize(
    ("text", "error"), [("", "ValueError: the reset is poisoned"), ("make", "OSError: the game is broken")]
)
@pytest.mark.parametrize("fault", ["raise", "die"])
def test_restarts_that_fail_are_limited(fault: str, text: str, error: str, tmp_path: Path) -> None:
    poison = tmp_path / "poison"
    venv = make(fault, restart=True, poison=str(poison))
    poison.write_text(text)
    with pytest.raises(WorkerError, match=f"(?s)restarted 3 times in a row.*{error}") as caught:
        venv.step(faulty(3))
    assert caught.value.worker_traceback is not None
    assert venv.restarts_by_env[3] == FRUITLESS_RESTARTS
    assert_ended(venv, "restarted 3 times in a row")


@pytest.mark.parametrize("fault", ["raise", "die"])
def test_logs_go_on_after_a_restart(fault: str, tmp_path: Path) -> None:
    fns = [Maker(i, log=str(tmp_path / str(i)), fault=fault) for i in range(2)]
    venv = WorkerTeamVecEnv(fns, 1, restart_workers=True)
    venv.seed(0)
    venv.reset()
    reported = 0
    for step in range(120):
        actions = np.ones((2, 2), dtype=np.int64)
        if step in (50, 80):
            actions[1, 0] = FAULT
        reported += sum("episode" in info for info in venv.step(actions)[3])
    venv.close()
    assert venv.n_restarts == 2
    assert reported > 10
    # In a process that died, environment 0 may have finished an episode that was written but not reported.
    assert len(load_results(str(tmp_path))) in ({reported} if fault == "raise" else {reported, reported + 1, reported + 2})
