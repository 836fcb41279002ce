"""The command ``hmasd train``: what a run leaves, what is refused before one begins."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from commands import (
    SMALL,
    assert_same_metrics,
    checkpoints,
    files_below,
    hmasd,
    metrics,
    step_of,
    train,
)

from hmasd_sb3 import HMASD
from hmasd_sb3.running import folder as folder_module
from hmasd_sb3.running.config import RunConfig
from hmasd_sb3.running.folder import new_folder

LONG = "100_000_000"
WITH_LOGS = [argument for argument in SMALL if argument != "--no-tensorboard"]


@pytest.fixture(autouse=True)
def in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Runs land in the working directory, which must not be the checkout."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


class TestCompleteRun:
    def test_leaves_what_it_promises(self, in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert hmasd("train", *WITH_LOGS, "--total-timesteps", "192", "--seed", "3") == 0
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
        assert re.search(r"^         96 steps: 50%, success .* about 0:\d\d left", out, re.MULTILINE)
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
        always = {"python", "hmasd-sb3", "torch", "numpy", "stable-baselines3", "gymnasium", "pettingzoo", "supersuit"}
        assert always <= set(content["versions"])
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
            (
                ["--env", "AliceAndBo-v0"],
                "'AliceAndBo-v0' is registered neither.*Did you mean 'AliceAndBob-v0'.* `hmasd envs` lists",
            ),
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
        assert hmasd("train", *WITH_LOGS, "--total-timesteps", "48", "--run-dir", "r") == 0
        assert not (in_tmp / "r/tensorboard").exists()
