"""Trainings that break down are started again from their last checkpoint, and never outlive who watches over them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from commands import FAULTY, SMALL, alive, checkpoints, children_of, metrics, start, step_of, train, wait_until

from hmasd_sb3 import HMASD
from hmasd_sb3 import supervisor as module
from hmasd_sb3.supervisor import Supervisor, describe_end
from hmasd_sb3.supervisor import step_of as step_in_name

LONG = "100_000_000"


class Fake:
    """Processes that only end, each in its way, and checkpoints by the way.

    :param ends: exit code of each start, or a signal as a negative one; the last one goes on for ever
    :param steps: newest checkpoint after each start, likewise
    """

    def __init__(self, ends: Sequence[int], steps: Sequence[int]) -> None:
        self.ends, self.steps = list(ends), list(steps)
        self.starts = 0
        self.pauses: list[float] = []

    def command(self) -> list[str]:
        code = self.ends[min(self.starts, len(self.ends) - 1)]
        self.starts += 1
        ending = f"os.kill(os.getpid(), {-code})" if code < 0 else f"sys.exit({code})"
        return [sys.executable, "-S", "-c", f"import os, sys; {ending}"]

    def newest(self) -> Path | None:
        step = -1 if self.starts == 0 else self.steps[min(self.starts, len(self.steps)) - 1]
        return None if step < 0 else Path(f"checkpoint_{step:012d}.zip")

    def run(self, max_restarts: int = 100) -> int:
        with Supervisor(self.command, self.newest, max_restarts, pause=self.pauses.append) as supervisor:
            return supervisor.run()


class TestRestarting:
    @pytest.mark.parametrize("code", [1, 3, 4, -signal.SIGKILL, -signal.SIGSEGV])
    def test_what_breaks_down_is_started_again(self, code: int, capfd: pytest.CaptureFixture[str]) -> None:
        fake = Fake([code, 0], [10, 20])
        assert fake.run() == 0
        assert fake.starts == 2
        err = capfd.readouterr().err
        assert f"The training {describe_end(code)}. Restart 1 of 100 in 1 s, from checkpoint_000000000010.zip." in err

    @pytest.mark.parametrize("code", [0, 2, 130, 143])
    def test_what_is_over_or_wrong_is_not(self, code: int) -> None:
        fake = Fake([code], [10])
        assert (fake.run(), fake.starts) == (code, 1)

    def test_signals_are_named(self) -> None:
        assert describe_end(-9) == "was killed by SIGKILL (by hand, or by the system because memory ran out)"
        assert describe_end(-11) == "was killed by SIGSEGV"
        assert describe_end(4) == "ended with exit code 4"

    def test_only_so_often(self, capfd: pytest.CaptureFixture[str]) -> None:
        fake = Fake([4], range(10, 1000, 10))
        assert (fake.run(max_restarts=2), fake.starts) == (4, 3)
        assert "started again 2 times, as often as allowed" in capfd.readouterr().err
        assert Fake([-signal.SIGKILL], [10]).run(max_restarts=1) == 137

    def test_three_restarts_without_progress_end_it(self, capfd: pytest.CaptureFixture[str]) -> None:
        fake = Fake([4], [10])
        assert (fake.run(), fake.starts) == (4, 4)
        assert "3 restarts in a row brought no new checkpoint: giving up." in capfd.readouterr().err
        fake = Fake([1], [-1])
        assert (fake.run(), fake.starts) == (1, 4)
        # An older checkpoint, as the newest is damaged, is no progress either.
        fake = Fake([1], [50, 40, 40, 40])
        assert (fake.run(), fake.starts) == (1, 4)

    def test_progress_in_between_lets_it_go_on(self) -> None:
        fake = Fake([1, 1, 1, 1, 1, 1, 0], [10, 10, 10, 20, 20, 20, 30])
        assert (fake.run(), fake.starts) == (0, 7)

    def test_pauses_grow_until_there_is_progress(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "IDLE_RESTARTS", 100)
        fake = Fake([1] * 10 + [0], [10] * 8 + [20, 30])
        assert fake.run() == 0
        assert fake.pauses == [1, 2, 4, 8, 16, 32, 60, 60, 1, 1]

    def test_steps_in_names(self) -> None:
        assert [step_in_name(path) for path in (None, Path("best.zip"), Path("x/checkpoint_000120.zip"))] == [-1, -1, 120]


class TestRealTrainings:
    def test_killed_once_it_comes_to_the_same_end(self, tmp_path: Path) -> None:
        fault = f"env_kwargs={{fault: kill, at: 30, once: {tmp_path / 'happened'}}}"
        arguments = [*FAULTY, "--set", fault, "--total-timesteps", "240", "--run-dir", "r", "--max-restarts", "2"]
        process = start(tmp_path, *arguments)
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        assert re.search(r"was killed by SIGKILL.*Restart 1 of 2 in 1 s, from r/checkpoints/checkpoint_000000000096", err)
        assert "Going on from r/checkpoints/checkpoint_000000000096.zip, step 96 of 240." in out
        assert HMASD.load(tmp_path / "r/model.zip").num_timesteps == 240
        steps = [line["step"] for line in metrics(tmp_path / "r")]
        assert steps == sorted(set(steps))

    def test_wrong_input_found_by_the_training_ends_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert train("--env", "AliceAndBo-v0", "--max-restarts", "5") == 2
        out, err = capfd.readouterr()
        assert re.fullmatch(r"Error: 'AliceAndBo-v0' is registered neither.*\n", err)
        assert out == ""
        assert list(tmp_path.glob("runs/*")) == []
        assert train("--set", "gama=1", "--max-restarts", "5") == 2
        assert train("--resume", "nothing", "--max-restarts", "5") == 2

    @pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
    def test_signals_are_handed_on(self, tmp_path: Path, number: signal.Signals, code: int) -> None:
        process, child = self.start_long(tmp_path)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, err) == (code, "")
        assert not alive(child)
        steps = step_of(checkpoints(tmp_path / "r")[-1])
        assert f"Stopped at step {steps:,} of 100,000,000" in out
        assert out.count("--resume r") == 1
        assert "--max-restarts 3" in out

    def test_a_signal_while_the_training_still_starts(self, tmp_path: Path) -> None:
        process = start(tmp_path, *SMALL, "--total-timesteps", LONG, "--run-dir", "r", "--max-restarts", "3")
        (child,) = wait_until(lambda: children_of(process.pid), process)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        assert (process.returncode, err) == (130, "")
        assert not alive(child)

    def test_no_orphan_stays_and_its_work_is_kept(self, tmp_path: Path) -> None:
        process, child = self.start_long(tmp_path)
        process.kill()
        process.wait()
        wait_until(lambda: not alive(child), seconds=30)
        out, _ = process.communicate()
        newest = checkpoints(tmp_path / "r")[-1]
        assert f"Stopped at step {step_of(newest):,} of 100,000,000, with a checkpoint." in out
        assert HMASD.load(newest).num_timesteps == step_of(newest)

    def test_an_orphan_that_never_returns_from_a_step_is_ended(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Its environment sleeps for a minute; the patience of half a minute is cut to some seconds here."""
        (tmp_path / "sitecustomize.py").write_text("import hmasd_sb3.supervisor as s\ns.ORPHAN_SECONDS = 1.0\n")
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
        arguments = ["--set", "env_kwargs={fault: sleep, at: 20}", "--total-timesteps", LONG, "--run-dir", "r"]
        process = start(tmp_path, *FAULTY, *arguments, "--max-restarts", "1")
        wait_until(lambda: (tmp_path / "asleep").exists(), process)
        (child,) = children_of(process.pid)
        process.kill()
        process.wait()
        wait_until(lambda: not alive(child), seconds=15)
        process.communicate()

    def test_a_run_that_is_there_is_gone_on_with(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert train("--total-timesteps", "96", "--run-dir", "r") == 0
        arguments = ["--total-timesteps", "192", "--run-dir", "r", "--resume", "auto", "--max-restarts", "1"]
        assert train(*arguments) == 0
        assert "Going on from r/checkpoints/checkpoint_000000000096.zip, step 96 of 192" in capfd.readouterr().out
        assert HMASD.load(tmp_path / "r/model.zip").num_timesteps == 192

    def start_long(self, folder: Path) -> tuple[subprocess.Popen[str], int]:
        process = start(folder, *SMALL, "--total-timesteps", LONG, "--run-dir", "r", "--max-restarts", "3")
        wait_until(lambda: len(checkpoints(folder / "r")) > 1, process)
        (child,) = children_of(process.pid)
        return process, child
