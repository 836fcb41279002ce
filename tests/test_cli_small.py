"""Small things about the commands: numbers, files with one entry, places of errors, JSON, being stopped early, progress."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import typer
from commands import SMALL, files_below, hmasd, start, train, wait_until
from stable_baselines3.common.vec_env import DummyVecEnv
from teams import FAST, RandomTeam

import hmasd_sb3
from hmasd_sb3 import HMASD
from hmasd_sb3.commands.numbers import whole_number
from hmasd_sb3.monitoring import progress
from hmasd_sb3.monitoring.progress import ProgressLines, clock, steps_per_second
from hmasd_sb3.running.files import as_json

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert hmasd("--version") == 0
    assert capsys.readouterr().out == f"hmasd-sb3 {hmasd_sb3.__version__}\n"


def test_every_command_has_a_line_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert hmasd("--help") == 0
    out = capsys.readouterr().out
    for name in ("check", "doctor", "envs", "eval", "train", "tune", "zoo"):
        assert re.search(rf"^  {name} +\S.{{20,58}}[.?]$", out, re.MULTILINE), name
    assert "..." not in out.partition("Commands:")[2]


def test_help_needs_no_torch() -> None:
    code = "import sys; from hmasd_sb3.cli import app\ntry: app(args=['train', '--help'])\nexcept SystemExit: pass\n"
    code += "sys.exit('torch' in sys.modules or 'stable_baselines3' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    assert subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=False).returncode == 0


def test_public_names_are_there_all_the_same() -> None:
    for name in hmasd_sb3.__all__:
        assert getattr(hmasd_sb3, name).__name__ == name
        assert name in dir(hmasd_sb3)
    assert hmasd_sb3.wrappers.WorkerTeamVecEnv.__name__ == "WorkerTeamVecEnv"
    with pytest.raises(AttributeError, match=r"hmasd_sb3.*no attribute 'HMASDD'"):
        _ = hmasd_sb3.HMASDD  # type: ignore[attr-defined]


class TestNumbers:
    @pytest.mark.parametrize(
        ("text", "number"), [("100000", 100_000), ("1e5", 100_000), ("100_000", 100_000), ("2.5e1", 25), ("7.0", 7)]
    )
    def test_read(self, text: str, number: int) -> None:
        assert whole_number(1)(text) == number

    @pytest.mark.parametrize("text", ["1.5", "-1", "0", "many", "inf", "nan", ""])
    def test_refused(self, text: str) -> None:
        with pytest.raises(typer.BadParameter, match="must be a whole number of at least 1, such as 100000 or 1e5; got"):
            whole_number(1)(text)

    def test_in_a_command(self, in_tmp: Path) -> None:
        arguments = ["--total-timesteps", "0.48e2", "--eval-freq", "0", "--checkpoint-freq", "4_8"]
        assert train(*arguments, "--run-dir", "r") == 0
        assert json.loads((in_tmp / "r/config.json").read_text())["run"]["total_timesteps"] == 48


class TestFiles:
    def test_the_only_entry_is_taken_and_said(self, in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (in_tmp / "s.yml").write_text("odd_games:OddTeam:\n  gamma: 0.9\n")
        arguments = ["--config", "s.yml", "--total-timesteps", "48", "--eval-freq", "0", "--run-dir", "r"]
        assert train(*arguments) == 0
        assert "s.yml has settings for odd_games:OddTeam alone, so that is the environment.\n" in capsys.readouterr().out
        run = json.loads((in_tmp / "r/config.json").read_text())["run"]
        assert (run["env"], run["hyperparameters"]["gamma"]) == ("odd_games:OddTeam", 0.9)
        Path("r/model.zip").unlink()
        assert train(*arguments[:-2], "--resume", "r") == 0

    def test_several_entries_are_listed(self, in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (in_tmp / "s.yml").write_text("A-v0: {gamma: 0.9}\nB-v0: {gamma: 0.9}\n")
        assert train("--config", "s.yml") == 2
        assert capsys.readouterr().err == "Error: s.yml: has entries for ['A-v0', 'B-v0']; choose one of them by --env.\n"

    @pytest.mark.parametrize(
        ("text", "place"),
        [
            ("AliceAndBob-v0:\n  gamma: 0.9\n  env_kwargs:\n    size: 5\n    siz: 3\n", "line 5"),
            ("AliceAndBob-v0:\n  gamma: 0.9\n  env_kwargs: {size: 5, siz: 3}\n", "line 3"),
            ("AliceAndBob-v0:\n  env_kwargs: dict(siz=3)\n", "line 2"),
            ("AliceAndBob-v0:\n  env_kwargs:\n    size: 5\n\n    max_steps: 0\n", "line 5"),
        ],
    )
    def test_what_the_game_refuses_is_named_with_its_line(
        self, in_tmp: Path, capsys: pytest.CaptureFixture[str], text: str, place: str
    ) -> None:
        (in_tmp / "s.yml").write_text(text)
        for check in ("--check", "--no-check"):
            assert train("--config", "s.yml", check) == 2
            assert capsys.readouterr().err.startswith(f"Error: s.yml, {place}: env_kwargs: ")
        assert files_below(in_tmp) == ["s.yml"]


class TestJson:
    def test_a_complete_run(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert train("--total-timesteps", "192", "--run-dir", "r", "--json") == 0
        out, err = capsys.readouterr()
        answer = json.loads(out)
        assert "Complete: 192 environment steps." in err
        evaluations = answer.pop("best_evaluation"), answer.pop("last_evaluation")
        assert [one["timesteps"] for one in evaluations] in ([96, 192], [192, 192])
        assert answer == {
            "exit_code": 0,
            "folder": "r",
            "env": "AliceAndBob-v0",
            "seed": 0,
            "complete": True,
            "timesteps": 192,
            "total_timesteps": 192,
            "model": "r/model.zip",
            "checkpoint": "r/checkpoints/checkpoint_000000000192.zip",
            "best_model": "r/checkpoints/best.zip",
        }
        assert hmasd("train", "--resume", "r", "--json") == 0
        assert json.loads(capsys.readouterr().out)["complete"] is True

    def test_wrong_input(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert train("--set", "gama=1", "--json") == 2
        out, err = capsys.readouterr()
        answer = json.loads(out)
        assert (answer["exit_code"], f"Error: {answer['error']}\n") == (2, err)

    @pytest.mark.parametrize(
        ("fault", "code", "error"), [("nan", 3, "returned NaN or infinity"), ("exit", 4, "raised SystemExit: 0")]
    )
    def test_a_run_that_broke_off(self, fault: str, code: int, error: str, capsys: pytest.CaptureFixture[str]) -> None:
        arguments = ["--env", "cli_games:FaultyTeam", "--set", f"env_kwargs={{fault: {fault}, at: 30}}", "--eval-freq", "0"]
        assert train(*arguments, "--total-timesteps", "1e6", "--run-dir", "r", "--json") == code
        answer = json.loads(capsys.readouterr().out)
        assert error in answer["error"]
        assert (answer["complete"], answer["timesteps"], answer["model"]) == (False, 96, None)
        assert answer["best_evaluation"] is None

    def test_under_a_supervisor(self, in_tmp: Path) -> None:
        arguments = ["--total-timesteps", "48", "--eval-freq", "0", "--run-dir", "r", "--max-restarts", "1", "--json"]
        process = start(in_tmp, *SMALL, *arguments)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        assert json.loads(out)["timesteps"] == 48
        assert "Complete: 48 environment steps." in err

    def test_values_that_json_has_not(self) -> None:
        import numpy as np

        value = {"a": (np.float32(0.5), np.array([1, 2])), "b": [float("nan"), float("inf"), -np.inf], "c": Path("x"), 1: None}
        assert as_json(value) == {"a": [0.5, [1, 2]], "b": ["NaN", "Infinity", "-Infinity"], "c": "x", "1": None}


def test_ctrl_c_while_torch_is_imported(in_tmp: Path) -> None:
    (in_tmp / "torch").mkdir()
    (in_tmp / "torch/__init__.py").write_text("import pathlib, time\npathlib.Path('importing').touch()\ntime.sleep(60)\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    process = subprocess.Popen(
        [sys.executable, "-m", "hmasd_sb3.cli", "train"],
        cwd=in_tmp,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_until(lambda: (in_tmp / "importing").exists(), process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=10)
    assert (process.returncode, out, err) == (130, "", "Stopped.\n")


class TestProgress:
    @pytest.mark.parametrize(
        ("seconds", "text"),
        [(5, "0:05"), (125, "2:05"), (3600, "1:00:00"), (86_399.6, "1 day 0:00:00"), (200_000, "2 days 7:33:20")],
    )
    def test_clock(self, seconds: float, text: str) -> None:
        assert clock(seconds) == text

    def test_speed(self) -> None:
        assert steps_per_second(44_000, 10.0) == "4,400 steps per second"
        assert steps_per_second(7, 10.0) == "0.7 steps per second"

    @pytest.mark.parametrize(("seconds", "n_lines"), [(1000.0, 1), (0.0, 7)])
    def test_slow_runs_are_not_silent(
        self, seconds: float, n_lines: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = HMASD("MlpPolicy", DummyVecEnv([RandomTeam for _ in range(2)]), **FAST)
        model.learn(8 * 24, callback=ProgressLines(100, seconds=seconds))
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == n_lines
        assert all(re.fullmatch(r" +\d+ steps: \d+%, about 0:\d\d left, [\d,.]+ steps per second", line) for line in lines)
        assert progress.LONGEST_SILENCE == 300.0

    def test_time_left_follows_the_speed(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        now = [0.0]
        monkeypatch.setattr(time, "perf_counter", lambda: now[0])
        lines = ProgressLines(10)
        model: Any = type("Model", (), {"num_timesteps": 1000, "_total_timesteps": 5000})()
        lines.model = model
        lines._on_training_start()  # after a restart at 1000 of 5000
        now[0], lines.num_timesteps = 10.0, 2000
        lines._on_rollout_start()
        assert capsys.readouterr().out == "      2,000 steps: 40%, about 0:30 left, 100 steps per second\n"
        now[0] = 11.0  # in the middle of a rollout, whose update is still to come: the same speed
        lines.pace.print(2500, 5000, "return 0.00")
        assert capsys.readouterr().out == "      2,500 steps: 50%, return 0.00, about 0:25 left, 100 steps per second\n"

    def test_an_evaluation_is_the_line_of_its_rollout(self, capsys: pytest.CaptureFixture[str]) -> None:
        """Evaluations at 96, 192, ..., progress at the other multiples of 48; each with the one clock."""
        assert train("--total-timesteps", "288", "--run-dir", "run") == 0
        lines = [line for line in capsys.readouterr().out.splitlines() if " steps: " in line]
        assert [int(line.split()[0]) for line in lines] == [48, 96, 144, 192, 240, 288]
        assert ["return" in line for line in lines] == [False, True] * 3
        assert all(re.search(r"\d+%, .*about 0:\d\d left, [\d,.]+ steps per second$", line) for line in lines[:-1])


class TestNoEvaluation:
    @pytest.mark.parametrize(
        ("eval_freq", "note"),
        [
            (145, ""),  # whole rounds of steps and of rollouts: at 144 of 144
            (148, "Note: no evaluation: --eval-freq 148 is beyond 144 steps.\n"),
            (0, ""),
        ],
    )
    def test_it_is_said_at_the_start(self, eval_freq: int, note: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert train("--total-timesteps", "100", "--eval-freq", str(eval_freq), "--run-dir", "run") == 0
        out = capsys.readouterr().out
        assert note in out
        assert ("no evaluation" in out) == bool(note)
        assert Path("run/evaluations.npz").exists() == (eval_freq == 145)

    @pytest.mark.parametrize(
        ("eval_freq", "why"),
        [
            ("148", "the run was complete before its first evaluation, which --eval-freq 148 puts beyond its end."),
            ("0", "the run makes no evaluations, by --eval-freq 0."),
        ],
    )
    def test_so_there_is_no_best_model(self, eval_freq: str, why: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert train("--total-timesteps", "100", "--eval-freq", eval_freq, "--run-dir", "run") == 0
        capsys.readouterr()
        assert hmasd("eval", "run", "--best") == 2
        assert capsys.readouterr().err == f"Error: --best: there is no run/checkpoints/best.zip; {why}\n"
