"""The command ``hmasd train``: signals, exit codes, and that nothing is lost by them."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import (
    FAULTY,
    SMALL,
    assert_same_metrics,
    checkpoints,
    hmasd,
    same_parameters,
    start,
    step_of,
    train,
    wait_until,
)

from hmasd_sb3 import HMASD
from hmasd_sb3.monitoring.evaluation import ReportingEvalCallback

LONG = "100_000_000"


@pytest.fixture(autouse=True)
def in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Runs land in the working directory, which must not be the checkout."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


class TestEnds:
    """Real processes and real signals."""

    @pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
    def test_a_signal_saves_a_checkpoint_that_goes_on_exactly(self, in_tmp: Path, number: signal.Signals, code: int) -> None:
        process = start(in_tmp, *SMALL, "--total-timesteps", LONG, "--run-dir", "r", "--keep-checkpoints", "2")
        wait_until(lambda: len(checkpoints(in_tmp / "r")) == 2, process)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, err) == (code, "")
        steps = step_of(checkpoints(in_tmp / "r")[-1])
        assert f"Stopped at step {steps:,} of 100,000,000, with a checkpoint." in out
        assert not (in_tmp / "r/model.zip").exists()
        self.follow(out)
        # In one go it would have come to the same.
        total = (steps // 48 + 2) * 48
        config = json.loads((in_tmp / "r/config.json").read_text())
        config["run"]["total_timesteps"] = total
        (in_tmp / "r/config.json").write_text(json.dumps(config))
        assert hmasd("train", "--resume", "r", "--no-tensorboard") == 0

    def follow(self, out: str) -> None:
        """The printed command works as it stands, up to how this package is found."""
        (command,) = (line.strip() for line in out.splitlines() if "hmasd_sb3.cli" in line or line.startswith("    hmasd"))
        words = shlex.split(command)
        words = words[words.index("train") :]
        assert words[:3] == ["train", "--resume", "r"]
        assert "--no-tensorboard" in words
        process = start(Path(), *words[1:])
        wait_until(lambda: len(checkpoints(Path("r"))) and "x", process)
        assert process.stdout is not None
        assert process.stdout.readline().startswith("Going on from r/checkpoints/checkpoint_")
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 143
        process.communicate()

    @pytest.mark.parametrize("step", [24, 48, 96])
    def test_an_evaluation_cut_short_is_made_up_for(
        self, step: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """In the middle of a rollout, before an update, before the last update; the second attempt is cut short as well."""
        arguments = ["--total-timesteps", "96", "--eval-freq", "24"]
        resume = ["train", "--resume", "r", "--checkpoint-freq", "48", "--no-tensorboard"]
        assert train(*arguments, "--run-dir", "s") == 0
        episodes_ended = ReportingEvalCallback._log_success_callback

        def interrupt(self: Any, *local_and_global: Any) -> None:
            if self.num_timesteps == step and local_and_global[0]["done"]:
                self._stop._handle(signal.SIGINT, None)
            episodes_ended(self, *local_and_global)

        with monkeypatch.context() as patch:
            patch.setattr(ReportingEvalCallback, "_log_success_callback", interrupt)
            assert train(*arguments, "--run-dir", "r") == 130
            assert step_of(checkpoints(Path("r"))[-1]) == step
            assert hmasd(*resume) == 130
            assert step_of(checkpoints(Path("r"))[-1]) == step
        capsys.readouterr()
        assert hmasd(*resume) == 0
        assert_same_metrics(Path("r"), Path("s"))
        assert same_parameters(Path("r/model.zip"), Path("s/model.zip"))
        assert np.load("r/evaluations.npz")["timesteps"].tolist() == [24, 48, 72, 96]

    def test_a_second_signal_ends_at_once(self, in_tmp: Path) -> None:
        arguments = ["--set", "env_kwargs={fault: sleep, at: 20}", "--total-timesteps", LONG, "--run-dir", "r"]
        process = start(in_tmp, *FAULTY, *arguments)
        wait_until(lambda: (in_tmp / "asleep").exists(), process)
        process.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1.0)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=10)
        assert process.returncode == 130
        assert "The training broke off. Checkpoints written before are kept." in out
        assert "--resume r" in out
        assert "Stopped at once." in err
        assert "Traceback" not in err
        assert checkpoints(in_tmp / "r")

    def test_nan_and_broken_games_have_codes_of_their_own(self, capsys: pytest.CaptureFixture[str]) -> None:
        for fault, code, message in (
            ("nan", 3, "Environment 0 returned NaN or infinity"),
            ("exit", 4, "an environment raised SystemExit: 0"),
            ("raise", 4, "an environment raised RuntimeError: the game broke"),
        ):
            arguments = ["--total-timesteps", LONG, "--set", f"env_kwargs={{fault: {fault}, at: 30}}"]
            assert hmasd("train", *FAULTY, *arguments, "--run-dir", fault) == code
            err = capsys.readouterr().err
            assert f"Error: {message}" in err
            assert ("Traceback" in err) == (fault != "nan")
            assert [step_of(path) for path in checkpoints(Path(fault))][-1] == 96
        arguments = [*arguments, "--n-workers", "1", "--run-dir", "worker"]
        assert hmasd("train", *FAULTY, *arguments) == 4
        assert "the game broke" in capsys.readouterr().err

    def test_anything_else_is_code_1(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        def full_disk(*_: Any, **__: Any) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(HMASD, "save", full_disk)
        assert train("--total-timesteps", "48") == 1
        assert "Error: OSError: [Errno 28] No space left on device" in capsys.readouterr().err
