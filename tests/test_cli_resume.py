"""The command ``hmasd train``: going on with runs that broke off, exactly."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from commands import (
    assert_same_metrics,
    break_off,
    checkpoints,
    files_below,
    hmasd,
    metrics,
    same_parameters,
    step_of,
    train,
    without_times,
)

from hmasd_sb3 import HMASD
from hmasd_sb3.running.folder import RunFolder

LONG = "100_000_000"


@pytest.fixture(autouse=True)
def in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Runs land in the working directory, which must not be the checkout."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """A complete run of 192 environment steps."""
    assert train("--total-timesteps", "192", "--run-dir", "run", "--keep-checkpoints", "9") == 0
    capsys.readouterr()
    return in_tmp / "run"


class TestGoingOn:
    @pytest.mark.parametrize("step", [0, 48, 96, 144, 192])
    def test_from_any_checkpoint_the_run_becomes_the_same(
        self, run: Path, step: int, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert train("--total-timesteps", "192", "--run-dir", "other", "--keep-checkpoints", "9") == 0
        break_off(Path("other"), step)
        capsys.readouterr()
        assert hmasd("train", "--resume", "other", "--checkpoint-freq", "48", "--no-tensorboard") == 0
        out, err = capsys.readouterr()
        assert f"Going on from other/checkpoints/checkpoint_{step:012d}.zip, step {step} of 192." in out
        assert err == ""
        assert same_parameters(run / "model.zip", Path("other/model.zip"))
        assert_same_metrics(run, Path("other"))
        first, second = (dict(np.load(folder / "evaluations.npz")) for folder in (run, Path("other")))
        assert all(np.array_equal(first[name], second[name]) for name in first)

    def test_a_complete_run_says_so(self, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
        before = files_below(run)
        for arguments in (
            ["--resume", "run"],
            ["--resume", "auto", "--run-dir", "run"],
            ["--resume", "run", "--max-restarts", "2"],
        ):
            assert hmasd("train", *arguments) == 0
            out, err = capsys.readouterr()
            assert (out.startswith("The run in run is complete: 192 environment steps"), err) == (True, "")
        assert files_below(run) == before

    def test_the_length_may_be_raised(self, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert hmasd("train", "--resume", "run", "--total-timesteps", "288", "--no-tensorboard") == 0
        assert "step 192 of 288" in capsys.readouterr().out
        assert HMASD.load(run / "model.zip").num_timesteps == 288
        assert HMASD.load(run / "model_192.zip").num_timesteps == 192
        assert RunFolder(run).read_config().total_timesteps == 288
        assert np.load(run / "evaluations.npz")["timesteps"].tolist() == [96, 192, 288]
        assert hmasd("train", "--resume", "run") == 0

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--seed", "1"], "seed=1 was given, but the run in run has 0"),
            (["--n-envs", "8"], "n_envs=8 was given, but the run in run has 4"),
            (["--n-workers", "2"], "n_workers=2 was given, but the run in run has None"),
            (["--env", "SMAX-3m-v0"], "env='SMAX-3m-v0' was given, but the run in run has 'AliceAndBob-v0'"),
            (["--eval-episodes", "5"], "eval_episodes=5 was given, but the run in run has 4"),
            (["--total-timesteps", "100"], "total_timesteps=100 was given, but the run in run has 192; it may be raised"),
            (["--set", "gamma=0.5"], "gamma=0.5 was given, but the run in run has 0.99"),
            (["--set", "n_steps=24"], "n_steps=24 was given, but the run in run has 12"),
            (["--set", "policy=CnnPolicy"], "policy='CnnPolicy' was given, but the run in run has 'MlpPolicy'"),
            (["--config", "s.yml"], "n_steps=100 was given, but the run in run has 12"),
            (["--run-dir", "elsewhere"], "--run-dir elsewhere and --resume run name two runs"),
        ],
    )
    def test_contradictions_name_both_values(
        self, run: Path, in_tmp: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
    ) -> None:
        break_off(run, 96)
        (in_tmp / "s.yml").write_text("AliceAndBob-v0: {gamma: 0.99}")
        before = files_below(in_tmp)
        assert hmasd("train", "--resume", "run", *arguments) == 2
        err = capsys.readouterr().err
        assert err.startswith("Error: ")
        assert message in err
        assert files_below(in_tmp) == before

    def test_what_the_run_has_anyway_may_be_said_again(self, run: Path) -> None:
        assert train("--resume", "run", "--env", "AliceAndBob-v0", "--seed", "0", "--set", "gamma=0.99") == 0

    def test_an_earlier_checkpoint(
        self, run: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
    ) -> None:
        good = run / "model_192.zip"
        assert hmasd("train", "--resume", "run/checkpoints/checkpoint_000000000096.zip", "--checkpoint-freq", "48") == 0
        assert "Going on from run/checkpoints/checkpoint_000000000096.zip, step 96 of 192" in capsys.readouterr().out
        (aside,) = run.glob("checkpoints/set_aside_*")
        assert "Later checkpoints were moved to" in caplog.text
        assert sorted(step_of(path) for path in aside.iterdir()) == [144, 192]
        assert [step_of(path) for path in checkpoints(run)] == [96, 144, 192]
        assert same_parameters(good, run / "model.zip")

    def test_a_run_that_has_come_further_does_not_begin_again(self, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
        for checkpoint in run.glob("checkpoints/*.zip"):
            checkpoint.unlink()
        (run / "model.zip").unlink()
        before = (run / "metrics.jsonl").read_bytes()
        assert hmasd("train", "--resume", "run") == 2
        assert "holds no checkpoint any more, though the run had come further" in capsys.readouterr().err
        assert (run / "metrics.jsonl").read_bytes() == before

    def test_the_model_is_no_checkpoint(self, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert hmasd("train", "--resume", "run/model.zip") == 2
        assert "is no checkpoint; give the run's folder, run." in capsys.readouterr().err

    def test_a_damaged_checkpoint_is_passed_over(self, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
        break_off(run, 144)
        newest = checkpoints(run)[-1]
        content = bytearray(newest.read_bytes())
        content[len(content) // 2] ^= 255
        newest.write_bytes(bytes(content))
        assert hmasd("train", "--resume", "run", "--no-tensorboard") == 0
        assert "checkpoint_000000000096.zip, step 96 of 192" in capsys.readouterr().out
        assert HMASD.load(run / "model.zip").num_timesteps == 192

    def test_only_damaged_checkpoints_are_refused(self, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (run / "model.zip").unlink()
        for path in checkpoints(run):
            path.write_bytes(path.read_bytes()[:1000])
        before = files_below(run)
        assert hmasd("train", "--resume", "run") == 2
        assert "every checkpoint in it is damaged" in capsys.readouterr().err
        assert files_below(run) == before

    def test_a_damaged_config_is_refused(self, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
        for text, message in (
            ("{", "cannot be read"),
            ("[]", "is no config"),
            ('{"run": {"env": 1}}', "config.json: holds no"),
            ('{"run": {}}', "holds no 'env'"),
        ):
            (run / "config.json").write_text(text)
            assert hmasd("train", "--resume", "run") == 2
            assert message in capsys.readouterr().err

    def test_a_run_without_checkpoint_begins_again(self, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
        lines = metrics(run)
        break_off(run, -1)
        for file in ("metrics.jsonl", "evaluations.npz"):  # what is written only after the first checkpoint
            (run / file).unlink()
        assert hmasd("train", "--resume", "run", "--no-tensorboard") == 0
        assert "has no checkpoint yet: it begins again" in capsys.readouterr().out
        assert without_times(metrics(run)) == without_times(lines)

    def test_other_versions_are_told(self, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
        break_off(run, 96)
        content = json.loads((run / "config.json").read_text())
        content["versions"]["torch"] = "1.0"
        (run / "config.json").write_text(json.dumps(content))
        assert hmasd("train", "--resume", "run", "--no-tensorboard") == 0
        assert re.search(r"Warning: other versions.*torch 1.0, now", capsys.readouterr().err)

    def test_two_processes_never_train_in_one_folder(self, run: Path) -> None:
        break_off(run, 96)
        holder = subprocess.Popen(
            [
                sys.executable,
                "-c",
                "import fcntl; f = open('run/.lock', 'a'); fcntl.lockf(f, 2); print(1, flush=True); input()",
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert holder.stdout is not None
        holder.stdout.readline()
        assert hmasd("train", "--resume", "run") == 2
        assert RunFolder(run).busy()
        holder.communicate(b"\n")
        assert not RunFolder(run).busy()


class TestAuto:
    def make(self, *arguments: str, broken_off: bool = True) -> Path:
        """A run below runs/; afterwards the oldest file's time is that of its making."""
        before = set(Path("runs").glob("*"))
        assert train("--total-timesteps", "96", *arguments) == 0
        (run,) = set(Path("runs").glob("*")) - before
        if broken_off:
            break_off(run, 48)
        return run

    def test_takes_the_newest_unfinished_run_of_the_same_command(self, capsys: pytest.CaptureFixture[str]) -> None:
        older, newer = self.make(), self.make()
        for age, run in enumerate((newer, older)):
            os.utime(run / "config.json", (1e9 - age, 1e9 - age))
        complete = self.make(broken_off=False)
        self.make("--seed", "1")
        self.make("--set", "gamma=0.9")
        capsys.readouterr()
        assert train("--total-timesteps", "96", "--resume", "auto") == 0
        assert f"Going on from {newer}/checkpoints/checkpoint_000000000048.zip" in capsys.readouterr().out
        assert train("--total-timesteps", "96", "--resume", "auto") == 0
        assert f"Going on from {older}/checkpoints" in capsys.readouterr().out
        assert train("--total-timesteps", "96", "--resume", "auto") == 0
        assert f"{complete} of this command is complete: a new one begins." in capsys.readouterr().out
        assert train("--total-timesteps", "96", "--seed", "7", "--resume", "auto") == 0
        assert "No unfinished run below runs/ was started by this command: a new one begins." in capsys.readouterr().out
        assert train("--total-timesteps", "192", "--seed", "7", "--resume", "auto") == 0
        assert "No unfinished run below runs/ was started by this command: a new one begins." in capsys.readouterr().out
        assert len(list(Path("runs").iterdir())) == 8

    def test_another_length_is_another_command_unless_raised(self, capsys: pytest.CaptureFixture[str]) -> None:
        run = self.make()
        capsys.readouterr()
        assert train("--total-timesteps", "48", "--resume", "auto") == 0
        assert "a new one begins" in capsys.readouterr().out
        assert train("--total-timesteps", "144", "--resume", "auto") == 0
        assert f"Going on from {run}/checkpoints/checkpoint_000000000048.zip, step 48 of 144" in capsys.readouterr().out

    def test_a_named_folder_may_be_new(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert train("--total-timesteps", "96", "--run-dir", "r", "--resume", "auto") == 0
        assert "r holds no run yet: a new one begins." in capsys.readouterr().out
        break_off(Path("r"), 48)
        assert train("--total-timesteps", "96", "--run-dir", "r", "--resume", "auto") == 0
        assert "Going on from r/checkpoints/checkpoint_000000000048.zip" in capsys.readouterr().out

    def test_other_folders_below_runs_do_no_harm(self, capsys: pytest.CaptureFixture[str]) -> None:
        Path("runs/other").mkdir(parents=True)
        Path("runs/other/config.json").write_text("{")
        assert train("--total-timesteps", "48", "--resume", "auto") == 0
        assert "Passed over: runs/other/config.json cannot be read" in capsys.readouterr().out
