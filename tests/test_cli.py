"""The command ``hmasd train``: what it refuses, what a run leaves, stopping and going on."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from commands import FAULTY, SMALL, checkpoints, hmasd, metrics, start, step_of, train, wait_until, without_times

from hmasd_sb3 import HMASD
from hmasd_sb3.monitoring.evaluation import ReportingEvalCallback
from hmasd_sb3.running import folder as folder_module
from hmasd_sb3.running.config import RunConfig
from hmasd_sb3.running.folder import RunFolder, new_folder

LONG = "100_000_000"


@pytest.fixture(autouse=True)
def in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Runs land in the working directory, which must not be the checkout."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def files_below(path: Path) -> list[str]:
    return sorted(str(file.relative_to(path)) for file in path.rglob("*"))


def same_parameters(one: Path, other: Path) -> bool:
    first, second = (HMASD.load(path, device="cpu").policy.state_dict() for path in (one, other))
    return first.keys() == second.keys() and all(th.equal(first[name], second[name]) for name in first)


def assert_same_metrics(one: Path, other: Path) -> None:
    first, second = without_times(metrics(one)), without_times(metrics(other))
    assert [line["step"] for line in first] == [line["step"] for line in second]
    for mine, yours in zip(first, second, strict=True):
        assert mine == pytest.approx(yours, rel=1e-6, abs=1e-9)


class TestCompleteRun:
    def test_leaves_what_it_promises(self, in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert train("--total-timesteps", "192", "--seed", "3", "--tensorboard") == 0
        (run,) = (in_tmp / "runs").iterdir()
        assert re.fullmatch(r"AliceAndBob-v0-seed3-\d{8}-\d{6}", run.name)
        names = {path.name for path in run.iterdir()} - {".lock"}
        assert names == {"config.json", "checkpoints", "metrics.jsonl", "evaluations.npz", "tensorboard", "model.zip"}
        assert [step_of(path) for path in checkpoints(run)] == [96, 144, 192]
        assert [line["step"] for line in metrics(run) if "eval/mean_reward" in line] == [96, 192]
        assert np.load(run / "evaluations.npz")["timesteps"].tolist() == [96, 192]
        assert list((run / "tensorboard").glob("events.out.tfevents.*"))
        assert HMASD.load(run / "model.zip").num_timesteps == 192
        out, err = capsys.readouterr()
        assert "Complete: 192 environment steps" in out
        assert "         96 steps: 50%, about 0:0" in out
        assert err == ""

    def test_config_names_everything_that_decides_the_run(self, in_tmp: Path) -> None:
        (in_tmp / "s.yml").write_text("AliceAndBob-v0: {gamma: 0.9, env_kwargs: {size: 5}, n_timesteps: 7, n_envs: 2}")
        assert train("--total-timesteps", "48", "--config", "s.yml", "--run-dir", "r", "--set", "ent_coef=lin_0.1") == 0
        content = json.loads((in_tmp / "r/config.json").read_text())
        run = content["run"]
        assert (run["env"], run["seed"], run["n_envs"], run["total_timesteps"]) == ("AliceAndBob-v0", 0, 4, 48)
        assert (run["eval_freq"], run["eval_episodes"], run["n_workers"], run["env_kwargs"]) == (96, 4, None, {"size": 5})
        assert run["hyperparameters"]["gamma"] == 0.9
        assert run["hyperparameters"]["ent_coef"] == "lin_0.1"
        assert set(content["versions"]) == {"python", "hmasd-sb3", "torch", "numpy", "stable-baselines3", "gymnasium"}
        assert content["git_commit"] is None
        model = HMASD.load("r/model.zip")
        assert (model.gamma, model.policy.hidden_size) == (0.9, 16)

    def test_git_commit_is_noted(self, in_tmp: Path) -> None:
        git = ["git", "-c", "user.name=n", "-c", "user.email=e@example.org"]
        for arguments in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "first"]):
            subprocess.run([*git, *arguments], check=True)
        assert re.fullmatch(r"[0-9a-f]{40}", str(folder_module.git_commit()))

    def test_normalized_environments(self, in_tmp: Path) -> None:
        assert train("--total-timesteps", "96", "--run-dir", "r", "--set", "normalize=true") == 0
        assert (in_tmp / "r/vecnormalize.pkl").exists()
        assert metrics(in_tmp / "r")

    def test_worker_processes(self, in_tmp: Path) -> None:
        assert train("--total-timesteps", "96", "--run-dir", "r", "--n-workers", "1", "--eval-freq", "0") == 0
        assert not (in_tmp / "r/evaluations.npz").exists()
        assert train("--total-timesteps", "96", "--run-dir", "s", "--eval-freq", "0") == 0
        assert_same_metrics(in_tmp / "r", in_tmp / "s")

    def test_runs_of_the_same_second_get_folders_of_their_own(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(folder_module.time, "strftime", lambda _: "20300101-000000")
        names = [new_folder(RunConfig(env="some.module:game"), None).path.name for _ in range(3)]
        assert names[0] == "some.module-game-seed0-20300101-000000"
        assert len(set(names)) == 3

    def test_help_says_what_exit_codes_mean(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert hmasd("--help") == 0
        assert re.search(r"^ +train ", capsys.readouterr().out, re.MULTILINE)
        assert hmasd("train", "--help") == 0
        out = capsys.readouterr().out
        assert "train [OPTIONS]" in out
        for code in ("0", "1", "2", "3", "4", "130"):
            assert re.search(rf"^  +{code} +\w", out, re.MULTILINE)
        assert "--supervised" not in out


class TestWrongInput:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--env", "AliceAndBo-v0"], "'AliceAndBo-v0' is registered neither.*Did you mean 'AliceAndBob-v0'"),
            (["--env", "nowhere:game"], "cannot import 'nowhere'"),
            (["--env", "cli_games:FaultTeam"], "has no 'FaultTeam'. Did you mean FaultyTeam"),
            (["--env", "cli_games:refusing"], "this game cannot be made"),
            (["--env", "CartPole-v1"], "team"),
            (["--env", ""], "--env must be an id"),
            (["--set", "gama=0.9"], "there is no setting 'gama' .*Did you mean 'gamma'"),
            (["--set", "batch_size=7"], "batch_size=7 does not divide"),
            (["--set", "env_kwargs={'siz': 3}"], "unexpected keyword argument 'siz'"),
            (["--set", "normalize={'norm_ob': true}"], "unexpected keyword argument 'norm_ob'"),
            (["--set", "normalize={norm_obs_keys: [stat]}"], "observations hold no 'stat'.*Did you mean 'state'"),
            (["--n-workers", "5"], "n_workers must be .* from 1 to the number of environments, 4; got 5"),
            (["--config", "nothing.yml"], "--config nothing.yml: cannot be read: No such file"),
            (["--resume", "nothing"], "--resume nothing: there is no such checkpoint or run folder"),
            (["--resume", "."], "--resume .: is no folder of a run"),
        ],
    )
    def test_one_line_and_nothing_written(
        self, in_tmp: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
    ) -> None:
        assert train(*arguments) == 2
        out, err = capsys.readouterr()
        assert re.fullmatch(rf"Error: .*{message}.*\n", err), err
        assert out == ""
        assert files_below(in_tmp) == []

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--n-envs", "0"], "--n-envs"),
            (["--total-timesteps", "-1"], "--total-timesteps"),
            (["--eval-freq", "often"], "--eval-freq"),
            (["--max-restarts", "-1"], "--max-restarts"),
            (["--n-env", "3"], "--n-envs"),
            (["stray"], "stray"),
        ],
    )
    def test_options_that_cannot_be_read(
        self, in_tmp: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
    ) -> None:
        assert train(*arguments) == 2
        err = capsys.readouterr().err
        assert message in err
        assert "Traceback" not in err
        assert files_below(in_tmp) == []

    def test_folders_that_hold_something_are_left_alone(self, in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (in_tmp / "mine").mkdir()
        (in_tmp / "mine/model.zip").write_text("precious")
        (in_tmp / "file").write_text("precious")
        for run_dir, message in (("mine", "holds files already"), ("file", "is a file, not a folder")):
            for resume in ([], ["--resume", "auto"]):
                assert train("--run-dir", run_dir, *resume) == 2
                assert message in capsys.readouterr().err
        assert files_below(in_tmp) == ["file", "mine", "mine/model.zip"]

    def test_a_folder_that_cannot_be_made(self, in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (in_tmp / "runs").write_text("a file")
        assert train() == 2
        assert re.fullmatch(r"Error: The run's folder runs.* cannot be made: .*\n", capsys.readouterr().err)

    def test_a_missing_package_is_named_before_any_work(
        self, in_tmp: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "tensorboard", None)
        assert train("--tensorboard") == 2
        assert 'needs the package "tensorboard"' in capsys.readouterr().err
        assert files_below(in_tmp) == []
        without = [argument for argument in SMALL if argument != "--no-tensorboard"]
        assert hmasd("train", *without, "--total-timesteps", "48", "--run-dir", "r") == 0
        assert not (in_tmp / "r/tensorboard").exists()


@pytest.fixture
def run(in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """A complete run of 192 environment steps."""
    assert train("--total-timesteps", "192", "--run-dir", "run", "--keep-checkpoints", "9") == 0
    capsys.readouterr()
    return in_tmp / "run"


def break_off(run: Path, step: int) -> None:
    """What a run looks like that was killed somewhat after its checkpoint at ``step``."""
    (run / "model.zip").unlink()
    for path in checkpoints(run):
        if step_of(path) > step:
            path.unlink()


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

    def test_an_earlier_checkpoint(self, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
        good = (run / "model.zip").rename(run.parent / "good.zip")
        assert hmasd("train", "--resume", "run/checkpoints/checkpoint_000000000096.zip", "--checkpoint-freq", "48") == 0
        out = capsys.readouterr().out
        assert "Going on from run/checkpoints/checkpoint_000000000096.zip, step 96 of 192" in out
        (aside,) = run.glob("checkpoints/set_aside_*")
        assert "Later checkpoints were moved to" in out
        assert sorted(step_of(path) for path in aside.iterdir()) == [144, 192]
        assert [step_of(path) for path in checkpoints(run)] == [96, 144, 192]
        assert same_parameters(good, run / "model.zip")

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
        self.make(broken_off=False)
        self.make("--seed", "1")
        self.make("--set", "gamma=0.9")
        capsys.readouterr()
        assert train("--total-timesteps", "96", "--resume", "auto") == 0
        assert f"Going on from {newer}/checkpoints/checkpoint_000000000048.zip" in capsys.readouterr().out
        assert train("--total-timesteps", "96", "--resume", "auto") == 0
        assert f"Going on from {older}/checkpoints" in capsys.readouterr().out
        assert train("--total-timesteps", "96", "--resume", "auto") == 0
        assert "No unfinished run below runs/ was started by this command: a new one begins." in capsys.readouterr().out
        assert len(list(Path("runs").iterdir())) == 6

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

    @pytest.mark.parametrize("step", [24, 48])
    def test_an_evaluation_cut_short_is_made_up_for(
        self, step: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """In the middle of a rollout, and at its end, before its update; the second attempt is cut short as well."""
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
            ("raise", 4, "an environment raised RuntimeError: the game broke"),
        ):
            arguments = ["--total-timesteps", LONG, "--set", f"env_kwargs={{fault: {fault}, at: 30}}"]
            assert hmasd("train", *FAULTY, *arguments, "--run-dir", fault) == code
            err = capsys.readouterr().err
            assert f"Error: {message}" in err
            assert ("Traceback" in err) == (fault == "raise")
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
